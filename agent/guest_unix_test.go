//go:build unix

package agent

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// asGuest makes a copy of this test binary a service with the agent.
const asGuest = "AGENT_GUEST"

func init() {
	if os.Getenv(asGuest) != "" {
		guest()
		os.Exit(0)
	}
}

// guest is a service that runs until SIGTERM. It prints when the agent has started, and how its shutdown ended.
func guest() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	a, err := Start(ctx, Config{ServiceName: "svc", Window: time.Second, AdminAddress: "127.0.0.1:0", Logger: logTo(os.Stderr)})
	if err != nil {
		fmt.Println("not started:", err)
		os.Exit(1)
	}
	fmt.Println("started at", a.AdminAddr())
	<-ctx.Done()
	last, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	fmt.Println("ended:", a.Shutdown(last))
}

// host runs guest.
type host struct {
	*exec.Cmd
	out *bufio.Scanner
	log *strings.Builder // to be read after wait
}

// startGuest starts a copy of the test binary as the user in a working directory that only root can write to, with no
// more environment than given.
func startGuest(t *testing.T, uid int, env ...string) *host {
	t.Helper()
	binary := os.Args[0]
	if uid != os.Getuid() { // where go test puts it, other users cannot read
		dir, err := os.MkdirTemp("", "guest")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		b, err := os.ReadFile(binary)
		if err != nil {
			t.Fatal(err)
		}
		binary = filepath.Join(dir, "guest")
		if err := os.WriteFile(binary, b, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(binary)
	if uid != os.Getuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	return launch(t, cmd, env)
}

// launch starts a command that becomes a guest.
func launch(t *testing.T, cmd *exec.Cmd, env []string) *host {
	t.Helper()
	h := &host{Cmd: cmd, log: &strings.Builder{}}
	h.Env, h.Dir, h.Stderr = append([]string{asGuest + "=1"}, env...), "/", h.log
	out, err := h.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Process.Kill() })
	h.out = bufio.NewScanner(out)
	return h
}

// line returns the rest of the next line, which begins with prefix.
func (h *host) line(t *testing.T, prefix string) string {
	t.Helper()
	if !h.out.Scan() {
		_ = h.Wait()
		t.Fatalf("the service ended before it printed %q: %s", prefix, h.log)
	}
	rest, ok := strings.CutPrefix(h.out.Text(), prefix)
	if !ok {
		t.Fatalf("the service printed %q, want %q", h.out.Text(), prefix)
	}
	return strings.TrimSpace(rest)
}

// terminate ends the service in order, and returns its word of the agent's shutdown.
func (h *host) terminate(t *testing.T) string {
	t.Helper()
	if err := h.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := h.line(t, "ended:")
	if err := h.Wait(); err != nil {
		t.Errorf("%v: %s", err, h.log)
	}
	return ended
}

// TestAnyUserWithoutAHome runs as a user that no file names, without HOME, where it can write nothing: profiles wait in
// memory and are delivered.
func TestAnyUserWithoutAHome(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can run a program as another user")
	}
	var pushes atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		pushes.Add(1)
		w.Header().Set("Content-Type", "application/proto")
	}))
	defer server.Close()
	h := startGuest(t, 123456, "PYROSCOPE_SERVER_ADDRESS="+server.URL)
	admin := h.line(t, "started at")
	for deadline := time.Now().Add(time.Minute); pushes.Load() < 10; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d profiles arrive within a minute: %s", pushes.Load(), h.log)
		}
	}
	pages := map[string]string{}
	for _, page := range []string{"/readyz", "/status"} {
		resp, err := http.Get("http://" + admin + page)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s, %v", page, resp.Status, err)
		}
		pages[page] = string(body)
	}
	if !strings.Contains(pages["/status"], "SPANFLAME_SPOOL_DIR") {
		t.Errorf("/status does not say what to set: %s", pages["/status"])
	}
	if ended := h.terminate(t); ended != "<nil>" {
		t.Errorf("the shutdown says %q: want everything delivered", ended)
	}
	for _, once := range []string{"profiles cannot be written to disk and are kept in memory", "may have the same service.instance.id"} {
		if n := strings.Count(h.log.String(), once); n != 1 {
			t.Errorf("%q is logged %d times, want once: %s", once, n, h.log)
		}
	}
}

// TestTerminatedInAPushThatNeverEnds: the agent gives up in its time, not by the deadline of its caller, and what was
// captured is on disk.
func TestTerminatedInAPushThatNeverEnds(t *testing.T) {
	pushed := make(chan struct{}, 100)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case pushed <- struct{}{}:
		default:
		}
		<-r.Context().Done()
	}))
	defer server.Close()
	spool := filepath.Join(t.TempDir(), "spool")
	h := startGuest(t, os.Getuid(), "PYROSCOPE_SERVER_ADDRESS="+server.URL, "SPANFLAME_SPOOL_DIR="+spool)
	h.line(t, "started at")
	<-pushed
	ended := h.terminate(t)
	files, err := filepath.Glob(filepath.Join(spool, "0", "*.pb.gz"))
	if err != nil || len(files) == 0 || !strings.Contains(ended, fmt.Sprintf("%d profiles", len(files))) || !strings.Contains(ended, "stay in "+spool) {
		t.Errorf("the shutdown says %q, and the spool has %d profiles, %v", ended, len(files), err)
	}
}

// TestReadOnlyRoot runs where nothing can be written, as in a container with a read-only root, neither in the working
// directory nor at HOME: the service starts and ends in order, with a server and without one.
func TestReadOnlyRoot(t *testing.T) {
	const readOnly = `mount -o remount,bind,ro /`
	if out, err := exec.Command("unshare", "--mount", "sh", "-c", readOnly).CombinedOutput(); err != nil {
		t.Skipf("the root cannot be made read-only for a process, which takes root and util-linux: %v %s", err, out)
	}
	start := func(env ...string) *host {
		return launch(t, exec.Command("unshare", "--mount", "sh", "-c", readOnly+` && exec "$0"`, os.Args[0]), append(env, "HOME=/root"))
	}
	t.Run("with a server", func(t *testing.T) {
		var pushes atomic.Int64
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			pushes.Add(1)
			w.Header().Set("Content-Type", "application/proto")
		}))
		defer server.Close()
		h := start("PYROSCOPE_SERVER_ADDRESS=" + server.URL)
		h.line(t, "started at")
		if ended := h.terminate(t); ended != "<nil>" || pushes.Load() == 0 {
			t.Errorf("the shutdown says %q after %d pushes: want everything delivered", ended, pushes.Load())
		}
		if once := "profiles cannot be written to disk and are kept in memory"; strings.Count(h.log.String(), once) != 1 {
			t.Errorf("the log does not have %q once: %s", once, h.log)
		}
	})
	t.Run("without a server", func(t *testing.T) {
		h := start()
		h.line(t, "started at")
		h.terminate(t)
		if want := "read-only file system"; !strings.Contains(h.log.String(), want) {
			t.Errorf("the log does not have %q: %s", want, h.log)
		}
	})
}
