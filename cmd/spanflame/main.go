// Command spanflame runs the demo and its pieces, and reads saved profiles. It wires the public packages
// together and decides nothing itself.
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
	// After the first signal the default takes over again, so that a second one ends a process that hangs.
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Stdout, os.Stderr, os.Args[1:]...); err != nil {
		fmt.Fprintln(os.Stderr, "spanflame:", err)
		os.Exit(exitCode(err))
	}
}

// exitError is an error for which the process ends with a code of its own, for scripts that tell what a
// command found from a command that failed.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string { return e.err.Error() }

func (e exitError) Unwrap() error { return e.err }

// exitCode is the code that the process ends with: 1 for an error that carries none.
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
		newDemoCommand(), newViewCommand(), newCompareCommand(), newLeaksCommand(), newMergeCommand(),
		newWorkloadCommand(), newLoadCommand(), newHealthCommand(), newVersionCommand(),
	)
	return root
}
