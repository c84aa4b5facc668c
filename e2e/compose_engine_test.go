//go:build compose

package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spanflame/internal/child"
	"spanflame/stack/servers"
)

// engine runs commands of a Docker engine and its Docker Compose.
type engine struct {
	host    string   // DOCKER_HOST; empty for the engine that the environment names
	command []string // of Docker Compose
}

// findEngine returns the engine that the docker command reaches. If there is none, it starts one for the duration
// of the test, which requires root and, if Docker is not installed, Debian's packages. If that fails too, the test
// fails: its build tag asked for it, and it tests nothing without an engine.
func findEngine(t *testing.T) engine {
	t.Helper()
	var e engine
	if _, err := e.try(t, nil, "docker", "info"); err != nil {
		e.host = startEngine(t)
	}
	t.Log("Docker engine", e.docker(t, "version", "--format", "{{.Server.Version}}"))

	e.command = []string{"docker", "compose"}
	if version, err := e.try(t, nil, "docker", "compose", "version", "--short"); err != nil || strings.HasPrefix(version, "v1") {
		binary, err := servers.Build(t.Context(), servers.Compose, servers.BuildOptions{Progress: t.Output()})
		if err != nil {
			t.Fatal(err)
		}
		e.command = []string{binary}
	}
	return e
}

// startEngine starts dockerd with all its files below a temporary directory, and returns its address. It has no
// default bridge: Compose creates every network here.
func startEngine(t *testing.T) (host string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("no Docker engine answers, and only root can start one: start it, or set DOCKER_HOST to another one")
	}
	if _, err := exec.LookPath("dockerd"); err != nil {
		install(t, "dockerd", "docker.io")
	}
	dir, err := os.MkdirTemp("", "spanflame-docker-") // Short, because a socket's path has at most 107 bytes.
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "dockerd.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close() // The daemon has its own file descriptor.
	host = "unix://" + filepath.Join(dir, "docker.sock")
	daemon, err := child.StartLogged(exec.Command("dockerd", "--host", host, "--bridge", "none",
		"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "pid")), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop(t, daemon.Stop)
		if t.Failed() {
			t.Log(daemon.WithLog(fmt.Errorf("dockerd: %s", daemon.Status())))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	e := engine{host: host}
	eventually(t, "the Docker engine", func() error {
		if daemon.Ended() {
			t.Fatal(daemon.WithLog(fmt.Errorf("dockerd ended: %s", daemon.Status())))
		}
		_, err := e.try(t, nil, "docker", "info")
		return err
	})
	return host
}

// install installs a Debian package for a missing program, and fails the test if it cannot.
func install(t *testing.T, program, pkg string) {
	t.Helper()
	if _, err := exec.LookPath("apt-get"); err != nil || os.Geteuid() != 0 {
		t.Fatalf("%s is missing, and can be installed here only by root on Debian, as the package %s", program, pkg)
	}
	t.Logf("installing the Debian package %s", pkg)
	for _, args := range [][]string{{"update", "-qq"}, {"install", "-qq", "-y", "--no-install-recommends", pkg}} {
		cmd := exec.CommandContext(t.Context(), "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s is missing, and apt-get %s failed: %v\n%s", program, strings.Join(args, " "), err, out)
		}
	}
}

// docker runs the docker command.
func (e engine) docker(t *testing.T, args ...string) (output string) {
	t.Helper()
	output, err := e.try(t, nil, append([]string{"docker"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return output
}

// try runs a command against the engine, with stdin if there is one. It also works in cleanups, when the test's own
// context has ended.
func (e engine) try(t *testing.T, stdin io.Reader, command ...string) (output string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = os.Environ()
	if e.host != "" {
		cmd.Env = append(cmd.Env, "DOCKER_HOST="+e.host)
	}
	cmd.Stdin = stdin
	var problem strings.Builder
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, problem.String())
	}
	return strings.TrimSpace(string(out)), err
}
