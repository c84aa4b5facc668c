package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// output collects the printed lines.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

// lines are the JSON objects printed so far.
func (o *output) lines(t *testing.T) []map[string]any {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	var lines []map[string]any
	for d := json.NewDecoder(bytes.NewReader(o.b.Bytes())); ; {
		var l map[string]any
		if err := d.Decode(&l); errors.Is(err, io.EOF) {
			return lines
		} else if err != nil {
			t.Fatalf("not JSON: %v in %q", err, o.b.String())
		}
		lines = append(lines, l)
	}
}

func (o *output) logged(t *testing.T, message string) []map[string]any {
	t.Helper()
	var lines []map[string]any
	for _, l := range o.lines(t) {
		if s, _ := l["msg"].(string); strings.Contains(s, message) {
			lines = append(lines, l)
		}
	}
	return lines
}

func options(out io.Writer) Options {
	none := Signal{Exporter: ExporterNone}
	return Options{
		Resource:  resource.NewSchemaless(attribute.String("service.name", "svc"), attribute.String("service.version", "1"), attribute.String("other", "x")),
		Labels:    map[string]string{"service_name": "svc", "service_version": "1"},
		LabelKeys: []attribute.Key{"service.name", "service.version"},
		Traces:    none, Metrics: none, Logs: none,
		Sampler: sdktrace.AlwaysSample(), Stdout: out,
	}
}

func start(t *testing.T, o Options) *Telemetry {
	t.Helper()
	tel, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return tel
}

func TestLogLinesCarryTheSpan(t *testing.T) {
	out := &output{}
	tel := start(t, options(out))
	defer tel.Shutdown(context.Background())
	ctx, span := tel.Traces.Tracer("test").Start(t.Context(), "op")
	tel.Logger.With("k", "v").InfoContext(ctx, "inside")
	span.End()
	tel.Logger.Info("outside")
	tel.Logger.With("k", "v").WithGroup("g").With("inner", 1).InfoContext(ctx, "grouped", "x", 2)

	grouped := out.logged(t, "grouped")[0]
	if g, _ := grouped["g"].(map[string]any); g["inner"] != 1.0 || g["x"] != 2.0 || len(g) != 2 || grouped["k"] != "v" ||
		grouped["trace_id"] != span.SpanContext().TraceID().String() || grouped["span_id"] != span.SpanContext().SpanID().String() {
		t.Errorf("a line in a group is %v, want the ids outside of it", grouped)
	}
	inside := out.logged(t, "inside")[0]
	for field, want := range map[string]any{
		"trace_id": span.SpanContext().TraceID().String(), "span_id": span.SpanContext().SpanID().String(),
		"service_name": "svc", "service_version": "1", "k": "v",
	} {
		if inside[field] != want {
			t.Errorf("%s is %v, want %v", field, inside[field], want)
		}
	}
	if id, ok := out.logged(t, "outside")[0]["trace_id"]; ok {
		t.Errorf("a line outside of any span has trace_id %v", id)
	}
}

// TestAHangingExporterTakesNothingFromTheConsole has the time for the shutdown end when the first request reaches the server.
func TestAHangingExporterTakesNothingFromTheConsole(t *testing.T) {
	for signal, want := range map[string]string{"traces": `"Name":"the span"`, "metrics": `"Name":"go.goroutine.count"`, "logs": `"Value":"the line"`} {
		t.Run(signal, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			over := make(chan struct{})
			server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				cancel()
				<-over
			}))
			defer server.Close()
			defer close(over)
			out := &output{}
			o := options(out)
			both := Signal{Exporter: ExporterOTLP + "," + ExporterConsole, Endpoint: server.URL, Protocol: ProtocolHTTP}
			switch signal {
			case "traces":
				o.Traces = both
			case "metrics":
				o.Metrics = both
			case "logs":
				o.Logs = both
			}
			tel := start(t, o)
			inSpan, span := tel.Traces.Tracer("test").Start(t.Context(), "the span")
			tel.Logger.InfoContext(inSpan, "the line")
			span.End()
			_ = tel.Shutdown(ctx) // what is not exported is an error
			out.mu.Lock()
			defer out.mu.Unlock()
			if !strings.Contains(out.b.String(), want) {
				t.Errorf("%s is missing in the output: %s", want, out.b.String())
			}
		})
	}
}

// TestShutdownWithoutTimeLeavesNoGoroutine: the SDK's providers do nothing if there is no time left.
func TestShutdownWithoutTimeLeavesNoGoroutine(t *testing.T) {
	before := goleak.IgnoreCurrent()
	o := options(&output{})
	to := Signal{Exporter: ExporterOTLP, Protocol: ProtocolHTTP, Endpoint: "http://127.0.0.1:9"}
	o.Traces, o.Metrics, o.Logs = to, to, to
	tel := start(t, o)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_ = tel.Shutdown(ended) // what is not exported is an error
	goleak.VerifyNone(t, before)
}

func TestConsolePrintsAllSignals(t *testing.T) {
	out := &output{}
	o := options(out)
	o.Traces.Exporter, o.Metrics.Exporter, o.Logs.Exporter = ExporterConsole, ExporterConsole, ExporterConsole
	tel := start(t, o)
	ctx, span := tel.Traces.Tracer("test").Start(t.Context(), "the span")
	counter, err := tel.Metrics.Meter("test").Int64Counter("the.counter")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(ctx, 7)
	tel.Logger.InfoContext(ctx, "the line")
	span.End()
	if err := tel.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	printed := out.b.String()
	for _, want := range []string{`"Name":"the span"`, `"Name":"the.counter"`, `"Value":"the line"`} {
		if !strings.Contains(printed, want) {
			t.Errorf("%s is missing in the output: %s", want, printed)
		}
	}
}

// TestSeveralExporters: each gets every signal, and one that fails takes nothing from the other and is named.
func TestSeveralExporters(t *testing.T) {
	var mu sync.Mutex
	received := map[string]int{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		received[r.URL.Path]++
		if r.URL.Path == "/logs" {
			w.WriteHeader(http.StatusBadRequest)
		}
	}))
	defer server.Close()
	out := &output{}
	o := options(out)
	both := func(path string) Signal {
		return Signal{Exporter: ExporterConsole + "," + ExporterOTLP, Endpoint: server.URL + path, Protocol: ProtocolHTTP}
	}
	o.Traces, o.Metrics, o.Logs = both("/traces"), both("/metrics"), both("/logs")
	tel := start(t, o)
	ctx, span := tel.Traces.Tracer("test").Start(t.Context(), "the span")
	tel.Logger.InfoContext(ctx, "the line")
	span.End()
	err := tel.Shutdown(context.Background())
	for _, want := range []string{`"Name":"the span"`, `"Name":"go.goroutine.count"`, `"Value":"the line"`} {
		if !strings.Contains(out.b.String(), want) {
			t.Errorf("%s is missing in the output: %s", want, out.b.String())
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if received["/traces"] != 1 || received["/metrics"] != 1 || received["/logs"] != 1 {
		t.Errorf("the server received %v, want each signal once", received)
	}
	if err == nil || !strings.Contains(err.Error(), "logs export to "+server.URL+"/logs failing") || strings.Contains(err.Error(), "console") {
		t.Errorf("shutdown: %v, want that the logs could not be exported to the server alone", err)
	}
}

func TestWriterNeedsNoLock(t *testing.T) {
	var out bytes.Buffer // the race detector finds concurrent writes
	o := options(&out)
	o.Traces.Exporter, o.Logs.Exporter = ExporterConsole, ExporterConsole
	tel := start(t, o)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				ctx, span := tel.Traces.Tracer("test").Start(t.Context(), "op")
				tel.Logger.InfoContext(ctx, "line")
				tel.local.Info("local")
				span.End()
			}
		})
	}
	wg.Go(func() {
		if err := tel.Traces.ForceFlush(t.Context()); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
	if err := tel.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestScrapeHasLabelsAndExemplars(t *testing.T) {
	tel := start(t, options(io.Discard))
	defer tel.Shutdown(context.Background())
	ctx, span := tel.Traces.Tracer("test").Start(t.Context(), "op")
	defer span.End()
	counter, err := tel.Metrics.Meter("test").Int64Counter("orders")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(ctx, 2)
	families, err := tel.Scrape.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "orders_total" {
			continue
		}
		m := f.GetMetric()[0]
		labels := map[string]string{}
		for _, l := range m.GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		if labels["service_name"] != "svc" || labels["service_version"] != "1" || labels["other"] != "" {
			t.Errorf("labels %v, want only those that identify the service", labels)
		}
		for _, l := range m.GetCounter().GetExemplar().GetLabel() {
			if l.GetName() == "trace_id" && l.GetValue() == span.SpanContext().TraceID().String() {
				return
			}
		}
		t.Fatalf("no exemplar with the trace id: %v", m)
	}
	t.Fatal("orders_total is missing")
}

// TestOutageIsLoggedOnce lets every signal fail several times and then succeed.
func TestOutageIsLoggedOnce(t *testing.T) {
	var broken atomic.Bool
	broken.Store(true)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if broken.Load() {
			w.WriteHeader(http.StatusBadRequest) // the exporters do not retry it
		}
	}))
	defer server.Close()
	out := &output{}
	o := options(out)
	signal := func(path string) Signal {
		return Signal{Exporter: ExporterOTLP, Protocol: ProtocolHTTP, Endpoint: server.URL + path}
	}
	o.Traces, o.Metrics, o.Logs = signal("/v1/traces"), signal("/v1/metrics"), signal("/v1/logs")
	tel := start(t, o)
	send := func() {
		_, span := tel.Traces.Tracer("test").Start(t.Context(), "op")
		span.End()
		tel.Logger.Info("line")
		for _, err := range []error{tel.Traces.ForceFlush(t.Context()), tel.Metrics.ForceFlush(t.Context()), tel.logs.ForceFlush(t.Context())} {
			if err != nil {
				tel.HandleError(err)
			}
		}
	}
	send()
	send()
	for _, what := range []string{"traces", "metrics", "logs"} {
		if n := len(out.logged(t, what+" export failing")); n != 1 {
			t.Errorf("the failing export of %s was logged %d times, want once", what, n)
		}
	}
	if lines := out.logged(t, "OpenTelemetry"); len(lines) != 0 {
		t.Errorf("the same failure is logged again as %v", lines)
	}
	if err := tel.outages[0].summary(); err == nil || !strings.Contains(err.Error(), "traces export to ") || !strings.Contains(err.Error(), ": 2 lost") {
		t.Errorf("during the outage: %v, want 2 spans lost", err)
	}
	if failing := tel.Failing(); len(failing) != 3 {
		t.Errorf("during the outage, failing are %q", failing)
	}
	broken.Store(false)
	send()
	send()
	if failing := tel.Failing(); len(failing) != 0 {
		t.Errorf("after the outage, failing are %q", failing)
	}
	if n := tel.outages[0].lost.Load(); n != 2 {
		t.Errorf("%d spans lost in all, want 2", n)
	}
	for _, what := range []string{"traces", "metrics", "logs"} {
		lines := out.logged(t, what+" export recovered")
		if len(lines) != 1 || lines[0]["lost"] == 0.0 {
			t.Errorf("logged %v when the export of %s recovered, want one line with the number of lost items", lines, what)
		}
	}
	if err := tel.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	http.DefaultClient.CloseIdleConnections()
}

// These are a file and exporters with a defect.
type panicking struct{}

func (panicking) Write([]byte) (int, error) { panic("planted") }

type panickingMetrics struct{ sdkmetric.Exporter }

func (panickingMetrics) Export(context.Context, *metricdata.ResourceMetrics) error { panic("planted") }

type panickingLogs struct{ sdklog.Exporter }

func (panickingLogs) Export(context.Context, []sdklog.Record) error { panic("planted") }

// TestPanic plants a panic in each exporter: the process continues, the panic is counted and logged once, with its
// stack, and what was to be exported is counted as lost.
func TestPanic(t *testing.T) {
	out := &output{}
	o := options(out)
	o.Saved = panicking{}
	tel := start(t, o)
	for range 2 {
		_, span := tel.Traces.Tracer("test").Start(t.Context(), "op")
		span.End()
		if err := tel.Traces.ForceFlush(t.Context()); !errors.Is(err, errPanicked) {
			t.Errorf("export: %v, want %v", err, errPanicked)
		}
	}
	if n := lost(t, tel); n != 2 {
		t.Errorf("%v spans are counted as lost, want 2", n)
	}
	metrics, logs := watchedMetrics{panickingMetrics{}, tel.watch("metrics", Signal{})}, watchedLogs{panickingLogs{}, tel.watch("logs", Signal{})}
	for range 2 {
		if err := metrics.Export(t.Context(), &metricdata.ResourceMetrics{}); !errors.Is(err, errPanicked) {
			t.Errorf("metrics: %v, want %v", err, errPanicked)
		}
		if err := logs.Export(t.Context(), make([]sdklog.Record, 3)); !errors.Is(err, errPanicked) {
			t.Errorf("logs: %v, want %v", err, errPanicked)
		}
	}
	for _, stage := range []string{"export saved traces", "export metrics", "export logs"} {
		n := 0
		for _, l := range out.logged(t, "the agent panicked") {
			if l["stage"] == stage && l["panic"] == "planted" && strings.Contains(l["stack"].(string), "telemetry_test.go") {
				n++
			}
		}
		if n != 1 || tel.guard.Panics()[stage] != 2 {
			t.Errorf("%s: logged %d times, counted %v, want once and 2", stage, n, tel.guard.Panics())
		}
	}
	if n := count(t, tel, "spanflame_panics_total", "stage", "export logs"); n != 2 {
		t.Errorf("the metric has %v panics, want 2", n)
	}
	if err := tel.Shutdown(context.Background()); err == nil || !strings.Contains(err.Error(), "logs export") {
		t.Errorf("Shutdown: %v, want what was lost", err)
	}
}

func TestHandleErrorLogsOtherErrors(t *testing.T) {
	out := &output{}
	tel := &Telemetry{local: slog.New(newLogHandler(out, nil))}
	tel.HandleError(reported{errors.New("logged before")})
	tel.HandleError(errors.New("new"))
	if lines := out.lines(t); len(lines) != 1 || lines[0]["error"] != "new" {
		t.Errorf("lines %v, want only the new error", lines)
	}
}

func TestShutdownHonoursItsDeadline(t *testing.T) {
	hang := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	defer server.Close()
	defer close(hang)
	o := options(io.Discard)
	o.Traces = Signal{Exporter: ExporterOTLP, Protocol: ProtocolHTTP, Endpoint: server.URL + "/v1/traces"}
	tel := start(t, o)
	_, span := tel.Traces.Tracer("test").Start(t.Context(), "op")
	span.End()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := tel.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v, want the deadline", err)
	}
}
