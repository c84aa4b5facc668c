//go:build !compose

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/e2e/faultproxy"
	"spanflame/internal/query"
	"spanflame/profiles"
)

// TestScrape scrapes a real service that has nothing but net/http/pprof, which is killed and restarted while the server takes
// nothing. Pyroscope has every window that was saved, with its totals.
func TestScrape(t *testing.T) {
	t.Parallel()
	outage := 3 * time.Second
	if d := os.Getenv("SPANFLAME_OUTAGE"); d != "" {
		var err error
		if outage, err = time.ParseDuration(d); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "service")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../agent/scrape/testdata/service").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	serve := func() *exec.Cmd {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), program, address)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	service := serve()
	defer func() {
		_ = service.Process.Kill()
		_ = service.Wait()
	}()

	const scenario = "scrape"
	proxy := faultproxy.Start(w.stack.Pyroscope().URL)
	defer proxy.Close()
	targets, saved := filepath.Join(dir, "targets.json"), filepath.Join(dir, "saved")
	if err := os.WriteFile(targets, fmt.Appendf(nil, `[{"targets": [%q], "labels": {"job": "stock"}}]`, address), 0o600); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	scraper := exec.CommandContext(t.Context(), w.binary, "scrape", "--file", targets)
	scraper.Stderr = &log
	scraper.Env = append(os.Environ(), "PYROSCOPE_SERVER_ADDRESS="+proxy.URL(), "PYROSCOPE_UPLOAD_INTERVAL=1s", "PYROSCOPE_LABELS=scenario="+scenario,
		"SPANFLAME_DIR="+saved, "SPANFLAME_SPOOL_DIR="+filepath.Join(dir, "spool"), "SPANFLAME_ADMIN_ADDRESS=127.0.0.1:0")
	if err := scraper.Start(); err != nil {
		t.Fatal(err)
	}
	windows := func() (n int) {
		entries, _, err := profiles.Find(t.Context(), profiles.Query{}, saved)
		if err == nil {
			n = len(entries)
		}
		return n
	}
	more := func(what string) {
		t.Helper()
		before := windows()
		eventually(t, "profiles "+what, func() error {
			if n := windows(); n < before+20 {
				return fmt.Errorf("%d, before %d", n, before)
			}
			return nil
		})
	}
	more("at first")
	proxy.Harm(faultproxy.Unavailable)
	_ = service.Process.Kill()
	_ = service.Wait()
	service = serve()
	time.Sleep(outage)
	more("of the service that was restarted")
	proxy.Harm(faultproxy.None)
	if err := scraper.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := scraper.Wait(); err != nil || strings.Contains(log.String(), "DATA RACE") {
		t.Fatalf("%v\n%s", err, log.String())
	}
	if !strings.Contains(log.String(), "target has been restarted") {
		t.Errorf("the restart was not recognised:\n%s", log.String())
	}

	entries, damaged, err := profiles.Find(t.Context(), profiles.Query{}, saved)
	if err != nil || len(damaged) > 0 {
		t.Fatal(err, damaged)
	}
	compared := map[string]int{}
	for _, e := range entries {
		r, err := readRecord(e.Path)
		if err != nil {
			t.Fatal(err)
		}
		p, err := profile.ParseData(r.Profile)
		if err != nil {
			t.Fatal(err)
		}
		for i, st := range p.SampleType {
			var want int64
			for _, s := range p.Sample {
				if len(s.Location) > 0 { // Pyroscope keeps no others
					want += s.Value[i]
				}
			}
			if want == 0 {
				continue
			}
			id := strings.Join([]string{string(r.Type), st.Type, st.Unit, p.PeriodType.Type, p.PeriodType.Unit}, ":")
			at := r.Start.Truncate(time.Millisecond)
			series := query.Selector{"service_name": "stock", "scenario": scenario, "job": "stock", "service_instance_id": address}
			graph, err := w.pyroscope.FlameGraph(t.Context(), id, series, at, at.Add(time.Millisecond))
			if err != nil {
				t.Fatal(err)
			}
			if graph.Total != want {
				t.Errorf("%s at %s: Pyroscope has %d, want %d", id, at, graph.Total, want)
			}
			compared[id]++
		}
	}
	t.Logf("%d windows are in Pyroscope: %v", len(entries), compared)
	for _, id := range []string{query.CPU, query.InuseSpace, query.MutexDelay, query.BlockDelay, query.Goroutines} {
		if compared[id] == 0 {
			t.Errorf("no profile of type %s", id)
		}
	}
}
