//go:build long

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/workload/processes"
)

// manyTargets is the number of targets that one scraper has, of which one in hangs never answers, and scraperMemory what it
// may use for them, in bytes.
const (
	manyTargets   = 500
	hangs         = 10
	scraperMemory = 256 << 20
)

// TestScrapeOfManyTargets scrapes many targets with one process, which have the profiles that a storefront had one after
// another, and some of which never answer.
func TestScrapeOfManyTargets(t *testing.T) {
	const window = 10 * time.Second
	recorded := map[string][][]byte{}
	for range 8 {
		get(t, w.workload.Storefront.URL+"/api/checkout")
		get(t, w.workload.Storefront.URL+"/load/alloc?mb=64")
		for _, name := range []string{"heap", "mutex", "block", "goroutine"} {
			_, _, body := request(t, http.MethodGet, w.workload.Storefront.Admin+"/debug/pprof/"+name)
			recorded[name] = append(recorded[name], body)
		}
	}
	_, _, cpu := request(t, http.MethodGet, w.workload.Storefront.Admin+"/debug/pprof/profile?seconds=1")
	p, err := profile.ParseData(cpu)
	if err != nil {
		t.Fatal(err)
	}
	p.DurationNanos = 0 // not given: it is served for requests of any length
	var timeless bytes.Buffer
	if err := p.Write(&timeless); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	var served atomic.Int64
	targets := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		number, err := strconv.Atoi(strings.Split(r.URL.Path, "/")[1])
		if err != nil || number%hangs == 0 {
			<-r.Context().Done()
			return
		}
		body, name := timeless.Bytes(), filepath.Base(r.URL.Path)
		if name == "profile" {
			seconds, _ := strconv.Atoi(r.FormValue("seconds"))
			select {
			case <-time.After(time.Duration(seconds) * time.Second):
			case <-r.Context().Done():
				return
			}
		} else {
			all := recorded[name]
			body = all[min(len(all)-1, int(time.Since(begun)/window))]
		}
		if _, err := w.Write(body); err == nil {
			served.Add(1)
		}
	}))
	defer targets.Close()
	var taken atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/proto")
		taken.Add(1)
	}))
	defer server.Close()

	dir := t.TempDir()
	binary := filepath.Join(dir, "spanflame")
	if err := processes.Build(t.Context(), binary); err != nil { // without the race detector, which takes memory
		t.Fatal(err)
	}
	var list strings.Builder
	for i := range manyTargets {
		fmt.Fprintf(&list, "- targets: [%q]\n  labels: {service_name: service-%d, service_instance_id: instance-%d, __profile_path__: /%d/debug/pprof}\n",
			strings.TrimPrefix(targets.URL, "http://"), i/10, i, i)
	}
	file := filepath.Join(dir, "targets.yaml")
	if err := os.WriteFile(file, []byte(list.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	scraper := exec.CommandContext(t.Context(), binary, "scrape", "--file", file, "--timeout", "5s")
	scraper.Env = append(os.Environ(), "PYROSCOPE_SERVER_ADDRESS="+server.URL, "PYROSCOPE_UPLOAD_INTERVAL="+window.String(),
		"SPANFLAME_SPOOL_DIR="+filepath.Join(dir, "spool"), "SPANFLAME_ADMIN_ADDRESS=off")
	if err := scraper.Start(); err != nil {
		t.Fatal(err)
	}
	healthy := int64(manyTargets - manyTargets/hangs)
	for i := range int64(5) {
		eventually(t, fmt.Sprintf("window %d of all targets", i+1), func() error {
			if n := served.Load(); n < (i+1)*5*healthy {
				return fmt.Errorf("%d profiles are served", n)
			}
			return nil
		})
	}
	elapsed := time.Since(begun)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", scraper.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if err := scraper.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := scraper.Wait(); err != nil {
		t.Error(err)
	}
	most := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if most == nil {
		t.Fatalf("no VmHWM in %s", status)
	}
	kilobytes, _ := strconv.ParseInt(string(most[1]), 10, 64)
	used := scraper.ProcessState.UserTime() + scraper.ProcessState.SystemTime()
	t.Logf("%d targets, of which one in %d hangs: %d MiB at most, %v of CPU time in %v; %d profiles served, %d delivered; a heap profile has %d bytes",
		manyTargets, hangs, kilobytes>>10, used.Round(time.Millisecond), elapsed.Round(time.Second), served.Load(), taken.Load(), len(recorded["heap"][0]))
	if kilobytes<<10 > scraperMemory {
		t.Errorf("the scraper used %d bytes, want at most %d", kilobytes<<10, scraperMemory)
	}
	// The first readings of three types are zero points, and the last CPU profile ends with the scraper.
	if want := served.Load() - 4*healthy; taken.Load() < want {
		t.Errorf("%d profiles were served, and %d delivered, want at least %d", served.Load(), taken.Load(), want)
	}
}
