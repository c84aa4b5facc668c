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
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.uber.org/goleak"

	"spanflame/agent/internal/spool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// quiet is a configuration that reads nothing from the environment, saves nothing, listens nowhere that is taken, and
// whose windows do not end before a test does.
func quiet(t *testing.T) Config {
	clearEnv(t)
	return Config{ServiceName: "svc", Dir: off, SpoolDir: t.TempDir(), AdminAddress: "127.0.0.1:0", Stdout: io.Discard, Window: 10 * time.Minute}
}

func shutdown(t *testing.T, a *Agent) {
	t.Helper()
	http.DefaultClient.CloseIdleConnections()
	if err := a.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestGlobalsAreTheServicesOwnAgainAfterShutdown(t *testing.T) {
	tracing, metering, propagation, logger := otel.GetTracerProvider(), otel.GetMeterProvider(), otel.GetTextMapPropagator(), slog.Default()
	output, flags := log.Writer(), log.Flags()
	fraction := runtime.SetMutexProfileFraction(-1)
	cfg := quiet(t)
	cfg.PyroscopeAddress = "http://127.0.0.1:9"
	cfg.SpoolMaxBytes = 1 << 20
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if otel.GetTracerProvider() == tracing || otel.GetMeterProvider() == metering || slog.Default() == logger {
		t.Error("the agent's providers are not the process's")
	}
	if got := runtime.SetMutexProfileFraction(-1); got != 100 {
		t.Errorf("mutex profile fraction %d, want the default, 100", got)
	}
	if err := a.Shutdown(context.Background()); err == nil || !strings.Contains(err.Error(), "stay in "+cfg.SpoolDir) {
		t.Errorf("Shutdown without a server: %v, want how many profiles are left and where", err)
	}
	if otel.GetTracerProvider() != tracing || otel.GetMeterProvider() != metering || otel.GetTextMapPropagator() != propagation || slog.Default() != logger {
		t.Error("the globals are not what they were")
	}
	if log.Writer() != output || log.Flags() != flags {
		t.Error("package log does not write as it did")
	}
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
	tracing := otel.GetTracerProvider()
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
		if running.Load() || otel.GetTracerProvider() != tracing {
			t.Fatalf("after %q an agent runs, or its providers are the process's", tt.says)
		}
	}
	t.Run("environment", func(t *testing.T) {
		cfg := quiet(t)
		t.Setenv("PYROSCOPE_UPLOAD_INTERVAL", "soon")
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
	cfg.AdminAddress, cfg.Stdout = other.Addr().String(), &out
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if found := a.problems(); len(found) != 1 || found[0].Reason != reasonListener || !strings.Contains(found[0].Message, "address already in use") {
		t.Errorf("problems: %v", found)
	}
	families, err := a.telemetry.Scrape.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if text := m.String(); f.GetName() == "spanflame_degraded" && strings.Contains(text, "listener") != (m.GetGauge().GetValue() == 1) {
				t.Errorf("the metric has %s", text)
			}
		}
	}
	other.Close()
	for a.AdminAddr() == "" {
		time.Sleep(10 * time.Millisecond)
	}
	working := regexp.MustCompile(`(?m)^spanflame_degraded\{.*reason="listener".*\} 0$`)
	if body := get(t, "http://"+a.AdminAddr()+"/metrics"); !working.MatchString(body) || len(a.problems()) > 0 {
		t.Errorf("after the recovery: %v", a.problems())
	}
	shutdown(t, a)
	if n := strings.Count(out.String(), "operator's listener failing"); n != 1 {
		t.Errorf("the failure is logged %d times, want once", n)
	}
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
	<-a.done
	if a.err == nil || !strings.Contains(a.err.Error(), "5 profiles") {
		t.Errorf("left: %v, want the last window of each of the 5 types", a.err)
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
	<-a.done
	if a.err == nil || !strings.Contains(a.err.Error(), "5 profiles") || strings.Contains(a.err.Error(), "lost") {
		t.Errorf("left: %v, want 5 profiles in the spool and none lost", a.err)
	}
	if files, err := filepath.Glob(filepath.Join(cfg.SpoolDir, "*", "*.pb.gz")); err != nil || len(files) != 5 {
		t.Errorf("%d files in the spool (%v), want 5", len(files), err)
	}
}

func TestNoSecretIsLogged(t *testing.T) {
	var out bytes.Buffer
	cfg := quiet(t)
	cfg.Stdout = &out
	cfg.PyroscopeAddress = "http://user:hunter2@127.0.0.1:9"
	cfg.OTLPEndpoint = "http://user:hunter2@127.0.0.1:9"
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	_, span := otel.Tracer("test").Start(t.Context(), "op")
	span.End()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err = a.Shutdown(ctx)
	<-a.done
	if !strings.Contains(out.String(), "agent started") {
		t.Errorf("the log is %q", out.String())
	}
	for _, text := range []string{out.String(), err.Error(), a.err.Error()} {
		if strings.Contains(text, "hunter2") {
			t.Errorf("a password is shown: %s", text)
		}
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

func TestLogAndMetricsOfARunningAgent(t *testing.T) {
	var out bytes.Buffer
	cfg := quiet(t)
	cfg.Stdout = &out
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, span := otel.Tracer("test").Start(t.Context(), "op")
	slog.InfoContext(ctx, "hello")
	span.End()
	shutdown(t, a)
	if want := `"trace_id":"` + span.SpanContext().TraceID().String() + `"`; !strings.Contains(out.String(), want) {
		t.Errorf("%s is not in %s", want, out.String())
	}
}
