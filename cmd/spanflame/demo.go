package main

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"spanflame/cmd/spanflame/demo"
)

// interruptedCode is the exit code of a program that Ctrl-C ended, as shells have it: 128 and SIGINT's number.
const interruptedCode = 130

func newDemoCommand() *cobra.Command {
	var o demo.Options
	var backend string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run the shop under load, and open its slowest trace onto the flame graph",
		Long: `Run both services of the shop under load, first with two mistakes in the storefront and then with their
repairs; print the slowest trace with its diagnosis and its link, the leak, and before against after; and serve
the pages until Ctrl-C. The first link comes as soon as there is a slow trace.

Traces and profiles are saved in the demo's directory: no server is needed, and no Docker. With --backend=stack
a real Pyroscope and a real Tempo are started; they are built from their Go modules when they are not cached,
which takes some minutes the first time and works inside a checkout. With --backend=servers, the default where
PYROSCOPE_SERVER_ADDRESS and SPANFLAME_TEMPO_ADDRESS are both set, these are used; the agents then take the
rest of their settings (OTEL_*, PYROSCOPE_*) from the environment.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Binary, err = os.Executable(); err != nil {
				return err
			}
			if o.Dir, err = filepath.Abs(o.Dir); err != nil {
				return err
			}
			o.Backend, o.Environ = demo.Backend(backend), os.Environ()
			o.Out, o.Progress = cmd.OutOrStdout(), cmd.ErrOrStderr()
			o.Terminal = isTerminal(o.Progress)
			err = demo.Run(cmd.Context(), o)
			if errors.Is(err, demo.ErrInterrupted) {
				return exitError{interruptedCode, err}
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Dir, "dir", "data/demo", "directory for everything the demo writes; what the last run left there is removed")
	flags.StringVar(&backend, "backend", "", "where traces and profiles go: local, stack or servers")
	flags.StringVar(&o.Listen, "listen", "", "address of the pages (default 127.0.0.1:7070, or a free port where that is taken)")
	flags.Float64Var(&o.Rate, "rate", 30, "requests per second")
	flags.DurationVar(&o.Duration, "duration", 28*time.Second, "of the load: half of it with the mistakes, half with their repairs")
	flags.BoolVar(&o.Exit, "exit", false, "end after the summary instead of serving the pages until Ctrl-C")
	return cmd
}
