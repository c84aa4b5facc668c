// Package postgrestest runs a real PostgreSQL for tests.
package postgrestest

import (
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// Start runs a PostgreSQL server on a Unix socket for the length of the test and returns its URL.
func Start(t testing.TB) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		t.Skip("PostgreSQL is not installed (no /usr/lib/postgresql/*/bin/initdb)")
	}
	bin := filepath.Dir(found[len(found)-1])
	// Not t.TempDir: the other user cannot enter its parent, and its path may be too long for a socket.
	dir, err := os.MkdirTemp("", "pg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	credential := &syscall.SysProcAttr{}
	if os.Getuid() == 0 { // PostgreSQL refuses to run as root
		nobody, err := user.Lookup("nobody")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(nobody.Uid)
		gid, _ := strconv.Atoi(nobody.Gid)
		credential.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(filepath.Join(bin, name), args...)
		cmd.Dir = dir
		cmd.SysProcAttr = credential
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	data := filepath.Join(dir, "data")
	run("initdb", "--no-sync", "--auth=trust", "--username=workload", data)
	run("pg_ctl", "start", "--wait", "--pgdata="+data, "--log="+filepath.Join(dir, "log"),
		"--options=-c listen_addresses='' -c fsync=off -k "+dir)
	t.Cleanup(func() { run("pg_ctl", "stop", "--mode=immediate", "--pgdata="+data) })
	return "postgres:///postgres?" + url.Values{"host": {dir}, "user": {"workload"}}.Encode()
}
