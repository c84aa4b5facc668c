//go:build linux

// Package cgrouptest limits the memory of processes, for tests of what happens when the kernel kills one. It is for tests
// only.
package cgrouptest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// Memory makes a cgroup with a memory limit, of version 2 or 1, and returns the file that takes its processes. The test
// is skipped where that is not possible.
func Memory(t *testing.T, limit int64) (processes string) {
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
