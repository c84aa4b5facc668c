package examples

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"spanflame/internal/record"
	"spanflame/profiles"
)

// job is the job for continuous integration that docs/ci.md shows.
type job struct {
	Env   map[string]string
	Steps []struct {
		Name, Run, Uses string
	}
}

// readJob takes the job out of the page.
func readJob(t *testing.T) job {
	t.Helper()
	page, err := os.ReadFile("../docs/ci.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "```yaml\n")
	text, _, _ = strings.Cut(text, "```\n")
	var workflow struct{ Jobs map[string]job }
	if err := yaml.Unmarshal([]byte(text), &workflow); err != nil {
		t.Fatal(err)
	}
	j, ok := workflow.Jobs["gate"]
	if !ok || len(j.Steps) < 4 {
		t.Fatalf("docs/ci.md has no job called gate, with its steps: %+v", workflow)
	}
	return j
}

// step is the shell script of one of its steps.
func (j job) step(t *testing.T, name string) string {
	t.Helper()
	for _, s := range j.Steps {
		if s.Name == name {
			return s.Run
		}
	}
	t.Fatalf("docs/ci.md has no step %q", name)
	return ""
}

// workspace is a directory of a run of the job, after its step Build.
func workspace(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, side := range []string{"base", "head"} {
		if err := os.Symlink(filepath.Join(program, "spanflame"), filepath.Join(dir, side)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// The gate lets the repair of the shop's mistake pass, and stops what would undo it.
func TestTheJobDetectsAFault(t *testing.T) {
	for _, tt := range []struct {
		name, before, after string
		code                int
		says                string // on standard error
		table               string // in the summary
	}{
		{"the repair", "before", "after", 0, "", "compileTariff"},
		{"the mistake", "after", "before", 1, "gate failed: cpu:+10%@p<0.01: total changed by +", "compileTariff"},
		{"nothing was measured", "before", "", 2, "no such file", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := workspace(t)
			for measured, side := range map[string]string{"before": tt.before, "after": tt.after} {
				if side == "" {
					continue
				}
				if err := os.CopyFS(filepath.Join(dir, measured), os.DirFS(filepath.Join("slow-pricing", side))); err != nil {
					t.Fatal(err)
				}
			}
			summary := filepath.Join(dir, "summary.md")
			cmd := script(t.Context(), readJob(t).step(t, "Compare"), "GITHUB_STEP_SUMMARY="+summary)
			cmd.Dir = dir
			var stderr strings.Builder
			cmd.Stderr = &stderr
			if err := cmd.Run(); cmd.ProcessState.ExitCode() != tt.code || !strings.Contains(stderr.String(), tt.says) {
				t.Errorf("%v, want exit code %d and %q:\n%s", err, tt.code, tt.says, stderr.String())
			}
			b, err := os.ReadFile(summary)
			if err != nil || !strings.Contains(string(b), tt.table) {
				t.Errorf("the summary is %q (%v), want %q in it", b, err, tt.table)
			}
		})
	}
}

// The job's measurement leaves profiles of both sides, which its judgement reads.
func TestTheJobMeasures(t *testing.T) {
	dir := workspace(t)
	cmd := script(t.Context(), readJob(t).step(t, "Measure"), "TURNS=1", "LENGTH=2s", "FAULTS_BEFORE=slow-pricing", "FAULTS_AFTER=",
		"STOREFRONT="+freeAddress(t), "INVENTORY="+freeAddress(t))
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, side := range []string{"before", "after"} {
		query := profiles.Query{Service: "storefront", Types: []record.Type{record.CPU}}
		entries, damaged, err := profiles.Find(t.Context(), query, filepath.Join(dir, side))
		if err != nil || len(damaged) > 0 || len(entries) == 0 {
			t.Errorf("%s: %d CPU profiles of the storefront, %v damaged, %v", side, len(entries), damaged, err)
		}
	}
}

// freeAddress is one on which nobody listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
