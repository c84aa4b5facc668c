package otelsetup

import (
	"io"
	"slices"
	"strings"

	"spanflame/agent/internal/redact"
	"spanflame/agent/internal/setting"
	"spanflame/agent/internal/telemetry"
)

// exporterPrometheus is an exporter of metrics that changes nothing.
const exporterPrometheus = "prometheus"

const aProtocol = "grpc or http/protobuf"

// settings is the one description of every field of [Config], except Agent.
var settings = slices.Concat(setting.Table{
	setting.Of[string]{
		Field: "OTLPEndpoint", Variable: "OTEL_EXPORTER_OTLP_ENDPOINT", Parse: setting.Text,
		Valid: setting.NoneOrURL, Allowed: "a URL like http://127.0.0.1:4318", Show: redact.URL,
	},
	setting.Of[string]{
		Field: "OTLPProtocol", Variable: "OTEL_EXPORTER_OTLP_PROTOCOL", Parse: setting.Text, Default: telemetry.ProtocolHTTP,
		Valid: isProtocol, Allowed: aProtocol,
	},
	// The exporters read this variable.
	setting.Of[map[string]string]{Field: "OTLPHeaders", Variable: "OTEL_EXPORTER_OTLP_HEADERS", Secret: true, Allowed: setting.EncodedPairs},
}, signalSettings("Traces"), signalSettings("Metrics"), signalSettings("Logs"), setting.Table{
	setting.Of[string]{
		Field: "TracesSampler", Variable: "OTEL_TRACES_SAMPLER", Parse: setting.Text, Default: "parentbased_always_on",
		Allowed: "always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off or parentbased_traceidratio",
	},
	setting.Of[string]{
		Field: "TracesSamplerArg", Variable: "OTEL_TRACES_SAMPLER_ARG", Parse: setting.Text, Default: "1", Allowed: "a ratio from 0 to 1",
	},
	setting.Of[io.Writer]{Field: "Stdout"},
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
