package load

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"spanflame/internal/redact"
)

// maxLatency is the largest latency that a histogram distinguishes; longer ones count as this one.
const maxLatency = time.Hour

// measured is an endpoint and its measurements.
type measured struct {
	Endpoint
	shed, abandoned atomic.Int64

	mu        sync.Mutex
	latencies *hdrhistogram.Histogram // microseconds, three digits
	errors    map[string]int64
}

func newMeasured(e Endpoint) *measured {
	return &measured{
		Endpoint:  e,
		latencies: hdrhistogram.New(1, maxLatency.Microseconds(), 3),
		errors:    map[string]int64{},
	}
}

func (m *measured) record(latency time.Duration, failure string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	// The value was clamped, so the histogram cannot refuse it.
	_ = m.latencies.RecordValue(max(1, min(latency, maxLatency).Microseconds()))
	if failure != "" {
		m.errors[failure]++
	}
}

// Report is the result of a run. Latencies are in milliseconds from the time at which a request was due to the
// end of its answer, of all answered and failed requests.
type Report struct {
	Target    string           `json:"target"`
	Rate      float64          `json:"rate_per_second"`
	Seconds   float64          `json:"seconds"` // from the first request to the last answer
	Due       int64            `json:"due"`     // requests in the schedule
	Sent      int64            `json:"sent"`
	Failed    int64            `json:"failed"`
	Shed      int64            `json:"shed"`      // due, but not sent because too many were in flight
	Abandoned int64            `json:"abandoned"` // in flight when the run was interrupted
	Endpoints []EndpointReport `json:"endpoints"`
}

// EndpointReport is the report of one endpoint.
type EndpointReport struct {
	Endpoint
	Count     int64            `json:"count"`            // answered or failed
	Errors    map[string]int64 `json:"errors,omitempty"` // by status, or timeout, connect, broken
	Shed      int64            `json:"shed"`
	Abandoned int64            `json:"abandoned"`
	P50       float64          `json:"p50_ms"`
	P90       float64          `json:"p90_ms"`
	P99       float64          `json:"p99_ms"`
	Max       float64          `json:"max_ms"`
}

// AllFailed reports whether no request succeeded: requests failed and none succeeded, or all were shed.
func (r Report) AllFailed() bool {
	return r.Failed+r.Shed > 0 && r.Failed+r.Abandoned == r.Sent
}

func (r *run) report() Report {
	report := Report{
		Target:  redact.URL(r.cfg.Target),
		Rate:    r.cfg.Rate,
		Seconds: time.Since(r.start).Seconds(),
		Due:     r.due,
		Sent:    r.sent.Load(),
		Failed:  r.failed.Load(),
		Shed:    r.shed.Load(),
	}
	for _, m := range r.endpoints {
		e := m.report()
		report.Abandoned += e.Abandoned
		report.Endpoints = append(report.Endpoints, e)
	}
	return report
}

func (m *measured) report() EndpointReport {
	m.mu.Lock()
	defer m.mu.Unlock()
	ms := func(microseconds int64) float64 { return float64(microseconds) / 1000 }
	return EndpointReport{
		Endpoint:  m.Endpoint,
		Count:     m.latencies.TotalCount(),
		Errors:    maps.Clone(m.errors),
		Shed:      m.shed.Load(),
		Abandoned: m.abandoned.Load(),
		P50:       ms(m.latencies.ValueAtQuantile(50)),
		P90:       ms(m.latencies.ValueAtQuantile(90)),
		P99:       ms(m.latencies.ValueAtQuantile(99)),
		Max:       ms(m.latencies.Max()),
	}
}

// WriteText writes the report as a table for people.
func (r Report) WriteText(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "endpoint\tcount\tp50 ms\tp90 ms\tp99 ms\tmax ms\tshed\terrors\t")
	for _, e := range r.Endpoints {
		fmt.Fprintf(table, "%s\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t%d\t%s\t\n", e.Name, e.Count, e.P50, e.P90, e.P99, e.Max, e.Shed, e.errorText())
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d of %d requests sent in %.1f s, %d failed, %d shed, %d abandoned\n",
		r.Sent, r.Due, r.Seconds, r.Failed, r.Shed, r.Abandoned)
	return err
}

func (e EndpointReport) errorText() string {
	if len(e.Errors) == 0 {
		return "-"
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(e.Errors)) {
		parts = append(parts, fmt.Sprintf("%s×%d", name, e.Errors[name]))
	}
	return strings.Join(parts, " ")
}

// ProgressPrinter returns a Config.Progress function that writes to w: on a terminal one line that is rewritten,
// elsewhere a line each time.
func ProgressPrinter(w io.Writer, terminal bool) func(Snapshot) {
	begin, end := "", "\n"
	if terminal {
		begin, end = "\r\x1b[K", ""
	}
	return func(s Snapshot) {
		fmt.Fprintf(w, "%s%3.0f s of %.0f s: %d of %d sent, %d in flight, %d failed, %d shed%s",
			begin, s.Elapsed.Seconds(), s.Duration.Seconds(), s.Sent, s.Due, s.InFlight, s.Failed, s.Shed, end)
	}
}
