package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"spanflame/workload/faults"
	"spanflame/workload/load"
)

// errAllFailed makes the process exit with 1; the report contains the reasons.
var errAllFailed = errors.New("every request failed")

func newLoadCommand() *cobra.Command {
	var cfg load.Config
	var mix, format, fault, inventory string
	cmd := &cobra.Command{
		Use:   "load",
		Short: "Drive a storefront with an open loop and report its latencies",
		Long: `Drive a storefront with an open loop: requests follow a fixed schedule, whether or not answers arrive, and
latency is measured from the time at which a request was due. The report goes to standard output, progress to
standard error. The exit code is 1 if every request failed.

With --fault, a fault of the storefront or the inventory is switched on during the load, and repaired at its end,
also after Ctrl-C. Unless --mix and --rate say otherwise, the load is the requests that the fault makes slow, and those
that cause it, as many as show it. GET /faults lists the faults. Settings can follow the name: --fault
'report-lock?report_ms=100'.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cfg.Rate == 0 {
				return errors.New("rate 0: must be above 0")
			}
			if cfg.Duration == 0 {
				return errors.New("duration 0s: must be above 0")
			}
			write, err := byFormat(format, map[string]func(load.Report, io.Writer) error{"text": load.Report.WriteText, "json": writeJSON})
			if err != nil {
				return err
			}
			if cfg.Mix, err = load.ParseMix(mix); err != nil {
				return err
			}
			stderr := cmd.ErrOrStderr()
			if fault != "" {
				found, err := faults.Find(cmd.Context(), fault, cfg.Target, inventory)
				if err != nil {
					return err
				}
				faultMix, rate := load.FaultMix(found.Fault)
				if !cmd.Flags().Changed("mix") {
					cfg.Mix = faultMix
				}
				if !cmd.Flags().Changed("rate") {
					cfg.Rate = rate
				}
				if err := cfg.Validate(); err != nil { // before the fault is on
					return err
				}
				if err := found.On(cmd.Context()); err != nil {
					return err
				}
				defer func() { err = errors.Join(err, found.Off(cmd.Context())) }()
				fmt.Fprintf(stderr, "%s is on in the %s: %s\n", found.Fault.Name, found.Fault.Service, found.Fault.Does)
			}
			terminal := isTerminal(stderr)
			cfg.Interval = 5 * time.Second
			if terminal {
				cfg.Interval = 200 * time.Millisecond
			}
			cfg.Progress = load.ProgressPrinter(stderr, terminal)
			report, err := load.Run(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if terminal {
				fmt.Fprintln(stderr)
			}
			if err := write(report, cmd.OutOrStdout()); err != nil {
				return fmt.Errorf("write the report: %w", err)
			}
			if report.AllFailed() {
				return fmt.Errorf("%w: is there a storefront at %s (--target)?", errAllFailed, cfg.Target)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&cfg.Target, "target", "http://127.0.0.1:8080", "base URL of the storefront, http or https")
	flags.Float64Var(&cfg.Rate, "rate", 10, "requests per second")
	flags.DurationVar(&cfg.Duration, "duration", 30*time.Second, "how long to send requests")
	flags.StringVar(&mix, "mix", load.DefaultMix().String(), "requests to send, as name=weight,…; also: single, heavy, leak, goroutines")
	flags.StringVar(&fault, "fault", "", "name of a fault to switch on during the load")
	flags.StringVar(&inventory, "inventory", "http://127.0.0.1:8081", "base URL of the inventory, for its faults")
	flags.IntVar(&cfg.Concurrency, "concurrency", 256, "most requests in flight; requests due above that are shed and counted")
	flags.DurationVar(&cfg.Timeout, "timeout", 30*time.Second, "time limit of one request")
	flags.StringVar(&format, "format", "text", "format of the report: text or json")
	return cmd
}

func writeJSON(report load.Report, w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(report)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
