//go:build long

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"spanflame/internal/cgrouptest"
	"spanflame/internal/query"
	"spanflame/internal/record"
)

// TestKilledForMemory: the kernel kills a service that leaks. The next start says so, Pyroscope has its last heap with what
// leaked, and the command names it first.
func TestKilledForMemory(t *testing.T) {
	const service, limit = "storefront-killed", 400 << 20
	group := cgrouptest.Memory(t, limit)
	dir := t.TempDir()
	begun := time.Now()
	// start returns the service, its address, and its log.
	start := func() (*exec.Cmd, string, string) {
		log := filepath.Join(dir, fmt.Sprintf("log-%d", time.Now().UnixNano()))
		f, err := os.Create(log)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd := exec.Command("/bin/sh", "-c", `echo $$ > "$0" && exec "$@"`, group,
			w.binary, "workload", "--role", "storefront", "--listen", "127.0.0.1:0", "--database", filepath.Join(dir, "orders.db"))
		cmd.Env = append(os.Environ(), "OTEL_SERVICE_NAME="+service, "PYROSCOPE_SERVER_ADDRESS="+w.stack.Pyroscope().URL,
			"PYROSCOPE_UPLOAD_INTERVAL=1s", "SPANFLAME_DIR="+filepath.Join(dir, "saved"), "SPANFLAME_SPOOL_DIR="+filepath.Join(dir, "spool"),
			"SPANFLAME_ADMIN_ADDRESS=127.0.0.1:0")
		cmd.Stdout, cmd.Stderr = f, f
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		address := ""
		eventually(t, "the service listens", func() error {
			if address = loggedAddress(log); address == "" {
				return errors.New("its log has no address")
			}
			return nil
		})
		return cmd, address, log
	}
	cmd, address, _ := start()
	for range 8 {
		resp, err := http.Get("http://" + address + "/load/leak?mb=50")
		if err != nil {
			break // killed
		}
		resp.Body.Close()
		time.Sleep(300 * time.Millisecond)
	}
	_ = cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the service ended with %v", cmd.ProcessState)
	}

	_, _, log := start()
	const reported = "the run before ended without a shutdown; the kernel has killed it"
	eventually(t, "the next start says that", func() error {
		if b, err := os.ReadFile(log); err != nil || !strings.Contains(string(b), reported) {
			return fmt.Errorf("no %q: %v", reported, err)
		}
		return nil
	})
	eventually(t, "Pyroscope has the last heap", func() error {
		graph, err := w.pyroscope.FlameGraph(t.Context(), query.InuseSpace,
			query.Selector{record.ServiceLabel: service, record.EndedLabel: "memory"}, begun.Add(-time.Minute), time.Now().Add(time.Minute))
		if err != nil {
			return err
		}
		if leaked := graph.Find("workload.(*leak).grow"); leaked < limit/10 {
			return fmt.Errorf("it has %d bytes of the leak", leaked)
		}
		return nil
	})
	var out []byte
	eventually(t, "the command names the leak", func() error {
		out, _ = exec.Command(w.binary, "leaks", filepath.Join(dir, "saved"), "--service", service).CombinedOutput()
		if !strings.Contains(string(out), "\n  1. spanflame/workload.(*leak).grow: +") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	t.Logf("%s", out)
}

// loggedAddress returns the address at which a service listens, by its log.
func loggedAddress(log string) string {
	f, err := os.Open(log)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if _, rest, ok := strings.Cut(lines.Text(), `"address":"`); ok {
			address, _, _ := strings.Cut(rest, `"`)
			return address
		}
	}
	return ""
}
