package otelsetup

import (
	"flag"
	"reflect"
	"testing"

	"spanflame/agent/internal/setting/settingtest"
)

var update = flag.Bool("update", false, "write the tables of settings into README.md and docs/configuration.md")

var described = settingtest.Package{
	Path: "agent/otelsetup", Root: "../..", Table: settings, Config: reflect.TypeFor[Config](), Elsewhere: []string{"Agent"},
	MostUsed: []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER"},
}

func TestDocumentedSettings(t *testing.T)   { described.Documentation(t, *update) }
func TestFieldComments(t *testing.T)        { described.FieldComments(t) }
func TestEveryFieldIsASetting(t *testing.T) { described.EveryField(t) }
