package main

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"spanflame/cmd/spanflame/demo"
)

// interruptedCode is the exit code that shells use for a program ended by Ctrl-C: 128 plus the number of SIGINT.
const interruptedCode = 130

func newDemoCommand() *cobra.Command {
	var o demo.Options
	var backend string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run the workload under load, and open its slowest trace onto the flame graph",
		Long: `Run both services of the workload under load, first with two faults in the storefront and then with their
repairs. With --faults, other faults are chosen, and the requests that show them are added to the load; GET /faults of
a service lists them, and so does docs/faults.md. Print the slowest trace with its diagnosis and its link, the leak, and a comparison of both halves. Serve
the pages until Ctrl-C. The first link is printed as soon as there is a slow trace.

Traces and profiles are saved in the demo's directory: neither a server nor Docker is needed. With --backend=stack
a real Pyroscope and a real Tempo are started. They are built from their Go modules if they are not cached,
which takes some minutes the first time and requires a checkout. With --backend=servers, the default if
PYROSCOPE_SERVER_ADDRESS and SPANFLAME_TEMPO_ADDRESS are both set, these are used, and the agents read the
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
	flags.StringVar(&o.Dir, "dir", "data/demo", "directory for everything the demo writes; data of the last run is removed")
	flags.StringVar(&backend, "backend", "", "where traces and profiles go: local, stack or servers")
	flags.StringVar(&o.Listen, "listen", "", "address of the pages (default 127.0.0.1:7070, or a free port if that is in use)")
	flags.StringSliceVar(&o.Faults, "faults", demo.DefaultFaults, "names of the faults to switch on")
	flags.Float64Var(&o.Rate, "rate", 30, "requests per second, without those that --faults adds")
	flags.DurationVar(&o.Duration, "duration", 28*time.Second, "duration of the load: half with the faults, half with their repairs")
	flags.BoolVar(&o.Exit, "exit", false, "end after the summary instead of serving the pages until Ctrl-C")
	return cmd
}
