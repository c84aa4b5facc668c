package agent

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	pyroscope "github.com/grafana/pyroscope-go"

	"spanflame/agent/internal/admin"
	"spanflame/agent/internal/redact"
	"spanflame/agent/internal/setting"
	"spanflame/agent/internal/telemetry"
)

// off switches a setting off whose field is text.
const off = "off"

// The choices of AdminPages.
const (
	adminAll     = "all"
	adminMetrics = "metrics"
)

// minDirBytes is the least that DirMaxBytes can be: room for a few profiles and traces.
const minDirBytes = 1 << 20

// exporterPrometheus is an exporter of metrics that changes nothing.
const exporterPrometheus = "prometheus"

// Texts of what is allowed, each for several settings.
const (
	aDuration    = "a duration above zero"
	bytesCount   = "a number of bytes above zero"
	aProtocol    = "grpc or http/protobuf"
	pairs        = "name=value pairs separated by commas"
	encodedPairs = pairs + ", values percent-encoded"
)

// settings is the one description of every field of [Config].
var settings = slices.Concat(setting.Table{
	setting.Of[string]{
		Field: "ServiceName", Variable: "OTEL_SERVICE_NAME", Parse: setting.Text, DefaultText: "the program's file name",
		Valid: func(s string) bool { return s != "" && len(s) <= 2048 }, Allowed: "1 to 2048 bytes",
	},
	setting.Of[string]{Field: "ServiceVersion"},
	setting.Of[string]{Field: "Environment"},
	setting.Of[map[string]string]{
		Field: "ResourceAttributes", Variable: "OTEL_RESOURCE_ATTRIBUTES", Parse: setting.Attributes, Union: true, Allowed: encodedPairs,
	},

	setting.Of[string]{
		Field: "PyroscopeAddress", Variable: "PYROSCOPE_SERVER_ADDRESS", Parse: setting.Text,
		Valid: noneOrURL, Allowed: "a URL like http://127.0.0.1:4040", Show: redact.URL,
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

	setting.Of[map[string]string]{
		Field: "ProfileLabels", Variable: "PYROSCOPE_LABELS", Parse: setting.Pairs,
		Allowed: pairs + "; names of letters, digits and underscores that begin with a letter or one underscore, and are not service_name",
	},
	setting.Of[[]pyroscope.ProfileType]{
		Field: "ProfileTypes", Variable: "SPANFLAME_PROFILE_TYPES", Parse: setting.List[pyroscope.ProfileType],
		DefaultText: "all that this build supports", Allowed: "one or more of " + strings.Join(profileTypeNames(), ", "),
	},
	setting.Of[time.Duration]{
		Field: "Window", Variable: "PYROSCOPE_UPLOAD_INTERVAL", Parse: setting.Duration, Default: 15 * time.Second,
		Valid: func(d time.Duration) bool { return d >= time.Second && d <= 10*time.Minute }, Allowed: "1s to 10m",
	},
	setting.Of[int]{
		Field: "MutexProfileFraction", Variable: "SPANFLAME_MUTEX_PROFILE_FRACTION", Parse: setting.Whole[int]("number"), Default: 100,
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
		Field: "WallRingBytes", Variable: "SPANFLAME_WALL_RING_BYTES", Parse: setting.Whole[int]("number of bytes"), Default: 16 << 20,
		Valid: positive[int], Allowed: bytesCount,
	},
	setting.Of[float64]{
		Field: "WallCPUShare", Variable: "SPANFLAME_WALL_CPU_SHARE", Parse: setting.Share, Default: 0.01,
		Valid: func(f float64) bool { return f > 0 && f <= 1 }, Allowed: "a share above 0 and up to 1",
	},

	setting.Of[string]{
		Field: "Dir", Variable: "SPANFLAME_DIR", Parse: setting.Text,
		DefaultText: "spanflame/saved in the user's cache directory, or off with a Pyroscope server",
	},
	setting.Of[int64]{
		Field: "DirMaxBytes", Variable: "SPANFLAME_DIR_MAX_BYTES", Parse: setting.Whole[int64]("number of bytes"), Default: 1 << 30,
		Valid: func(n int64) bool { return n >= minDirBytes }, Allowed: fmt.Sprintf("at least %d bytes", minDirBytes),
	},
	setting.Of[time.Duration]{
		Field: "DirMaxAge", Variable: "SPANFLAME_DIR_MAX_AGE", Parse: setting.Duration, Default: 7 * 24 * time.Hour, DefaultText: "168h",
		Valid: positive[time.Duration], Allowed: aDuration,
	},
	setting.Of[string]{
		Field: "SpoolDir", Variable: "SPANFLAME_SPOOL_DIR", Parse: setting.Text, DefaultText: "spanflame/spool/SERVICE in the user's cache directory",
	},
	setting.Of[int64]{
		Field: "SpoolMaxBytes", Variable: "SPANFLAME_SPOOL_MAX_BYTES", Parse: setting.Whole[int64]("number of bytes"), Default: 256 << 20,
		Valid: positive[int64], Allowed: bytesCount,
	},
	setting.Of[time.Duration]{
		Field: "SpoolMaxAge", Variable: "SPANFLAME_SPOOL_MAX_AGE", Parse: setting.Duration, Default: 24 * time.Hour, DefaultText: "24h",
		Valid: positive[time.Duration], Allowed: aDuration,
	},

	setting.Of[string]{
		Field: "OTLPEndpoint", Variable: "OTEL_EXPORTER_OTLP_ENDPOINT", Parse: setting.Text,
		Valid: noneOrURL, Allowed: "a URL like http://127.0.0.1:4318", Show: redact.URL,
	},
	setting.Of[string]{
		Field: "OTLPProtocol", Variable: "OTEL_EXPORTER_OTLP_PROTOCOL", Parse: setting.Text, Default: telemetry.ProtocolHTTP,
		Valid: isProtocol, Allowed: aProtocol,
	},
	// The exporters read this variable.
	setting.Of[map[string]string]{Field: "OTLPHeaders", Variable: "OTEL_EXPORTER_OTLP_HEADERS", Secret: true, Allowed: encodedPairs},
}, signalSettings("Traces"), signalSettings("Metrics"), signalSettings("Logs"), setting.Table{
	setting.Of[string]{
		Field: "TracesSampler", Variable: "OTEL_TRACES_SAMPLER", Parse: setting.Text, Default: "parentbased_always_on",
		Allowed: "always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off or parentbased_traceidratio",
	},
	setting.Of[string]{
		Field: "TracesSamplerArg", Variable: "OTEL_TRACES_SAMPLER_ARG", Parse: setting.Text, Default: "1", Allowed: "a ratio from 0 to 1",
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
	setting.Of[io.Writer]{Field: "Stdout", DefaultText: "standard output"},
})

// signalSettings are the settings of one [Signal] of [Config]. Those that depend on the base are checked by
// [Config.Validate].
func signalSettings(field string) setting.Table {
	signal := strings.ToUpper(field)
	exporters, allowed := []string{telemetry.ExporterOTLP, telemetry.ExporterConsole, telemetry.ExporterNone}, "otlp, console or none"
	if field == "Metrics" {
		exporters, allowed = append(exporters, exporterPrometheus), "otlp, console, prometheus or none"
	}
	return setting.Table{
		setting.Of[string]{
			Field: field + ".Exporter", Variable: "OTEL_" + signal + "_EXPORTER", Parse: setting.Text,
			DefaultText: "otlp if there is an endpoint, else none",
			Valid:       func(s string) bool { return slices.Contains(exporters, s) }, Allowed: allowed,
		},
		setting.Of[string]{
			Field: field + ".Endpoint", Variable: "OTEL_EXPORTER_OTLP_" + signal + "_ENDPOINT", Parse: setting.Text,
			DefaultText: "OTEL_EXPORTER_OTLP_ENDPOINT, with http/protobuf followed by /v1/" + strings.ToLower(field),
			Allowed:     "a URL like http://127.0.0.1:4318/v1/" + strings.ToLower(field), Show: redact.URL,
		},
		setting.Of[string]{
			Field: field + ".Protocol", Variable: "OTEL_EXPORTER_OTLP_" + signal + "_PROTOCOL", Parse: setting.Text,
			DefaultText: "OTEL_EXPORTER_OTLP_PROTOCOL", Allowed: aProtocol,
		},
	}
}

var labelPattern = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)

func positive[T int | int64 | time.Duration](n T) bool { return n > 0 }

func noneOrURL(s string) bool { return s == "" || isURL(s) }

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
	return setting.Whole[int]("number")(text)
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
