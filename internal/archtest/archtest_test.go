// Package archtest is the map of which package may import which, as a test. It has no code of its own.
package archtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// rule lists the packages of this module that a package may import, in addition to those below itself, and why no others.
type rule struct {
	pkg string // path below the module
	may []string
	why string
}

// rules has one row a package; a row covers the packages below it that have no row of their own.
var rules = []rule{
	{"internal/pprofwire", nil, "readers and writers of profiles, and of other messages, share this leaf"},
	{"internal/pyroscopewire", []string{"internal/pprofwire"}, "clients of Pyroscope share this leaf"},
	{"internal/otlpwire", []string{"internal/pprofwire", "internal/record", "internal/wallprofile"},
		"it encodes what it is given, and sends nothing"},
	{"internal/record", []string{"internal/pprofwire"}, "all stages of the data path share this leaf"},
	{"internal/archtest", nil, "it only inspects the other packages"},
	{"internal/docsection", nil, "it knows files and marks, and no document"},
	{"internal/postgrestest", nil, "it runs a database for any test"},
	{"internal/cgrouptest", nil, "it limits any process for any test"},
	{"internal/child", nil, "it runs any program and knows none"},
	{"internal/wallprofile", nil, "writers and readers of wall-clock profiles share this leaf"},
	{"internal/traces", nil, "writers and readers of spans share this leaf"},
	{"internal/incidentfile", nil, "writers and readers of incident bundles share this leaf"},
	{"internal/format", nil, "it writes values for readers, whatever they are values of"},
	{"internal/redact", nil, "it handles text only"},
	{"internal/flame", []string{"internal/format", "internal/wallprofile"}, "it draws what it is given and reads no profile"},
	{"internal/query", []string{"internal/pyroscopewire", "internal/traces"}, "it reads servers, whatever filled them"},
	{"agent", []string{"internal/incidentfile", "internal/otlpwire", "internal/pprofwire", "internal/record", "internal/redact", "internal/wallprofile"},
		"a host service pays only for the agent, not for readers of profiles, pages or the demo"},
	{"agent/scrape", []string{"agent", "agent/internal/admin", "agent/internal/capture", "agent/internal/capture/delta", "agent/internal/deliver",
		"agent/internal/guard", "agent/internal/push", "agent/internal/save", "agent/internal/spool", "internal/pprofwire", "internal/record", "internal/redact"},
		"it profiles other processes, and delivers and saves as an agent does"},
	{"agent/sdkview", []string{"agent/internal/spanlink"}, "it shows the spans of the agent, and links the SDK for that alone"},
	{"agent/otelsetup", []string{"agent", "agent/internal/ending", "agent/internal/guard", "agent/internal/identity", "agent/internal/instance",
		"agent/internal/save", "agent/internal/setting", "agent/internal/telemetry", "agent/sdkview", "internal/redact"},
		"it adds OpenTelemetry to the agent, whose profiles it leaves to the agent"},
	{"agent/internal/capture", []string{"agent/internal/guard", "internal/pprofwire", "internal/record"},
		"capturing knows no disk and no network, so neither can delay it"},
	{"agent/internal/wall", []string{"agent/internal/guard", "internal/pprofwire", "internal/record", "internal/wallprofile"},
		"capturing knows no disk and no network, so neither can delay it"},
	{"agent/internal/spool", []string{"agent/internal/guard", "agent/internal/owndir", "internal/record"},
		"delivery is another package's job, so the queue survives its failures"},
	{"agent/internal/deliver", []string{"agent/internal/guard", "agent/internal/push", "agent/internal/spool", "internal/record"},
		"it decides when a record is sent and captures none"},
	{"agent/internal/push", []string{"agent/internal/identity", "internal/otlpwire", "internal/pprofwire", "internal/pyroscopewire",
		"internal/record", "internal/redact", "internal/wallprofile"},
		"it sends one record once; queueing and retrying are done elsewhere"},
	{"agent/internal/save", []string{"agent/internal/guard", "agent/internal/owndir", "internal/record", "internal/traces"},
		"other programs read the saved files; none of them needs to run"},
	{"agent/internal/incident", []string{"agent/internal/guard", "agent/internal/memlimit", "agent/internal/owndir", "agent/internal/setting",
		"internal/incidentfile", "internal/pprofwire", "internal/record", "internal/wallprofile"},
		"it keeps what it is passed, whoever captures it"},
	{"agent/internal/lastrun", []string{"agent/internal/guard", "agent/internal/memlimit", "agent/internal/owndir", "internal/record"},
		"it keeps what the next start delivers: it knows no server"},
	{"agent/internal/memlimit", nil, "it reads limits of the system for any part of the agent"},
	{"agent/internal/fleet", []string{"agent/internal/push", "internal/pprofwire", "internal/record", "internal/wallprofile"},
		"it sends saved profiles the way an agent does"},
	{"agent/internal/spanlink", []string{"agent/internal/guard", "internal/wallprofile"}, "it marks spans through an interface of its own, whatever records them"},
	{"agent/internal/instance", []string{"agent/internal/identity", "agent/internal/owndir", "internal/record"},
		"it claims a name and knows nothing of what has it"},
	{"agent/internal/owndir", nil, "it opens directories for packages that know what is in them"},
	{"agent/internal/ending", nil, "it ends whatever its callers started"},
	{"agent/internal/guard", nil, "every part of the agent runs inside it"},
	{"agent/internal/identity", nil, "it names what all signals share"},
	{"agent/internal/setting", nil, "it describes the settings of any configuration"},
	{"agent/internal/setting/settingtest", []string{"agent/internal/setting", "internal/docsection"}, "it compares settings with documents"},
	{"agent/internal/telemetry", []string{"agent/internal/guard", "internal/redact", "internal/traces", "internal/wallprofile"},
		"traces, metrics and logs do not depend on profiles"},
	{"agent/internal/admin", []string{"agent/internal/guard"}, "it shows the data it is given"},
	{"profiles", []string{"internal/flame", "internal/format", "internal/pprofwire", "internal/record", "internal/wallprofile"},
		"saved profiles are files: reading them needs neither a server nor the agent"},
	{"examples", []string{"internal/record", "internal/wallprofile", "profiles", "workload/load", "workload/processes"},
		"it records what the workload does, as its user runs it"},
	{"examples/service", []string{"agent", "agent/otelsetup"}, "it adds the agent as any service does, by its public packages alone"},
	{"profiles/compare", []string{"internal/flame", "internal/format", "internal/record", "internal/traces", "internal/wallprofile", "profiles",
		"profiles/internal/stacks", "profiles/internal/stat"},
		"it compares the profiles and spans that it is given, whatever they were read from"},
	{"profiles/why", []string{"internal/format", "internal/traces", "internal/wallprofile", "profiles", "profiles/compare"},
		"it explains the spans and profiles that it is given, whatever they were read from"},
	{"profiles/watch", []string{"internal/record", "profiles", "profiles/compare"},
		"it compares the profiles that a source has, whatever that reads"},
	{"profiles/input", []string{"internal/format", "internal/query", "internal/record", "internal/redact", "profiles"},
		"it reads profiles from servers, so that the packages for saved profiles need no network"},
	{"viewer", []string{"internal/flame", "internal/format", "internal/incidentfile", "internal/query", "internal/record", "internal/redact", "internal/traces",
		"internal/wallprofile", "profiles", "profiles/compare", "profiles/leaks", "profiles/why"},
		"it shows what a source reads, never an agent"},
	{"viewer/source", []string{"internal/format", "internal/incidentfile", "internal/query", "internal/record", "internal/redact", "internal/traces",
		"internal/wallprofile", "profiles"},
		"it reads a directory or servers for anyone: it knows no page"},
	{"workload", []string{"internal/redact", "workload/faults"}, "the sample service is like any service: it knows the OpenTelemetry API and no agent"},
	{"workload/faults", []string{"internal/redact"}, "it describes faults for the services and for their clients"},
	{"workload/processes", []string{"internal/child"}, "it runs the program as its user does"},
	{"stack", []string{"internal/child"}, "the servers do not depend on their clients"},
	{"deploy", nil, "it holds configuration and its check"},
	{"cmd", []string{"agent/otelsetup", "agent/scrape", "internal/format", "internal/incidentfile", "internal/query", "internal/record", "internal/redact",
		"internal/wallprofile", "profiles", "profiles/compare",
		"profiles/input", "profiles/leaks", "profiles/watch", "profiles/why", "internal/traces", "viewer", "viewer/source", "workload", "workload/faults",
		"workload/load"},
		"the command wires packages and has no logic of its own"},
	{"cmd/spanflame/demo", []string{"internal/record", "internal/traces", "internal/wallprofile", "profiles",
		"stack/servers", "viewer", "viewer/source", "workload/faults", "workload/load", "workload/processes"},
		"it shows what a user has: programs, servers and pages, not the agent"},
	{"cmd/spanflame/mcp", []string{"internal/format", "internal/record", "internal/traces", "internal/wallprofile", "profiles", "profiles/compare",
		"profiles/leaks", "profiles/why", "viewer/source"},
		"it answers from what a source reads: it knows no page, no agent and no workload"},
	{"e2e/faultproxy", []string{"internal/otlpwire", "internal/pprofwire", "internal/pyroscopewire"}, "it reads the requests that it forwards"},
	{"e2e", []string{"stack/servers", "workload/processes"},
		"it uses what a user has: programs and servers, not packages"},
}

// banned are imports from outside this module, by prefix, which a package and those below it must not have.
var banned = []struct{ pkg, imports, why string }{
	{"", "compress/gzip", "internal/pprofwire says why all compress with klauspost/compress"},
	{"", "gonum.org/v1/gonum/mat", "profiles/internal/stat says what it costs"},
	{"", "gonum.org/v1/gonum/stat", "it imports gonum's linear algebra: profiles/internal/stat has what is needed"},
	{"", "net/http/pprof", "its import alone puts profiles on http.DefaultServeMux"},
	{"agent/internal/capture", "net/http", "capturing knows no network"},
	{"agent/internal/wall", "net/http", "capturing knows no network"},
	{"agent/internal/deliver", "net/http", "the network is that of package push"},
	{"agent/internal/spool", "net/http", "the spool knows no network"},
	{"agent/internal/save", "net/http", "saved files stay on this machine"},
	{"agent/internal/incident", "net/http", "its pages are those of package admin"},
	{"agent", "html/template", "it keeps all methods of all types in the program, which costs megabytes"},
	{"profiles/compare", "net/http", "a comparison works on profiles that were already read"},
	{"viewer/source", "net/http", "a source serves nothing, and package query asks the servers"},
	{"profiles/leaks", "net/http", "leaks are found in profiles that were already read"},
	{"workload", "go.opentelemetry.io/otel/sdk", "the sample service is instrumented with the OpenTelemetry API alone"},
	{"workload", "go.opentelemetry.io/otel/exporters",
		"the sample service is instrumented with the OpenTelemetry API alone"},
	{"workload", "github.com/grafana/pyroscope-go", "profiling is the agent's job"},
	{"workload", "github.com/grafana/otel-profiling-go", "profiling is the agent's job"},
}

const module = "spanflame"

// tested has a row for each package whose tests may import more, with the reason.
var tested = []rule{
	{"agent/internal/save", []string{"agent/internal/owndir/owndirtest"}, "its directories are attacked"},
	{"agent/internal/incident", []string{"agent/internal/owndir/owndirtest"}, "its disk is full"},
	{"agent/internal/lastrun", []string{"internal/cgrouptest"}, "a service is killed for memory"},
	{"agent/internal/spool", []string{"agent/internal/owndir/owndirtest"}, "its directories are attacked"},
	{"agent/internal/spanlink", []string{"agent/internal/wall", "internal/record"},
		"its marks are tested together with their receiver"},
	{"agent/otelsetup", []string{"agent/internal/setting/settingtest", "internal/docsection", "internal/record", "internal/traces", "internal/wallprofile"},
		"saved profiles and traces are read back"},
	{"examples/service", []string{"internal/docsection", "internal/record", "internal/traces", "internal/wallprofile", "profiles",
		"profiles/input", "profiles/leaks", "viewer/source"}, "saved profiles and traces are read back, as the viewer and the commands do"},
	{"cmd/spanflame/demo", []string{"internal/docsection", "profiles/compare", "profiles/input", "profiles/leaks", "workload/processes/processestest"},
		"the program is built for its tests, and what its commands say is compared with what is to blame"},
	{"internal/archtest", []string{"internal/docsection"}, "its tests write docs/sizes.md"},
	{"profiles", []string{"agent", "internal/postgrestest"}, "saved profiles of real libraries are read back"},
	{"workload", []string{"internal/docsection", "internal/postgrestest", "internal/wallprofile", "viewer"},
		"its tests write docs/faults.md, with links to the pages"},
	{"viewer/source", []string{"viewer/internal/fixture"}, "its tests read the directories that those of the pages read"},
	{"profiles/input", []string{"profiles/internal/bomb"}, "decompression bombs are tested over the network too"},
	{"e2e", []string{"agent", "agent/otelsetup", "internal/cgrouptest", "internal/child", "internal/query", "internal/record", "internal/traces",
		"internal/otlpwire", "internal/pyroscopewire", "internal/wallprofile", "profiles", "viewer", "viewer/source", "profiles/compare", "profiles/input",
		"workload/faults", "workload/load"},
		"a Docker engine is a child process, spans of every kind are made in the test's own process, and saved data is compared with sent data"},
}

// pkg is the part of `go list -json` that the test reads.
type pkg struct {
	ImportPath, Dir string
	GoFiles         []string
	TestGoFiles     []string
	Imports         []string
	TestImports     []string
	XTestImports    []string
}

// within reports whether path is the package at prefix or one below it.
func within(path, prefix string) bool {
	return prefix == "" || path == prefix || strings.HasPrefix(path, prefix+"/")
}

// violations returns the imports of p that the rules forbid, each with the reason.
func violations(p pkg) []error {
	var errs []error
	path := strings.TrimPrefix(p.ImportPath, module+"/")
	var r *rule
	for i := range rules {
		if within(path, rules[i].pkg) && (r == nil || len(rules[i].pkg) > len(r.pkg)) {
			r = &rules[i]
		}
	}
	if r == nil {
		return []error{fmt.Errorf("%s has no rule: add one to this test", p.ImportPath)}
	}
	may := slices.Clone(r.may)
	for _, imported := range p.Imports {
		if target, own := strings.CutPrefix(imported, module+"/"); own && !within(target, r.pkg) && !slices.Contains(may, target) {
			errs = append(errs, fmt.Errorf("%s imports %s, which it must not: %s", path, target, r.why))
		}
	}
	for _, t := range tested {
		if within(path, t.pkg) {
			may = append(may, t.may...)
		}
	}
	for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
		if target, own := strings.CutPrefix(imported, module+"/"); own && !within(target, r.pkg) && !slices.Contains(may, target) {
			errs = append(errs, fmt.Errorf("the tests of %s import %s, which they must not: %s", path, target, r.why))
		}
	}
	for _, imported := range p.Imports {
		for _, b := range banned {
			if within(path, b.pkg) && within(imported, b.imports) {
				errs = append(errs, fmt.Errorf("%s imports %s, which it must not: %s", path, imported, b.why))
			}
		}
	}
	return errs
}

// comment checks that exactly one file of p has a package comment.
func comment(p pkg) error {
	files := p.GoFiles
	if len(files) == 0 {
		files = p.TestGoFiles
	}
	var with []string
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		if f.Doc != nil {
			with = append(with, name)
		}
	}
	if len(files) > 0 && len(with) != 1 {
		return fmt.Errorf("%s has %d package comments (%s), want one: what it does, who uses it, what it is not for",
			p.ImportPath, len(with), strings.Join(with, ", "))
	}
	return nil
}

func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,TestGoFiles,Imports,TestImports,XTestImports", "../../...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	n := 0
	for d := json.NewDecoder(strings.NewReader(string(out))); ; n++ {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		for _, err := range append(violations(p), comment(p)) {
			if err != nil {
				t.Error(err)
			}
		}
	}
	if n < len(rules)-1 {
		t.Errorf("go list found %d packages, fewer than there are rules", n)
	}
}

func TestRulesNameTheirPackages(t *testing.T) {
	for _, r := range rules {
		if out, err := exec.Command("go", "list", "../../"+r.pkg+"/...").Output(); err != nil || len(out) == 0 {
			t.Errorf("the rule for %s covers no package: remove it (%v)", r.pkg, err)
		}
	}
}

// TestInternalHoldsLeavesOnly checks the rules themselves, so that no row can allow what the plan forbids: packages
// below internal/ import nothing above internal/, in their tests either.
func TestInternalHoldsLeavesOnly(t *testing.T) {
	for _, r := range slices.Concat(rules, tested) {
		for _, imported := range r.may {
			if within(r.pkg, "internal") && !within(imported, "internal") {
				t.Errorf("the rule for %s allows %s, which is above internal/: move the package to its user instead", r.pkg, imported)
			}
		}
	}
}

func TestViolations(t *testing.T) {
	for _, tt := range []struct {
		pkg, imports string
		allowed      bool
	}{
		{"agent", "spanflame/agent/internal/push", true},
		{"agent", "spanflame/internal/record", true},
		{"agent", "spanflame/workload", false},
		{"agent/internal/capture", "spanflame/agent/internal/spool", false},
		{"agent/internal/spool", "net/http/httptrace", false},
		{"workload/load", "spanflame/agent", false},
		{"internal/query", "spanflame/internal/traces", true},
		{"internal/query", "spanflame/profiles", false},
		{"cmd/spanflame/demo", "spanflame/agent", false},
		{"workload", "go.opentelemetry.io/otel/sdk/trace", false},
		{"workload", "go.opentelemetry.io/otel/trace", true},
		{"cmd/spanflame", "spanflame/agent/otelsetup", true},
		{"cmd/spanflame", "spanflame/agent/internal/push", false},
		{"stack/servers", "net/http/pprof", false},
		{"viewer", "spanflame/viewer/source", true},
		{"viewer/source", "spanflame/viewer", false},
		{"viewer/source", "net/http", false},
		{"somewhere", "fmt", false},
	} {
		errs := violations(pkg{ImportPath: module + "/" + tt.pkg, Imports: []string{tt.imports}})
		if got := len(errs) == 0; got != tt.allowed {
			t.Errorf("%s imports %s: allowed %v, want %v (%v)", tt.pkg, tt.imports, got, tt.allowed, errs)
		}
	}
	for _, tt := range []struct {
		pkg, imports string
		allowed      bool
	}{
		{"e2e", "spanflame/agent", true},
		{"e2e", "spanflame/agent/internal/push", false},
		{"agent/internal/spanlink", "spanflame/agent/internal/wall", true},
		{"agent/internal/capture", "spanflame/agent/internal/wall", false},
	} {
		errs := violations(pkg{ImportPath: module + "/" + tt.pkg, TestImports: []string{tt.imports}})
		if got := len(errs) == 0; got != tt.allowed {
			t.Errorf("the tests of %s import %s: allowed %v, want %v (%v)", tt.pkg, tt.imports, got, tt.allowed, errs)
		}
	}
}
