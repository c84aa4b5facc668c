package archtest

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"spanflame/internal/docsection"
)

var update = flag.Bool("update", false, "build the programs of testdata/sizes and write their sizes into docs/sizes.md")

// programs are the same service with more and more linked into it.
var programs = []struct{ dir, what string }{
	{"hello", "an HTTP server that says hello"},
	{"profiles", "with profiles alone, by `agent`"},
	{"peer", "with pyroscope-go and otel-profiling-go instead"},
	{"sdk", "with an OpenTelemetry SDK and its OTLP exporter of traces"},
	{"own", "with that and `agent`"},
	{"everything", "with everything by one call, by `otelsetup`"},
}

// tolerance is the number of packages by which the documented number may differ, so that an import does not change the page.
const tolerance = 8

// TestSizes: the numbers in docs/sizes.md are those of the code, and profiles alone link at most a fifth more packages
// than the usual pair. The sizes of the programs are written with the numbers, and not compared.
func TestSizes(t *testing.T) {
	const file, section = "../../docs/sizes.md", "written by go test ./internal/archtest -run TestSizes -update"
	packages := map[string]int{}
	for _, p := range programs {
		out, err := exec.Command("go", "list", "-deps", "./testdata/sizes/"+p.dir).Output()
		if err != nil {
			t.Fatalf("go list of %s: %v", p.dir, err)
		}
		packages[p.dir] = strings.Count(string(out), "\n")
	}
	if n, most := packages["profiles"], packages["peer"]*6/5; n > most {
		t.Errorf("profiles alone link %d packages, want at most %d, a fifth more than the usual pair's %d", n, most, packages["peer"])
	}
	if *update {
		docsection.Write(t, file, section, sizes(t, packages))
		return
	}
	documented := docsection.Read(t, file, section)
	for _, p := range programs {
		_, row, _ := strings.Cut(documented, "| "+p.what+" | ")
		number, _, _ := strings.Cut(row, " |")
		if n, err := strconv.Atoi(number); err != nil || max(n-packages[p.dir], packages[p.dir]-n) > tolerance {
			t.Errorf("docs/sizes.md has %q packages for %q, want %d; write it with go test ./internal/archtest -run TestSizes -update",
				number, p.what, packages[p.dir])
		}
	}
}

// sizes builds the programs and returns the table.
func sizes(t *testing.T, packages map[string]int) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("| Program | Packages | Size |\n|---|---|---|\n")
	dir := t.TempDir()
	for _, p := range programs {
		binary := filepath.Join(dir, p.dir)
		if out, err := exec.Command("go", "build", "-o", binary, "./testdata/sizes/"+p.dir).CombinedOutput(); err != nil {
			t.Fatalf("go build of %s: %v\n%s", p.dir, err, out)
		}
		info, err := os.Stat(binary)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "| %s | %d | %.1f MB |\n", p.what, packages[p.dir], float64(info.Size())/1e6)
	}
	return b.String()
}
