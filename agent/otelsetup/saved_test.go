package otelsetup

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"spanflame/agent"
	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
)

// savedProfiles are the records below dir, which are all of the service.
func savedProfiles(t *testing.T, dir, service string) []record.Record {
	t.Helper()
	var records []record.Record
	err := filepath.WalkDir(filepath.Join(dir, "profiles", record.DirName(service)), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		r, err := record.Decode(f, 1<<24)
		if r.Service != service {
			t.Errorf("%s is of %q, want %q", path, r.Service, service)
		}
		if r.Labels[wallprofile.SpanScope] != wallprofile.ScopeFast { // which requests are in the sample is chance
			records = append(records, r)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return records
}

// savedSpans are the spans below dir, by name.
func savedSpans(t *testing.T, dir, service string) map[string]traces.Span {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "traces", record.DirName(service), "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	spans := map[string]traces.Span{}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(b) {
			batch, err := traces.Unmarshal(line)
			if err != nil {
				t.Errorf("%s: %v", path, err)
			}
			for _, s := range batch {
				spans[s.Name] = s
			}
		}
	}
	return spans
}

// slowRequest makes a local root span that waits, with a child.
func slowRequest(ctx context.Context) trace.Span {
	ctx, root := otel.Tracer("test").Start(ctx, "POST /checkout", trace.WithSpanKind(trace.SpanKindServer))
	_, child := otel.Tracer("test").Start(ctx, "pricing", trace.WithAttributes(attribute.Int("items", 3)))
	time.Sleep(20 * time.Millisecond)
	child.End()
	root.End()
	return root
}

// said are the messages in the log.
func said(t *testing.T, log []byte) (lines []map[string]any) {
	t.Helper()
	for d := json.NewDecoder(bytes.NewReader(log)); d.More(); {
		var l map[string]any
		if err := d.Decode(&l); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, l)
	}
	return lines
}

func TestWithoutAServerAllIsSaved(t *testing.T) {
	var out bytes.Buffer
	cfg := quiet(t)
	cfg.Agent.ServiceName, cfg.Agent.Dir, cfg.Stdout = "shop/front", t.TempDir(), &out
	cfg.Agent.SlowSpan, cfg.Agent.WallCPUShare = time.Millisecond, 1
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	root := slowRequest(t.Context())
	if found := a.problems(); len(found) > 0 {
		t.Errorf("problems: %q", found)
	}
	scrape := get(t, "http://"+a.AdminAddr()+"/metrics")
	for _, want := range []string{`spanflame_saved_used_bytes{`, `kind="profiles"`, `kind="traces"`} {
		if !strings.Contains(scrape, want) {
			t.Errorf("the metrics have no %s", want)
		}
	}
	shutdown(t, a)

	id := root.SpanContext().SpanID().String()
	types := map[record.Type]int{}
	var commented []string
	for _, r := range savedProfiles(t, cfg.Agent.Dir, cfg.Agent.ServiceName) {
		types[r.Type]++
		p, err := profile.ParseData(r.Profile)
		if err != nil {
			t.Fatal(err)
		}
		if r.Type == record.Wall && r.Labels["span_scope"] == "root" {
			commented = p.Comments
			sum := int64(0)
			for _, s := range p.Sample {
				if slices.Equal(s.Label["span_id"], []string{id}) {
					sum += s.Value[0]
				}
			}
			if sum < (20 * time.Millisecond).Nanoseconds() {
				t.Errorf("the span's profile sums up to %v, want 20ms or more", time.Duration(sum))
			}
		} else if len(p.Comments) > 0 {
			t.Errorf("a %s profile has the comments %q", r.Type, p.Comments)
		}
	}
	want := map[record.Type]int{record.CPU: 1, record.Memory: 1, record.Mutex: 1, record.Block: 1, record.Goroutine: 1, record.Wall: 2}
	if !maps.Equal(types, want) {
		t.Errorf("saved profiles %v, want %v", types, want)
	}

	spans := savedSpans(t, cfg.Agent.Dir, cfg.Agent.ServiceName)
	top, child := spans["POST /checkout"], spans["pricing"]
	if top.ID != id || top.ParentID != "" || top.Kind != "server" || top.Service != cfg.Agent.ServiceName || top.Attributes["pyroscope.profile.id"] != id {
		t.Errorf("the root is %+v", top)
	}
	if child.ParentID != id || child.TraceID != top.TraceID || child.Attributes["items"] != "3" || child.Duration() < 20*time.Millisecond {
		t.Errorf("the child is %+v", child)
	}

	var sentence string
	started := false
	for _, l := range said(t, out.Bytes()) {
		if l["span_id"] == id {
			sentence, _ = l["msg"].(string)
		}
		started = started || l["msg"] == "agent started" && l["directory"] == cfg.Agent.Dir
	}
	if want := "span_id=" + id + " " + sentence; len(commented) != 1 || commented[0] != want || !strings.Contains(sentence, "POST /checkout: ") {
		t.Errorf("the wall profile has the comments %q, want %q", commented, want)
	}
	if !started {
		t.Errorf("the log does not say where things are saved: %s", out.String())
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestBesideAServer: with an address and a directory, profiles go to both, and with the address alone to that.
func TestBesideAServer(t *testing.T) {
	for _, dir := range []string{t.TempDir(), ""} {
		cfg := quiet(t)
		cfg.Agent.PyroscopeAddress, cfg.Agent.Dir, cfg.Agent.SlowSpan = "http://127.0.0.1:9", dir, -1
		t.Setenv("HOME", t.TempDir())
		t.Setenv("XDG_CACHE_HOME", "")
		a, err := Start(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		slowRequest(t.Context())
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // no time for servers: the captured profiles are on the disk nevertheless
		_ = a.Shutdown(ctx)
		_ = a.finished.Wait()
		if files, err := filepath.Glob(filepath.Join(cfg.Agent.SpoolDir, "*", "*.pb.gz")); err != nil || len(files) != 5 {
			t.Errorf("%d files in the spool (%v), want 5", len(files), err)
		}
		if dir != "" {
			if n := len(savedProfiles(t, dir, "svc")); n != 5 {
				t.Errorf("%d profiles are saved, want 5", n)
			}
			if spans := savedSpans(t, dir, "svc"); len(spans) != 2 {
				t.Errorf("saved spans %v, want 2", spans)
			}
			continue
		}
		if made, err := os.ReadDir(os.Getenv("HOME")); err != nil || len(made) > 0 {
			t.Errorf("%v was made in the user's home, %v", made, err)
		}
	}
}

func TestADirectoryThatCannotBeUsedIsSaid(t *testing.T) {
	var out bytes.Buffer
	cfg := quiet(t)
	cfg.Agent.Dir, cfg.Stdout = filepath.Join(t.TempDir(), "dir"), &out
	if err := os.WriteFile(cfg.Agent.Dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	slowRequest(t.Context())
	if err := a.telemetry.Traces.ForceFlush(t.Context()); err == nil {
		t.Error("the spans were saved")
	}
	if found := fmt.Sprint(a.problems()); !strings.Contains(found, "saving") || !strings.Contains(found, "traces are not saved as they should be") {
		t.Errorf("problems: %s", found)
	}
	err = a.Shutdown(context.Background())
	if err == nil || !strings.Contains(err.Error(), "5 profiles") || !strings.Contains(err.Error(), "saved traces export to "+cfg.Agent.Dir) {
		t.Errorf("Shutdown: %v, want what is lost", err)
	}
	for _, once := range []string{"profiles cannot be saved", "saved traces export failing"} {
		if n := strings.Count(out.String(), once); n != 1 {
			t.Errorf("the log says %d times %q: %s", n, once, out.String())
		}
	}
}

// TestTracesOfTheServicesOwnProviderAreSaved: next to the profiles of an agent, under the service's own resource.
func TestTracesOfTheServicesOwnProviderAreSaved(t *testing.T) {
	clearEnv(t)
	reader := sdkmetric.NewManualReader()
	cfg := agent.Config{
		ServiceName: "svc", Dir: t.TempDir(), AdminAddress: "off", SlowSpan: time.Millisecond, WallCPUShare: 1,
		Logger: slog.New(slog.DiscardHandler), MeterProvider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)),
	}
	saver, err := NewTraceSaver(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Problems = saver.Problems
	a, err := agent.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	exported := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exported), sdktrace.WithSpanProcessor(saver))
	_, span := a.TracerProvider(provider).Tracer("test").Start(t.Context(), "POST /checkout")
	time.Sleep(20 * time.Millisecond)
	span.End()
	done, cancel := context.WithCancel(t.Context())
	cancel() // the service's deadline is over: that needs no server
	for range 2 {
		if err := saver.Shutdown(done); err != nil {
			t.Error(err)
		}
	}
	if err := a.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	id := span.SpanContext().SpanID().String()
	spans := savedSpans(t, cfg.Dir, "svc")
	if len(spans) != 1 || spans["POST /checkout"].ID != id || spans["POST /checkout"].Attributes["pyroscope.profile.id"] != id {
		t.Errorf("saved spans %v", spans)
	}
	if n := len(exported.GetSpans()); n != 1 {
		t.Errorf("the service's exporter has %d spans, want 1", n)
	}
	walls := 0
	for _, r := range savedProfiles(t, cfg.Dir, "svc") {
		if r.Type == record.Wall {
			walls++
		}
	}
	if walls != 1 {
		t.Errorf("%d wall-clock profiles are saved, want 1", walls)
	}
	var rm metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &rm); err != nil || len(rm.ScopeMetrics) > 0 {
		t.Errorf("after the shutdown the service's provider still asks for %v, %v", rm.ScopeMetrics, err)
	}

	cfg.Dir = off
	if _, err := NewTraceSaver(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "want a directory") {
		t.Errorf("without a directory: %v", err)
	}
}

// A provider without a name of its own has the SDK's, by which nobody finds the profiles of its spans.
func TestTraceSaverOfAnotherName(t *testing.T) {
	for name, warnings := range map[string]int{"svc": 0, "other": 1} {
		var log bytes.Buffer
		cfg := agent.Config{ServiceName: "svc", Dir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(&log, nil))}
		saver, err := NewTraceSaver(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		named := resource.NewSchemaless(attribute.String("service.name", name))
		provider := sdktrace.NewTracerProvider(sdktrace.WithResource(named), sdktrace.WithSpanProcessor(saver))
		for range 2 {
			_, span := provider.Tracer("test").Start(t.Context(), "POST /checkout")
			span.End()
		}
		if err := provider.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if got := strings.Count(log.String(), "of_spans="+name); got != warnings {
			t.Errorf("service.name %s: %d warnings, want %d: %s", name, got, warnings, log.String())
		}
	}
}

// panicking is a handler of the service's log that panics.
type panicking struct{ slog.Handler }

func (panicking) Enabled(context.Context, slog.Level) bool { return true }

func (panicking) Handle(context.Context, slog.Record) error { panic("planted") }

// TestAPanicOfTheTraceSaver does not reach the goroutine that ends a span, and the span is saved.
func TestAPanicOfTheTraceSaver(t *testing.T) {
	cfg := agent.Config{ServiceName: "svc", Dir: t.TempDir(), Logger: slog.New(panicking{slog.DiscardHandler})}
	saver, err := NewTraceSaver(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	other := resource.NewSchemaless(attribute.String("service.name", "other")) // which is to be logged
	provider := sdktrace.NewTracerProvider(sdktrace.WithResource(other), sdktrace.WithSpanProcessor(saver))
	_, span := provider.Tracer("test").Start(t.Context(), "POST /checkout")
	span.End()
	if err := provider.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if spans := savedSpans(t, cfg.Dir, "svc"); len(spans) != 1 {
		t.Errorf("saved spans %v, want one", spans)
	}
}
