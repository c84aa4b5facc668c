//go:build unix

package agent

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"spanflame/internal/incidentfile"
)

// TestSignal: a service that asks for it has a bundle on SIGUSR1. One that does not has none: the signal
// is not the agent's.
func TestSignal(t *testing.T) {
	dir := t.TempDir()
	h := startGuest(t, os.Getuid(), "SPANFLAME_DIR="+dir, "SPANFLAME_INCIDENT_TRIGGERS=signal=SIGUSR1")
	h.line(t, "started at")
	var bundles []string
	for range 2 { // the second one is too soon
		if err := h.Process.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(time.Minute); len(bundles) == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no bundle within a minute")
		}
		bundles, _ = filepath.Glob(filepath.Join(dir, incidentfile.Dir, "*", "*-"+incidentfile.Signal+"-*"+incidentfile.Suffix))
	}
	h.terminate(t)
	if n := strings.Count(h.log.String(), "incident bundle written"); n != 1 {
		t.Errorf("%d bundles are written: %s", n, h.log)
	}

	dir = t.TempDir()
	h = startGuest(t, os.Getuid(), "SPANFLAME_DIR="+dir)
	h.line(t, "started at")
	if err := h.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	h.terminate(t)
	if bundles, err := filepath.Glob(filepath.Join(dir, incidentfile.Dir, "*", "*")); len(bundles) > 0 || err != nil {
		t.Errorf("%v are written, %v", bundles, err)
	}
}
