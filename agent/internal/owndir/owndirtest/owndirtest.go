//go:build unix

// Package owndirtest has another user, and a disk that is too small, for tests of packages that keep files. It is for
// tests only.
package owndirtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// Nobody is the other user, one without privileges.
const Nobody = 65534

// Attack runs a shell script as [Nobody]. The test is skipped unless its process is root.
func Attack(t *testing.T, script string, args ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can run a program as another user")
	}
	cmd := exec.Command("/bin/sh", append([]string{"-euc", script, "sh"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: Nobody, Gid: Nobody}}
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// Shared returns a directory like /tmp, and one of root that looks like the agent's, in which a file must stay.
func Shared(t *testing.T) (tmp, victim string) {
	t.Helper()
	top, err := os.MkdirTemp("", "shared")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	tmp, victim = filepath.Join(top, "tmp"), filepath.Join(top, "victim")
	for _, dir := range []string{tmp, victim} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for dir, mode := range map[string]os.FileMode{top: 0o755, tmp: 0o777 | os.ModeSticky} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
	}
	return tmp, victim
}
