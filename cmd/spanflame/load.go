package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"spanflame/internal/redact"
	"spanflame/workload/faults"
	"spanflame/workload/load"
)

// errAllFailed makes the process exit with 1; the report contains the reasons.
var errAllFailed = errors.New("every request failed")

func newLoadCommand() *cobra.Command {
	var cfg load.Config
	var mix, format, fault, inventory string
	var other otherService
	cmd := &cobra.Command{
		Use:   "load",
		Short: "Drive a storefront, or any service, with an open loop and report its latencies",
		Long: `Drive a storefront, or with --url any service, with an open loop: requests follow a fixed schedule, whether or not answers arrive, and
latency is measured from the time at which a request was due. The report goes to standard output, progress to
standard error. The exit code is 1 if every request failed.

With --fault, a fault of the storefront or the inventory is switched on during the load, and repaired at its end,
also after Ctrl-C. Unless --mix and --rate say otherwise, the load is the requests that the fault makes slow, and those
that cause it, as many as show it. GET /faults lists the faults. Settings can follow the name: --fault
'report-lock?report_ms=100'.

With --url, all requests go to that address of any service. At most 1 MiB of an answer is read.`,
		Example: `  spanflame load --rate 20 --duration 1m
  spanflame load --url http://127.0.0.1:9000/orders --body @order.json --header 'Content-Type: application/json'`,
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
			if other.set() {
				if cfg.Target, cfg.Mix, err = other.requests(); err != nil {
					return err
				}
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
				return fmt.Errorf("%w: does a service listen at %s?", errAllFailed, redact.URL(cfg.Target))
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
	flags.StringVar(&other.url, "url", "", "address of any service, with path and query, to which all requests go")
	flags.StringVar(&other.method, "method", "", "method of the requests to --url (default GET, or POST with --body)")
	flags.StringVar(&other.body, "body", "", "body of the requests to --url; @FILE reads it from a file")
	flags.StringArrayVar(&other.headers, "header", nil, "'Name: value' of the requests to --url; repeatable")
	for _, name := range []string{"target", "mix", "fault", "inventory"} {
		cmd.MarkFlagsMutuallyExclusive("url", name)
	}
	return cmd
}

// otherService is what the flags say about a service that is not the storefront.
type otherService struct {
	url, method, body string
	headers           []string
}

func (o otherService) set() bool { return o.url+o.method+o.body != "" || o.headers != nil }

// requests returns the target and the one request that is sent to it.
func (o otherService) requests() (target string, mix load.Mix, err error) {
	if o.url == "" {
		return "", nil, errors.New("--method, --body and --header require --url")
	}
	target, e, err := load.ParseURL(o.url)
	if err != nil {
		return "", nil, err
	}
	e.Body = []byte(o.body)
	if file, named := strings.CutPrefix(o.body, "@"); named {
		if e.Body, err = os.ReadFile(file); err != nil {
			return "", nil, fmt.Errorf("--body: %w", err)
		}
	}
	if o.body != "" {
		e.Method = http.MethodPost
	}
	e.Method = cmp.Or(o.method, e.Method)
	lines := strings.NewReader(strings.Join(o.headers, "\r\n") + "\r\n\r\n")
	header, err := textproto.NewReader(bufio.NewReader(lines)).ReadMIMEHeader()
	if err != nil {
		return "", nil, fmt.Errorf("--header: %w: want 'Name: value'", err)
	}
	e.Header = http.Header(header)
	return target, load.Mix{{Endpoint: e, Weight: 1}}, nil
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
