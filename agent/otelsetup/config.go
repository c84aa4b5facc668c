package otelsetup

import (
	"cmp"
	"errors"
	"io"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"go.opentelemetry.io/contrib/propagators/autoprop"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"spanflame/agent"
	"spanflame/agent/internal/setting"
	"spanflame/agent/internal/telemetry"
	"spanflame/internal/redact"
)

// Config configures how a service is profiled, and how its traces, metrics and logs are exported. A field that has its
// zero value is read from its environment variable, and has its default where that is not set either, or not allowed
// (see [agent.Config.Strict]). A field's comment ends with the variable, the default and what is allowed;
// docs/configuration.md has them as a table.
type Config struct {
	// Agent is the configuration of the profiles, and of the service's identity on all signals. Its MeterProvider and
	// MetricsHandler are set here unless they are set there. If its Logger is set, the agent logs to that, and slog's
	// default logger stays as it is.
	Agent agent.Config

	// OTLPEndpoint is the base URL that traces, metrics and logs are sent to. Without one they stay in the process.
	// OTEL_EXPORTER_OTLP_ENDPOINT; allowed: a URL like http://127.0.0.1:4318, without a query.
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

	// Propagators are the formats in which a request carries its trace to and from other services. An unknown one in the
	// variable is left out.
	// OTEL_PROPAGATORS; default: tracecontext, baggage; allowed: one or more of tracecontext, baggage, b3, b3multi,
	// jaeger, xray, ottrace, or none.
	Propagators []string

	// SDKDisabled switches traces, metrics and logs off: no spans are recorded, saved or exported. Profiles are captured,
	// and requests carry the trace of their caller on.
	// OTEL_SDK_DISABLED; default: false; allowed: true or false.
	SDKDisabled bool

	// Stdout receives the JSON log and what console exporters print. Default: standard output.
	Stdout io.Writer
}

// Signal configures how traces, metrics or logs are exported. SIGNAL is TRACES, METRICS or LOGS.
type Signal struct {
	// Exporter is what sends the signal. An unknown one in the variable is left out. With otlp and no endpoint, the
	// endpoint is on localhost. For metrics, prometheus is allowed too and changes nothing,
	// since the listener always has them.
	// OTEL_SIGNAL_EXPORTER; default: otlp if there is an endpoint, else none; allowed: otlp, console or both, separated by a
	// comma, or none.
	Exporter string

	// Endpoint is the full URL for this signal.
	// OTEL_EXPORTER_OTLP_SIGNAL_ENDPOINT; default: OTEL_EXPORTER_OTLP_ENDPOINT, with http/protobuf followed by /v1/signal;
	// allowed: a URL like http://127.0.0.1:4318/v1/signal, without a query.
	Endpoint string

	// Protocol is the protocol of this signal.
	// OTEL_EXPORTER_OTLP_SIGNAL_PROTOCOL; default: OTEL_EXPORTER_OTLP_PROTOCOL; allowed: grpc or http/protobuf.
	Protocol string
}

// ConfigFromEnv returns the configuration that the environment sets. The error names every variable that cannot be
// read or has a value that is not allowed, its value, and what is allowed. The configuration has the others.
func ConfigFromEnv() (Config, error) {
	var c Config
	var err error
	c.Agent, err = agent.ConfigFromEnv()
	return c, errors.Join(append([]error{err}, settings.Read(&c)...)...)
}

// resolve returns the configuration that Start uses, complete and checked. It also returns whether somebody chose an
// exporter of traces, and the errors of variables that are ignored, except the agent's.
func (c Config) resolve() (_ Config, tracesChosen bool, ignored []error, err error) {
	var env Config
	ignored = append(settings.Read(&env), checkSDK()...)
	settings.Merge(&c, &env)
	tracesChosen = c.Traces.Exporter != "" || c.SDKDisabled
	c = c.withDefaults()
	common, _ := agent.ConfigFromEnv() // Resolve returns its error
	c.Agent = c.profiles(common)
	strict := c.Agent.Strict || common.Strict
	c.Agent, err = c.Agent.Resolve()
	if strict {
		err = errors.Join(err, errors.Join(ignored...))
	}
	if err = errors.Join(err, errors.Join(settings.Check(&c)...)); err != nil {
		return Config{}, false, nil, err
	}
	return c.derived(), tracesChosen, ignored, nil
}

// off is the Dir of an agent that saves nothing.
const off = "off"

// saves reports whether traces are saved next to the agent's profiles. It is for a resolved configuration.
func (c Config) saves() bool { return c.Agent.Dir != "" && c.Agent.Dir != off }

// Validate checks the configuration, with the defaults for what it leaves out. The error names each field
// that is wrong, its variable, its value, and what is allowed.
func (c Config) Validate() error {
	c = c.withDefaults()
	return errors.Join(c.Agent.Validate(), errors.Join(settings.Check(&c)...))
}

// withDefaults fills in what neither the caller nor the environment sets, except in Agent.
func (c Config) withDefaults() Config {
	settings.Merge(&c, &Config{}) // maps of its own
	settings.SetDefaults(&c)
	set[io.Writer](&c.Stdout, os.Stdout)
	return c
}

// profiles returns the agent's configuration with the common settings of OTLP, where its profiles are sent by that and
// neither the caller nor the environment has settings for them alone.
func (c Config) profiles(env agent.Config) agent.Config {
	a := c.Agent
	set(&a.ProfilesExporter, env.ProfilesExporter)
	if a.ProfilesExporter != telemetry.ExporterOTLP {
		return a
	}
	set(&a.ProfilesEndpoint, env.ProfilesEndpoint)
	set(&a.ProfilesProtocol, env.ProfilesProtocol)
	set(&a.ProfilesProtocol, c.OTLPProtocol)
	set(&a.ProfilesEndpoint, c.endpoint(a.ProfilesProtocol, "v1development/profiles"))
	if len(a.ProfilesHeaders) == 0 && len(env.ProfilesHeaders) == 0 {
		a.ProfilesHeaders = c.OTLPHeaders
	}
	return a
}

// derived fills in what the signals have from the common settings.
func (c Config) derived() Config {
	c.Traces = c.Traces.derived(c, "v1/traces")
	c.Metrics = c.Metrics.derived(c, "v1/metrics")
	c.Logs = c.Logs.derived(c, "v1/logs")
	return c
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (s Signal) derived(c Config, path string) Signal {
	if c.SDKDisabled {
		return Signal{Exporter: telemetry.ExporterNone, Protocol: c.OTLPProtocol}
	}
	set(&s.Protocol, c.OTLPProtocol)
	names, _ := setting.List[string](s.Exporter)
	names = slices.DeleteFunc(names, func(name string) bool { return name == exporterPrometheus })
	if s.Exporter != "" && len(names) == 0 {
		names = []string{telemetry.ExporterNone}
	}
	s.Exporter = strings.Join(names, ",")
	if c.OTLPEndpoint != "" || slices.Contains(names, telemetry.ExporterOTLP) {
		set(&s.Endpoint, c.endpoint(s.Protocol, path))
	}
	if s.Exporter == "" {
		s.Exporter = telemetry.ExporterNone
		if s.Endpoint != "" {
			s.Exporter = telemetry.ExporterOTLP
		}
	}
	return s
}

// endpoint returns the URL for a signal that has none of its own.
func (c Config) endpoint(protocol, path string) string {
	if protocol == telemetry.ProtocolGRPC {
		return cmp.Or(c.OTLPEndpoint, "http://localhost:4317") // the specification's default
	}
	u, _ := url.JoinPath(cmp.Or(c.OTLPEndpoint, "http://localhost:4318"), path) // it is a URL, which was checked
	return u
}

// destinations returns the signals that are exported and where to, for the log. It is for a resolved configuration.
func (c Config) destinations() (to []any) {
	for _, of := range []struct {
		signal string
		Signal
	}{{"traces", c.Traces}, {"metrics", c.Metrics}, {"logs", c.Logs}} {
		if of.Exporter != telemetry.ExporterNone {
			to = append(to, of.signal, strings.Replace(of.Exporter, telemetry.ExporterOTLP, redact.URL(of.Endpoint), 1))
		}
	}
	return to
}

func isProtocol(s string) bool { return s == telemetry.ProtocolGRPC || s == telemetry.ProtocolHTTP }

// samplers are those of the OpenTelemetry specification, by name. They are made of the ratio, which some ignore.
var samplers = map[string]func(ratio float64) sdktrace.Sampler{
	"always_on":                func(float64) sdktrace.Sampler { return sdktrace.AlwaysSample() },
	"always_off":               func(float64) sdktrace.Sampler { return sdktrace.NeverSample() },
	"traceidratio":             sdktrace.TraceIDRatioBased,
	"parentbased_always_on":    func(float64) sdktrace.Sampler { return sdktrace.ParentBased(sdktrace.AlwaysSample()) },
	"parentbased_always_off":   func(float64) sdktrace.Sampler { return sdktrace.ParentBased(sdktrace.NeverSample()) },
	"parentbased_traceidratio": func(r float64) sdktrace.Sampler { return sdktrace.ParentBased(sdktrace.TraceIDRatioBased(r)) },
}

// propagator returns what Propagators name. The configuration is checked.
func (c Config) propagator() propagation.TextMapPropagator {
	if slices.Contains(c.Propagators, "none") {
		return propagation.NewCompositeTextMapPropagator()
	}
	p, err := autoprop.TextMapPropagator(c.Propagators...)
	if err != nil { // of no name that the check lets through
		return propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})
	}
	return p
}

// sampler returns what TracesSampler names. The configuration is checked.
func (c Config) sampler() sdktrace.Sampler {
	if c.SDKDisabled {
		return sdktrace.NeverSample()
	}
	ratio, _ := strconv.ParseFloat(c.TracesSamplerArg, 64)
	return samplers[c.TracesSampler](ratio)
}
