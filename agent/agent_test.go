package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.uber.org/goleak"

	"spanflame/agent/internal/spool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// quiet is a configuration that reads nothing from the environment, saves nothing, listens nowhere that is taken, and
// whose windows do not end before a test does.
func quiet(t *testing.T) Config {
	clearEnv(t)
	return Config{ServiceName: "svc", Dir: off, SpoolDir: t.TempDir(), AdminAddress: "127.0.0.1:0", Window: 10 * time.Minute, Logger: discard}
}

var discard = slog.New(slog.DiscardHandler)

// logTo is a JSON log in w.
func logTo(w io.Writer) *slog.Logger { return slog.New(slog.NewJSONHandler(w, nil)) }

func shutdown(t *testing.T, a *Agent) {
	t.Helper()
	http.DefaultClient.CloseIdleConnections()
	if err := a.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestNothingGlobalIsSet: neither OpenTelemetry's globals nor slog's default logger; the runtime's rates, which exist once,
// are what they were after the shutdown.
func TestNothingGlobalIsSet(t *testing.T) {
	tracing, metering, propagation, handler := otel.GetTracerProvider(), otel.GetMeterProvider(), otel.GetTextMapPropagator(), otel.GetErrorHandler()
	logger, output := slog.Default(), log.Writer()
	unchanged := func(when string) {
		t.Helper()
		if otel.GetTracerProvider() != tracing || otel.GetMeterProvider() != metering || otel.GetTextMapPropagator() != propagation ||
			otel.GetErrorHandler() != handler || slog.Default() != logger || log.Writer() != output {
			t.Errorf("%s the globals are not what they were", when)
		}
	}
	fraction := runtime.SetMutexProfileFraction(-1)
	cfg := quiet(t)
	cfg.PyroscopeAddress = "http://127.0.0.1:9"
	cfg.SpoolMaxBytes = 1 << 20
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	a.TracerProvider(sdktrace.NewTracerProvider())
	unchanged("while the agent runs")
	if got := runtime.SetMutexProfileFraction(-1); got != 10 {
		t.Errorf("mutex profile fraction %d, want the default, 10", got)
	}
	if err := a.Shutdown(context.Background()); err == nil || !strings.Contains(err.Error(), "stay in "+cfg.SpoolDir) {
		t.Errorf("Shutdown without a server: %v, want how many profiles are left and where", err)
	}
	unchanged("after the shutdown")
	if got := runtime.SetMutexProfileFraction(-1); got != fraction {
		t.Errorf("mutex profile fraction %d after the shutdown, want %d", got, fraction)
	}
}

func TestOneAgentInAProcess(t *testing.T) {
	a, err := Start(t.Context(), quiet(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), quiet(t)); !errors.Is(err, ErrRunning) {
		t.Errorf("a second agent: %v, want ErrRunning", err)
	}
	shutdown(t, a)
	a, err = Start(t.Context(), quiet(t))
	if err != nil {
		t.Fatalf("an agent after the first: %v", err)
	}
	shutdown(t, a)
}

func TestStartThatFailsLeavesNothing(t *testing.T) {
	for _, tt := range []struct {
		change func(*Config)
		says   string
	}{
		{func(c *Config) { c.AdminAddress = "6060" }, "AdminAddress"},
		{func(c *Config) { c.Window = time.Millisecond }, `Window (PYROSCOPE_UPLOAD_INTERVAL) "1ms": want 1s to 10m`},
		{func(c *Config) { c.PyroscopeAddress = "http://h"; c.PyroscopeCAFile = "/does/not/exist" }, "/does/not/exist"},
		{func(c *Config) {
			c.PyroscopeAddress = "http://h"
			c.PyroscopeAuthToken = "hunter2"
			c.PyroscopeBasicAuthUser = "u"
		}, "choose one"},
	} {
		cfg := quiet(t)
		tt.change(&cfg)
		a, err := Start(t.Context(), cfg)
		if a != nil || err == nil || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Start: %v, %v, want an error that says %q", a, err, tt.says)
		}
		if running.Load() {
			t.Fatalf("after %q an agent runs", tt.says)
		}
	}
	t.Run("strict about the environment", func(t *testing.T) {
		cfg := quiet(t)
		cfg.Window = 0
		t.Setenv("PYROSCOPE_UPLOAD_INTERVAL", "soon")
		t.Setenv("SPANFLAME_STRICT", "true")
		if _, err := Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), `PYROSCOPE_UPLOAD_INTERVAL="soon"`) {
			t.Errorf("Start: %v", err)
		}
	})
}

// TestDefaultListenerLeaves6060ToTheService checks that a service that listens on Go's conventional port for profiles
// still can when the agent has started.
func TestDefaultListenerLeaves6060ToTheService(t *testing.T) {
	cfg := quiet(t)
	cfg.AdminAddress = ""
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer shutdown(t, a)
	host, port, err := net.SplitHostPort(a.AdminAddr())
	if err != nil || host != "127.0.0.1" || port == "6060" {
		t.Errorf("the listener is at %q, want another port of 127.0.0.1 than 6060", a.AdminAddr())
	}
}

// TestListenerWhoseAddressIsInUse checks that the service starts, says so, and gets its listener later.
func TestListenerWhoseAddressIsInUse(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	var out bytes.Buffer
	cfg := quiet(t)
	reader := sdkmetric.NewManualReader()
	cfg.AdminAddress, cfg.Logger, cfg.MeterProvider = other.Addr().String(), logTo(&out), sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if found := a.problems(); len(found) != 1 || found[0].Reason != reasonListener || !strings.Contains(found[0].Message, "address already in use") {
		t.Errorf("problems: %v", found)
	}
	for reason, n := range degradedReasons(t, reader) {
		if (n == 1) != (reason == reasonListener) {
			t.Errorf("the metric has %d for the reason %q", n, reason)
		}
	}
	other.Close()
	for a.AdminAddr() == "" {
		time.Sleep(10 * time.Millisecond)
	}
	if n, ok := degradedReasons(t, reader)[reasonListener]; n != 0 || !ok || len(a.problems()) > 0 {
		t.Errorf("after the recovery: %d, %v", n, a.problems())
	}
	shutdown(t, a)
	if n := strings.Count(out.String(), "operator's listener failing"); n != 1 {
		t.Errorf("the failure is logged %d times, want once", n)
	}
}

// degradedReasons returns the values of spanflame.degraded, by reason.
func degradedReasons(t *testing.T, reader sdkmetric.Reader) map[string]int64 {
	t.Helper()
	var rm metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &rm); err != nil {
		t.Fatal(err)
	}
	reasons := map[string]int64{}
	for _, scope := range rm.ScopeMetrics {
		for _, m := range scope.Metrics {
			if gauge, ok := m.Data.(metricdata.Gauge[int64]); ok && m.Name == "spanflame.degraded" {
				for _, p := range gauge.DataPoints {
					name, _ := p.Attributes.Value("reason")
					reasons[name.AsString()] = p.Value
				}
			}
		}
	}
	return reasons
}

func TestShutdownTwiceAndAtOnce(t *testing.T) {
	a, err := Start(t.Context(), quiet(t))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := a.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := http.Get("http://" + a.AdminAddr() + "/healthz"); err == nil {
		t.Error("the operator's listener still answers")
	}
}

func TestShutdownAgainstAServerThatNeverAnswers(t *testing.T) {
	hang := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	defer server.Close()
	defer close(hang)
	cfg := quiet(t)
	cfg.PyroscopeAddress = server.URL
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := a.Shutdown(ctx); err == nil {
		t.Error("Shutdown: no error, want the deadline or what is left")
	}
	if err := a.finished.Wait(); err == nil || !strings.Contains(err.Error(), "5 profiles") {
		t.Errorf("left: %v, want the last window of each of the 5 types", err)
	}
}

// TestTheLastWindowsAreKept: with no time left for servers, what was captured is still on disk.
func TestTheLastWindowsAreKept(t *testing.T) {
	cfg := quiet(t)
	cfg.PyroscopeAddress = "http://127.0.0.1:9"
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := a.Shutdown(ctx); err == nil {
		t.Error("Shutdown: no error")
	}
	if err := a.finished.Wait(); err == nil || !strings.Contains(err.Error(), "5 profiles") || strings.Contains(err.Error(), "lost") {
		t.Errorf("left: %v, want 5 profiles in the spool and none lost", err)
	}
	if files, err := filepath.Glob(filepath.Join(cfg.SpoolDir, "*", "*.pb.gz")); err != nil || len(files) != 5 {
		t.Errorf("%d files in the spool (%v), want 5", len(files), err)
	}
}

// TestAFailedStartDeliversNothing: what an earlier run has spooled is not worth waiting for when the start
// fails.
func TestAFailedStartDeliversNothing(t *testing.T) {
	asked := make(chan struct{}, 1)
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked <- struct{}{} }))
	defer server.Close()
	cfg := quiet(t)
	cfg.PyroscopeAddress = server.URL
	cfg.PyroscopeCAFile = "/does/not/exist"
	earlier, err := spool.Open(spool.Options{Service: cfg.ServiceName, Dir: cfg.SpoolDir})
	if err != nil {
		t.Fatal(err)
	}
	earlier.Put(aRecord(t, 0))
	if err := earlier.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "/does/not/exist") {
		t.Errorf("Start: %v, want the missing file", err)
	}
	select {
	case <-asked:
		t.Error("the server was asked by an agent that did not start")
	default:
	}
	if left, err := filepath.Glob(filepath.Join(cfg.SpoolDir, "*", "*.pb.gz")); err != nil || len(left) != 1 {
		t.Errorf("of one profile that was spooled there are %v, %v", left, err)
	}
}
