package lastrun

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"spanflame/internal/cgrouptest"
	"spanflame/internal/record"
)

// killed lets a service grow until the kernel kills it, and returns how old its last profile was then, which part of the
// growth it has, and whether the next start says that it was killed for memory.
func killed(t *testing.T, rate, limit int64) (old time.Duration, part float64, known bool) {
	t.Helper()
	dir := t.TempDir()
	group := cgrouptest.Memory(t, limit)
	cmd := start(t, fmt.Sprintf("grow %d", rate), dir, "/bin/sh", "-c", `echo $$ > "$0" && exec "$1"`, group)
	_ = cmd.Wait()
	at := time.Now()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the service ended with %v", cmd.ProcessState)
	}
	got := next(t, dir)
	known = got.stats.Ended[ForMemory] == 1 && len(got.lines) == 1 && got.lines[0]["level"] == "WARN"
	for _, r := range got.records {
		if r.Type == record.Memory {
			// The runtime's own memory and the program's take some megabytes of the limit.
			return at.Sub(r.End), float64(holds(t, r, ".growForever")) / float64(limit), known
		}
	}
	return at.Sub(time.Time{}), 0, known
}

// TestKilledForMemory: the kernel kills a service for memory, and the next start has a profile of what it was used for.
func TestKilledForMemory(t *testing.T) {
	old, part, known := killed(t, 100e6, 256<<20)
	t.Logf("the last profile is %v old and has %.0f %% of the limit", old, 100*part)
	if !known || part < 0.1 { // what the last collection saw, on the busiest machine
		t.Errorf("the last profile is %v old and has %.0f %% of the limit; the next start knows: %v", old, 100*part, known)
	}
}
