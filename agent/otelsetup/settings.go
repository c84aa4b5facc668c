package otelsetup

import (
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"

	"spanflame/agent/internal/setting"
	"spanflame/agent/internal/telemetry"
	"spanflame/internal/redact"
)

// exporterPrometheus is an exporter of metrics that changes nothing.
const exporterPrometheus = "prometheus"

const aProtocol = "grpc or http/protobuf"

// settings is the one description of every field of [Config], except Agent.
var settings = slices.Concat(setting.Table{
	setting.Of[string]{
		Field: "OTLPEndpoint", Variable: "OTEL_EXPORTER_OTLP_ENDPOINT", Parse: setting.Text,
		Valid: setting.NoneOrURL, Allowed: "a URL like http://127.0.0.1:4318, without a query", Show: redact.URL,
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
		Valid:   func(s string) bool { return samplers[s] != nil },
		Allowed: "always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off or parentbased_traceidratio",
	},
	setting.Of[string]{
		Field: "TracesSamplerArg", Variable: "OTEL_TRACES_SAMPLER_ARG", Parse: setting.Text, Default: "1", Valid: isRatio, Allowed: "a ratio from 0 to 1",
	},
	setting.Of[[]string]{
		Field: "Propagators", Variable: "OTEL_PROPAGATORS", Parse: parsePropagators,
		Default: []string{"tracecontext", "baggage"}, DefaultText: "tracecontext, baggage",
		Valid: func(names []string) bool { return len(knownPropagators(names)) == len(names) }, Allowed: somePropagators,
	},
	setting.Of[bool]{Field: "SDKDisabled", Variable: "OTEL_SDK_DISABLED", Parse: setting.Bool, DefaultText: "false", Allowed: "true or false"},
	setting.Of[io.Writer]{Field: "Stdout"},
})

// signalSettings are the settings of one [Signal] of [Config]. Those that depend on the base are checked by
// [Config.Validate].
func signalSettings(field string) setting.Table {
	signal := strings.ToUpper(field)
	exporters, allowed := []string{telemetry.ExporterOTLP, telemetry.ExporterConsole}, "otlp, console or both, separated by a comma, or none"
	if field == "Metrics" {
		exporters, allowed = append(exporters, exporterPrometheus), "one or more of otlp, console, prometheus, separated by commas, or none"
	}
	return setting.Table{
		setting.Of[string]{
			Field: field + ".Exporter", Variable: "OTEL_" + signal + "_EXPORTER", Parse: parseExporters(exporters, allowed),
			DefaultText: "otlp if there is an endpoint, else none",
			Valid:       func(s string) bool { _, err := parseExporters(exporters, allowed)(s); return s == "" || err == nil }, Allowed: allowed,
		},
		setting.Of[string]{
			Field: field + ".Endpoint", Variable: "OTEL_EXPORTER_OTLP_" + signal + "_ENDPOINT", Parse: setting.Text,
			DefaultText: "OTEL_EXPORTER_OTLP_ENDPOINT, with http/protobuf followed by /v1/" + strings.ToLower(field),
			Valid:       setting.NoneOrURL, Show: redact.URL,
			Allowed: "a URL like http://127.0.0.1:4318/v1/" + strings.ToLower(field) + ", without a query",
		},
		setting.Of[string]{
			Field: field + ".Protocol", Variable: "OTEL_EXPORTER_OTLP_" + signal + "_PROTOCOL", Parse: setting.Text,
			DefaultText: "OTEL_EXPORTER_OTLP_PROTOCOL",
			Valid:       func(s string) bool { return s == "" || isProtocol(s) }, Allowed: aProtocol,
		},
	}
}

// parseExporters reads names of exporters and leaves out those that are unknown or repeated.
func parseExporters(exporters []string, allowed string) func(string) (string, error) {
	return func(text string) (string, error) {
		names, _ := setting.List[string](text)
		if slices.Equal(names, []string{telemetry.ExporterNone}) {
			return text, nil
		}
		var known []string
		for _, name := range names {
			if slices.Contains(exporters, name) && !slices.Contains(known, name) {
				known = append(known, name)
			}
		}
		switch used := strings.Join(known, ","); {
		case len(known) == 0:
			return "", errors.New(allowed)
		case len(known) < len(names):
			return used, setting.Partly(allowed + ": " + used + " is used")
		default:
			return used, nil
		}
	}
}

func isRatio(s string) bool {
	ratio, err := strconv.ParseFloat(s, 64)
	return err == nil && ratio >= 0 && ratio <= 1
}

const somePropagators = "one or more of tracecontext, baggage, b3, b3multi, jaeger, xray, ottrace, or none"

// propagators are the names that are known.
var propagators = []string{"tracecontext", "baggage", "b3", "b3multi", "jaeger", "xray", "ottrace", "none"}

// parsePropagators leaves out unknown names, as the specification requires.
func parsePropagators(text string) ([]string, error) {
	names, _ := setting.List[string](text)
	known := knownPropagators(names)
	switch {
	case len(known) == 0:
		return nil, errors.New(somePropagators)
	case len(known) < len(names):
		return known, setting.Partly(somePropagators + ": " + strings.Join(known, ", ") + " is used")
	}
	return known, nil
}

func knownPropagators(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !slices.Contains(propagators, name) })
}
