package otelsetup

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"spanflame/agent"
	"spanflame/agent/internal/redact"
	"spanflame/agent/internal/setting"
	"spanflame/agent/internal/telemetry"
)

// Config says how a service is profiled and how its traces, metrics and logs leave the process. A field that has its
// zero value is read from its environment variable, and has its default where that is not set either. A field's comment
// ends with the variable, the default and what is allowed; docs/configuration.md has them as a table.
type Config struct {
	// Agent is the configuration of the profiles, and of the service's identity on all signals. Its MeterProvider and
	// MetricsHandler are set here unless they are set there. If its Logger is set, the agent logs to that, and slog's
	// default logger stays as it is.
	Agent agent.Config

	// OTLPEndpoint is the base URL that traces, metrics and logs are sent to. Without one they stay in the process.
	// OTEL_EXPORTER_OTLP_ENDPOINT; allowed: a URL like http://127.0.0.1:4318.
	OTLPEndpoint string

	// OTLPProtocol is the protocol for traces, metrics and logs.
	// OTEL_EXPORTER_OTLP_PROTOCOL; default: http/protobuf; allowed: grpc or http/protobuf.
	OTLPProtocol string

	// OTLPHeaders are headers to send with every OTLP request.
	// OTEL_EXPORTER_OTLP_HEADERS; allowed: name=value pairs separated by commas, values percent-encoded.
	OTLPHeaders map[string]string

	// Traces says how traces leave the process, where that differs from the above. Dir has them in any case.
	Traces Signal

	// Metrics says how metrics leave the process, where that differs from the above. The listener has them in any case.
	Metrics Signal

	// Logs says how logs leave the process, where that differs from the above. Stdout has them in any case.
	Logs Signal

	// TracesSampler chooses the traces that are recorded.
	// OTEL_TRACES_SAMPLER; default: parentbased_always_on; allowed: always_on, always_off, traceidratio,
	// parentbased_always_on, parentbased_always_off or parentbased_traceidratio.
	TracesSampler string

	// TracesSamplerArg is the share of traces that a sampler by ratio records.
	// OTEL_TRACES_SAMPLER_ARG; default: 1; allowed: a ratio from 0 to 1.
	TracesSamplerArg string

	// Stdout receives the JSON log and what console exporters print. Default: standard output.
	Stdout io.Writer
}

// Signal says how traces, metrics or logs leave the process. SIGNAL is TRACES, METRICS or LOGS.
type Signal struct {
	// Exporter is what sends the signal. For metrics, prometheus is allowed too and is the same as none,
	// since the listener always has them.
	// OTEL_SIGNAL_EXPORTER; default: otlp if there is an endpoint, else none; allowed: otlp, console or none.
	Exporter string

	// Endpoint is the full URL for this signal.
	// OTEL_EXPORTER_OTLP_SIGNAL_ENDPOINT; default: OTEL_EXPORTER_OTLP_ENDPOINT, with http/protobuf followed by /v1/signal;
	// allowed: a URL like http://127.0.0.1:4318/v1/signal.
	Endpoint string

	// Protocol is the protocol of this signal.
	// OTEL_EXPORTER_OTLP_SIGNAL_PROTOCOL; default: OTEL_EXPORTER_OTLP_PROTOCOL; allowed: grpc or http/protobuf.
	Protocol string
}

// ConfigFromEnv returns the configuration that the environment sets. The error names every variable that cannot be
// read, its value, and what is allowed.
func ConfigFromEnv() (Config, error) {
	var c Config
	var err error
	c.Agent, err = agent.ConfigFromEnv()
	return c, errors.Join(append([]error{err}, settings.Read(&c)...)...)
}

// resolve returns the configuration that Start uses, complete and checked, and whether somebody chose an exporter of
// traces.
func (c Config) resolve() (_ Config, tracesChosen bool, err error) {
	var env Config
	if err := errors.Join(settings.Read(&env)...); err != nil {
		return Config{}, false, fmt.Errorf("environment: %w", err)
	}
	settings.Merge(&c, &env)
	tracesChosen = c.Traces.Exporter != ""
	c = c.withDefaults()
	resolved, err := c.Agent.Resolve()
	if err := errors.Join(err, c.validate()); err != nil {
		return Config{}, false, err
	}
	c.Agent = resolved
	return c, tracesChosen, nil
}

// off is the Dir of an agent that saves nothing.
const off = "off"

// saves reports whether traces are saved next to the agent's profiles. It is for a resolved configuration.
func (c Config) saves() bool { return c.Agent.Dir != "" && c.Agent.Dir != off }

// Validate checks the configuration, with the defaults for what it leaves out. The error names each field
// that is wrong, its variable, its value, and what is allowed.
func (c Config) Validate() error {
	return errors.Join(c.Agent.Validate(), c.withDefaults().validate())
}

// withDefaults fills in what neither the caller nor the environment sets, except in Agent.
func (c Config) withDefaults() Config {
	settings.Merge(&c, &Config{}) // maps of its own
	settings.SetDefaults(&c)
	set[io.Writer](&c.Stdout, os.Stdout)
	c.Traces = c.Traces.withDefaults(c, "/v1/traces")
	c.Metrics = c.Metrics.withDefaults(c, "/v1/metrics")
	if c.Metrics.Exporter == exporterPrometheus {
		c.Metrics.Exporter = telemetry.ExporterNone
	}
	c.Logs = c.Logs.withDefaults(c, "/v1/logs")
	return c
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (s Signal) withDefaults(c Config, path string) Signal {
	set(&s.Protocol, c.OTLPProtocol)
	if s.Endpoint == "" && c.OTLPEndpoint != "" {
		s.Endpoint = c.OTLPEndpoint
		if s.Protocol == telemetry.ProtocolHTTP {
			s.Endpoint = strings.TrimRight(s.Endpoint, "/") + path
		}
	}
	if s.Exporter == "" {
		s.Exporter = telemetry.ExporterNone
		if s.Endpoint != "" {
			s.Exporter = telemetry.ExporterOTLP
		}
	}
	return s
}

// validate checks a configuration with its defaults, except Agent.
func (c Config) validate() error {
	errs := settings.Check(&c)
	check := func(ok bool, field string, value any) {
		if !ok {
			errs = append(errs, settings.Row(field).Wrong(value))
		}
	}
	for name, s := range map[string]Signal{"Traces": c.Traces, "Metrics": c.Metrics, "Logs": c.Logs} {
		// An error in the base is reported once.
		check(isProtocol(s.Protocol) || s.Protocol == c.OTLPProtocol, name+".Protocol", s.Protocol)
		ofBase := c.OTLPEndpoint != "" && strings.HasPrefix(s.Endpoint, strings.TrimRight(c.OTLPEndpoint, "/"))
		check(ofBase || setting.NoneOrURL(s.Endpoint), name+".Endpoint", redact.URL(s.Endpoint))
		if s.Exporter == telemetry.ExporterOTLP && s.Endpoint == "" {
			r := settings.Row(name + ".Endpoint")
			r.Allowed = "an endpoint, since the exporter is otlp"
			errs = append(errs, r.Wrong(""))
		}
	}
	if _, err := c.sampler(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func isProtocol(s string) bool { return s == telemetry.ProtocolGRPC || s == telemetry.ProtocolHTTP }

// samplers are those of the OpenTelemetry specification, by name. They are made of the ratio, which some ignore.
var samplers = map[string]func(ratio float64) sdktrace.Sampler{
	"always_on":                   func(float64) sdktrace.Sampler { return sdktrace.AlwaysSample() },
	"always_off":                  func(float64) sdktrace.Sampler { return sdktrace.NeverSample() },
	samplerRatio:                  sdktrace.TraceIDRatioBased,
	"parentbased_always_on":       func(float64) sdktrace.Sampler { return sdktrace.ParentBased(sdktrace.AlwaysSample()) },
	"parentbased_always_off":      func(float64) sdktrace.Sampler { return sdktrace.ParentBased(sdktrace.NeverSample()) },
	"parentbased_" + samplerRatio: func(r float64) sdktrace.Sampler { return sdktrace.ParentBased(sdktrace.TraceIDRatioBased(r)) },
}

const samplerRatio = "traceidratio"

// sampler returns what TracesSampler names. Its argument matters only to a sampler by ratio.
func (c Config) sampler() (sdktrace.Sampler, error) {
	create, ok := samplers[c.TracesSampler]
	if !ok {
		return nil, settings.Row("TracesSampler").Wrong(c.TracesSampler)
	}
	ratio, err := strconv.ParseFloat(c.TracesSamplerArg, 64)
	if strings.HasSuffix(c.TracesSampler, samplerRatio) && (err != nil || !(ratio >= 0 && ratio <= 1)) {
		return nil, settings.Row("TracesSamplerArg").Wrong(c.TracesSamplerArg)
	}
	return create(ratio), nil
}
