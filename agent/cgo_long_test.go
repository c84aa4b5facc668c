//go:build long

package agent

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

// TestCgo runs testdata/cgo. Spans that sleep in C, that compute in C, and that wait in Go below C have profiles of exactly
// their duration, which name the function of the service. 32 goroutines that go through C and back into Go do not end
// the service, with the default settings, for as long as SPANFLAME_CALLBACKS says.
func TestCgo(t *testing.T) {
	binary, dir := filepath.Join(t.TempDir(), "cgo"), t.TempDir()
	build := exec.Command("go", "build", "-o", binary, "./testdata/cgo")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	run := func(t *testing.T, args ...string) string {
		t.Helper()
		cmd := exec.Command(binary, args...)
		var log strings.Builder
		cmd.Stderr = &log
		out, err := cmd.Output()
		if err != nil || strings.Contains(log.String(), "panic") {
			t.Fatalf("%v\n%s", err, log.String())
		}
		return string(out)
	}
	t.Run("spans", func(t *testing.T) {
		out := run(t, "spans", dir)
		found := map[string]int64{} // nanoseconds by span and function
		for _, r := range savedProfiles(t, dir) {
			if r.Type != record.Wall {
				continue
			}
			p, err := profile.ParseData(r.Profile)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range p.Sample {
				id := strings.Join(s.Label[wallprofile.SpanID], "")
				found[id] += s.Value[0]
				for _, l := range s.Location {
					for _, line := range l.Line {
						found[id+" "+line.Function.Name] += s.Value[0]
					}
				}
			}
		}
		for name, function := range map[string]string{"sleeps": "main._Cfunc_sleepInC", "computes": "main._Cfunc_computeInC", "callsBack": "time.Sleep"} {
			var id string
			var took int64
			_, rest, _ := strings.Cut(out, name+" ")
			if _, err := fmt.Sscan(rest, &id, &took); err != nil {
				t.Fatalf("%s: %v in %q", name, err, out)
			}
			if found[id] != took {
				t.Errorf("%s took %v, and its profile has %v", name, time.Duration(took), time.Duration(found[id]))
			}
			for _, f := range []string{function, "main." + name} {
				if got := time.Duration(found[id+" "+f]); got < 49*time.Millisecond {
					t.Errorf("%s: %v in %s, want 50 ms", name, got, f)
				}
			}
		}
	})
	t.Run("callbacks", func(t *testing.T) {
		duration := "10s"
		if d := os.Getenv("SPANFLAME_CALLBACKS"); d != "" {
			duration = d
		}
		t.Logf("%s in %s", strings.TrimSpace(run(t, "callbacks", t.TempDir(), duration)), duration)
	})
}
