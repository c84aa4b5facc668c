package agent

import (
	"flag"
	"reflect"
	"testing"

	"spanflame/agent/internal/setting/settingtest"
)

var update = flag.Bool("update", false, "write the tables of settings into README.md and docs/configuration.md")

var described = settingtest.Package{
	Path: "agent", Root: "..", Table: settings, Config: reflect.TypeFor[Config](),
	MostUsed: []string{
		"PYROSCOPE_SERVER_ADDRESS", "PYROSCOPE_AUTH_TOKEN", "PYROSCOPE_UPLOAD_INTERVAL", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES",
		"SPANFLAME_DIR", "SPANFLAME_SLOW_SPAN", "SPANFLAME_ADMIN_ADDRESS",
	},
}

func TestDocumentedSettings(t *testing.T) { described.Documentation(t, *update) }
func TestFieldComments(t *testing.T)      { described.FieldComments(t) }
func TestEveryFieldIsASetting(t *testing.T) {
	described.EveryField(t)
}
