package otelsetup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"spanflame/agent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clearEnv removes every variable that an agent reads from the test's environment.
func clearEnv(t *testing.T) {
	t.Helper()
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "OTEL_") || strings.HasPrefix(name, "PYROSCOPE_") || strings.HasPrefix(name, "SPANFLAME_") {
			t.Setenv(name, "")
		}
	}
}

// quiet is a configuration that reads nothing from the environment, saves nothing, listens at a free port, and
// whose windows do not end before a test does.
func quiet(t *testing.T) Config {
	clearEnv(t)
	return Config{
		Agent:  agent.Config{ServiceName: "svc", Dir: off, SpoolDir: t.TempDir(), AdminAddress: "127.0.0.1:0", Window: 10 * time.Minute},
		Stdout: io.Discard,
	}
}

func shutdown(t *testing.T, a *Agent) {
	t.Helper()
	http.DefaultClient.CloseIdleConnections()
	if err := a.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

// process is what exists once in a process.
type process struct {
	tracing, metering, propagator, errors, logger, output any
	flags                                                 int
}

func globalsNow() process {
	return process{
		otel.GetTracerProvider(), otel.GetMeterProvider(), otel.GetTextMapPropagator(), otel.GetErrorHandler(),
		slog.Default(), log.Writer(), log.Flags(),
	}
}

func TestGlobalsAreRestored(t *testing.T) {
	before := globalsNow()
	a, err := Start(t.Context(), quiet(t))
	if err != nil {
		t.Fatal(err)
	}
	during := globalsNow()
	if during.tracing == before.tracing || during.metering == before.metering || during.propagator == before.propagator ||
		during.errors == before.errors || during.logger == before.logger || during.output == before.output {
		t.Error("the agent's providers and its logger are not the process's")
	}
	shutdown(t, a)
	if after := globalsNow(); after != before {
		t.Errorf("the globals are %+v, want what they were: %+v", after, before)
	}
}

// another is a propagator of a type that cannot be compared, like OpenTelemetry's own composite one.
type another []string

func (another) Inject(context.Context, propagation.TextMapCarrier)                        {}
func (another) Extract(ctx context.Context, _ propagation.TextMapCarrier) context.Context { return ctx }
func (another) Fields() []string                                                          { return []string{"another"} }

// TestGlobalsOfTheServiceAreKept: what the service sets while the agent runs is what it has after the shutdown.
func TestGlobalsOfTheServiceAreKept(t *testing.T) {
	before := globalsNow()
	a, err := Start(t.Context(), quiet(t))
	if err != nil {
		t.Fatal(err)
	}
	tracing, metering := sdktrace.NewTracerProvider(), sdkmetric.NewMeterProvider()
	handled := 0
	handler := otel.ErrorHandlerFunc(func(error) { handled++ })
	logger := slog.New(slog.NewTextHandler(io.Discard, nil))
	otel.SetTracerProvider(tracing)
	otel.SetMeterProvider(metering)
	otel.SetTextMapPropagator(another{})
	otel.SetErrorHandler(handler)
	slog.SetDefault(logger)
	output := log.Writer()
	shutdown(t, a)
	if otel.GetTracerProvider() != tracing || otel.GetMeterProvider() != metering || slog.Default() != logger || log.Writer() != output {
		t.Error("a global that the service has set is gone")
	}
	if fields := otel.GetTextMapPropagator().Fields(); len(fields) != 1 || fields[0] != "another" {
		t.Errorf("the propagator has the fields %v", fields)
	}
	if otel.Handle(errors.New("x")); handled != 1 {
		t.Error("the service's error handler is gone")
	}

	otel.SetTracerProvider(before.tracing.(trace.TracerProvider))
	otel.SetMeterProvider(before.metering.(metric.MeterProvider))
	otel.SetTextMapPropagator(before.propagator.(propagation.TextMapPropagator))
	otel.SetErrorHandler(before.errors.(otel.ErrorHandler))
	slog.SetDefault(before.logger.(*slog.Logger))
	log.SetOutput(before.output.(io.Writer))
	log.SetFlags(before.flags)
}

// TestALoggerOfTheServiceIsKept: a default logger that masks secrets must not be bypassed.
func TestALoggerOfTheServiceIsKept(t *testing.T) {
	before, output, flags := slog.Default(), log.Writer(), log.Flags()
	defer func() {
		slog.SetDefault(before)
		log.SetOutput(output)
		log.SetFlags(flags)
	}()
	var mine, out bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&mine, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == "password" {
			a.Value = slog.StringValue("masked")
		}
		return a
	}}))
	for name, start := range map[string]func(*Config){
		"slog's default": func(*Config) { slog.SetDefault(logger) },
		"the field":      func(c *Config) { c.Agent.Logger = logger },
	} {
		t.Run(name, func(t *testing.T) {
			slog.SetDefault(before)
			mine.Reset()
			cfg := quiet(t)
			cfg.Stdout = &out
			start(&cfg)
			kept := slog.Default()
			a, err := Start(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			if slog.Default() != kept {
				t.Error("slog's default logger is the agent's")
			}
			slog.Default().Info("signed in", "password", "hunter2")
			shutdown(t, a)
			if !strings.Contains(mine.String(), "agent started") || strings.Contains(out.String(), "hunter2") {
				t.Errorf("the service's log is %q, the agent's %q", mine.String(), out.String())
			}
		})
	}
}

// TestAnotherTracerProviderIsReported: spans of a provider that the service sets later have no profiles.
func TestAnotherTracerProviderIsReported(t *testing.T) {
	var out bytes.Buffer
	cfg := quiet(t)
	cfg.Stdout = &out
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ours := otel.GetTracerProvider()
	if found := a.problems(); len(found) > 0 {
		t.Errorf("problems: %v", found)
	}
	otel.SetTracerProvider(sdktrace.NewTracerProvider())
	for range 2 {
		if found := a.problems(); len(found) != 1 || !strings.Contains(found[0].Message, "no longer the agent's") {
			t.Errorf("problems: %v", found)
		}
	}
	otel.SetTracerProvider(ours)
	if found := a.problems(); len(found) > 0 {
		t.Errorf("problems: %v", found)
	}
	shutdown(t, a)
	if n := strings.Count(out.String(), "no longer the agent's"); n != 1 {
		t.Errorf("logged %d times, want once: %s", n, out.String())
	}
}

func TestStartThatFailsLeavesNothing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	before := globalsNow()
	for _, tt := range []struct {
		change   func(*Config)
		contains string
	}{
		{func(c *Config) { c.Agent.Window = time.Millisecond }, `Window (PYROSCOPE_UPLOAD_INTERVAL) "1ms": want 1s to 10m`},
		{func(c *Config) { c.OTLPProtocol = "x" }, `OTLPProtocol (OTEL_EXPORTER_OTLP_PROTOCOL) "x": want grpc or http/protobuf`},
		{func(c *Config) { c.Agent.PyroscopeAddress, c.Agent.PyroscopeCAFile = "http://h", "/does/not/exist" }, "/does/not/exist"},
	} {
		cfg := quiet(t)
		tt.change(&cfg)
		a, err := Start(t.Context(), cfg)
		if a != nil || err == nil || !strings.Contains(err.Error(), tt.contains) {
			t.Errorf("Start: %v, %v, want an error with %q", a, err, tt.contains)
		}
		if after := globalsNow(); after != before {
			t.Fatalf("after %q the globals are %+v, want %+v", tt.contains, after, before)
		}
	}
	a, err := Start(t.Context(), quiet(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), quiet(t)); !errors.Is(err, agent.ErrRunning) {
		t.Errorf("a second agent: %v, want ErrRunning", err)
	}
	if found := a.problems(); len(found) > 0 {
		t.Errorf("after a second start: %v", found)
	}
	shutdown(t, a)
}

// TestAHundredStarts: an agent leaves nothing behind. TestMain looks for goroutines.
func TestAHundredStarts(t *testing.T) {
	before := globalsNow()
	for i := range 100 {
		cfg := quiet(t)
		cfg.Agent.Dir = t.TempDir()
		a, err := Start(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		_, span := otel.GetTracerProvider().Tracer("test").Start(t.Context(), fmt.Sprint("span ", i))
		span.End()
		shutdown(t, a)
		if spans := savedSpans(t, cfg.Agent.Dir, "svc"); len(spans) != 1 {
			t.Fatalf("start %d saved the spans %v, want one", i, spans)
		}
		if after := globalsNow(); after != before {
			t.Fatalf("after start %d the globals are %+v, want %+v", i, after, before)
		}
	}
}

func TestNoSecretIsLogged(t *testing.T) {
	var out bytes.Buffer
	cfg := quiet(t)
	cfg.Stdout = &out
	cfg.Agent.PyroscopeAddress = "http://user:hunter2@127.0.0.1:9"
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
	left := a.finished.Wait()
	if !strings.Contains(out.String(), "agent started") {
		t.Errorf("the log is %q", out.String())
	}
	for _, text := range []string{out.String(), err.Error(), left.Error()} {
		if strings.Contains(text, "hunter2") {
			t.Errorf("a password is shown: %s", text)
		}
	}
}

func TestLogLinesHaveTheTrace(t *testing.T) {
	var out bytes.Buffer
	cfg := quiet(t)
	cfg.Stdout = &out
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, span := otel.GetTracerProvider().Tracer("test").Start(t.Context(), "op")
	slog.InfoContext(ctx, "hello")
	span.End()
	shutdown(t, a)
	if want := `"trace_id":"` + span.SpanContext().TraceID().String() + `"`; !strings.Contains(out.String(), want) {
		t.Errorf("%s is not in %s", want, out.String())
	}
}

// TestDestinationsAreLogged: the log says where each signal goes, and nothing of those that are off.
func TestDestinationsAreLogged(t *testing.T) {
	clearEnv(t)
	for want, cfg := range map[string]Config{
		"[traces http://127.0.0.1:9/v1/traces metrics http://127.0.0.1:9/v1/metrics]": {
			OTLPEndpoint: "http://user:hunter2@127.0.0.1:9", Logs: Signal{Exporter: "none"},
		},
		"[logs http://localhost:4318/v1/logs,console]": {Logs: Signal{Exporter: "otlp,console"}},
		"[logs console]": {Logs: Signal{Exporter: "console"}},
		"[]":             {Metrics: Signal{Exporter: "prometheus"}},
	} {
		cfg.Agent = agent.Config{ServiceName: "svc"}
		resolved, _, _, err := cfg.resolve()
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(resolved.destinations()); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestWhatIsDiscardedIsLogged covers signals that are discarded although nobody chose that.
func TestWhatIsDiscardedIsLogged(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // accepts everything
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
	}))
	defer server.Close()
	for _, tt := range []struct {
		name string
		env  map[string]string
		want []string // of warnings, in their order
	}{
		{"all is off", map[string]string{"SPANFLAME_DIR": "off"}, []string{"no profiles are captured", "traces are discarded"}},
		{"traces have a server", map[string]string{"SPANFLAME_DIR": "off", "OTEL_EXPORTER_OTLP_ENDPOINT": "SERVER"}, []string{"no profiles are captured"}},
		{"profiles have a server", map[string]string{"PYROSCOPE_SERVER_ADDRESS": "SERVER"},
			[]string{"traces are discarded: there is no destination for them; set OTEL_EXPORTER_OTLP_ENDPOINT"}},
		{"no traces are wanted", map[string]string{"PYROSCOPE_SERVER_ADDRESS": "SERVER", "OTEL_TRACES_EXPORTER": "none"}, nil},
		{"saved", map[string]string{"SPANFLAME_DIR": "DIR"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			clearEnv(t)
			for name, value := range tt.env {
				switch value {
				case "DIR":
					value = t.TempDir()
				case "SERVER":
					value = server.URL
				}
				t.Setenv(name, value)
			}
			var out bytes.Buffer
			a, err := Start(t.Context(), Config{
				Agent:   agent.Config{ServiceName: "svc", SpoolDir: t.TempDir(), AdminAddress: "off", SlowSpan: -1},
				Metrics: Signal{Exporter: "none"}, Logs: Signal{Exporter: "none"}, Stdout: &out,
			})
			if err != nil {
				t.Fatal(err)
			}
			shutdown(t, a)
			var warnings []string
			for line := range strings.Lines(out.String()) {
				if strings.Contains(line, `"level":"WARN"`) {
					warnings = append(warnings, line)
				}
			}
			if len(warnings) != len(tt.want) {
				t.Fatalf("%d warnings, want %d:\n%s", len(warnings), len(tt.want), &out)
			}
			for i, want := range tt.want {
				if !strings.Contains(warnings[i], want) {
					t.Errorf("warning %s, want %q", warnings[i], want)
				}
			}
		})
	}
}
