package otelsetup

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"spanflame/agent/internal/telemetry"
	"spanflame/internal/docsection"
)

// variables are the requirements of the specification on its variables, and ours on the others: a wrong value
// stops no service.
var variables = []struct {
	name, value string
	warning     string              // a part of the one warning; "" if there must be none
	check       func(Config) string // returns what is wrong with the resolved configuration; nil: nothing to check
}{
	{"OTEL_SDK_DISABLED", "true", "", func(c Config) string { return want(c.SDKDisabled, true) }},
	{"OTEL_SDK_DISABLED", "TRUE", "", func(c Config) string { return want(c.SDKDisabled, true) }},
	{"OTEL_SDK_DISABLED", "1", `OTEL_SDK_DISABLED="1": want true or false`, func(c Config) string { return want(c.SDKDisabled, false) }},
	{"OTEL_SERVICE_NAME", "  ", "", func(c Config) string { return want(c.Agent.ServiceName, "svc") }},
	{"OTEL_RESOURCE_ATTRIBUTES", "a=b%20c,d=%E4%B8%96", "", func(c Config) string {
		return want(c.Agent.ResourceAttributes["a"]+c.Agent.ResourceAttributes["d"], "b c世")
	}},
	{"OTEL_RESOURCE_ATTRIBUTES", "a=b,c", `OTEL_RESOURCE_ATTRIBUTES="a=b,c": want name=value pairs`, func(c Config) string {
		return want(c.Agent.ResourceAttributes["a"], "") // the specification discards all
	}},
	{"OTEL_PROPAGATORS", "b3, jaeger", "", func(c Config) string { return want(strings.Join(c.Propagators, ","), "b3,jaeger") }},
	{"OTEL_PROPAGATORS", "b3,pigeon", `OTEL_PROPAGATORS="b3,pigeon": want one or more of`, func(c Config) string {
		return want(strings.Join(c.Propagators, ","), "b3")
	}},
	{"OTEL_PROPAGATORS", "pigeon", `OTEL_PROPAGATORS="pigeon": want`, func(c Config) string {
		return want(strings.Join(c.Propagators, ","), "tracecontext,baggage")
	}},
	{"OTEL_PROPAGATORS", "", "", func(c Config) string { return want(strings.Join(c.Propagators, ","), "tracecontext,baggage") }},
	{"OTEL_TRACES_SAMPLER", "sometimes", `OTEL_TRACES_SAMPLER="sometimes": want always_on`, func(c Config) string {
		return want(c.TracesSampler, "parentbased_always_on")
	}},
	{"OTEL_TRACES_SAMPLER", "jaeger_remote", `OTEL_TRACES_SAMPLER="jaeger_remote": want always_on`, nil},
	{"OTEL_TRACES_SAMPLER", "always_off", "", func(c Config) string { return want(c.sampler().Description(), "AlwaysOffSampler") }},
	{"OTEL_TRACES_SAMPLER_ARG", "2", `OTEL_TRACES_SAMPLER_ARG="2": want a ratio`, func(c Config) string { return want(c.TracesSamplerArg, "1") }},
	{"OTEL_TRACES_SAMPLER_ARG", "NaN", `OTEL_TRACES_SAMPLER_ARG="NaN": want a ratio`, nil},
	{"OTEL_TRACES_EXPORTER", "otlp", "", func(c Config) string { return want(c.Traces.Endpoint, "http://localhost:4318/v1/traces") }},
	{"OTEL_TRACES_EXPORTER", "console, otlp", "", func(c Config) string {
		return want(c.Traces.Exporter+" "+c.Traces.Endpoint, "console,otlp http://localhost:4318/v1/traces")
	}},
	{"OTEL_TRACES_EXPORTER", "zipkin,console", `OTEL_TRACES_EXPORTER="zipkin,console": want otlp, console or both, separated by a comma, or none: console is used`,
		func(c Config) string { return want(c.Traces.Exporter, telemetry.ExporterConsole) }},
	{"OTEL_TRACES_EXPORTER", "none,otlp", `OTEL_TRACES_EXPORTER="none,otlp": want otlp, console or both, separated by a comma, or none: otlp is used`, nil},
	{"OTEL_METRICS_EXPORTER", "prometheus,otlp", "", func(c Config) string { return want(c.Metrics.Exporter, telemetry.ExporterOTLP) }},
	{"OTEL_TRACES_EXPORTER", "zipkin", `OTEL_TRACES_EXPORTER="zipkin": want otlp, console or both`, func(c Config) string {
		return want(c.Traces.Exporter, telemetry.ExporterNone)
	}},
	{"OTEL_METRICS_EXPORTER", "otlp", "", func(c Config) string { return want(c.Metrics.Endpoint, "http://localhost:4318/v1/metrics") }},
	{"OTEL_METRICS_EXPORTER", "prometheus", "", func(c Config) string { return want(c.Metrics.Exporter, telemetry.ExporterNone) }},
	{"OTEL_LOGS_EXPORTER", "none", "", func(c Config) string { return want(c.Logs.Exporter, telemetry.ExporterNone) }},
	{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9/prefix/", "", func(c Config) string {
		return want(c.Traces.Endpoint, "http://127.0.0.1:9/prefix/v1/traces")
	}},
	{"OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4317", `OTEL_EXPORTER_OTLP_ENDPOINT="localhost:4317": want a URL`, func(c Config) string {
		return want(c.Traces.Exporter, telemetry.ExporterNone)
	}},
	{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9/?token=hunter2", `OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9/?…": want a URL`, nil},
	{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9/own", "", func(c Config) string {
		return want(c.Traces.Endpoint+c.Logs.Endpoint, "http://127.0.0.1:9/own")
	}},
	{"OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", `OTEL_EXPORTER_OTLP_PROTOCOL="http/json": want grpc or http/protobuf`, func(c Config) string {
		return want(c.Traces.Protocol, telemetry.ProtocolHTTP)
	}},
	{"OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "grpc", "", func(c Config) string { return want(c.Logs.Protocol+c.Traces.Protocol, "grpchttp/protobuf") }},
	{"OTEL_PROFILES_EXPORTER", "pigeon", `OTEL_PROFILES_EXPORTER="pigeon": want pyroscope, otlp or none`, func(c Config) string {
		return want(c.Agent.ProfilesExporter, "none")
	}},
	{"OTEL_CONFIG_FILE", "/etc/otel.yaml", `OTEL_CONFIG_FILE="/etc/otel.yaml": want none: the other variables are used instead`, nil},
	{"OTEL_EXPORTER_OTLP_HEADERS", "hunter2", "OTEL_EXPORTER_OTLP_HEADERS: want name=value pairs", nil},
	{"OTEL_BSP_MAX_QUEUE_SIZE", "-1", `OTEL_BSP_MAX_QUEUE_SIZE="-1": want a whole number from 1 to 1048576`, nil},
	{"OTEL_BSP_MAX_QUEUE_SIZE", "999999999999", `OTEL_BSP_MAX_QUEUE_SIZE="999999999999": want`, nil},
	{"PYROSCOPE_UPLOAD_INTERVAL", "15", "", func(c Config) string { return want(c.Agent.Window, 15*time.Second) }},
	{"PYROSCOPE_UPLOAD_INTERVAL", "soon", `PYROSCOPE_UPLOAD_INTERVAL="soon": want a duration`, func(c Config) string {
		return want(c.Agent.Window, 15*time.Second)
	}},
	{"PYROSCOPE_UPLOAD_INTERVAL", "1h", `PYROSCOPE_UPLOAD_INTERVAL="1h": want 1s to 10m`, nil},
	{"PYROSCOPE_LABELS", "service_name=x", `PYROSCOPE_LABELS="service_name": want`, nil},
	{"PYROSCOPE_AUTH_TOKEN_FILE", "/does/not/exist", "PYROSCOPE_AUTH_TOKEN_FILE: open /does/not/exist", nil},
	{"SPANFLAME_PROFILE_TYPES", "cpu,gpu", `SPANFLAME_PROFILE_TYPES="gpu": want one or more of`, nil},
	{"SPANFLAME_ADMIN_ADDRESS", "6060", `SPANFLAME_ADMIN_ADDRESS="6060": want host:port`, nil},
}

// want returns that two values differ, or nothing.
func want[T comparable](got, want T) string {
	if got == want {
		return ""
	}
	return fmt.Sprintf("it is %v, want %v", got, want)
}

// lenient is a configuration that leaves what the variables set to them.
func lenient(t *testing.T, out *strings.Builder) Config {
	cfg := quiet(t)
	cfg.Agent.Window, cfg.Agent.AdminAddress, cfg.Agent.SlowSpan, cfg.Stdout = 0, "", -1, out
	return cfg
}

// TestVariables: a variable that is wrong is logged once, with its name and its value, and shown as a problem, and the
// service starts; it does not if it wants to be strict.
func TestVariables(t *testing.T) {
	for _, tt := range variables {
		t.Run(tt.name+"="+tt.value, func(t *testing.T) {
			var out strings.Builder
			cfg := lenient(t, &out)
			t.Setenv(tt.name, tt.value)
			if tt.check != nil {
				resolved, _, _, err := cfg.resolve()
				if err != nil {
					t.Fatal(err)
				}
				if wrong := tt.check(resolved); wrong != "" {
					t.Error(wrong)
				}
			}
			cfg.Traces.Exporter, cfg.Metrics.Exporter, cfg.Logs.Exporter = "none", "none", "none" // nothing is sent anywhere
			a, err := Start(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			problems := statusOf(t, a)
			shutdown(t, a)
			warnings := ignoredVariables(t, out.String())
			if tt.warning == "" {
				if len(warnings) > 0 || strings.Contains(problems, "ignored") {
					t.Errorf("warnings %q, status %q", warnings, problems)
				}
				return
			}
			if len(warnings) != 1 || !strings.Contains(warnings[0], tt.warning) || !strings.Contains(problems, "setting: environment variable ignored: "+tt.warning) {
				t.Errorf("warnings %q, status %q, want one and in both %q", warnings, problems, tt.warning)
			}
			if strings.Contains(out.String(), `"msg":"OpenTelemetry"`) {
				t.Errorf("the SDK warns, too: %s", out.String())
			}
			if strings.Contains(out.String()+problems, "hunter2") {
				t.Errorf("a secret is shown: %s", out.String())
			}
			cfg.Agent.Strict = true
			if a, err := Start(t.Context(), cfg); err == nil {
				shutdown(t, a)
				t.Error("a strict agent starts")
			} else if !strings.Contains(err.Error(), tt.warning) {
				t.Errorf("a strict agent: %v", err)
			}
		})
	}
}

// statusOf returns the agent's /status.
func statusOf(t *testing.T, a *Agent) string {
	t.Helper()
	return get(t, "http://"+a.AdminAddr()+"/status")
}

// ignoredVariables returns the warnings about variables in a JSON log. Every line of the log must be JSON.
func ignoredVariables(t *testing.T, log string) (warnings []string) {
	t.Helper()
	for line := range strings.Lines(log) {
		var l struct{ Level, Msg, Error string }
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Errorf("a line of the log is not JSON: %q", line)
		}
		if l.Msg == "environment variable ignored" && l.Level == "WARN" {
			warnings = append(warnings, l.Error)
		}
	}
	return warnings
}

// TestVariablesOfTheSDK: each that is wrong has one warning, and none stops the service; none that is right has one.
func TestVariablesOfTheSDK(t *testing.T) {
	certificate := filepath.Join(t.TempDir(), "cert.pem")
	if err := os.WriteFile(certificate, []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	right := []string{"1", "gzip", "true", "cumulative", "explicit_bucket_histogram", "trace_based", "debug", certificate, "a=b"}
	start := func(t *testing.T, set func(sdkVariable)) []string {
		var out strings.Builder
		cfg := lenient(t, &out)
		for _, v := range sdkVariables {
			set(v)
		}
		cfg.OTLPEndpoint = "http://127.0.0.1:9"
		a, err := Start(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		_, span := otel.GetTracerProvider().Tracer("test").Start(t.Context(), "op")
		span.End()
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		_ = a.Shutdown(ctx) // there is no server
		_ = a.finished.Wait()
		http.DefaultClient.CloseIdleConnections()
		if strings.Contains(out.String(), "hunter2") {
			t.Errorf("a secret is shown: %s", out.String())
		}
		return ignoredVariables(t, out.String())
	}
	t.Run("wrong", func(t *testing.T) {
		warnings := start(t, func(v sdkVariable) {
			if v.secret {
				t.Setenv(v.name, "hunter2")
			} else {
				t.Setenv(v.name, "-7")
			}
		})
		for _, v := range sdkVariables {
			if n := len(slices.DeleteFunc(slices.Clone(warnings), func(w string) bool {
				return !strings.HasPrefix(w, v.name+"=") && !strings.HasPrefix(w, v.name+":") || !strings.Contains(w, v.allowed)
			})); n != 1 {
				t.Errorf("%s has %d warnings, want one: %q", v.name, n, warnings)
			}
		}
	})
	t.Run("right", func(t *testing.T) {
		if warnings := start(t, func(v sdkVariable) {
			if v.name == configFile { // no value is right
				return
			}
			if i := slices.IndexFunc(right, v.valid); i >= 0 && !strings.HasSuffix(v.name, "KEY") && !strings.HasSuffix(v.name, "CERTIFICATE") {
				t.Setenv(v.name, right[i])
			} else if i < 0 {
				t.Errorf("%s allows none of %q", v.name, right)
			}
		}); len(warnings) > 0 {
			t.Errorf("warnings %q", warnings)
		}
	})
}

// TestDocumentedVariablesOfTheSDK: docs/configuration.md has all of them.
func TestDocumentedVariablesOfTheSDK(t *testing.T) {
	var b strings.Builder
	b.WriteString("| Variable | What it sets | Allowed |\n|---|---|---|\n")
	for _, v := range sdkVariables {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", v.name, strings.ToUpper(v.what[:1])+v.what[1:], v.allowed)
	}
	docsection.Check(t, "../../docs/configuration.md", "variables of the SDK, written by go test ./agent/otelsetup -update", b.String(), *update)
}

func TestSDKDisabled(t *testing.T) {
	cfg := quiet(t)
	cfg.Agent.Dir = t.TempDir()
	t.Setenv("OTEL_SDK_DISABLED", "true")
	t.Setenv("OTEL_TRACES_EXPORTER", "console")
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	_, span := otel.GetTracerProvider().Tracer("test").Start(t.Context(), "op")
	if span.IsRecording() {
		t.Error("spans are recorded")
	}
	span.End()
	shutdown(t, a)
	if spans := savedSpans(t, cfg.Agent.Dir, "svc"); len(spans) > 0 {
		t.Errorf("spans are saved: %v", spans)
	}
	if n := len(savedProfiles(t, cfg.Agent.Dir, "svc")); n != 5 {
		t.Errorf("%d profiles are saved, want 5", n)
	}
}

func TestPropagators(t *testing.T) {
	for value, want := range map[string][]string{
		"":             {"Traceparent"},
		"b3":           {"B3"},
		"jaeger":       {"Uber-Trace-Id"},
		"none":         {},
		"b3multi,xray": {"X-Amzn-Trace-Id", "X-B3-Sampled", "X-B3-Spanid", "X-B3-Traceid"},
	} {
		cfg := quiet(t)
		t.Setenv("OTEL_PROPAGATORS", value)
		a, err := Start(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, span := otel.GetTracerProvider().Tracer("test").Start(t.Context(), "op", trace.WithNewRoot())
		header := http.Header{}
		otel.GetTextMapPropagator().Inject(ctx, propagation.HeaderCarrier(header))
		span.End()
		shutdown(t, a)
		var names []string
		for name := range header {
			names = append(names, name)
		}
		slices.Sort(names)
		if !slices.Equal(names, want) {
			t.Errorf("OTEL_PROPAGATORS=%s: the headers are %v, want %v", value, names, want)
		}
	}
}

// TestMessagesOfTheSDKAreJSON: those before its start, too, at the level of OTEL_LOG_LEVEL.
func TestMessagesOfTheSDKAreJSON(t *testing.T) {
	for level, messages := range map[string]bool{"": false, "debug": true} {
		var out strings.Builder
		cfg := lenient(t, &out)
		t.Setenv("OTEL_LOG_LEVEL", level)
		t.Setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "many")
		a, err := Start(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		otel.Handle(fmt.Errorf("of the SDK"))
		shutdown(t, a)
		ignoredVariables(t, out.String())
		if !strings.Contains(out.String(), "of the SDK") || strings.Contains(out.String(), "OpenTelemetry: ") != messages {
			t.Errorf("OTEL_LOG_LEVEL=%s: the log is %s", level, out.String())
		}
	}
}
