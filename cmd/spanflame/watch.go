package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/profiles"
	"spanflame/profiles/watch"
	"spanflame/viewer"
	"spanflame/viewer/source"
)

type watchOptions struct {
	viewOptions
	watch.Options
	least  float64
	viewer string
	once   bool
}

func newWatchCommand() *cobra.Command {
	var o watchOptions
	cmd := withExitCodes(&cobra.Command{
		Use:   "watch",
		Short: "Look for functions that became slower, while services run",
		Long: `Compare every few minutes the newest profiles of each service with those of the version before, and with those of the
same hour a day and a week ago, until SIGINT or SIGTERM. What is compared is the share of a function in the CPU time and in
the allocated bytes of its service. A function whose share grew significantly is printed once, with the address of the
viewer's comparison; /metrics has it as spanflame_regression until it is gone.

Profiles are read from the directory that agents save to (--dir, SPANFLAME_DIR, or the default directory), or from
servers with --tempo or --jaeger and --pyroscope.

With --once, compare once, print what was found, and exit with 1 if anything was. Otherwise exits with 0; with 2 if the
command line cannot be used or the directory is not found.`,
		Example: `  spanflame watch
  spanflame watch --once --dir data/demo/saved
  spanflame watch --tempo http://127.0.0.1:3200 --pyroscope http://127.0.0.1:4040 --viewer http://127.0.0.1:7070`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, err := o.run(cmd.Context(), cmd.OutOrStdout())
			if err == nil && o.once && found > 0 {
				return exitError{codeFound, fmt.Errorf("functions with a larger share than before: %d", found)}
			}
			return unusable(err)
		},
	}, cobra.NoArgs)
	flags := cmd.Flags()
	o.addSource(flags)
	flags.StringVar(&o.listen, "listen", "127.0.0.1:7071", "address of /metrics and /regressions")
	flags.StringSliceVar(&o.hosts, "host", nil, "additional host names under which they are served")
	flags.StringVar(&o.viewer, "viewer", "http://127.0.0.1:7070", "URL of the viewer to link to")
	flags.DurationVar(&o.Every, "every", 5*time.Minute, "time between comparisons")
	flags.DurationVar(&o.Recent, "recent", 15*time.Minute, "how far back the newest profiles reach")
	flags.Float64Var(&o.least, "least", 10, "smallest growth of a function's share to report, in percent of that share")
	flags.BoolVar(&o.once, "once", false, "compare once")
	return cmd
}

func (o watchOptions) run(ctx context.Context, stdout io.Writer) (found int, err error) {
	if o.Every <= 0 || o.Recent <= 0 || o.least <= 0 {
		return 0, fmt.Errorf("--every %v --recent %v --least %v: want values above zero", o.Every, o.Recent, o.least)
	}
	base, err := url.Parse(o.viewer)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" {
		return 0, fmt.Errorf("--viewer %q: want a URL such as http://127.0.0.1:7070", o.viewer)
	}
	host, _, err := net.SplitHostPort(o.listen)
	if err != nil {
		return 0, fmt.Errorf("--listen %q: want HOST:PORT, such as 127.0.0.1:7071: %w", o.listen, err)
	}
	o.Least = o.least / 100
	err = withSource(ctx, o.viewOptions, func(from source.Source) error {
		w, err := watch.New(watched{from}, o.Options)
		if err != nil {
			return err
		}
		r := &watcher{Watcher: w, viewer: base, out: stdout}
		if o.once {
			found, err = r.round(ctx, time.Now())
			fmt.Fprintln(stdout, "Compared: "+cmp.Or(strings.Join(w.Compared(), "; "), "nothing, as there are too few profiles; docs/watch.md says which are needed"))
			return err
		}
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.listen)
		if err != nil {
			return fmt.Errorf("--listen %s: %w", o.listen, err)
		}
		defer listener.Close() // which Serve does, too
		fmt.Fprintf(stdout, "%s is compared every %v; %s/metrics has what became slower\n", described(o.viewOptions), o.Every, viewer.URL(listener.Addr()))
		return r.serve(ctx, listener, append(o.hosts, host), o.Every)
	})
	return found, err
}

// watcher prints and serves what is found.
type watcher struct {
	*watch.Watcher
	viewer *url.URL
	out    io.Writer

	rounds, failed prometheus.Counter
}

// round compares once, and returns how many regressions there are.
func (w *watcher) round(ctx context.Context, now time.Time) (found int, err error) {
	fresh, err := w.Round(ctx, now)
	for _, r := range fresh {
		fmt.Fprintf(w.out, "%s: %s has %.1f %% of %s, it was %.1f %% %s (q %s)\n  %s\n", format.Clean(r.Service, 200), format.Clean(r.Function, 200),
			100*r.After, words[r.Metric], 100*r.Before, against[r.Baseline], format.Probability(r.Q), w.link(r))
	}
	return len(w.Found()), err
}

// words are the metrics in a sentence.
var words = map[string]string{"cpu": "the CPU time", "alloc_space": "the allocated bytes"}

// against are the baselines in a sentence.
var against = map[string]string{watch.VersionBefore: "in the version before", watch.DayAgo: "a day ago", watch.WeekAgo: "a week ago"}

// types are the types of the viewer's pages, by metric.
var types = map[string]record.Type{"cpu": record.CPU, "alloc_space": record.Memory}

// link is the address of the comparison in the viewer.
func (w *watcher) link(r watch.Regression) string {
	q := url.Values{"what": {"times"}, "service": {r.Service}, "type": {string(types[r.Metric])}}
	for i, side := range []string{"a", "b"} {
		of := r.Compared[i]
		q.Set(side+"from", of.From.UTC().Format(time.RFC3339))
		q.Set(side+"to", of.To.UTC().Format(time.RFC3339))
		if of.Version != "" {
			q.Set(side+"version", of.Version)
		}
	}
	u := w.viewer.JoinPath("compare")
	u.RawQuery = q.Encode()
	return u.String()
}

// serve compares at once and then regularly, and serves what was found, until ctx ends.
func (w *watcher) serve(ctx context.Context, listener net.Listener, hosts []string, every time.Duration) error {
	registry := prometheus.NewRegistry()
	w.rounds = prometheus.NewCounter(prometheus.CounterOpts{Name: "spanflame_watch_rounds_total", Help: "Comparisons of all services."})
	w.failed = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "spanflame_watch_failed_rounds_total", Help: "Comparisons in which a service, or all, could not be compared.",
	})
	registry.MustRegister(w, w.rounds, w.failed)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /regressions", w.list)
	mux.HandleFunc("GET /regression", w.redirect)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- viewer.Serve(ctx, listener, viewer.Guard(mux, hosts), slog.Default()) }()
	ticks := time.NewTicker(every)
	defer ticks.Stop()
	for {
		_, err := w.round(ctx, time.Now())
		if ctx.Err() != nil {
			return <-served
		}
		w.rounds.Inc()
		if err != nil {
			w.failed.Inc()
			slog.Warn("not everything could be compared", slog.Any("error", err))
		}
		select {
		case err := <-served:
			return err
		case <-ticks.C:
		}
	}
}

// list writes the regressions as JSON.
func (w *watcher) list(rw http.ResponseWriter, _ *http.Request) {
	type row struct {
		watch.Regression
		Link string `json:"link"`
	}
	rows := []row{}
	for _, r := range w.Found() {
		rows = append(rows, row{r, w.link(r)})
	}
	rw.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(rw)
	e.SetIndent("", "  ")
	_ = e.Encode(rows) // a client that is gone need not have it
}

// redirect leads to the viewer's comparison of the regression that has the parameters' labels: what an alert can link to.
func (w *watcher) redirect(rw http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	want := watch.Key{Service: q.Get("service_name"), Metric: q.Get("metric"), Function: q.Get("function"), Baseline: q.Get("baseline")}
	found := w.Found()
	if i := slices.IndexFunc(found, func(r watch.Regression) bool { return labelled(r.Key) == want }); i >= 0 {
		http.Redirect(rw, r, w.link(found[i]), http.StatusFound)
		return
	}
	http.Error(rw, "There is no such regression any more. /regressions lists those that there are.", http.StatusNotFound)
}

var regression = prometheus.NewDesc("spanflame_regression",
	"How much larger the share of a function in its service is than in the baseline, of 1 for all of the service's CPU time or allocated bytes.",
	[]string{"service_name", "metric", "function", "baseline"}, nil)

// Describe implements [prometheus.Collector].
func (w *watcher) Describe(to chan<- *prometheus.Desc) { to <- regression }

// Collect implements [prometheus.Collector].
func (w *watcher) Collect(to chan<- prometheus.Metric) {
	seen := make(map[watch.Key]bool) // long names can become equal
	for _, r := range w.Found() {
		k := labelled(r.Key)
		if !seen[k] {
			seen[k] = true
			to <- prometheus.MustNewConstMetric(regression, prometheus.GaugeValue, r.After-r.Before, k.Service, k.Metric, k.Function, k.Baseline)
		}
	}
}

// labelled is the key as labels, of a bounded length.
func labelled(k watch.Key) watch.Key {
	k.Service, k.Function = format.Clean(k.Service, 200), format.Clean(k.Function, 200)
	return k
}

// watched reads the profiles of a source.
type watched struct{ source.Source }

const watchedVersions = 20 // of a day

// Versions implements [watch.Source].
func (s watched) Versions(ctx context.Context, service string, from, to time.Time) (all []watch.Version, err error) {
	contents, err := s.Contents(ctx, service, from, to)
	if err != nil {
		return nil, err
	}
	for _, c := range contents {
		if c.Type != record.CPU || c.Version == "" || len(all) == watchedVersions {
			continue
		}
		windows, err := s.Windows(ctx, source.Selection{Service: service, Version: c.Version, Type: record.CPU, From: from, To: to})
		if err != nil && !errors.Is(err, profiles.ErrNone) {
			return nil, err
		}
		if len(windows) > 0 {
			last := slices.MaxFunc(windows, func(a, b source.Window) int { return a.To.Compare(b.To) })
			all = append(all, watch.Version{Name: c.Version, First: windows[0].From, Last: last.To})
		}
	}
	return all, nil
}

// Series implements [watch.Source].
func (s watched) Series(ctx context.Context, of watch.Side, t record.Type, most int) iter.Seq2[profiles.Window, error] {
	return s.Source.Series(ctx, source.Selection{Service: of.Service, Version: of.Version, Type: t, From: of.From, To: of.To}, most)
}
