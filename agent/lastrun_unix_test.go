//go:build unix

package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"spanflame/internal/record"
)

// TestRunBefore: a service that was killed is reported by its next start, once, unless that is off; one that shut down is not.
func TestRunBefore(t *testing.T) {
	dir := t.TempDir()
	run := func(kill bool, env ...string) string {
		h := startGuest(t, os.Getuid(), append(env, "SPANFLAME_DIR="+dir)...)
		h.line(t, "started at")
		if !kill {
			h.terminate(t)
			return h.log.String()
		}
		_ = h.Process.Kill()
		_ = h.Wait()
		return h.log.String()
	}
	const reported = "the run before ended without a shutdown"
	if log := run(true) + run(true, "SPANFLAME_LAST_RUN=off"); strings.Contains(log, reported) {
		t.Errorf("a first run, or one that is to report nothing, reports: %s", log)
	}
	if log := run(false, "SPANFLAME_LAST_RUN=crashes"); strings.Count(log, reported) != 1 {
		t.Errorf("the run after one that was killed: %s", log)
	}
	if log := run(false); strings.Contains(log, reported) {
		t.Errorf("the run after one that shut down: %s", log)
	}
	if left, err := filepath.Glob(filepath.Join(dir, record.RunsDir, "*")); len(left) > 0 || err != nil {
		t.Errorf("%v, %v", left, err)
	}
}
