package main

import (
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"spanflame/internal/demo"
)

func newDemoCommand() *cobra.Command {
	var o demo.Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run the shop under load on real servers and open its slowest trace",
		Long: `Run both services of the shop under load on a real Pyroscope and a real Tempo, find the slowest trace, print
its flame graph and the leak in the memory profile, and end everything. The servers are built from their Go
modules when they are not cached, which takes some minutes the first time. It works inside a checkout.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Binary, err = os.Executable(); err != nil {
				return err
			}
			if o.Dir, err = filepath.Abs(o.Dir); err != nil {
				return err
			}
			o.Out, o.Progress = cmd.OutOrStdout(), cmd.ErrOrStderr()
			o.Terminal = isTerminal(o.Progress)
			return demo.Run(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.Dir, "dir", "data/demo", "directory for everything the demo writes")
	cmd.Flags().Float64Var(&o.Rate, "rate", 20, "requests per second")
	cmd.Flags().DurationVar(&o.Duration, "duration", 20*time.Second, "how long to send")
	return cmd
}
