package agent

import (
	"log/slog"
	"maps"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	pyroscope "github.com/grafana/pyroscope-go"
	"go.opentelemetry.io/otel/metric"

	"spanflame/agent/internal/admin"
	"spanflame/agent/internal/capture"
	"spanflame/agent/internal/incident"
	"spanflame/agent/internal/push"
	"spanflame/agent/internal/setting"
	"spanflame/agent/internal/wall"
	"spanflame/internal/otlpwire"
	"spanflame/internal/record"
	"spanflame/internal/redact"
)

// off switches a setting off whose field is text.
const off = "off"

// The choices of AdminPages.
const (
	adminAll     = "all"
	adminMetrics = "metrics"
)

// The choices of ProfilesExporter.
const (
	exporterPyroscope = "pyroscope"
	exporterOTLP      = "otlp"
	exporterNone      = "none"
)

// The choices of LastRun but off.
const (
	lastMemory  = "memory"
	lastCrashes = "crashes"
)

// wallModes are the choices of WallMode. Without a mode, the recorder chooses.
var wallModes = map[string]*wall.Mode{"auto": nil, "always": new(wall.AlwaysOn), "armed": new(wall.Armed)}

// minDirBytes is the least that DirMaxBytes can be: room for a few profiles and traces.
const minDirBytes = 1 << 20

// Texts of what is allowed, each for several settings.
const (
	aDuration  = "a duration above zero"
	bytesCount = "a number of bytes above zero, like 64MiB"
	pairs      = "name=value pairs separated by commas"
	aProtocol  = "grpc or http/protobuf"
)

// settings is the one description of every field of [Config].
var settings = setting.Table{
	setting.Of[string]{
		Field: "ServiceName", Variable: "OTEL_SERVICE_NAME", Parse: setting.Text, DefaultText: "the program's file name",
		Valid: func(s string) bool { return s != "" && len(s) <= 2048 }, Allowed: "1 to 2048 bytes",
	},
	setting.Of[string]{Field: "ServiceVersion"},
	setting.Of[string]{Field: "Environment"},
	setting.Of[map[string]string]{
		Field: "ResourceAttributes", Variable: "OTEL_RESOURCE_ATTRIBUTES", Parse: setting.Attributes, Union: true, Allowed: setting.EncodedPairs,
	},

	setting.Of[string]{
		Field: "ProfilesExporter", Variable: "OTEL_PROFILES_EXPORTER", Parse: setting.Text,
		DefaultText: "pyroscope if there is a Pyroscope server, else otlp if there is an endpoint for profiles, else none",
		Valid:       func(s string) bool { return s == exporterPyroscope || s == exporterOTLP || s == exporterNone },
		Allowed:     "pyroscope, otlp or none",
	},
	setting.Of[string]{
		Field: "PyroscopeAddress", Variable: "PYROSCOPE_SERVER_ADDRESS", Parse: setting.Text,
		Valid: setting.NoneOrURL, Allowed: "a URL like http://127.0.0.1:4040", Show: redact.URL,
	},
	setting.Of[string]{Field: "PyroscopeBasicAuthUser", Variable: "PYROSCOPE_BASIC_AUTH_USER", Parse: setting.Text},
	setting.Of[string]{
		Field: "PyroscopeBasicAuthPassword", Variable: "PYROSCOPE_BASIC_AUTH_PASSWORD", Parse: setting.Text, Secret: true, File: true,
	},
	setting.Of[string]{Field: "PyroscopeAuthToken", Variable: "PYROSCOPE_AUTH_TOKEN", Parse: setting.Text, Secret: true, File: true},
	setting.Of[string]{Field: "PyroscopeTenantID", Variable: "PYROSCOPE_TENANT_ID", Parse: setting.Text},
	setting.Of[map[string]string]{
		Field: "PyroscopeHeaders", Variable: "PYROSCOPE_HTTP_HEADERS", Parse: setting.JSONObject, Secret: true, Allowed: "a JSON object of strings",
	},
	setting.Of[string]{
		Field: "PyroscopeCAFile", Variable: "SPANFLAME_PYROSCOPE_CA_FILE", Parse: setting.Text, DefaultText: "the system's authorities",
	},
	setting.Of[string]{Field: "PyroscopeCertFile", Variable: "SPANFLAME_PYROSCOPE_CERT_FILE", Parse: setting.Text},
	setting.Of[string]{Field: "PyroscopeKeyFile", Variable: "SPANFLAME_PYROSCOPE_KEY_FILE", Parse: setting.Text},

	setting.Of[string]{
		Field: "ProfilesEndpoint", Variable: "OTEL_EXPORTER_OTLP_PROFILES_ENDPOINT", Parse: setting.Text,
		DefaultText: "OTEL_EXPORTER_OTLP_ENDPOINT, with http/protobuf followed by " + otlpwire.Path,
		Valid:       setting.NoneOrURL, Allowed: "a URL like http://127.0.0.1:4318" + otlpwire.Path + ", without a query", Show: redact.URL,
	},
	setting.Of[string]{
		Field: "ProfilesProtocol", Variable: "OTEL_EXPORTER_OTLP_PROFILES_PROTOCOL", Parse: setting.Text,
		DefaultText: "OTEL_EXPORTER_OTLP_PROTOCOL, else http/protobuf", Default: string(push.OTLPHTTP), Valid: isProtocol, Allowed: aProtocol,
	},
	setting.Of[map[string]string]{
		Field: "ProfilesHeaders", Variable: "OTEL_EXPORTER_OTLP_PROFILES_HEADERS", Parse: setting.Attributes, Secret: true,
		DefaultText: "OTEL_EXPORTER_OTLP_HEADERS", Allowed: setting.EncodedPairs,
	},
	setting.Of[string]{
		Field: "ProfilesCAFile", Variable: "OTEL_EXPORTER_OTLP_PROFILES_CERTIFICATE", Parse: setting.Text,
		DefaultText: "OTEL_EXPORTER_OTLP_CERTIFICATE, else the system's authorities",
	},
	setting.Of[string]{
		Field: "ProfilesCertFile", Variable: "OTEL_EXPORTER_OTLP_PROFILES_CLIENT_CERTIFICATE", Parse: setting.Text,
		DefaultText: "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
	},
	setting.Of[string]{
		Field: "ProfilesKeyFile", Variable: "OTEL_EXPORTER_OTLP_PROFILES_CLIENT_KEY", Parse: setting.Text,
		DefaultText: "OTEL_EXPORTER_OTLP_CLIENT_KEY",
	},

	setting.Of[map[string]string]{
		Field: "ProfileLabels", Variable: "PYROSCOPE_LABELS", Parse: setting.Pairs,
		Valid:   func(labels map[string]string) bool { return badLabel(labels) == "" },
		Allowed: pairs + "; names of letters, digits and underscores that begin with a letter or one underscore, and are not service_name",
		Show:    badLabel,
	},
	setting.Of[[]pyroscope.ProfileType]{
		Field: "ProfileTypes", Variable: "SPANFLAME_PROFILE_TYPES", Parse: setting.List[pyroscope.ProfileType],
		DefaultText: "all that this build supports",
		Valid:       func(types []pyroscope.ProfileType) bool { return badProfileType(types) == "" }, Show: badProfileType,
		Allowed: "one or more of " + strings.Join(profileTypeNames(), ", ") + " (goroutine_leak in a build with GOEXPERIMENT=goroutineleakprofile)",
	},
	setting.Of[time.Duration]{
		Field: "Window", Variable: "PYROSCOPE_UPLOAD_INTERVAL", Parse: setting.Seconds, Default: 15 * time.Second,
		Valid: func(d time.Duration) bool { return d >= time.Second && d <= 10*time.Minute }, Allowed: "1s to 10m, or 1 to 600 seconds without a unit",
	},
	setting.Of[int]{
		Field: "MutexProfileFraction", Variable: "SPANFLAME_MUTEX_PROFILE_FRACTION", Parse: setting.Whole, Default: 10,
		Valid: positive[int], Allowed: "a number above zero",
	},
	setting.Of[time.Duration]{
		Field: "BlockProfileRate", Variable: "SPANFLAME_BLOCK_PROFILE_RATE", Parse: setting.Duration, Default: 100 * time.Microsecond,
		Valid: positive[time.Duration], Allowed: aDuration,
	},
	setting.Of[time.Duration]{
		Field: "SlowSpan", Variable: "SPANFLAME_SLOW_SPAN", Parse: durationOrOff, Default: 100 * time.Millisecond, Allowed: aDuration + ", or off",
	},
	setting.Of[int]{
		Field: "SlowSpanLogs", Variable: "SPANFLAME_SLOW_SPAN_LOGS", Parse: wholeOrOff, Default: 5,
		Allowed: "a number above zero, or off",
	},
	setting.Of[int]{
		Field: "WallRingBytes", Variable: "SPANFLAME_WALL_RING_BYTES", Parse: setting.Bytes[int], Default: 16 << 20, DefaultText: "16MiB",
		Valid: positive[int], Allowed: bytesCount,
	},
	setting.Of[float64]{
		Field: "WallCPUShare", Variable: "SPANFLAME_WALL_CPU_SHARE", Parse: setting.Share, Default: 0.01,
		Valid: func(f float64) bool { return f > 0 && f <= 1 }, Allowed: setting.AShare,
	},
	setting.Of[string]{
		Field: "WallMode", Variable: "SPANFLAME_WALL_MODE", Parse: setting.Text, Default: "auto",
		Valid: func(s string) bool { _, ok := wallModes[s]; return ok }, Allowed: "auto, always or armed",
	},

	setting.Of[string]{
		Field: "Dir", Variable: "SPANFLAME_DIR", Parse: setting.Text,
		DefaultText: "spanflame/saved in the user's cache directory, or off if profiles are sent to a server",
	},
	setting.Of[int64]{
		Field: "DirMaxBytes", Variable: "SPANFLAME_DIR_MAX_BYTES", Parse: setting.Bytes[int64], Default: 1 << 30, DefaultText: "1GiB",
		Valid: func(n int64) bool { return n >= minDirBytes }, Allowed: "at least 1MiB",
	},
	setting.Of[time.Duration]{
		Field: "DirMaxAge", Variable: "SPANFLAME_DIR_MAX_AGE", Parse: setting.Duration, Default: 7 * 24 * time.Hour, DefaultText: "168h",
		Valid: positive[time.Duration], Allowed: aDuration,
	},
	setting.Of[string]{
		Field: "SpoolDir", Variable: "SPANFLAME_SPOOL_DIR", Parse: setting.Text, DefaultText: "spanflame/spool/SERVICE in the user's cache directory",
	},
	setting.Of[int64]{
		Field: "SpoolMaxBytes", Variable: "SPANFLAME_SPOOL_MAX_BYTES", Parse: setting.Bytes[int64], Default: 256 << 20, DefaultText: "256MiB",
		Valid: positive[int64], Allowed: bytesCount,
	},
	setting.Of[time.Duration]{
		Field: "SpoolMaxAge", Variable: "SPANFLAME_SPOOL_MAX_AGE", Parse: setting.Duration, Default: 24 * time.Hour, DefaultText: "24h",
		Valid: positive[time.Duration], Allowed: aDuration,
	},

	setting.Of[map[string]string]{
		Field: "IncidentTriggers", Variable: "SPANFLAME_INCIDENT_TRIGGERS", Parse: setting.Pairs, DefaultText: "none",
		Valid:   func(pairs map[string]string) bool { return badTrigger(pairs) == "" },
		Allowed: incident.Allowed, Show: badTrigger,
	},
	setting.Of[time.Duration]{
		Field: "IncidentInterval", Variable: "SPANFLAME_INCIDENT_INTERVAL", Parse: setting.Duration, Default: 10 * time.Minute, DefaultText: "10m",
		Valid: positive[time.Duration], Allowed: aDuration,
	},
	setting.Of[int]{
		Field: "IncidentMaxCount", Variable: "SPANFLAME_INCIDENT_MAX_COUNT", Parse: setting.Whole, Default: 20,
		Valid: positive[int], Allowed: "a number above zero",
	},
	setting.Of[int64]{
		Field: "IncidentMaxBytes", Variable: "SPANFLAME_INCIDENT_MAX_BYTES", Parse: setting.Bytes[int64], Default: 256 << 20, DefaultText: "256MiB",
		Valid: positive[int64], Allowed: bytesCount,
	},
	setting.Of[time.Duration]{
		Field: "IncidentMaxAge", Variable: "SPANFLAME_INCIDENT_MAX_AGE", Parse: setting.Duration, Default: 7 * 24 * time.Hour, DefaultText: "168h",
		Valid: positive[time.Duration], Allowed: aDuration,
	},

	setting.Of[string]{
		Field: "LastRun", Variable: "SPANFLAME_LAST_RUN", Parse: setting.Text, Default: lastMemory,
		Valid: func(s string) bool { return s == lastMemory || s == lastCrashes || s == off }, Allowed: "memory, crashes or off",
	},

	setting.Of[string]{
		Field: "AdminAddress", Variable: "SPANFLAME_ADMIN_ADDRESS", Parse: setting.Text,
		DefaultText: admin.DefaultAddress + ", or the next free port if that is taken",
		Valid:       isListenAddress, Allowed: "host:port with a numeric port, or off",
	},
	setting.Of[string]{
		Field: "AdminPages", Variable: "SPANFLAME_ADMIN_PAGES", Parse: setting.Text, Default: adminAll,
		Valid: func(s string) bool { return s == adminAll || s == adminMetrics }, Allowed: "all or metrics",
	},
	setting.Of[[]string]{
		Field: "AdminHosts", Variable: "SPANFLAME_ADMIN_HOSTS", Parse: setting.List[string], Allowed: "host names separated by commas",
	},
	setting.Of[string]{Field: "AdminToken", Variable: "SPANFLAME_ADMIN_TOKEN", Parse: setting.Text, Secret: true, File: true},
	setting.Of[bool]{Field: "Strict", Variable: "SPANFLAME_STRICT", Parse: setting.Bool, DefaultText: "false", Allowed: "true or false"},
	setting.Of[*slog.Logger]{Field: "Logger"},
	setting.Of[metric.MeterProvider]{Field: "MeterProvider"},
	setting.Of[http.Handler]{Field: "MetricsHandler"},
	setting.Of[func() []Problem]{Field: "Problems"},
}

// commonSettings are read for what OTLP sets for all signals, where profiles are sent by it and nothing is set for them
// alone. The endpoint is a base.
var commonSettings = setting.Table{
	setting.Of[string]{
		Field: "ProfilesEndpoint", Variable: "OTEL_EXPORTER_OTLP_ENDPOINT", Parse: setting.Text, Valid: setting.NoneOrURL,
		Allowed: "a URL like http://127.0.0.1:4318, without a query", Show: redact.URL,
	},
	setting.Of[string]{
		Field: "ProfilesProtocol", Variable: "OTEL_EXPORTER_OTLP_PROTOCOL", Parse: setting.Text, Valid: isProtocol, Allowed: aProtocol,
	},
	setting.Of[map[string]string]{
		Field: "ProfilesHeaders", Variable: "OTEL_EXPORTER_OTLP_HEADERS", Parse: setting.Attributes, Secret: true, Allowed: setting.EncodedPairs,
	},
	setting.Of[string]{Field: "ProfilesCAFile", Variable: "OTEL_EXPORTER_OTLP_CERTIFICATE", Parse: setting.Text},
	setting.Of[string]{Field: "ProfilesCertFile", Variable: "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", Parse: setting.Text},
	setting.Of[string]{Field: "ProfilesKeyFile", Variable: "OTEL_EXPORTER_OTLP_CLIENT_KEY", Parse: setting.Text},
}

var labelPattern = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)

// badLabel returns the first name, by the alphabet, that a label cannot have; empty if there is none.
func badLabel(labels map[string]string) string {
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		if !labelPattern.MatchString(name) || strings.HasPrefix(name, "__") || name == record.ServiceLabel {
			return name
		}
	}
	return ""
}

// badTrigger returns the first trigger, by the alphabet, that is not allowed; empty if there is none.
func badTrigger(pairs map[string]string) string {
	for _, name := range slices.Sorted(maps.Keys(pairs)) {
		if _, err := incident.ParseTriggers(map[string]string{name: pairs[name]}); err != nil {
			return name + "=" + pairs[name]
		}
	}
	return ""
}

// badProfileType returns the first type that is unknown or that this build does not support; empty if there is none.
func badProfileType(types []pyroscope.ProfileType) string {
	for _, t := range types {
		if typ, ok := profileTypes[t]; !ok || !capture.Supported(typ) {
			return string(t)
		}
	}
	return ""
}

func isProtocol(s string) bool { return s == string(push.OTLPGRPC) || s == string(push.OTLPHTTP) }

func positive[T int | int64 | time.Duration](n T) bool { return n > 0 }

func durationOrOff(text string) (time.Duration, error) {
	if text == off || text == "0" {
		return -1, nil
	}
	return setting.Duration(text)
}

func wholeOrOff(text string) (int, error) {
	if text == off || text == "0" {
		return -1, nil
	}
	return setting.Whole(text)
}

func isListenAddress(address string) bool {
	if address == off || address == "" {
		return true
	}
	_, port, err := net.SplitHostPort(address)
	_, portErr := strconv.ParseUint(port, 10, 16)
	return err == nil && portErr == nil
}

func profileTypeNames() []string {
	var names []string
	for name := range profileTypes {
		names = append(names, string(name))
	}
	slices.Sort(names)
	return names
}
