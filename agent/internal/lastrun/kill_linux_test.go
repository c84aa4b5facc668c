package lastrun

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"spanflame/internal/record"
)

// memoryGroup makes a cgroup with a memory limit, of version 2 or 1, and returns the file that takes its processes. The test
// is skipped where that is not possible.
func memoryGroup(t *testing.T, limit int64) (processes string) {
	t.Helper()
	name := fmt.Sprintf("spanflame-test-%d-%d", os.Getpid(), time.Now().UnixNano())
	var failed []error
	for _, kind := range []struct{ root, limit, swap string }{
		{"/sys/fs/cgroup", "memory.max", "memory.swap.max"}, {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.swappiness"},
	} {
		dir := filepath.Join(kind.root, name)
		if _, err := os.Stat(filepath.Join(kind.root, "cgroup.procs")); err != nil { // not mounted: a directory would limit nothing
			failed = append(failed, err)
			continue
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			failed = append(failed, err)
			continue
		}
		t.Cleanup(func() {
			for range 100 { // its processes may be ending
				if err := syscall.Rmdir(dir); err == nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
			t.Errorf("%s cannot be removed", dir)
		})
		if err := set(filepath.Join(dir, kind.limit), strconv.FormatInt(limit, 10)); err != nil {
			failed = append(failed, err)
			continue
		}
		_ = set(filepath.Join(dir, kind.swap), "0") // where there is swap
		return filepath.Join(dir, "cgroup.procs")
	}
	t.Skipf("SKIPPED: no cgroup with a memory limit can be made here, so no kill for memory is tested: %v", errors.Join(failed...))
	return ""
}

// set writes a file of a cgroup, which must be there.
func set(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// killed lets a service grow until the kernel kills it, and returns how old its last profile was then, which part of the
// growth it has, and whether the next start says that it was killed for memory.
func killed(t *testing.T, rate, limit int64) (old time.Duration, part float64, known bool) {
	t.Helper()
	dir := t.TempDir()
	group := memoryGroup(t, limit)
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
