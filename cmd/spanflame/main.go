// Command spanflame runs the demo, the workload and the load generator, and reads saved profiles. It wires packages
// together and has no logic of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal the default action applies again, so that a second signal ends a process that hangs.
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Stdout, os.Stderr, os.Args[1:]...); err != nil {
		fmt.Fprintln(os.Stderr, "spanflame:", err)
		os.Exit(exitCode(err))
	}
}

// exitError is an error with an exit code of its own, so that scripts can distinguish a finding from a failure.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string { return e.err.Error() }

func (e exitError) Unwrap() error { return e.err }

// exitCode returns the exit code for err: 1 if the error has none of its own.
func exitCode(err error) int {
	if own, ok := errors.AsType[exitError](err); ok {
		return own.code
	}
	return 1
}

// run executes one command line. Results go to stdout, progress to stderr.
func run(ctx context.Context, stdout, stderr io.Writer, args ...string) error {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "spanflame",
		Short:         "Continuous profiling for Go: a slow trace opens onto the flame graph of its span",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		newDemoCommand(), newViewCommand(), newCompareCommand(), newLeaksCommand(), newWatchCommand(), newMergeCommand(),
		newSlowCommand(), newWhyCommand(), newIncidentCommand(), newMCPCommand(), newWorkloadCommand(), newLoadCommand(),
		newScrapeCommand(), newHealthCommand(), newVersionCommand(),
	)
	return root
}
