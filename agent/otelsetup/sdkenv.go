package otelsetup

import (
	"encoding/pem"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"spanflame/agent/internal/setting"
)

// sdkVariable is a variable of the OpenTelemetry specification that the SDK and its exporters read themselves. They are
// checked before, because a wrong value would be ignored without its name, or end the process.
type sdkVariable struct {
	name    string
	allowed string
	valid   func(string) bool
	what    string
	secret  bool
}

// sdkVariables are all of them. SIGNAL is TRACES, METRICS or LOGS.
var sdkVariables = slices.Concat(
	[]sdkVariable{
		{"OTEL_BSP_SCHEDULE_DELAY", aMillis, isPositive, "the pause between two exports of spans", false},
		{"OTEL_BSP_EXPORT_TIMEOUT", aMillis, isPositive, "how long an export of spans may take", false},
		{"OTEL_BSP_MAX_QUEUE_SIZE", aSize, isSize, "how many spans wait for their export", false},
		{"OTEL_BSP_MAX_EXPORT_BATCH_SIZE", aSize, isSize, "how many spans are exported at once", false},
		{"OTEL_BLRP_SCHEDULE_DELAY", aMillis, isPositive, "the pause between two exports of log records", false},
		{"OTEL_BLRP_EXPORT_TIMEOUT", aMillis, isPositive, "how long an export of log records may take", false},
		{"OTEL_BLRP_MAX_QUEUE_SIZE", aSize, isSize, "how many log records wait for their export", false},
		{"OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", aSize, isSize, "how many log records are exported at once", false},
		{"OTEL_METRIC_EXPORT_INTERVAL", aMillis, isPositive, "the pause between two exports of metrics", false},
		{"OTEL_METRIC_EXPORT_TIMEOUT", aMillis, isPositive, "how long an export of metrics may take", false},
		{"OTEL_METRICS_EXEMPLAR_FILTER", "always_on, always_off or trace_based", among("always_on", "always_off", "trace_based"),
			"which measurements can be exemplars", false},
		{"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "cumulative, delta or lowmemory", among("cumulative", "delta", "lowmemory"),
			"whether metrics are sums since the start or differences", false},
		{"OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "explicit_bucket_histogram or base2_exponential_bucket_histogram",
			among("explicit_bucket_histogram", "base2_exponential_bucket_histogram"), "the kind of histograms", false},
		{"OTEL_LOG_LEVEL", "error, warn, info or debug", among("error", "warn", "info", "debug"),
			"from which level on messages of the SDK itself are logged; default: warn", false},
		// go.opentelemetry.io/contrib/otelconf reads such files, but the providers that it makes are finished: no processor can
		// be added to save spans, and no reader for the listener. It also requires the SDKs of three clouds.
		{configFile, "none: the other variables are used instead, as the providers that a configuration file describes cannot save " +
			"traces or serve metrics; a service that reads it itself passes its provider to the agent's TracerProvider",
			func(string) bool { return false }, "a configuration file of OpenTelemetry, which is not read", false},
	},
	limits("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT", "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
		"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_SPAN_EVENT_COUNT_LIMIT", "OTEL_SPAN_LINK_COUNT_LIMIT", "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
		"OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", "OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT"),
	exporterVariables("OTEL_EXPORTER_OTLP_", "all signals"),
	exporterVariables("OTEL_EXPORTER_OTLP_TRACES_", "traces"),
	exporterVariables("OTEL_EXPORTER_OTLP_METRICS_", "metrics"),
	exporterVariables("OTEL_EXPORTER_OTLP_LOGS_", "logs"),
)

const configFile = "OTEL_CONFIG_FILE"

const (
	aMillis = "a whole number of milliseconds above zero"
	aSize   = "a whole number from 1 to 1048576"
	aLimit  = "a whole number, or -1 for no limit"
	aPEM    = "a readable PEM file"
)

func limits(names ...string) (variables []sdkVariable) {
	for _, name := range names {
		variables = append(variables, sdkVariable{name, aLimit, isLimit, "a limit of the SDK", false})
	}
	return variables
}

func exporterVariables(prefix, signals string) []sdkVariable {
	return []sdkVariable{
		{prefix + "HEADERS", setting.EncodedPairs, isPairs, "headers of the requests for " + signals, true},
		{prefix + "TIMEOUT", aMillis, isPositive, "how long a request for " + signals + " may take", false},
		{prefix + "COMPRESSION", "gzip or none", among("gzip", "none"), "the compression of " + signals, false},
		{prefix + "CERTIFICATE", aPEM, isPEM, "the authorities to trust, for " + signals, false},
		{prefix + "CLIENT_CERTIFICATE", aPEM, isPEM, "the client's certificate, for " + signals, false},
		{prefix + "CLIENT_KEY", aPEM, isPEM, "the client's key, for " + signals, false},
		{prefix + "INSECURE", "true or false", among("true", "false"), "whether gRPC without a scheme has no TLS, for " + signals, false},
	}
}

func among(values ...string) func(string) bool {
	return func(s string) bool { return slices.Contains(values, strings.ToLower(s)) }
}

func isPositive(s string) bool {
	n, err := strconv.ParseInt(s, 10, 32)
	return err == nil && n > 0
}

func isSize(s string) bool {
	n, err := strconv.Atoi(s)
	return err == nil && n >= 1 && n <= 1<<20
}

func isLimit(s string) bool {
	n, err := strconv.ParseInt(s, 10, 32)
	return err == nil && n >= -1
}

func isPairs(s string) bool {
	_, err := setting.Attributes(s)
	return err == nil
}

func isPEM(path string) bool {
	b, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	block, _ := pem.Decode(b)
	return block != nil
}

// value returns what the variable is set to; empty counts as not set.
func (v sdkVariable) value() string { return strings.TrimSpace(os.Getenv(v.name)) }

// wrong reports whether the variable has a value that is not allowed.
func (v sdkVariable) wrong() bool {
	value := v.value()
	return value != "" && !v.valid(value)
}

// checkSDK returns an error for each variable of the SDK whose value is not allowed.
func checkSDK() (errs []error) {
	for _, v := range sdkVariables {
		switch {
		case !v.wrong():
		case v.secret:
			errs = append(errs, fmt.Errorf("%s: want %s", v.name, v.allowed))
		default:
			errs = append(errs, fmt.Errorf("%s=%q: want %s", v.name, v.value(), v.allowed))
		}
	}
	return errs
}

// batchOptions replace wrong sizes of the batches of spans: the SDK would panic for a negative or a very large one.
func batchOptions() (options []sdktrace.BatchSpanProcessorOption) {
	defaults := map[string]sdktrace.BatchSpanProcessorOption{
		"OTEL_BSP_SCHEDULE_DELAY":        sdktrace.WithBatchTimeout(sdktrace.DefaultScheduleDelay * 1e6),
		"OTEL_BSP_EXPORT_TIMEOUT":        sdktrace.WithExportTimeout(sdktrace.DefaultExportTimeout * 1e6),
		"OTEL_BSP_MAX_QUEUE_SIZE":        sdktrace.WithMaxQueueSize(sdktrace.DefaultMaxQueueSize),
		"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": sdktrace.WithMaxExportBatchSize(sdktrace.DefaultMaxExportBatchSize),
	}
	for _, v := range sdkVariables {
		if option, ok := defaults[v.name]; ok && v.wrong() {
			options = append(options, option)
		}
	}
	return options
}

// sdkLevel returns from which level on messages of the SDK itself are logged.
func sdkLevel() slog.Level {
	switch strings.ToLower(strings.TrimSpace(os.Getenv("OTEL_LOG_LEVEL"))) {
	case "error":
		return slog.LevelError
	case "info":
		return slog.LevelInfo
	case "debug":
		return slog.LevelDebug
	}
	return slog.LevelWarn
}
