package agent

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	pyroscope "github.com/grafana/pyroscope-go"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"spanflame/agent/internal/capture"
	"spanflame/agent/internal/redact"
	"spanflame/agent/internal/telemetry"
	"spanflame/internal/record"
)

// Config says how a service is profiled and observed. A field that has its zero value is read from its environment
// variable, and has its default where that is not set either. A field's comment ends with the variable, the default
// and what is allowed; docs/configuration.md has them as a table.
type Config struct {
	// ServiceName is the service's name on every signal. The second choice is service.name in ResourceAttributes.
	// OTEL_SERVICE_NAME; default: the program's file name; allowed: 1 to 2048 bytes.
	ServiceName string

	// ServiceVersion is service.version on every signal. Default: that of ResourceAttributes.
	ServiceVersion string

	// Environment is deployment.environment.name on every signal. Default: that of ResourceAttributes.
	Environment string

	// ResourceAttributes are attributes that describe the service on traces, metrics and logs. Those of this field are
	// added to those of the variable. service.instance.id, by default the host's name, distinguishes the instances of a service: Pyroscope
	// keeps one profile per series and millisecond, so instances with the same labels would lose some of theirs. Set
	// it where several instances share a host.
	// OTEL_RESOURCE_ATTRIBUTES; allowed: name=value pairs separated by commas, values percent-encoded.
	ResourceAttributes map[string]string

	// PyroscopeAddress is the base URL of the Pyroscope server. Without one, profiles are only saved in Dir; where that
	// is off too, none are captured.
	// PYROSCOPE_SERVER_ADDRESS; allowed: a URL like http://127.0.0.1:4040.
	PyroscopeAddress string

	// PyroscopeBasicAuthUser is the user name for the Pyroscope server.
	// PYROSCOPE_BASIC_AUTH_USER.
	PyroscopeBasicAuthUser string

	// PyroscopeBasicAuthPassword is that user's password.
	// PYROSCOPE_BASIC_AUTH_PASSWORD or PYROSCOPE_BASIC_AUTH_PASSWORD_FILE.
	PyroscopeBasicAuthPassword string

	// PyroscopeAuthToken is a bearer token for the Pyroscope server, instead of user and password.
	// PYROSCOPE_AUTH_TOKEN or PYROSCOPE_AUTH_TOKEN_FILE.
	PyroscopeAuthToken string

	// PyroscopeTenantID is the tenant of a Pyroscope server that has several.
	// PYROSCOPE_TENANT_ID.
	PyroscopeTenantID string

	// PyroscopeHeaders are headers to send with every request to Pyroscope.
	// PYROSCOPE_HTTP_HEADERS; allowed: a JSON object of strings.
	PyroscopeHeaders map[string]string

	// PyroscopeCAFile is a PEM file with the authorities to trust for the connection to Pyroscope.
	// SPANFLAME_PYROSCOPE_CA_FILE; default: the system's authorities.
	PyroscopeCAFile string

	// PyroscopeCertFile is a PEM file with the client's certificate for Pyroscope.
	// SPANFLAME_PYROSCOPE_CERT_FILE.
	PyroscopeCertFile string

	// PyroscopeKeyFile is a PEM file with the key of that certificate.
	// SPANFLAME_PYROSCOPE_KEY_FILE.
	PyroscopeKeyFile string

	// ProfileLabels are series labels to add to every profile. Keep the number of different values small: each makes
	// a series.
	// PYROSCOPE_LABELS; allowed: name=value pairs separated by commas; names of letters, digits and underscores that
	// begin with a letter or one underscore, and are not service_name.
	ProfileLabels map[string]string

	// ProfileTypes are the profiles to capture. Naming one type of a family (the four of memory, the two of mutex and of
	// block) captures the whole family. Only the profile of leaked goroutines forces a garbage collection.
	// SPANFLAME_PROFILE_TYPES; default: all that this build supports; allowed: one or more of alloc_objects, alloc_space,
	// block_count, block_duration, cpu, goroutine_leak, goroutines, inuse_objects, inuse_space, mutex_count, mutex_duration.
	ProfileTypes []pyroscope.ProfileType

	// Window is the length of a profile.
	// PYROSCOPE_UPLOAD_INTERVAL; default: 15s; allowed: 1s to 10m.
	Window time.Duration

	// MutexProfileFraction records one of this many mutex contentions, on average. 1 records each one, which costs about
	// a microsecond.
	// SPANFLAME_MUTEX_PROFILE_FRACTION; default: 100; allowed: a number above zero.
	MutexProfileFraction int

	// BlockProfileRate records one blocking event per this much blocked time, on average, and every longer one. 1 ns
	// records each one, which costs about a microsecond. The runtime does not tell which rate was set before, so
	// Shutdown switches the recording off.
	// SPANFLAME_BLOCK_PROFILE_RATE; default: 100µs; allowed: a duration above zero.
	BlockProfileRate time.Duration

	// SlowSpan is how long a request must take to get a wall-clock profile, which shows where it spent its time, on the
	// CPU and waiting. A request is a local root span: one whose parent is in another process, or that has none. A
	// negative duration switches wall-clock profiles off.
	// SPANFLAME_SLOW_SPAN; default: 100ms; allowed: a duration above zero, or off.
	SlowSpan time.Duration

	// SlowSpanLogs is how many diagnoses of slow spans are logged for each span name and minute. The others are counted
	// in one line. Their diagnoses are in their profiles. A negative number logs none.
	// SPANFLAME_SLOW_SPAN_LOGS; default: 5; allowed: a number above zero, or off.
	SlowSpanLogs int

	// WallRingBytes limits the memory that holds the execution trace for wall-clock profiles.
	// SPANFLAME_WALL_RING_BYTES; default: 16777216; allowed: a number of bytes above zero.
	WallRingBytes int

	// WallCPUShare limits the share of one core that wall-clock profiles may cost, averaged over a minute. Slow requests
	// beyond it are counted and not captured.
	// SPANFLAME_WALL_CPU_SHARE; default: 0.01; allowed: a share above 0 and up to 1.
	WallCPUShare float64

	// Dir is the directory in which profiles and traces are saved, as files that "spanflame view" and "go tool pprof"
	// read. Services share it, so that a trace across them is in one place. "off" saves nothing.
	// SPANFLAME_DIR; default: spanflame/saved in the user's cache directory, or off with a Pyroscope server.
	Dir string

	// DirMaxBytes limits this service's files in Dir, profiles and traces together. The oldest are removed first.
	// SPANFLAME_DIR_MAX_BYTES; default: 1073741824; allowed: at least 1048576 bytes.
	DirMaxBytes int64

	// DirMaxAge is the age at which files in Dir are removed.
	// SPANFLAME_DIR_MAX_AGE; default: 168h; allowed: a duration above zero.
	DirMaxAge time.Duration

	// SpoolDir is the directory in which captured profiles wait for delivery. If the user has no cache directory, they
	// wait in memory.
	// SPANFLAME_SPOOL_DIR; default: spanflame/spool/SERVICE in the user's cache directory.
	SpoolDir string

	// SpoolMaxBytes limits the profiles that wait. The oldest are removed first, and counted.
	// SPANFLAME_SPOOL_MAX_BYTES; default: 268435456; allowed: a number of bytes above zero.
	SpoolMaxBytes int64

	// SpoolMaxAge is how long a process keeps a waiting profile. Then the profile is removed, and counted.
	// SPANFLAME_SPOOL_MAX_AGE; default: 24h; allowed: a duration above zero.
	SpoolMaxAge time.Duration

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

	// AdminAddress is the address of the operator's listener, with profiles, metrics, health and status. Anybody who can
	// connect to it can read the process's profiles. If the address is in use, the agent tries again until it is free.
	// SPANFLAME_ADMIN_ADDRESS; default: 127.0.0.1:16060, or the next free port if that is taken; allowed: host:port
	// with a numeric port, or off.
	AdminAddress string

	// AdminPages chooses the pages of the operator's listener: all, or metrics for those without profiles (metrics,
	// health and status).
	// SPANFLAME_ADMIN_PAGES; default: all; allowed: all or metrics.
	AdminPages string

	// AdminHosts are host names by which the operator's listener may be addressed, in addition to localhost, IP addresses
	// and the host in AdminAddress. Requests for other names are refused, because a web page could make a name of its
	// own resolve to the listener.
	// SPANFLAME_ADMIN_HOSTS; allowed: host names separated by commas.
	AdminHosts []string

	// AdminToken is required by the operator's listener for all pages except health: as a bearer token, or as the
	// password of basic authentication, with any user name.
	// SPANFLAME_ADMIN_TOKEN or SPANFLAME_ADMIN_TOKEN_FILE.
	AdminToken string

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

// Keys of resource attributes that identify a service on all signals: they are labels of its profiles,
// metrics and log lines under the same names with underscores.
const (
	keyServiceName     = "service.name"
	keyServiceVersion  = "service.version"
	keyServiceInstance = "service.instance.id"
	keyEnvironment     = "deployment.environment.name"
)

var identityKeys = []string{
	keyServiceName, keyServiceVersion, "service.namespace", keyServiceInstance, keyEnvironment, "deployment.environment",
}

// labelName returns the label for an attribute.
func labelName(attribute string) string { return strings.ReplaceAll(attribute, ".", "_") }

// ConfigFromEnv returns the configuration that the environment sets. The error names every variable that cannot be
// read, its value, and what is allowed.
func ConfigFromEnv() (Config, error) {
	var c Config
	return c, errors.Join(settings.Read(&c)...)
}

// ownPrefix begins the names of the variables that are only spanflame's.
const ownPrefix = "SPANFLAME_"

// commandVariable is one that the commands read, whose environment services may share.
const commandVariable = ownPrefix + "TEMPO_ADDRESS"

// unknownVariables returns the names of variables that are set and that nothing reads: they are probably misspelt.
func unknownVariables() []string {
	known := append(settings.Names(), commandVariable)
	var names []string
	for _, v := range os.Environ() {
		name, value, _ := strings.Cut(v, "=")
		if strings.HasPrefix(name, ownPrefix) && value != "" && !slices.Contains(known, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// over returns c with the fields that are not set taken from d, and maps of its own.
func (c Config) over(d Config) Config {
	// The caller's attributes take precedence over names from the environment.
	set(&c.ServiceName, c.ResourceAttributes[keyServiceName])
	set(&c.ServiceVersion, c.ResourceAttributes[keyServiceVersion])
	set(&c.Environment, c.ResourceAttributes[keyEnvironment])
	settings.Merge(&c, &d)
	return c
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// withDefaults fills in what neither the caller nor the environment sets.
func (c Config) withDefaults() Config {
	if c.ResourceAttributes == nil {
		c.ResourceAttributes = map[string]string{}
	}
	set(&c.ServiceName, c.ResourceAttributes[keyServiceName])
	if c.ServiceName == "" {
		c.ServiceName = "unknown_service:go"
		if exe, err := os.Executable(); err == nil {
			c.ServiceName = filepath.Base(exe)
		}
	}
	set(&c.ServiceVersion, c.ResourceAttributes[keyServiceVersion])
	set(&c.Environment, c.ResourceAttributes[keyEnvironment])
	c.ResourceAttributes[keyServiceName] = c.ServiceName
	if c.ServiceVersion != "" {
		c.ResourceAttributes[keyServiceVersion] = c.ServiceVersion
	}
	if c.Environment != "" {
		c.ResourceAttributes[keyEnvironment] = c.Environment
	}
	if host, err := os.Hostname(); err == nil && c.ResourceAttributes[keyServiceInstance] == "" {
		c.ResourceAttributes[keyServiceInstance] = host
	}
	if len(c.ProfileTypes) == 0 {
		for name, t := range profileTypes {
			if capture.Supported(t) {
				c.ProfileTypes = append(c.ProfileTypes, name)
			}
		}
	}
	if c.Dir == "" && c.PyroscopeAddress == "" {
		// Where there is no such directory either, nothing is saved, and Start logs that.
		c.Dir, _ = record.DefaultDir()
	}
	if c.SpoolDir == "" {
		// Without a cache directory profiles wait in memory: a directory that users share is nobody's own.
		if cache, err := os.UserCacheDir(); err == nil {
			c.SpoolDir = filepath.Join(cache, "spanflame", "spool", record.DirName(c.ServiceName))
		}
	}
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

// profileTypes are pyroscope-go's names for the profile types, and the record that holds each.
var profileTypes = map[pyroscope.ProfileType]record.Type{
	pyroscope.ProfileCPU:           record.CPU,
	pyroscope.ProfileAllocObjects:  record.Memory,
	pyroscope.ProfileAllocSpace:    record.Memory,
	pyroscope.ProfileInuseObjects:  record.Memory,
	pyroscope.ProfileInuseSpace:    record.Memory,
	pyroscope.ProfileMutexCount:    record.Mutex,
	pyroscope.ProfileMutexDuration: record.Mutex,
	pyroscope.ProfileBlockCount:    record.Block,
	pyroscope.ProfileBlockDuration: record.Block,
	pyroscope.ProfileGoroutines:    record.Goroutine,
	pyroscope.ProfileGoroutineLeak: record.GoroutineLeak,
}

// saves reports whether profiles and traces are saved in Dir.
func (c Config) saves() bool { return c.Dir != "" && c.Dir != off }

// lost describes which signals are discarded although nobody chose that; it is empty if none is. The caller says
// whether an exporter of traces was set, before the defaults.
func (c Config) lost(tracesChosen bool) string {
	profiles := !c.saves() && c.PyroscopeAddress == ""
	traces := !c.saves() && !tracesChosen && c.Traces.Exporter == telemetry.ExporterNone
	switch {
	case profiles && c.Dir == "":
		return "no profiles are captured: there is no server for them, and the user has no cache directory to save them in; " +
			"set SPANFLAME_DIR to a directory, or to off"
	case profiles && traces:
		return "nothing is captured: there is no destination for profiles and traces; " +
			"set SPANFLAME_DIR to a directory, or PYROSCOPE_SERVER_ADDRESS and OTEL_EXPORTER_OTLP_ENDPOINT"
	case profiles:
		return "no profiles are captured: there is no destination for them; " +
			"set PYROSCOPE_SERVER_ADDRESS, or SPANFLAME_DIR to a directory"
	case traces:
		return "traces are discarded: there is no destination for them; " +
			"set OTEL_EXPORTER_OTLP_ENDPOINT, or SPANFLAME_DIR to a directory, or OTEL_TRACES_EXPORTER to none if none are wanted"
	}
	return ""
}

// recordTypes returns the records that hold the configured profile types, each once and in a fixed order.
func (c Config) recordTypes() []record.Type {
	var types []record.Type
	for _, name := range c.ProfileTypes {
		types = append(types, profileTypes[name])
	}
	slices.Sort(types)
	return slices.Compact(types)
}

// Validate checks the configuration, with the defaults for what it leaves out. The error names each field
// that is wrong, its variable, its value, and what is allowed.
func (c Config) Validate() error {
	c = c.over(Config{}).withDefaults()
	errs := settings.Check(&c)
	check := func(ok bool, field string, value any) {
		if !ok {
			errs = append(errs, settings.Row(field).Wrong(value))
		}
	}
	for name := range c.ProfileLabels {
		check(labelPattern.MatchString(name) && !strings.HasPrefix(name, "__") && name != labelName(keyServiceName), "ProfileLabels", name)
	}
	for _, t := range c.ProfileTypes {
		typ, ok := profileTypes[t]
		check(ok, "ProfileTypes", t)
		if ok && !capture.Supported(typ) {
			errs = append(errs, fmt.Errorf("ProfileTypes (SPANFLAME_PROFILE_TYPES) %q: want a build with GOEXPERIMENT=goroutineleakprofile; "+
				"leave it out otherwise", t))
		}
	}
	for name, s := range map[string]Signal{"Traces": c.Traces, "Metrics": c.Metrics, "Logs": c.Logs} {
		// An error in the base is reported once.
		check(isProtocol(s.Protocol) || s.Protocol == c.OTLPProtocol, name+".Protocol", s.Protocol)
		ofBase := c.OTLPEndpoint != "" && strings.HasPrefix(s.Endpoint, strings.TrimRight(c.OTLPEndpoint, "/"))
		check(s.Endpoint == "" || ofBase || isURL(s.Endpoint), name+".Endpoint", redact.URL(s.Endpoint))
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

func isURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

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

// propagator carries W3C trace context and baggage between processes.
func propagator() propagation.TextMapPropagator {
	return propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})
}
