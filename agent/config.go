package agent

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	pyroscope "github.com/grafana/pyroscope-go"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"spanflame/agent/internal/admin"
	"spanflame/agent/internal/capture"
	"spanflame/agent/internal/identity"
	"spanflame/agent/internal/push"
	"spanflame/internal/otlpwire"
	"spanflame/internal/record"
)

// Config configures how a service is profiled and observed. A field that has its zero value is read from its environment
// variable, and has its default where that is not set either, or not allowed (see Strict). A field's comment ends with the variable, the default
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
	// added to those of the variable. service.instance.id distinguishes the instances of a service: Pyroscope keeps one
	// profile per series and millisecond, so instances with the same labels would lose some of theirs. By default it is
	// the host's name, with a number for further processes of the service on the host, which a restart keeps.
	// OTEL_RESOURCE_ATTRIBUTES; allowed: name=value pairs separated by commas, values percent-encoded.
	ResourceAttributes map[string]string

	// ProfilesExporter is how captured profiles are sent: to Pyroscope by its own protocol, or by OTLP to a Collector, to
	// Pyroscope or to another server. Where they are neither sent nor saved in Dir, none are captured.
	// OTEL_PROFILES_EXPORTER; default: pyroscope if there is a Pyroscope server, else otlp if there is an endpoint for
	// profiles, else none; allowed: pyroscope, otlp or none.
	ProfilesExporter string

	// PyroscopeAddress is the base URL of the Pyroscope server.
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

	// ProfilesEndpoint is the full URL that profiles are sent to by OTLP.
	// OTEL_EXPORTER_OTLP_PROFILES_ENDPOINT; default: OTEL_EXPORTER_OTLP_ENDPOINT, with http/protobuf followed by
	// /v1development/profiles; allowed: a URL like http://127.0.0.1:4318/v1development/profiles, without a query.
	ProfilesEndpoint string

	// ProfilesProtocol is the protocol for profiles by OTLP.
	// OTEL_EXPORTER_OTLP_PROFILES_PROTOCOL; default: OTEL_EXPORTER_OTLP_PROTOCOL, else http/protobuf; allowed: grpc or
	// http/protobuf.
	ProfilesProtocol string

	// ProfilesHeaders are headers to send with every profile by OTLP.
	// OTEL_EXPORTER_OTLP_PROFILES_HEADERS; default: OTEL_EXPORTER_OTLP_HEADERS; allowed: name=value pairs separated by
	// commas, values percent-encoded.
	ProfilesHeaders map[string]string

	// ProfilesCAFile is a PEM file with the authorities to trust for profiles by OTLP.
	// OTEL_EXPORTER_OTLP_PROFILES_CERTIFICATE; default: OTEL_EXPORTER_OTLP_CERTIFICATE, else the system's authorities.
	ProfilesCAFile string

	// ProfilesCertFile is a PEM file with the client's certificate for profiles by OTLP.
	// OTEL_EXPORTER_OTLP_PROFILES_CLIENT_CERTIFICATE; default: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE.
	ProfilesCertFile string

	// ProfilesKeyFile is a PEM file with the key of that certificate.
	// OTEL_EXPORTER_OTLP_PROFILES_CLIENT_KEY; default: OTEL_EXPORTER_OTLP_CLIENT_KEY.
	ProfilesKeyFile string

	// ProfileLabels are series labels to add to every profile. Keep the number of different values small: each makes
	// a series.
	// PYROSCOPE_LABELS; allowed: name=value pairs separated by commas; names of letters, digits and underscores that
	// begin with a letter or one underscore, and are not service_name.
	ProfileLabels map[string]string

	// ProfileTypes are the profiles to capture. Naming one type of a family (the four of memory, the two of mutex and of
	// block) captures the whole family. Only the profile of leaked goroutines forces a garbage collection (but see LastRun).
	// SPANFLAME_PROFILE_TYPES; default: all that this build supports; allowed: one or more of alloc_objects, alloc_space,
	// block_count, block_duration, cpu, goroutine_leak, goroutines, inuse_objects, inuse_space, mutex_count, mutex_duration
	// (goroutine_leak in a build with GOEXPERIMENT=goroutineleakprofile).
	ProfileTypes []pyroscope.ProfileType

	// Window is the length of a profile.
	// PYROSCOPE_UPLOAD_INTERVAL; default: 15s; allowed: 1s to 10m, or 1 to 600 seconds without a unit.
	Window time.Duration

	// MutexProfileFraction records one of this many mutex contentions, on average. 1 records each one, which costs about
	// a microsecond. The default finds a lock that a hundred requests waited for; one contention in a hundred often has
	// nothing of few long waits.
	// SPANFLAME_MUTEX_PROFILE_FRACTION; default: 10; allowed: a number above zero.
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
	// SPANFLAME_WALL_RING_BYTES; default: 16MiB; allowed: a number of bytes above zero, like 64MiB.
	WallRingBytes int

	// WallCPUShare limits the share of the CPU time that the process may use (GOMAXPROCS) which wall-clock profiles may
	// cost, averaged over a minute: writing the execution trace, which is estimated, and reading it. Where tracing all the
	// time would exceed it, only slow requests are traced, from about a fifth of SlowSpan on. Slow requests beyond it are
	// counted and not captured.
	// SPANFLAME_WALL_CPU_SHARE; default: 0.01; allowed: a share above 0 and up to 1, like 0.01 or 1%.
	WallCPUShare float64

	// WallMode chooses when the process is traced for wall-clock profiles: always, armed (only while a request runs that may
	// become slow), or auto (always where WallCPUShare allows it, else armed). What writing the trace costs with always is not
	// limited by WallCPUShare.
	// SPANFLAME_WALL_MODE; default: auto; allowed: auto, always or armed.
	WallMode string

	// Dir is the directory in which profiles and traces are saved, as files that "spanflame view" and "go tool pprof"
	// read. Services share it, so that a trace across them is in one place. "off" saves nothing.
	// SPANFLAME_DIR; default: spanflame/saved in the user's cache directory, or off if profiles are sent to a server.
	Dir string

	// DirMaxBytes limits this service's files in Dir, profiles and traces together. The oldest are removed first. On a
	// disk that is nearly full the limit is lower: profiles and traces each leave three quarters of the free space.
	// SPANFLAME_DIR_MAX_BYTES; default: 1GiB; allowed: at least 1MiB.
	DirMaxBytes int64

	// DirMaxAge is the age at which files in Dir are removed.
	// SPANFLAME_DIR_MAX_AGE; default: 168h; allowed: a duration above zero.
	DirMaxAge time.Duration

	// SpoolDir is the directory in which captured profiles wait for delivery. If the user has no cache directory, they
	// wait in memory.
	// SPANFLAME_SPOOL_DIR; default: spanflame/spool/SERVICE in the user's cache directory.
	SpoolDir string

	// SpoolMaxBytes limits the profiles that wait. The oldest are removed first, and counted.
	// SPANFLAME_SPOOL_MAX_BYTES; default: 256MiB; allowed: a number of bytes above zero, like 64MiB.
	SpoolMaxBytes int64

	// SpoolMaxAge is how long a process keeps a waiting profile. Then the profile is removed, and counted.
	// SPANFLAME_SPOOL_MAX_AGE; default: 24h; allowed: a duration above zero.
	SpoolMaxAge time.Duration

	// IncidentTriggers have the agent write an incident bundle by itself: a file with the trace of the last seconds, the
	// profiles, slow requests and metrics of that time. cpu is the share of the CPUs that the process may use, latency the
	// 99th percentile of the time that goroutines wait for one, both over a second; memory the share of the memory limit;
	// signal has the agent take SIGUSR1, and alert accept what an Alertmanager sends. A bundle on request needs none of them.
	// SPANFLAME_INCIDENT_TRIGGERS; default: none; allowed: pairs of cpu=90%, latency=50ms, memory=90%, goroutines=20000,
	// signal=SIGUSR1 and alert=on, separated by commas.
	IncidentTriggers map[string]string

	// IncidentInterval is the time in which at most one incident bundle is written that nobody requested.
	// SPANFLAME_INCIDENT_INTERVAL; default: 10m; allowed: a duration above zero.
	IncidentInterval time.Duration

	// IncidentMaxCount limits the incident bundles that are kept, in Dir, or in SpoolDir if nothing is saved. The oldest are
	// removed first.
	// SPANFLAME_INCIDENT_MAX_COUNT; default: 20; allowed: a number above zero.
	IncidentMaxCount int

	// IncidentMaxBytes limits the bytes of these bundles together.
	// SPANFLAME_INCIDENT_MAX_BYTES; default: 256MiB; allowed: a number of bytes above zero, like 64MiB.
	IncidentMaxBytes int64

	// IncidentMaxAge is the age at which bundles are removed.
	// SPANFLAME_INCIDENT_MAX_AGE; default: 168h; allowed: a duration above zero.
	IncidentMaxAge time.Duration

	// LastRun chooses what is kept on the disk for the next start to report, if the service ends without a shutdown: memory has
	// profiles of the heap and the goroutines, near the memory limit; crashes also has what the runtime prints of a crash, for
	// which the agent sets the crash output of the process (debug.SetCrashOutput); off has nothing.
	// SPANFLAME_LAST_RUN; default: memory; allowed: memory, crashes or off.
	LastRun string

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

	// Strict makes Start fail if a variable cannot be read or has a value that is not allowed. Otherwise the variable is
	// ignored, which is logged and shown as a problem, because a service must not stop for its observability.
	// SPANFLAME_STRICT; default: false; allowed: true or false.
	Strict bool

	// Logger receives the agent's log records. Default: slog.Default() at the start.
	Logger *slog.Logger

	// MeterProvider has the agent's own metrics. Default: none, and no metrics.
	MeterProvider metric.MeterProvider

	// MetricsHandler serves /metrics at the operator's listener. Default: none, and no such page.
	MetricsHandler http.Handler

	// Problems returns what else does not work as it should; the operator's pages and the agent's metrics show that with
	// the agent's own. It must be safe for concurrent use. Default: none.
	Problems func() []Problem
}

// Problem is one thing that does not work as it should: a reason, which is one of a few since it is a label of a metric,
// and a message.
type Problem = admin.Problem

// ConfigFromEnv returns the configuration that the environment sets. The error names every variable that cannot be
// read or has a value that is not allowed, its value, and what is allowed. The configuration has the others.
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

// Resolve returns the configuration that [Start] uses: fields that are not set have the value of their variable, or
// their default. The error names every field that is wrong and, if Strict is set, every variable.
func (c Config) Resolve() (Config, error) {
	c, _, err := c.resolve()
	return c, err
}

// resolve is Resolve. It also returns the errors of variables that are ignored.
func (c Config) resolve() (_ Config, ignored []error, err error) {
	var env Config
	ignored = settings.Read(&env)
	c = c.over(env)
	if c.exporter() == exporterOTLP {
		var common Config
		ignored = append(ignored, commonSettings.Read(&common)...)
		base := common.ProfilesEndpoint
		common.ProfilesEndpoint = ""
		commonSettings.Merge(&c, &common)
		set(&c.ProfilesEndpoint, profilesEndpoint(base, c.ProfilesProtocol))
	}
	c = c.withDefaults()
	wrong := c.Validate()
	if c.Strict {
		wrong = errors.Join(errors.Join(ignored...), wrong)
	}
	if wrong != nil {
		return Config{}, nil, wrong
	}
	if c.saves() { // whatever becomes of the working directory
		if c.Dir, err = filepath.Abs(c.Dir); err != nil {
			return Config{}, nil, fmt.Errorf("find the working directory, for Dir (SPANFLAME_DIR) %q: %w", c.Dir, err)
		}
	}
	if c.Delivers() && c.SpoolDir != "" { // the same
		if c.SpoolDir, err = filepath.Abs(c.SpoolDir); err != nil {
			return Config{}, nil, fmt.Errorf("find the working directory, for SpoolDir (SPANFLAME_SPOOL_DIR) %q: %w", c.SpoolDir, err)
		}
	}
	return c, ignored, nil
}

// over returns c with the fields that are not set taken from d, and maps of its own.
func (c Config) over(d Config) Config {
	// The caller's attributes take precedence over names from the environment.
	set(&c.ServiceName, c.ResourceAttributes[identity.ServiceName])
	set(&c.ServiceVersion, c.ResourceAttributes[identity.ServiceVersion])
	set(&c.Environment, c.ResourceAttributes[identity.Environment])
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
	// A record holds only UTF-8, and a variable can be percent-encoded bytes of any kind.
	for _, texts := range []map[string]string{c.ResourceAttributes, c.ProfileLabels} {
		for name, value := range texts {
			texts[name] = strings.ToValidUTF8(value, "\ufffd")
		}
	}
	for _, text := range []*string{&c.ServiceName, &c.ServiceVersion, &c.Environment} {
		*text = strings.ToValidUTF8(*text, "\ufffd")
	}
	set(&c.ServiceName, c.ResourceAttributes[identity.ServiceName])
	if c.ServiceName == "" {
		c.ServiceName = "unknown_service:go"
		if exe, err := os.Executable(); err == nil {
			c.ServiceName = filepath.Base(exe)
		}
	}
	set(&c.ServiceVersion, c.ResourceAttributes[identity.ServiceVersion])
	set(&c.Environment, c.ResourceAttributes[identity.Environment])
	c.ResourceAttributes[identity.ServiceName] = c.ServiceName
	if c.ServiceVersion != "" {
		c.ResourceAttributes[identity.ServiceVersion] = c.ServiceVersion
	}
	if c.Environment != "" {
		c.ResourceAttributes[identity.Environment] = c.Environment
	}
	if len(c.ProfileTypes) == 0 {
		for name, t := range profileTypes {
			if capture.Supported(t) {
				c.ProfileTypes = append(c.ProfileTypes, name)
			}
		}
	}
	c.ProfilesExporter = c.exporter()
	if c.Dir == "" && !c.Delivers() {
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
	c.Logger = cmp.Or(c.Logger, slog.Default())
	set[metric.MeterProvider](&c.MeterProvider, noop.NewMeterProvider())
	return c
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

// exporter returns how profiles are sent.
func (c Config) exporter() string {
	switch {
	case c.ProfilesExporter == exporterPyroscope && c.PyroscopeAddress == "":
		return exporterNone
	case c.ProfilesExporter != "":
		return c.ProfilesExporter
	case c.PyroscopeAddress != "":
		return exporterPyroscope
	case c.ProfilesEndpoint != "":
		return exporterOTLP
	}
	return exporterNone
}

// Delivers reports whether profiles are sent anywhere.
func (c Config) Delivers() bool { return c.exporter() != exporterNone }

// destination returns the address that profiles are sent to, if they are.
func (c Config) destination() string {
	if c.exporter() == exporterOTLP {
		return c.ProfilesEndpoint
	}
	return c.PyroscopeAddress
}

// profilesEndpoint returns the URL that profiles are sent to by an OTLP protocol, for the base URL of all signals; without
// one, it is on localhost.
func profilesEndpoint(base, protocol string) string {
	if protocol == string(push.OTLPGRPC) {
		return cmp.Or(base, "http://localhost:4317")
	}
	return strings.TrimRight(cmp.Or(base, "http://localhost:4318"), "/") + otlpwire.Path
}

// kept returns the directories that profiles are in, spooled or saved: one in which they would be spooled first.
func (c Config) kept() (dirs []string) {
	if c.Delivers() {
		dirs = append(dirs, c.SpoolDir)
	}
	if c.saves() {
		dirs = append(dirs, c.Dir)
	}
	return dirs
}

// lost describes that profiles are discarded although nobody chose that; it is empty if they are not.
func (c Config) lost() string {
	switch {
	case c.saves() || c.Delivers():
		return ""
	case c.Dir == "":
		return "no profiles are captured: there is no server for them, and the user has no cache directory to save them in; " +
			"set SPANFLAME_DIR to a directory, or to off"
	}
	return "no profiles are captured: there is no destination for them; " +
		"set PYROSCOPE_SERVER_ADDRESS, or OTEL_PROFILES_EXPORTER to otlp, or SPANFLAME_DIR to a directory"
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
	return errors.Join(settings.Check(&c)...)
}
