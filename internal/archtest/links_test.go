package archtest

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// links are the modules that package agent links into a service, and why. What a service does not link can still
// raise the versions in its go.mod, since go.mod is the whole program's.
var links = map[string]string{
	"github.com/cenkalti/backoff/v5":              "the pauses between attempts to deliver",
	"github.com/felixge/fgprof":                   "the wall-clock profile of the whole process on demand",
	"github.com/google/pprof":                     "reading and writing profiles",
	"github.com/grafana/otel-profiling-go":        "the labels of spans",
	"github.com/grafana/pyroscope-go":             "the names of profile types",
	"github.com/grafana/pyroscope-go/godeltaprof": "imported by pyroscope-go, and not used",
	"github.com/klauspost/compress":               "faster compression",
	"github.com/cespare/xxhash/v2":                "OpenTelemetry's API",
	"go.opentelemetry.io/otel":                    "OpenTelemetry's API",
	"go.opentelemetry.io/otel/metric":             "OpenTelemetry's API",
	"go.opentelemetry.io/otel/trace":              "OpenTelemetry's API",
	"golang.org/x/exp":                            "reading execution traces",
	"github.com/petermattis/goid":                 "the numbers of goroutines",
	"google.golang.org/protobuf":                  "the encoding of messages, protowire alone",
}

// TestWhatTheAgentLinks: a service that adds the agent pays for profiles, not for an OpenTelemetry SDK, exporters or
// the program's other dependencies.
func TestWhatTheAgentLinks(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{.ImportPath}} {{with .Module}}{{.Path}}{{end}}", "../../agent").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var linked []string
	for line := range strings.Lines(string(out)) {
		path, mod, _ := strings.Cut(strings.TrimSpace(line), " ")
		if mod == "" || mod == module {
			continue
		}
		linked = append(linked, mod)
		if _, ok := links[mod]; !ok {
			t.Errorf("package agent links %s of the module %s, which is not among those that it is allowed", path, mod)
		}
		if within(path, "google.golang.org/protobuf/proto") {
			t.Errorf("package agent links %s: messages of a known shape need no reflection", path)
		}
	}
	for mod := range links {
		if !slices.Contains(linked, mod) {
			t.Errorf("package agent does not link the module %s: remove it from the list", mod)
		}
	}
}
