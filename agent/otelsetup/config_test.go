package otelsetup

import (
	"reflect"
	"strings"
	"testing"

	"spanflame/agent"
	"spanflame/agent/internal/telemetry"
)

func TestConfigFromEnv(t *testing.T) {
	clearEnv(t)
	for name, value := range map[string]string{
		"OTEL_SERVICE_NAME":                  "checkout",
		"OTEL_EXPORTER_OTLP_ENDPOINT":        "http://collector:4317",
		"OTEL_EXPORTER_OTLP_PROTOCOL":        "grpc",
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://tempo:4318/v1/traces",
		"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
		"OTEL_METRICS_EXPORTER":              "prometheus",
		"OTEL_LOGS_EXPORTER":                 "console",
		"OTEL_TRACES_SAMPLER":                "traceidratio",
		"OTEL_TRACES_SAMPLER_ARG":            "0.25",
	} {
		t.Setenv(name, value)
	}
	got, err := ConfigFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Agent:            agent.Config{ServiceName: "checkout"},
		OTLPEndpoint:     "http://collector:4317",
		OTLPProtocol:     "grpc",
		Traces:           Signal{Endpoint: "http://tempo:4318/v1/traces", Protocol: "http/protobuf"},
		Metrics:          Signal{Exporter: "prometheus"},
		Logs:             Signal{Exporter: "console"},
		TracesSampler:    "traceidratio",
		TracesSamplerArg: "0.25",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	full := got.withDefaults().derived()
	if err := full.Validate(); err != nil {
		t.Error(err)
	}
	if want := (Signal{Exporter: telemetry.ExporterOTLP, Endpoint: "http://tempo:4318/v1/traces", Protocol: "http/protobuf"}); full.Traces != want {
		t.Errorf("traces %+v, want %+v", full.Traces, want)
	}
	if want := (Signal{Exporter: telemetry.ExporterNone, Endpoint: "http://collector:4317", Protocol: "grpc"}); full.Metrics != want {
		t.Errorf("metrics %+v, want %+v", full.Metrics, want)
	}
}

func TestValidate(t *testing.T) {
	clearEnv(t)
	for _, tt := range []struct {
		name     string
		change   func(*Config)
		contains string // "" if the configuration is right
	}{
		{"nothing set", func(*Config) {}, ""},
		{"the agent", func(c *Config) { c.Agent.MutexProfileFraction = -1 }, `MutexProfileFraction (SPANFLAME_MUTEX_PROFILE_FRACTION) "-1"`},
		{"endpoint", func(c *Config) { c.OTLPEndpoint = "localhost:4317" }, `OTLPEndpoint (OTEL_EXPORTER_OTLP_ENDPOINT) "localhost:4317": want a URL`},
		{"protocol", func(c *Config) { c.OTLPProtocol = "http/json" }, `OTLPProtocol (OTEL_EXPORTER_OTLP_PROTOCOL) "http/json": want grpc or http/protobuf`},
		{"protocol of a signal", func(c *Config) { c.Logs.Protocol = "x" }, `Logs.Protocol (OTEL_EXPORTER_OTLP_LOGS_PROTOCOL) "x"`},
		{"exporter", func(c *Config) { c.Traces.Exporter = "zipkin" }, `Traces.Exporter (OTEL_TRACES_EXPORTER) "zipkin": want otlp, console or both`},
		{"prometheus for metrics", func(c *Config) { c.Metrics.Exporter = "prometheus" }, ""},
		{"prometheus for traces", func(c *Config) { c.Traces.Exporter = "prometheus" }, "Traces.Exporter"},
		{"sampler", func(c *Config) { c.TracesSampler = "sometimes" }, `TracesSampler (OTEL_TRACES_SAMPLER) "sometimes": want always_on`},
		{"ratio", func(c *Config) { c.TracesSampler, c.TracesSamplerArg = "traceidratio", "2" }, `TracesSamplerArg (OTEL_TRACES_SAMPLER_ARG) "2": want a ratio`},
		{"ratio that is no number", func(c *Config) { c.TracesSampler, c.TracesSamplerArg = "parentbased_traceidratio", "NaN" }, `"NaN"`},
		{"an endpoint with a password", func(c *Config) { c.OTLPEndpoint = "ftp://u:hunter2@h" }, "OTLPEndpoint"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var c Config
			tt.change(&c)
			err := c.Validate()
			if tt.contains == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.contains) {
				t.Errorf("error %v, want one with %q", err, tt.contains)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
}

func TestAWrongBaseIsReportedOnce(t *testing.T) {
	clearEnv(t)
	for _, c := range []Config{{OTLPEndpoint: "localhost:4317"}, {OTLPEndpoint: "http://127.0.0.1:4318", OTLPProtocol: "x"}} {
		err := c.Validate()
		if err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("the error is %v, want one line", err)
		}
	}
}

// A strict agent names at once what is wrong in the variables of both packages and in the fields.
func TestAllWrongSettingsAreNamedAtOnce(t *testing.T) {
	t.Setenv("SPANFLAME_STRICT", "true")
	t.Setenv("SPANFLAME_DIR_MAX_AGE", "old")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "smoke")
	t.Setenv("OTEL_BSP_EXPORT_TIMEOUT", "soon")
	cfg := Config{TracesSampler: "dice", Agent: agent.Config{AdminPages: "some", WallCPUShare: 2}}
	_, _, _, err := cfg.resolve()
	for _, want := range []string{
		`SPANFLAME_DIR_MAX_AGE="old": want`, `OTEL_EXPORTER_OTLP_PROTOCOL="smoke": want`, `OTEL_BSP_EXPORT_TIMEOUT="soon": want`,
		`TracesSampler (OTEL_TRACES_SAMPLER) "dice": want`, `AdminPages (SPANFLAME_ADMIN_PAGES) "some": want`,
		`WallCPUShare (SPANFLAME_WALL_CPU_SHARE) "2": want`,
	} {
		if err == nil || strings.Count(err.Error(), want) != 1 {
			t.Errorf("%s is not named once: %v", want, err)
		}
	}
}

// TestProfilesHaveTheCommonSettings: what a service sets of OTLP for all signals counts for its profiles, if they are sent
// by that, and the environment's settings for profiles alone count before that.
func TestProfilesHaveTheCommonSettings(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://environment:4317")
	c := quiet(t)
	c.OTLPEndpoint, c.OTLPProtocol, c.OTLPHeaders = "http://code:4317", "grpc", map[string]string{"x-key": "1"}
	resolved := func() agent.Config {
		c, _, _, err := c.resolve()
		if err != nil {
			t.Fatal(err)
		}
		return c.Agent
	}
	if a := resolved(); a.ProfilesExporter != "none" || a.ProfilesEndpoint != "" || len(a.ProfilesHeaders) > 0 {
		t.Errorf("nobody chose OTLP: %q %q %v", a.ProfilesExporter, a.ProfilesEndpoint, a.ProfilesHeaders)
	}
	c.Agent.ProfilesExporter, c.SDKDisabled = "otlp", true // which concerns the other signals
	if a := resolved(); a.ProfilesEndpoint != "http://code:4317" || a.ProfilesProtocol != "grpc" || a.ProfilesHeaders["x-key"] != "1" {
		t.Errorf("%q %q %v", a.ProfilesEndpoint, a.ProfilesProtocol, a.ProfilesHeaders)
	}
	t.Setenv("OTEL_EXPORTER_OTLP_PROFILES_PROTOCOL", "http/protobuf")
	t.Setenv("OTEL_EXPORTER_OTLP_PROFILES_HEADERS", "x-key=2")
	const full = "http://code:4317/v1development/profiles"
	if a := resolved(); a.ProfilesEndpoint != full || a.ProfilesProtocol != "http/protobuf" || a.ProfilesHeaders["x-key"] != "2" {
		t.Errorf("%q %q %v", a.ProfilesEndpoint, a.ProfilesProtocol, a.ProfilesHeaders)
	}
}
