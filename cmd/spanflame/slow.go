package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"spanflame/cmd/spanflame/mcp"
	"spanflame/viewer/source"
)

type slowOptions struct {
	viewOptions
	mcp.Slow
	last time.Duration
}

func newSlowCommand() *cobra.Command {
	var o slowOptions
	cmd := withExitCodes(&cobra.Command{
		Use:   "slow",
		Short: "List slow requests by problem",
		Long: `List slow requests by service, route and cause, what cost most time in all first: how many there are, how slow they
are, why, and the slowest trace, which the command why explains.

Traces and profiles are read from the directory that agents save to (--dir, SPANFLAME_DIR, or the default directory), or
from servers with --tempo or --jaeger and --pyroscope.

Exits with 0 if there are traces or none, and 2 if the command line cannot be used or the directory is not found.`,
		Example: `  spanflame slow
  spanflame slow --service storefront --last 1h --without events`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return unusable(o.run(cmd.Context(), cmd.OutOrStdout()))
		},
	}, cobra.NoArgs)
	flags := cmd.Flags()
	o.addSource(flags)
	o.addSlowSpan(flags)
	flags.StringVar(&o.Service, "service", "", "only traces through this service")
	flags.StringVar(&o.Name, "name", "", "only traces with this part in the name of a route or span")
	flags.StringVar(&o.Without, "without", "", "leave out traces with these parts in the name of their root, with commas between them")
	flags.DurationVar(&o.last, "last", 0, "only traces that began within this time, such as 1h (default all of a directory, the last 7 days of servers)")
	return cmd
}

func (o slowOptions) run(ctx context.Context, stdout io.Writer) error {
	if err := o.checkSlowSpan(); err != nil {
		return err
	}
	switch {
	case o.last < 0:
		return fmt.Errorf("--last %v: want a duration above zero, such as 1h", o.last)
	case o.last > 0:
		o.Last = o.last.String()
	}
	return withSource(ctx, o.viewOptions, func(from source.Source) error {
		text, err := mcp.SlowTraces(ctx, mcp.Options{Source: from, SlowSpan: o.slowSpan}, o.Slow)
		if err != nil {
			return err
		}
		_, err = io.WriteString(stdout, text)
		return err
	})
}
