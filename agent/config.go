package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
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

// Config says how a service is profiled and observed. A field that has its zero value is read from the
// environment variable named beside it, and where that is not set either, has the default named there.
type Config struct {
	// ServiceName is the service's name on every signal: OTEL_SERVICE_NAME, else service.name in
	// OTEL_RESOURCE_ATTRIBUTES, else the program's file name.
	ServiceName string

	// ServiceVersion and Environment are service.version and deployment.environment.name: from
	// OTEL_RESOURCE_ATTRIBUTES, else left out.
	ServiceVersion string
	Environment    string

	// ResourceAttributes describe the service on traces, metrics and logs: OTEL_RESOURCE_ATTRIBUTES
	// (k=v,k=v). Those of this field are added to those of the variable. service.instance.id, by default the
	// host's name, tells instances of a service apart: Pyroscope keeps one profile per series and
	// millisecond, so instances with the same labels would lose some of theirs. Set it where several
	// instances share a host.
	ResourceAttributes map[string]string

	// PyroscopeAddress is the base URL of the Pyroscope server: PYROSCOPE_SERVER_ADDRESS. Without one,
	// profiles are saved in Dir alone; where that is off too, none are captured.
	PyroscopeAddress string

	// Credentials of the Pyroscope server: PYROSCOPE_BASIC_AUTH_USER, PYROSCOPE_BASIC_AUTH_PASSWORD,
	// PYROSCOPE_AUTH_TOKEN (a bearer token) and PYROSCOPE_TENANT_ID. For the password and the token, the
	// same variable with _FILE appended names a file that holds it.
	PyroscopeBasicAuthUser     string
	PyroscopeBasicAuthPassword string
	PyroscopeAuthToken         string
	PyroscopeTenantID          string

	// PyroscopeHeaders are sent with every request to Pyroscope: PYROSCOPE_HTTP_HEADERS (a JSON object of
	// strings).
	PyroscopeHeaders map[string]string

	// PEM files for the connection to Pyroscope: SPANFLAME_PYROSCOPE_CA_FILE (which authorities are
	// trusted; default: the system's), SPANFLAME_PYROSCOPE_CERT_FILE and SPANFLAME_PYROSCOPE_KEY_FILE (how
	// this client proves who it is).
	PyroscopeCAFile   string
	PyroscopeCertFile string
	PyroscopeKeyFile  string

	// ProfileLabels are added to every profile as series labels: PYROSCOPE_LABELS (k=v,k=v). Names are
	// those of Prometheus labels. Keep the number of different values small: each makes a series.
	ProfileLabels map[string]string

	// ProfileTypes are the profiles to capture: SPANFLAME_PROFILE_TYPES (comma-separated, as pyroscope-go
	// names them: cpu, alloc_objects, alloc_space, inuse_objects, inuse_space, goroutines, mutex_count,
	// mutex_duration, block_count, block_duration, goroutine_leak). One of a family (the four of memory,
	// the two of mutex and of block) brings the whole family. Nothing forces a garbage collection but the
	// profile of leaked goroutines. Default: all that this build supports.
	ProfileTypes []pyroscope.ProfileType

	// Window is the length of a profile: PYROSCOPE_UPLOAD_INTERVAL, default 15 s, from 1 s to 10 min.
	Window time.Duration

	// MutexProfileFraction has one of so many mutex contentions recorded, on average:
	// SPANFLAME_MUTEX_PROFILE_FRACTION, default 100. 1 records each one, at about a microsecond.
	MutexProfileFraction int

	// BlockProfileRate has one blocking event recorded per so much blocked time, on average, and every
	// longer one: SPANFLAME_BLOCK_PROFILE_RATE, default 100 µs. 1 ns records each one, at about a
	// microsecond. The runtime does not tell what rate was set before: the shutdown sets none.
	BlockProfileRate time.Duration

	// SlowSpan is how long a request must take for its wall-clock profile to be captured, where it spent its
	// time on the CPU and off it: SPANFLAME_SLOW_SPAN, default 100 ms. A request is a local root span: one
	// whose parent is in another process, or nowhere. Below zero ("off" in the variable) nothing is.
	SlowSpan time.Duration

	// WallRingBytes bounds the memory that the execution trace is kept in for those profiles:
	// SPANFLAME_WALL_RING_BYTES, default 16777216.
	WallRingBytes int

	// WallCPUShare is the share of one core that recording and making them may take, averaged over a minute:
	// SPANFLAME_WALL_CPU_SHARE, default 0.01. Slow requests beyond it are counted, not captured.
	WallCPUShare float64

	// Dir is where profiles and traces are saved, as files that "spanflame view" and "go tool pprof" read:
	// SPANFLAME_DIR. Services share it, so that a trace across them is in one place. Default: without a
	// PyroscopeAddress spanflame/saved in the user's cache directory; with one nothing is saved. "off" saves
	// nothing either way.
	Dir string

	// DirMaxBytes and DirMaxAge bound what this service has there, profiles and traces together; beyond them
	// the oldest go: SPANFLAME_DIR_MAX_BYTES, default 1073741824, and SPANFLAME_DIR_MAX_AGE, default 168h.
	DirMaxBytes int64
	DirMaxAge   time.Duration

	// SpoolDir is where captured profiles wait for delivery: SPANFLAME_SPOOL_DIR, default
	// spanflame/spool/SERVICE in the user's cache directory.
	SpoolDir string

	// SpoolMaxBytes and SpoolMaxAge bound what waits there; beyond them the oldest go, and are counted:
	// SPANFLAME_SPOOL_MAX_BYTES, default 268435456, and SPANFLAME_SPOOL_MAX_AGE, default 24h.
	SpoolMaxBytes int64
	SpoolMaxAge   time.Duration

	// OTLPEndpoint is the base URL that traces, metrics and logs are sent to:
	// OTEL_EXPORTER_OTLP_ENDPOINT. Without one they stay in the process.
	OTLPEndpoint string

	// OTLPProtocol is "grpc" or "http/protobuf": OTEL_EXPORTER_OTLP_PROTOCOL, default http/protobuf.
	OTLPProtocol string

	// OTLPHeaders are sent with every OTLP request: OTEL_EXPORTER_OTLP_HEADERS.
	OTLPHeaders map[string]string

	// Traces, Metrics and Logs say how each signal leaves the process, where that differs from the above.
	// Traces are saved in Dir besides.
	Traces, Metrics, Logs Signal

	// TracesSampler and TracesSamplerArg choose the traces that are recorded: OTEL_TRACES_SAMPLER
	// (always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off,
	// parentbased_traceidratio), default parentbased_always_on, and OTEL_TRACES_SAMPLER_ARG (the ratio,
	// from 0 to 1, default 1).
	TracesSampler    string
	TracesSamplerArg string

	// AdminAddress is the operator's listener, host:port: SPANFLAME_ADMIN_ADDRESS, default 127.0.0.1:6060, or a
	// free port where another service has that one; "off" has none. Whoever can reach it can read the process's
	// profiles.
	AdminAddress string

	// Stdout receives the JSON log and what console exporters print. Default: standard output.
	Stdout io.Writer
}

// Signal says how traces, metrics or logs leave the process. SIGNAL is TRACES, METRICS or LOGS.
type Signal struct {
	// Exporter is "otlp", "console" or "none", for metrics "prometheus" too, which means the same as none,
	// since the listener always has them: OTEL_SIGNAL_EXPORTER. Default: otlp where there is an endpoint,
	// else none.
	Exporter string

	// Endpoint is the full URL for this signal: OTEL_EXPORTER_OTLP_SIGNAL_ENDPOINT. Default: OTLPEndpoint,
	// for http/protobuf with /v1/traces, /v1/metrics or /v1/logs.
	Endpoint string

	// Protocol is that of this signal: OTEL_EXPORTER_OTLP_SIGNAL_PROTOCOL. Default: OTLPProtocol.
	Protocol string
}

const (
	defaultWindow        = 15 * time.Second
	defaultMutexFraction = 100
	defaultBlockRate     = 100 * time.Microsecond
	defaultSlowSpan      = 100 * time.Millisecond
	defaultDirMaxBytes   = 1 << 30
	defaultDirMaxAge     = 7 * 24 * time.Hour
	defaultAdminAddress  = "127.0.0.1:6060"
	off                  = "off"
)

// minDirBytes is the least that DirMaxBytes can be: room for a few profiles and traces.
const minDirBytes = 1 << 20

// maxSecretFile bounds what is read of a file that holds a secret.
const maxSecretFile = 64 << 10

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

// labelName is the label that an attribute becomes.
func labelName(attribute string) string { return strings.ReplaceAll(attribute, ".", "_") }

// ConfigFromEnv returns what the environment says. The error names every variable that cannot be read, its
// value, and what is allowed.
func ConfigFromEnv() (Config, error) {
	var e envReader
	return e.config()
}

func (e *envReader) config() (Config, error) {
	c := Config{
		ServiceName:                e.text("OTEL_SERVICE_NAME"),
		ResourceAttributes:         e.attributes("OTEL_RESOURCE_ATTRIBUTES"),
		PyroscopeAddress:           e.text("PYROSCOPE_SERVER_ADDRESS"),
		PyroscopeBasicAuthUser:     e.text("PYROSCOPE_BASIC_AUTH_USER"),
		PyroscopeBasicAuthPassword: e.secret("PYROSCOPE_BASIC_AUTH_PASSWORD"),
		PyroscopeAuthToken:         e.secret("PYROSCOPE_AUTH_TOKEN"),
		PyroscopeTenantID:          e.text("PYROSCOPE_TENANT_ID"),
		PyroscopeHeaders:           e.jsonObject("PYROSCOPE_HTTP_HEADERS"),
		PyroscopeCAFile:            e.text("SPANFLAME_PYROSCOPE_CA_FILE"),
		PyroscopeCertFile:          e.text("SPANFLAME_PYROSCOPE_CERT_FILE"),
		PyroscopeKeyFile:           e.text("SPANFLAME_PYROSCOPE_KEY_FILE"),
		ProfileLabels:              e.pairs("PYROSCOPE_LABELS"),
		Window:                     e.duration("PYROSCOPE_UPLOAD_INTERVAL"),
		MutexProfileFraction:       int(e.integer("SPANFLAME_MUTEX_PROFILE_FRACTION", "number")),
		BlockProfileRate:           e.duration("SPANFLAME_BLOCK_PROFILE_RATE"),
		SlowSpan:                   e.slowSpan("SPANFLAME_SLOW_SPAN"),
		WallRingBytes:              int(e.integer("SPANFLAME_WALL_RING_BYTES", "number of bytes")),
		WallCPUShare:               e.share("SPANFLAME_WALL_CPU_SHARE"),
		Dir:                        e.text("SPANFLAME_DIR"),
		DirMaxBytes:                e.integer("SPANFLAME_DIR_MAX_BYTES", "number of bytes"),
		DirMaxAge:                  e.duration("SPANFLAME_DIR_MAX_AGE"),
		SpoolDir:                   e.text("SPANFLAME_SPOOL_DIR"),
		SpoolMaxBytes:              e.integer("SPANFLAME_SPOOL_MAX_BYTES", "number of bytes"),
		SpoolMaxAge:                e.duration("SPANFLAME_SPOOL_MAX_AGE"),
		OTLPEndpoint:               e.text("OTEL_EXPORTER_OTLP_ENDPOINT"),
		OTLPProtocol:               e.text("OTEL_EXPORTER_OTLP_PROTOCOL"),
		Traces:                     e.signal("TRACES"),
		Metrics:                    e.signal("METRICS"),
		Logs:                       e.signal("LOGS"),
		TracesSampler:              e.text("OTEL_TRACES_SAMPLER"),
		TracesSamplerArg:           e.text("OTEL_TRACES_SAMPLER_ARG"),
		AdminAddress:               e.text("SPANFLAME_ADMIN_ADDRESS"),
	}
	for _, name := range e.list("SPANFLAME_PROFILE_TYPES") {
		c.ProfileTypes = append(c.ProfileTypes, pyroscope.ProfileType(name))
	}
	return c, errors.Join(e.errs...)
}

// envReader reads variables and keeps what is wrong with them. A variable that is set to nothing counts as
// not set, as the OpenTelemetry specification has it.
type envReader struct {
	errs  []error
	names []string // that were looked for
}

func (e *envReader) text(name string) string {
	e.names = append(e.names, name)
	return strings.TrimSpace(os.Getenv(name))
}

// ownPrefix begins the names of variables that are of spanflame alone.
const ownPrefix = "SPANFLAME_"

// commandVariable is one that the commands read, whose environment services have too.
const commandVariable = ownPrefix + "TEMPO_ADDRESS"

// unknown are the names of variables that are set and read by nobody: most likely misspelt.
func (e *envReader) unknown() []string {
	var names []string
	for _, v := range os.Environ() {
		name, value, _ := strings.Cut(v, "=")
		if strings.HasPrefix(name, ownPrefix) && value != "" && name != commandVariable && !slices.Contains(e.names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (e *envReader) fail(name, value, allowed string) {
	e.errs = append(e.errs, fmt.Errorf("%s=%q: want %s", name, value, allowed))
}

func (e *envReader) list(name string) []string {
	var items []string
	for item := range strings.SplitSeq(e.text(name), ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

func (e *envReader) pairs(name string) map[string]string {
	m := map[string]string{}
	for _, item := range e.list(name) {
		k, v, ok := strings.Cut(item, "=")
		if k = strings.TrimSpace(k); !ok || k == "" {
			e.fail(name, e.text(name), "name=value pairs separated by commas")
			return nil
		}
		m[k] = strings.TrimSpace(v)
	}
	return m
}

// attributes are pairs whose values may be percent-encoded, as W3C Baggage has it.
func (e *envReader) attributes(name string) map[string]string {
	m := e.pairs(name)
	for k, v := range m {
		u, err := url.PathUnescape(v)
		if err != nil {
			e.fail(name, e.text(name), fmt.Sprintf("a percent-encoded value for %s", k))
			return nil
		}
		m[k] = u
	}
	return m
}

func (e *envReader) jsonObject(name string) map[string]string {
	s := e.text(name)
	if s == "" {
		return nil
	}
	var m map[string]string
	if err := json.Unmarshal([]byte(s), &m); err != nil {
		// The value is not shown: headers hold secrets.
		e.errs = append(e.errs, fmt.Errorf(`%s: want a JSON object of strings, like {"X-Name":"value"}`, name))
	}
	return m
}

func (e *envReader) duration(name string) time.Duration {
	s := e.text(name)
	if s == "" {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		e.fail(name, s, `a duration above zero with its unit, like "15s" or "168h"`)
	}
	return d
}

// slowSpan is a duration; to have none is written as 0 or off.
func (e *envReader) slowSpan(name string) time.Duration {
	if s := e.text(name); s == off || s == "0" {
		return -1
	}
	return e.duration(name)
}

func (e *envReader) share(name string) float64 {
	s := e.text(name)
	if s == "" {
		return 0
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f > 0 && f <= 1) {
		e.fail(name, s, "a share above 0 and up to 1")
	}
	return f
}

func (e *envReader) integer(name, what string) int64 {
	s := e.text(name)
	if s == "" {
		return 0
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 {
		e.fail(name, s, "a whole "+what+" above zero, like 1000000")
	}
	return n
}

// secret is the variable itself, or the content of the file that the variable with _FILE names.
func (e *envReader) secret(name string) string {
	v, file := os.Getenv(name), e.text(name+"_FILE")
	if file == "" {
		return v
	}
	if v != "" {
		e.errs = append(e.errs, fmt.Errorf("%s and %[1]s_FILE are both set: want one of them", name))
		return ""
	}
	f, err := os.Open(file)
	if err != nil {
		e.errs = append(e.errs, fmt.Errorf("%s_FILE: %w", name, err))
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	switch {
	case err != nil:
		e.errs = append(e.errs, fmt.Errorf("%s_FILE: %w", name, err))
	case len(b) > maxSecretFile:
		e.fail(name+"_FILE", file, fmt.Sprintf("a file of at most %d bytes", maxSecretFile))
	}
	return strings.TrimRight(string(b), "\r\n")
}

func (e *envReader) signal(name string) Signal {
	return Signal{
		Exporter: e.text("OTEL_" + name + "_EXPORTER"),
		Endpoint: e.text("OTEL_EXPORTER_OTLP_" + name + "_ENDPOINT"),
		Protocol: e.text("OTEL_EXPORTER_OTLP_" + name + "_PROTOCOL"),
	}
}

// over returns c with what it leaves out taken from d, and maps of its own.
func (c Config) over(d Config) Config {
	// A name among the caller's attributes stands above one in the environment, too.
	for field, key := range map[*string]string{&c.ServiceName: keyServiceName, &c.ServiceVersion: keyServiceVersion, &c.Environment: keyEnvironment} {
		set(field, c.ResourceAttributes[key])
	}
	set(&c.ServiceName, d.ServiceName)
	attributes := maps.Clone(d.ResourceAttributes)
	if attributes == nil {
		attributes = map[string]string{}
	}
	maps.Copy(attributes, c.ResourceAttributes)
	c.ResourceAttributes = attributes
	set(&c.ServiceVersion, d.ServiceVersion)
	set(&c.Environment, d.Environment)
	set(&c.PyroscopeAddress, d.PyroscopeAddress)
	set(&c.PyroscopeBasicAuthUser, d.PyroscopeBasicAuthUser)
	set(&c.PyroscopeBasicAuthPassword, d.PyroscopeBasicAuthPassword)
	set(&c.PyroscopeAuthToken, d.PyroscopeAuthToken)
	set(&c.PyroscopeTenantID, d.PyroscopeTenantID)
	setMap(&c.PyroscopeHeaders, d.PyroscopeHeaders)
	set(&c.PyroscopeCAFile, d.PyroscopeCAFile)
	set(&c.PyroscopeCertFile, d.PyroscopeCertFile)
	set(&c.PyroscopeKeyFile, d.PyroscopeKeyFile)
	setMap(&c.ProfileLabels, d.ProfileLabels)
	if len(c.ProfileTypes) == 0 {
		c.ProfileTypes = d.ProfileTypes
	}
	c.ProfileTypes = slices.Clone(c.ProfileTypes)
	set(&c.Window, d.Window)
	set(&c.MutexProfileFraction, d.MutexProfileFraction)
	set(&c.BlockProfileRate, d.BlockProfileRate)
	set(&c.SlowSpan, d.SlowSpan)
	set(&c.WallRingBytes, d.WallRingBytes)
	set(&c.WallCPUShare, d.WallCPUShare)
	set(&c.Dir, d.Dir)
	set(&c.DirMaxBytes, d.DirMaxBytes)
	set(&c.DirMaxAge, d.DirMaxAge)
	set(&c.SpoolDir, d.SpoolDir)
	set(&c.SpoolMaxBytes, d.SpoolMaxBytes)
	set(&c.SpoolMaxAge, d.SpoolMaxAge)
	set(&c.OTLPEndpoint, d.OTLPEndpoint)
	set(&c.OTLPProtocol, d.OTLPProtocol)
	setMap(&c.OTLPHeaders, d.OTLPHeaders)
	c.Traces = c.Traces.over(d.Traces)
	c.Metrics = c.Metrics.over(d.Metrics)
	c.Logs = c.Logs.over(d.Logs)
	set(&c.TracesSampler, d.TracesSampler)
	set(&c.TracesSamplerArg, d.TracesSamplerArg)
	set(&c.AdminAddress, d.AdminAddress)
	set(&c.Stdout, d.Stdout)
	return c
}

func (s Signal) over(d Signal) Signal {
	set(&s.Exporter, d.Exporter)
	set(&s.Endpoint, d.Endpoint)
	set(&s.Protocol, d.Protocol)
	return s
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func setMap(field *map[string]string, value map[string]string) {
	if len(*field) == 0 {
		*field = value
	}
	*field = maps.Clone(*field)
}

// withDefaults fills in what neither the caller nor the environment said.
func (c Config) withDefaults() Config {
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
	set(&c.Window, defaultWindow)
	set(&c.MutexProfileFraction, defaultMutexFraction)
	set(&c.BlockProfileRate, defaultBlockRate)
	set(&c.SlowSpan, defaultSlowSpan)
	if c.Dir == "" && c.PyroscopeAddress == "" {
		// Where there is no such directory either, nothing is saved, and Start says so.
		c.Dir, _ = record.DefaultDir()
	}
	set(&c.DirMaxBytes, defaultDirMaxBytes)
	set(&c.DirMaxAge, defaultDirMaxAge)
	if c.SpoolDir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			cache = os.TempDir()
		}
		c.SpoolDir = filepath.Join(cache, "spanflame", "spool", record.DirName(c.ServiceName))
	}
	set(&c.OTLPProtocol, telemetry.ProtocolHTTP)
	c.Traces = c.Traces.withDefaults(c, "/v1/traces")
	c.Metrics = c.Metrics.withDefaults(c, "/v1/metrics")
	if c.Metrics.Exporter == "prometheus" {
		c.Metrics.Exporter = telemetry.ExporterNone
	}
	c.Logs = c.Logs.withDefaults(c, "/v1/logs")
	set(&c.TracesSampler, "parentbased_always_on")
	set(&c.TracesSamplerArg, "1")
	set(&c.AdminAddress, defaultAdminAddress)
	set[io.Writer](&c.Stdout, os.Stdout)
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

// saves is whether profiles and traces are saved in Dir.
func (c Config) saves() bool { return c.Dir != "" && c.Dir != off }

// lost says which signals have nowhere to go although nobody chose that; it is empty if none is lost. The caller
// tells whether there was a word about where traces go, before the defaults.
func (c Config) lost(tracesChosen bool) string {
	profiles := !c.saves() && c.PyroscopeAddress == ""
	traces := !c.saves() && !tracesChosen && c.Traces.Exporter == telemetry.ExporterNone
	switch {
	case profiles && c.Dir == "":
		return "no profiles are captured: there is no server for them, and the user has no cache directory to save them in; set SPANFLAME_DIR to a directory, or to off"
	case profiles && traces:
		return "nothing is captured: profiles and traces have nowhere to go; set SPANFLAME_DIR to a directory, or PYROSCOPE_SERVER_ADDRESS and OTEL_EXPORTER_OTLP_ENDPOINT"
	case profiles:
		return "no profiles are captured: they have nowhere to go; set PYROSCOPE_SERVER_ADDRESS, or SPANFLAME_DIR to a directory"
	case traces:
		return "traces go nowhere; set OTEL_EXPORTER_OTLP_ENDPOINT, or SPANFLAME_DIR to a directory, or OTEL_TRACES_EXPORTER to none if none are wanted"
	}
	return ""
}

// recordTypes are the records that the configured profile types come to, each once and in a fixed order.
func (c Config) recordTypes() []record.Type {
	var types []record.Type
	for _, name := range c.ProfileTypes {
		types = append(types, profileTypes[name])
	}
	slices.Sort(types)
	return slices.Compact(types)
}

var labelPattern = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)

// Validate checks the configuration, with the defaults for what it leaves out. The error names each field
// that is wrong, its variable, its value, and what is allowed.
func (c Config) Validate() error {
	c = c.over(Config{}).withDefaults()
	var errs []error
	check := func(ok bool, field string, value any, allowed string) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s %q: want %s", field, fmt.Sprint(value), allowed))
		}
	}
	check(c.ServiceName != "" && len(c.ServiceName) <= 2048, "ServiceName (OTEL_SERVICE_NAME)", c.ServiceName, "1 to 2048 bytes")
	check(c.PyroscopeAddress == "" || isURL(c.PyroscopeAddress), "PyroscopeAddress (PYROSCOPE_SERVER_ADDRESS)", redact.URL(c.PyroscopeAddress), "a URL like http://127.0.0.1:4040")
	for name := range c.ProfileLabels {
		check(labelPattern.MatchString(name) && !strings.HasPrefix(name, "__") && name != labelName(keyServiceName), "ProfileLabels (PYROSCOPE_LABELS)", name,
			"label names of letters, digits and underscores that begin with a letter or one underscore, and are not service_name")
	}
	for _, t := range c.ProfileTypes {
		typ, ok := profileTypes[t]
		check(ok, "ProfileTypes (SPANFLAME_PROFILE_TYPES)", t, "one of "+strings.Join(profileTypeNames(), ", "))
		check(!ok || capture.Supported(typ), "ProfileTypes (SPANFLAME_PROFILE_TYPES)", t, "a build with GOEXPERIMENT=goroutineleakprofile, or to be left out")
	}
	check(c.Window >= time.Second && c.Window <= 10*time.Minute, "Window (PYROSCOPE_UPLOAD_INTERVAL)", c.Window, "1s to 10m")
	check(c.MutexProfileFraction > 0, "MutexProfileFraction (SPANFLAME_MUTEX_PROFILE_FRACTION)", c.MutexProfileFraction, "a number above zero")
	check(c.BlockProfileRate > 0, "BlockProfileRate (SPANFLAME_BLOCK_PROFILE_RATE)", c.BlockProfileRate, "a duration above zero")
	check(c.WallRingBytes >= 0, "WallRingBytes (SPANFLAME_WALL_RING_BYTES)", c.WallRingBytes, "a number of bytes above zero")
	check(c.WallCPUShare >= 0 && c.WallCPUShare <= 1, "WallCPUShare (SPANFLAME_WALL_CPU_SHARE)", c.WallCPUShare, "a share above 0 and up to 1")
	check(c.DirMaxBytes >= minDirBytes, "DirMaxBytes (SPANFLAME_DIR_MAX_BYTES)", c.DirMaxBytes, fmt.Sprintf("at least %d bytes", minDirBytes))
	check(c.DirMaxAge > 0, "DirMaxAge (SPANFLAME_DIR_MAX_AGE)", c.DirMaxAge, "a duration above zero")
	check(c.SpoolMaxBytes >= 0, "SpoolMaxBytes (SPANFLAME_SPOOL_MAX_BYTES)", c.SpoolMaxBytes, "a number of bytes above zero")
	check(c.SpoolMaxAge >= 0, "SpoolMaxAge (SPANFLAME_SPOOL_MAX_AGE)", c.SpoolMaxAge, "a duration above zero")
	check(c.OTLPEndpoint == "" || isURL(c.OTLPEndpoint), "OTLPEndpoint (OTEL_EXPORTER_OTLP_ENDPOINT)", redact.URL(c.OTLPEndpoint), "a URL like http://127.0.0.1:4318")
	check(isProtocol(c.OTLPProtocol), "OTLPProtocol (OTEL_EXPORTER_OTLP_PROTOCOL)", c.OTLPProtocol, "grpc or http/protobuf")
	for name, s := range map[string]Signal{"Traces": c.Traces, "Metrics": c.Metrics, "Logs": c.Logs} {
		signal := strings.ToUpper(name)
		check(s.Exporter == telemetry.ExporterOTLP || s.Exporter == telemetry.ExporterConsole || s.Exporter == telemetry.ExporterNone,
			name+".Exporter (OTEL_"+signal+"_EXPORTER)", s.Exporter, "otlp, console or none (for metrics also prometheus)")
		// What is wrong with the base is said once.
		check(isProtocol(s.Protocol) || s.Protocol == c.OTLPProtocol, name+".Protocol (OTEL_EXPORTER_OTLP_"+signal+"_PROTOCOL)", s.Protocol, "grpc or http/protobuf")
		ofBase := c.OTLPEndpoint != "" && strings.HasPrefix(s.Endpoint, strings.TrimRight(c.OTLPEndpoint, "/"))
		check(s.Endpoint == "" || ofBase || isURL(s.Endpoint), name+".Endpoint (OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT)", redact.URL(s.Endpoint), "a URL like http://127.0.0.1:4318/v1/traces")
		check(s.Exporter != telemetry.ExporterOTLP || s.Endpoint != "", name+".Endpoint (OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT)", s.Endpoint, "an endpoint, since the exporter is otlp")
	}
	if _, err := c.sampler(); err != nil {
		errs = append(errs, err)
	}
	if c.AdminAddress != off {
		_, port, err := net.SplitHostPort(c.AdminAddress)
		n, portErr := strconv.ParseUint(port, 10, 16)
		check(err == nil && portErr == nil && n <= 65535, "AdminAddress (SPANFLAME_ADMIN_ADDRESS)", c.AdminAddress, "host:port with a numeric port, or off")
	}
	return errors.Join(errs...)
}

func profileTypeNames() []string {
	var names []string
	for name := range profileTypes {
		names = append(names, string(name))
	}
	slices.Sort(names)
	return names
}

func isProtocol(s string) bool { return s == telemetry.ProtocolGRPC || s == telemetry.ProtocolHTTP }

func isURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

// sampler is what TracesSampler names, with the words of the OpenTelemetry specification.
func (c Config) sampler() (sdktrace.Sampler, error) {
	ratio := func() (sdktrace.Sampler, error) {
		r, err := strconv.ParseFloat(c.TracesSamplerArg, 64)
		if err != nil || !(r >= 0 && r <= 1) {
			return nil, fmt.Errorf("TracesSamplerArg (OTEL_TRACES_SAMPLER_ARG) %q: want a ratio from 0 to 1", c.TracesSamplerArg)
		}
		return sdktrace.TraceIDRatioBased(r), nil
	}
	switch name := c.TracesSampler; name {
	case "always_on":
		return sdktrace.AlwaysSample(), nil
	case "always_off":
		return sdktrace.NeverSample(), nil
	case "parentbased_always_on":
		return sdktrace.ParentBased(sdktrace.AlwaysSample()), nil
	case "parentbased_always_off":
		return sdktrace.ParentBased(sdktrace.NeverSample()), nil
	case "traceidratio":
		return ratio()
	case "parentbased_traceidratio":
		s, err := ratio()
		if err != nil {
			return nil, err
		}
		return sdktrace.ParentBased(s), nil
	default:
		return nil, fmt.Errorf("TracesSampler (OTEL_TRACES_SAMPLER) %q: want always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off or parentbased_traceidratio", name)
	}
}

// propagator carries trace context and baggage between processes, as the W3C has them.
func propagator() propagation.TextMapPropagator {
	return propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})
}
