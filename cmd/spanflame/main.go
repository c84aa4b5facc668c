// Command spanflame runs the demo shop's services under the agent and drives them with load. It wires the
// public packages together and decides nothing itself.
package main

import (
	"context"
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
		os.Exit(1)
	}
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
	root.AddCommand(newWorkloadCommand(), newLoadCommand(), newDemoCommand(), newHealthCommand(), newVersionCommand())
	return root
}
