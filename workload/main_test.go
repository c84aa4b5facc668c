package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// services are both services behind real listeners. Everything that they report is kept for the test.
type services struct {
	storefront, inventory       *Service
	storefrontURL, inventoryURL string
	client                      *http.Client
	spans                       *tracetest.InMemoryExporter
	metrics                     *sdkmetric.ManualReader // the storefront's
	log                         *logBook
}

// newServices starts both services. The configuration is the storefront's; its unset fields are set up for a test.
func newServices(t testing.TB, cfg Config) *services {
	t.Helper()
	s := &services{spans: tracetest.NewInMemoryExporter(), metrics: sdkmetric.NewManualReader(), log: &logBook{}}
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSyncer(s.spans))
	inventory := Config{Role: Inventory, Logger: s.log.logger(), TracerProvider: tracer, Propagator: propagation.TraceContext{},
		MeterProvider: sdkmetric.NewMeterProvider()}
	s.inventory, s.inventoryURL = serve(t, inventory)

	cfg.Role = Storefront
	cfg.Logger = s.log.logger()
	cfg.TracerProvider = tracer
	cfg.MeterProvider = sdkmetric.NewMeterProvider(sdkmetric.WithReader(s.metrics))
	cfg.Propagator = propagation.TraceContext{}
	if cfg.InventoryURL == "" {
		cfg.InventoryURL = s.inventoryURL
	}
	if cfg.Database == "" {
		cfg.Database = filepath.Join(t.TempDir(), "orders.db")
	}
	s.storefront, s.storefrontURL = serve(t, cfg)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	s.client = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return s
}

func serve(t testing.TB, cfg Config) (*Service, string) {
	t.Helper()
	s, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return s, server.URL
}

// answer is one response of a service.
type answer struct {
	status int
	header http.Header
	body   string
	fields map[string]any // of the body, when it is an object
}

func (s *services) do(t testing.TB, method, url string, body io.Reader) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{status: resp.StatusCode, header: resp.Header, body: string(text)}
	if method != http.MethodHead {
		var body any
		if err := json.Unmarshal(text, &body); err != nil {
			t.Fatalf("%s %s: %d with a body that is not JSON: %q", method, url, resp.StatusCode, text)
		}
		a.fields, _ = body.(map[string]any)
	}
	return a
}

// get sends a GET request to the storefront.
func (s *services) get(t testing.TB, path string) answer {
	t.Helper()
	return s.do(t, http.MethodGet, s.storefrontURL+path, nil)
}

// span returns the only span of that name and kind.
func (s *services) span(t testing.TB, name string, kind trace.SpanKind) tracetest.SpanStub {
	t.Helper()
	var found []tracetest.SpanStub
	for _, span := range s.spans.GetSpans() {
		if span.Name == name && span.SpanKind == kind {
			found = append(found, span)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d spans %q of kind %v, want 1; there are: %s", len(found), name, kind, s.spanNames())
	}
	return found[0]
}

func (s *services) spanNames() string {
	var names []string
	for _, span := range s.spans.GetSpans() {
		names = append(names, span.SpanKind.String()+" "+span.Name)
	}
	return strings.Join(names, ", ")
}

// metric returns the storefront's metric of that name.
func (s *services) metric(t testing.TB, name string) metricdata.Aggregation {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := s.metrics.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if m.Name == name {
				return m.Data
			}
		}
	}
	t.Fatalf("no metric %q", name)
	return nil
}

func value(attrs []attribute.KeyValue, key attribute.Key) string {
	set := attribute.NewSet(attrs...)
	v, _ := set.Value(key)
	return v.String()
}

// logBook keeps log lines. It adds the ids of the trace, like the agent's handler.
type logBook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBook) logger() *slog.Logger {
	return slog.New(traceHandler{slog.NewJSONHandler(b, nil)})
}

// requests returns the lines of requests whose field has that value.
func (b *logBook) requests(t testing.TB, field string, want any) []map[string]any {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	var found []map[string]any
	for text := range bytes.Lines(b.text.Bytes()) {
		var line map[string]any
		if err := json.Unmarshal(text, &line); err != nil {
			t.Fatalf("log line is not JSON: %q", text)
		}
		if line["msg"] == "HTTP Request Processed" && line[field] == want {
			found = append(found, line)
		}
	}
	return found
}

type traceHandler struct{ slog.Handler }

func (h traceHandler) Handle(ctx context.Context, r slog.Record) error {
	sc := trace.SpanContextFromContext(ctx)
	r.AddAttrs(slog.String("trace_id", sc.TraceID().String()), slog.String("span_id", sc.SpanID().String()))
	return h.Handler.Handle(ctx, r)
}
