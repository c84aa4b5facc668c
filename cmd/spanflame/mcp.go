package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"spanflame/cmd/spanflame/mcp"
	"spanflame/profiles/why"
	"spanflame/viewer/source"
)

func newMCPCommand() *cobra.Command {
	var o viewOptions
	cmd := withExitCodes(&cobra.Command{
		Use:   "mcp",
		Short: "Answer a language model's questions about slow requests, on standard input and output",
		Long: `Serve the Model Context Protocol on standard input and output, for an assistant that starts the command: tools for slow
traces by problem, why a trace took so long, the top functions of a span, comparisons and leaks. The tools only read, and each
answer is short, says how sure it is, and what is missing.

Traces and profiles are read from the directory that agents save to (--dir, SPANFLAME_DIR, or the default directory), or
from servers with --tempo or --jaeger and --pyroscope. --dir may also be any other directory of profiles.

Exits with 0 when the input ends, and 2 if the command line cannot be used, the directory is not found, or a message cannot be
read.`,
		Example: `  spanflame mcp
  spanflame mcp --dir data/demo/saved
  spanflame mcp --tempo http://127.0.0.1:3200 --pyroscope http://127.0.0.1:4040`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return unusable(serveMCP(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout(), o))
		},
	}, cobra.NoArgs)
	flags := cmd.Flags()
	o.addSource(flags)
	o.addSlowSpan(flags)
	return cmd
}

// serveMCP answers until the input ends or ctx does.
func serveMCP(ctx context.Context, in io.Reader, out io.Writer, o viewOptions) error {
	if err := o.checkSlowSpan(); err != nil {
		return err
	}
	return withSource(ctx, o, func(from source.Source) error {
		explain := func(ctx context.Context, traceID, service, name string, last time.Duration) (*why.Report, error) {
			return whyOptions{service: service, name: name, last: last}.explain(ctx, from, traceID)
		}
		return mcp.Run(ctx, mcp.Options{Source: from, Version: versionText(), SlowSpan: o.slowSpan, Explain: explain}, in, out)
	})
}
