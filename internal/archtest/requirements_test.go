package archtest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// requirements are the modules that go.mod requires and that a service does not link by the agent: only the program, the
// demo and the tests do. A service that adds the agent has at least these versions in its own go.mod, so that they are
// the oldest that work, or why not. Where go.mod replaces one, only this module's own programs are built with the other.
var requirements = []struct{ module, version, why string }{
	{"github.com/HdrHistogram/hdrhistogram-go", "v1.1.2", "older ones are not tried"},
	{"github.com/XSAM/otelsql", "v0.23.0", "replaced: the demo's spans have the names of today's conventions only with a later one"},
	{"github.com/aclements/go-moremath", "v0.0.0-20210112150236-f10218a38794", "has no releases"},
	{"github.com/chromedp/cdproto", "v0.159.0", "the protocol of the browser that the tests drive"},
	{"github.com/chromedp/chromedp", "v0.23.0", "the protocol of the browser that the tests drive"},
	{"github.com/compose-spec/compose-go/v2", "v2.1.3", "the oldest of v2 that can be had"},
	{"github.com/go-analyze/charts", "v0.6.4", "the viewer's charts are drawn by it"},
	{"github.com/go-chi/chi/v5", "v5.0.0", "replaced: before v5.3.0 its middleware has known defects, none of which this module uses"},
	{"github.com/hashicorp/golang-lru/v2", "v2.0.7", "modernc.org/sqlite requires it"},
	{"github.com/jackc/pgx/v5", "v5.7.0", "replaced: before v5.9.2 it has known defects of memory safety and of quoting"},
	{"github.com/modelcontextprotocol/go-sdk", "v1.4.1", "older ones have known defects in reading messages"},
	{"github.com/spf13/cobra", "v1.8.0", "older ones are not tried"},
	{"github.com/spf13/pflag", "v1.0.5", "cobra requires it"},
	{"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc", "v0.71.0", "the OTLP exporters require it by way of grpc-gateway"},
	{"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp", "v0.72.0", "its version belongs to that of OpenTelemetry's API"},
	{"go.opentelemetry.io/proto/otlp/collector/profiles/v1development", "v0.3.0", "the messages of Pyroscope 1.21 and of Collector 0.155"},
	{"go.opentelemetry.io/proto/otlp/profiles/v1development", "v0.3.0", "the messages of Pyroscope 1.21 and of Collector 0.155"},
	{"go.uber.org/goleak", "v1.3.0", "OpenTelemetry's SDK requires it"},
	{"go.yaml.in/yaml/v4", "v4.0.0-rc.4", "has no release that is older"},
	{"golang.org/x/perf", "v0.0.0-20260908200009-22c9c6c9d4da", "has no releases"},
	{"golang.org/x/sync", "v0.24.0", "golang.org/x/exp requires it, which reads execution traces"},
	{"golang.org/x/term", "v0.46.0", "golang.org/x/net requires it"},
	{"golang.org/x/time", "v0.5.0", "older ones are not tried"},
	{"gonum.org/v1/gonum", "v0.17.0", "google.golang.org/grpc requires it"},
	{"modernc.org/sqlite", "v1.34.0", "SQLite 3.46; its known defects need statements of an attacker, and the demo's are constant"},
}

// goCommand runs the go command in a directory and returns what it writes to standard output.
func goCommand(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	if exit, ok := err.(*exec.ExitError); ok {
		for _, away := range []string{"dial tcp", "module lookup disabled", "i/o timeout"} {
			if strings.Contains(string(exit.Stderr), away) {
				t.Skipf("the test needs modules that are not in the cache: %s", exit.Stderr)
			}
		}
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, exit.Stderr)
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestRequirements: the table is go.mod.
func TestRequirements(t *testing.T) {
	read(t, "go.mod") // so that the result in the test cache depends on it
	linked := map[string]bool{}
	for mod := range strings.FieldsSeq(goCommand(t, "../..", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}",
		"./agent", "./agent/otelsetup", "./agent/sdkview")) {
		linked[mod] = true
	}
	var mod struct {
		Require []struct {
			Path, Version string
			Indirect      bool
		}
		Replace []struct {
			Old, New struct{ Path, Version string }
		}
	}
	if err := json.Unmarshal([]byte(goCommand(t, "../..", "mod", "edit", "-json")), &mod); err != nil {
		t.Fatal(err)
	}
	required := map[string]string{}
	for _, r := range mod.Require {
		if !r.Indirect && !linked[r.Path] {
			required[r.Path] = r.Version
		}
	}
	replaced := map[string]string{}
	for _, r := range mod.Replace {
		replaced[r.Old.Path] = r.Old.Version
	}
	for _, r := range requirements {
		if got := required[r.module]; got != r.version {
			t.Errorf("go.mod requires %s %q, want %s: services that add the agent get it (%s)", r.module, got, r.version, r.why)
		}
		if got, ok := replaced[r.module]; ok && got != r.version {
			t.Errorf("go.mod replaces %s %s, but requires %s", r.module, got, r.version)
		}
		if _, ok := replaced[r.module]; ok != strings.HasPrefix(r.why, "replaced: ") {
			t.Errorf("%s: go.mod replaces it: %t, and the table says %q", r.module, ok, r.why)
		}
		delete(required, r.module)
		delete(replaced, r.module)
	}
	for path, version := range required {
		t.Errorf("go.mod requires %s %s for the program or tests: try an old version, and give it a row", path, version)
	}
	for path := range replaced {
		t.Errorf("go.mod replaces %s, which the agent links or nothing requires", path)
	}
}

// service makes a module that imports these packages, with these versions of modules of its own, and tidies it.
func service(t *testing.T, own map[string]string, packages ...string) (dir string) {
	t.Helper()
	read(t, "go.mod") // so that the result in the test cache depends on it
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	file, code := "module service\n\ngo 1.26.0\n\nrequire spanflame v0.0.0\n\nreplace spanflame => "+root+"\n", "package main\n\nimport (\n"
	for mod, version := range own {
		file += fmt.Sprintf("\nrequire %s %s\n", mod, version)
		packages = append(packages, mod)
	}
	for _, p := range packages {
		code += fmt.Sprintf("\t_ %q\n", p)
	}
	code += ")\n\nfunc main() {}\n"
	for name, content := range map[string]string{"go.mod": file, "main.go": code} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	goCommand(t, dir, "mod", "tidy")
	return dir
}

// TestServicesKeepTheirVersions: a service that uses these modules itself and adds the agent has the same versions as
// before.
func TestServicesKeepTheirVersions(t *testing.T) {
	own := map[string]string{
		"github.com/go-chi/chi/v5": "v5.0.0",
		"github.com/jackc/pgx/v5":  "v5.7.0",
		"github.com/spf13/cobra":   "v1.8.0",
		"modernc.org/sqlite":       "v1.34.0",
	}
	dir := service(t, own, "spanflame/agent")
	for mod, version := range own {
		if got := strings.TrimSpace(goCommand(t, dir, "list", "-m", mod)); got != mod+" "+version {
			t.Errorf("a service with %s %s has %q after it added the agent", mod, version, got)
		}
	}
	// SQLite's driver and this library belong together: another version of it breaks the driver.
	if got := strings.TrimSpace(goCommand(t, dir, "list", "-m", "modernc.org/libc")); got != "modernc.org/libc v1.55.3" {
		t.Errorf("a service with SQLite has %q after it added the agent, want the driver's own v1.55.3", got)
	}
}

// TestServicesGetNothingElse: a service that adds the agent requires what this module's go.mod does, and nothing later. The
// tests of packages that the agent imports count: if they import what is replaced here, what the old version of that
// imports is missing, and a service gets the latest.
func TestServicesGetNothingElse(t *testing.T) {
	ours := requires(t, "../..")
	for _, adds := range []string{"spanflame/agent", "spanflame/agent/otelsetup"} {
		for mod, version := range requires(t, service(t, nil, adds)) {
			if mod != module && ours[mod] != version {
				t.Errorf("a service that adds %s requires %s %s, and this module %q", adds, mod, version, ours[mod])
			}
		}
	}
}

// requires returns what the go.mod of a directory requires.
func requires(t *testing.T, dir string) map[string]string {
	t.Helper()
	var mod struct {
		Require []struct{ Path, Version string }
	}
	if err := json.Unmarshal([]byte(goCommand(t, dir, "mod", "edit", "-json")), &mod); err != nil {
		t.Fatal(err)
	}
	versions := map[string]string{}
	for _, r := range mod.Require {
		versions[r.Path] = r.Version
	}
	return versions
}
