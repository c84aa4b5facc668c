package agent

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

// TestAnOpenTelemetrySetUpOfTheService: the service's own exporter has every span, with the link to its profile, slow
// spans have their profile, the service's meter provider has the agent's metrics until the shutdown, and its server has
// the pages.
func TestAnOpenTelemetrySetUpOfTheService(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	reader := sdkmetric.NewManualReader()
	metrics := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	var out bytes.Buffer
	cfg := quiet(t)
	cfg.Dir, cfg.SlowSpan, cfg.WallCPUShare, cfg.AdminAddress = t.TempDir(), time.Millisecond, 1, off
	cfg.MeterProvider, cfg.Logger = metrics, logTo(&out)
	cfg.MetricsHandler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the service's metrics") })
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	tracer := a.TracerProvider(provider).Tracer("test")
	a.TracerProvider(sdktrace.NewTracerProvider()) // another one of the service's: there is one recorder
	ctx, root := tracer.Start(t.Context(), "POST /checkout", trace.WithSpanKind(trace.SpanKindServer))
	_, child := tracer.Start(ctx, "pricing")
	time.Sleep(20 * time.Millisecond)
	child.End()
	root.End()

	mux := http.NewServeMux()
	mux.Handle("/", a.Handler())
	server := httptest.NewServer(mux)
	for path, want := range map[string]string{
		"/debug/pprof/goroutine?debug=1": "goroutine profile", "/metrics": "the service's metrics", "/healthz": "ok", "/readyz": "ready",
	} {
		resp, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(b), want) {
			t.Errorf("%s: %d %.200q %v, want %q", path, resp.StatusCode, b, err, want)
		}
	}
	server.Close()

	if err := a.StopCapture(t.Context()); err != nil {
		t.Error(err)
	}
	if names := collected(t, reader); !slices.Contains(names, "spanflame.profiles.captured") || !slices.Contains(names, "spanflame.wall.slow_spans") {
		t.Errorf("after the capture the service has the metrics %v", names)
	}
	shutdown(t, a)
	if names := collected(t, reader); len(names) > 0 {
		t.Errorf("after the shutdown the service's provider still asks for %v", names)
	}
	if !strings.Contains(out.String(), "agent started") {
		t.Errorf("the service's log is %q", out.String())
	}

	id := root.SpanContext().SpanID().String()
	exported := spans.GetSpans()
	if len(exported) != 2 {
		t.Fatalf("the service's exporter has %d spans, want 2", len(exported))
	}
	linked := false
	for _, attr := range exported[1].Attributes {
		linked = linked || string(attr.Key) == "pyroscope.profile.id" && attr.Value.AsString() == id
	}
	if !linked {
		t.Errorf("the root span has the attributes %v, want a link to its profile", exported[1].Attributes)
	}
	sum := int64(0)
	for _, r := range savedProfiles(t, cfg.Dir) {
		if r.Type != record.Wall || r.Labels[wallprofile.SpanScope] != wallprofile.ScopeRoot {
			continue
		}
		p, err := profile.ParseData(r.Profile)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range p.Sample {
			if slices.Equal(s.Label[wallprofile.SpanID], []string{id}) {
				sum += s.Value[0]
			}
		}
	}
	if took := exported[1].EndTime.Sub(exported[1].StartTime); time.Duration(sum) != took {
		t.Errorf("the root span's profile has %v, want the span's %v", time.Duration(sum), took)
	}
}

// collected returns the names of the metrics that have data.
func collected(t *testing.T, reader sdkmetric.Reader) (names []string) {
	t.Helper()
	var rm metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &rm); err != nil {
		t.Fatal(err)
	}
	for _, scope := range rm.ScopeMetrics {
		for _, m := range scope.Metrics {
			names = append(names, m.Name)
		}
	}
	return names
}

// TestProfilesAlone: without spans nothing records the execution trace.
func TestProfilesAlone(t *testing.T) {
	cfg := quiet(t)
	cfg.Dir = t.TempDir()
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if recorder, err := a.slow.running(); recorder != nil || err != nil {
		t.Errorf("without spans the recorder is %v, %v", recorder, err)
	}
	shutdown(t, a)
	if n := len(savedProfiles(t, cfg.Dir)); n != 5 {
		t.Errorf("%d profiles are saved, want one of each of the 5 types", n)
	}
	// A provider that is wrapped after the shutdown starts nothing.
	a.TracerProvider(sdktrace.NewTracerProvider())
	if recorder, err := a.slow.running(); recorder != nil || err != nil {
		t.Errorf("after the shutdown the recorder is %v, %v", recorder, err)
	}
}

// TestAHundredStarts: an agent leaves nothing behind. TestMain looks for goroutines.
func TestAHundredStarts(t *testing.T) {
	provider := sdktrace.NewTracerProvider()
	reader := sdkmetric.NewManualReader()
	metrics := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	cfg := quiet(t)
	cfg.Dir, cfg.MeterProvider = t.TempDir(), metrics
	for i := range 100 {
		a, err := Start(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		_, span := a.TracerProvider(provider).Tracer("test").Start(t.Context(), "op")
		span.End()
		shutdown(t, a)
		if names := collected(t, reader); len(names) > 0 {
			t.Fatalf("after start %d the provider still has callbacks of %v", i, names)
		}
	}
}

// savedProfiles returns the records below dir, which are all of the service svc.
func savedProfiles(t *testing.T, dir string) []record.Record {
	t.Helper()
	var records []record.Record
	err := filepath.WalkDir(filepath.Join(dir, "profiles", "svc"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		r, err := record.Decode(f, 1<<24)
		records = append(records, r)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return records
}
