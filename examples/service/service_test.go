package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/goleak"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

// slowSpan is the agent's default for the duration from which a request gets a wall-clock profile.
const slowSpan = 100 * time.Millisecond

// exporter is the host's own exporter. It keeps every span, also after its shutdown.
type exporter struct {
	mu    sync.Mutex
	spans []sdktrace.ReadOnlySpan
}

func (e *exporter) ExportSpans(_ context.Context, spans []sdktrace.ReadOnlySpan) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.spans = append(e.spans, spans...)
	return nil
}

func (e *exporter) Shutdown(context.Context) error { return nil }

// log is the host's own log. It may be written while it is read.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// globals is what exists once in a process and belongs to the host.
type globals struct {
	tracers    any
	meters     any
	propagator any
	errors     any
	logger     any
	transport  any
	mux        string // the pattern that answers /debug/pprof/
}

func currentGlobals() globals {
	_, pattern := http.DefaultServeMux.Handler(httptest.NewRequest(http.MethodGet, "/debug/pprof/", nil))
	return globals{
		otel.GetTracerProvider(), otel.GetMeterProvider(), otel.GetTextMapPropagator(), otel.GetErrorHandler(),
		slog.Default(), http.DefaultTransport, pattern,
	}
}

// TestTheAgentJoinsTheService runs the service with the host's own exporters, logger and globals. Every span must reach
// the host's exporter, every slow request must have its flame graph, and the globals must stay the host's.
func TestTheAgentJoinsTheService(t *testing.T) {
	t.Setenv("SPANFLAME_WALL_CPU_SHARE", "1") // the budget must not leave out a slow request
	tracers, meters := tracenoop.NewTracerProvider(), noop.NewMeterProvider()
	otel.SetTracerProvider(tracers)
	otel.SetMeterProvider(meters)
	otel.SetTextMapPropagator(propagation.Baggage{})
	before := currentGlobals()

	dir, spans, reader, lines := t.TempDir(), &exporter{}, sdkmetric.NewManualReader(), &log{}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- run(ctx, ln, setup{dir, spans, reader, slog.NewTextHandler(lines, nil)}) }()
	base := "http://" + ln.Addr().String()

	const quotes, forecasts = 6, 4
	var clients sync.WaitGroup
	for range quotes {
		clients.Go(func() { get(t, base+"/quotes/tea") })
	}
	for range forecasts {
		clients.Go(func() { get(t, base+"/forecast/tea") })
	}
	clients.Wait()
	if text := get(t, base+"/profiler/debug/pprof/goroutine?debug=1"); !strings.Contains(text, "goroutine profile:") {
		t.Errorf("the agent's pages on the host's router: %.100s", text)
	}
	if during := currentGlobals(); during != before {
		t.Errorf("the globals are %+v while the agent runs, want %+v", during, before)
	}
	names := map[string]bool{}
	var collected metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &collected); err != nil {
		t.Fatal(err)
	}
	for _, scope := range collected.ScopeMetrics {
		for _, m := range scope.Metrics {
			names[m.Name] = true
		}
	}
	for _, want := range []string{"http.server.request.duration", "spanflame.wall.slow_spans"} {
		if !names[want] {
			t.Errorf("the host's meter provider has no %s: %v", want, slices.Sorted(maps.Keys(names)))
		}
	}
	cancel()
	if err := <-ran; err != nil {
		t.Fatalf("the service ended with %v; its log:\n%s", err, lines)
	}
	if after := currentGlobals(); after != before {
		t.Errorf("the globals are %+v after the shutdown, want %+v", after, before)
	}
	if !strings.Contains(lines.String(), "agent started") {
		t.Errorf("the host's log has no line of the agent:\n%s", lines)
	}
	t.Run("spans", func(t *testing.T) { everySpanIsExported(t, spans.spans, quotes, forecasts) })
	t.Run("flame graphs", func(t *testing.T) { everySlowRequestHasItsFlameGraph(t, filepath.Join(dir, "saved"), spans.spans) })
}

// everySpanIsExported compares the spans that the host's exporter got with the requests that were sent.
func everySpanIsExported(t *testing.T, spans []sdktrace.ReadOnlySpan, quotes, forecasts int) {
	counts := map[string]int{}
	for _, s := range spans {
		counts[fmt.Sprintf("%s %s", s.SpanKind(), s.Name())]++
	}
	for name, want := range map[string]int{
		"server GET /quotes/{product}":               quotes,
		"server GET /forecast/{product}":             forecasts,
		"client HTTP GET":                            quotes * len(suppliers),
		"server GET /suppliers/{supplier}/{product}": quotes * len(suppliers),
		"client sql.conn.query":                      forecasts,
		"client sql.conn.exec":                       quotes*len(suppliers) + 1, // one creates the table
	} {
		if counts[name] != want {
			t.Errorf("%d spans %q, want %d", counts[name], name, want)
		}
		delete(counts, name)
	}
	if len(counts) > 0 {
		t.Errorf("spans that were not expected: %v", counts)
	}
}

// everySlowRequestHasItsFlameGraph checks that the wall-clock profile of each slow local root span accounts for the whole
// duration of the span, on the goroutine that served the request.
func everySlowRequestHasItsFlameGraph(t *testing.T, saved string, spans []sdktrace.ReadOnlySpan) {
	entries, damaged, err := profiles.Find(t.Context(), profiles.Query{Service: serviceName, Types: []record.Type{record.Wall}}, saved)
	if err != nil || len(damaged) > 0 {
		t.Fatalf("find the saved profiles: %v, damaged: %v", err, damaged)
	}
	profiled := map[string]time.Duration{}
	for w, err := range profiles.Read(t.Context(), entries) {
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range w.Profile.Sample {
			if id := s.Label[wallprofile.SpanID]; len(id) == 1 && profiles.OwnTime(s) {
				profiled[id[0]] += time.Duration(s.Value[0])
			}
		}
	}
	slow := 0
	for _, s := range spans {
		took := s.EndTime().Sub(s.StartTime())
		if parent := s.Parent(); parent.IsValid() && !parent.IsRemote() || took < slowSpan {
			continue
		}
		slow++
		id := s.SpanContext().SpanID().String()
		if got := profiled[id]; (got - took).Abs() > took/100 {
			t.Errorf("the flame graph of span %s, %s, accounts for %v of %v", id, s.Name(), got, took)
		}
	}
	if slow == 0 {
		t.Error("no request was slow")
	}
}

// TestTheAgentIsAddedInTenLines counts the lines of the service that mention the agent.
func TestTheAgentIsAddedInTenLines(t *testing.T) {
	source, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	_, code, _ := strings.Cut(string(source), "package main")
	lines := 0
	for line := range strings.Lines(code) {
		if strings.Contains(line, "agent") || strings.Contains(line, "profiler") {
			lines++
		}
	}
	if lines == 0 || lines > 10 {
		t.Errorf("%d lines mention the agent, want 1 to 10", lines)
	}
}

// get sends a GET request and returns the body of its answer.
func get(t *testing.T, url string) string { t.Helper(); return send(t, http.MethodGet, url) }

// send sends a request and returns the body of its answer.
func send(t *testing.T, method, url string) string { t.Helper(); return read(t, open(t, method, url)) }

// open sends a request and returns the body of its answer, which must have status 200, before all of it is there.
func open(t *testing.T, method, url string) io.ReadCloser {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Error(err)
		return http.NoBody
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Error(err)
		return http.NoBody
	}
	if resp.StatusCode != http.StatusOK {
		t.Errorf("%s: status %d", url, resp.StatusCode)
	}
	return resp.Body
}

// read returns all of a body.
func read(t *testing.T, body io.ReadCloser) string {
	t.Helper()
	defer body.Close()
	b, err := io.ReadAll(body)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
