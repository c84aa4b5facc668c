package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/pprof"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// output is the output of a command so far.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// serveView runs the command until interrupt, and returns the address that it prints and what its first page is.
func serveView(t *testing.T, args ...string) (said, body string, interrupt func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var out output
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, &out, io.Discard, append([]string{"view", "--listen", "127.0.0.1:0"}, args...)...)
	}()
	interrupt = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("it ended with %v", err)
		}
	})
	t.Cleanup(interrupt)
	var url string
	for deadline := time.Now().Add(30 * time.Second); url == ""; time.Sleep(10 * time.Millisecond) {
		url = regexp.MustCompile(`http://\S+\n$`).FindString(out.String())
		if time.Now().After(deadline) {
			t.Fatalf("no address after 30 s: %s", &out)
		}
	}
	resp, err := http.Get(strings.TrimSpace(url))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d, %v:\n%s", url, resp.StatusCode, err, b)
	}
	return out.String(), string(b), interrupt
}

func TestViewServesUntilItIsInterrupted(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("SPANFLAME_DIR", dir)
	said, body, interrupt := serveView(t)
	if !strings.Contains(said, dir) {
		t.Errorf("%q does not name the directory %s", said, dir)
	}
	if !strings.Contains(body, "There are no traces yet") {
		t.Errorf("the first page:\n%s", body)
	}
	interrupt()
	url := regexp.MustCompile(`http://\S+`).FindString(said)
	if resp, err := http.Get(url); err == nil {
		resp.Body.Close()
		t.Errorf("%s is served after the end", url)
	}
}

// Profiles by themselves begin with their flame graph: those of any directory, and a single file.
func TestViewOfProfilesAlone(t *testing.T) {
	dir := filepath.Join("..", "..", "examples", "slow-pricing")
	for path, want := range map[string]string{dir: "24 windows", filepath.Join(dir, "before", "cpu-01.pb.gz"): "1 window from"} {
		said, body, _ := serveView(t, path, "--base", filepath.Join(dir, "before"))
		for _, part := range []string{want, "workload.compileTariff"} {
			if !strings.Contains(body, part) {
				t.Errorf("%s: %q is not on the first page, %s:\n%s", path, part, said, body)
			}
		}
	}
}

// The address of a listener is read once, and nothing of it is left at the end.
func TestViewOfAListener(t *testing.T) {
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	pages := http.NewServeMux()
	pages.Handle("/debug/pprof/goroutine", pprof.Handler("goroutine"))
	server := httptest.NewServer(pages)
	defer server.Close()
	said, body, interrupt := serveView(t, server.URL)
	for _, want := range []string{"the heap profile is missing", "the cpu profile is missing", server.URL + " is shown at"} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in %s", want, said)
		}
	}
	if want := "testing.(*T).Run"; !strings.Contains(body, want) {
		t.Errorf("no %q on the first page:\n%s", want, body)
	}
	interrupt()
	if left, err := os.ReadDir(temporary); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// A profile takes as long as it records: errors of options come before it, and name the address.
func TestViewChecksBeforeItReadsAListener(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("it asked for %s", r.URL) }))
	defer server.Close()
	const tempo = "http://127.0.0.1:1"
	for want, args := range map[string][]string{
		`--listen "7070"`:                  {"--listen", "7070"},
		"the port is in use":               {"--listen", taken.Addr().String()},
		"require each other":               {"--tempo", tempo},
		"--jaeger requires":                {"--jaeger", tempo},
		"a directory (" + server.URL + ")": {"--tempo", tempo, "--pyroscope", tempo},
		`Grafana is "javascript:x"`:        {"--grafana", "javascript:x"},
		"base directory":                   {"--base", filepath.Join(t.TempDir(), "none")},
		"--slow-span -1s":                  {"--slow-span", "-1s"},
	} {
		args = append([]string{"view", server.URL, "--listen", "127.0.0.1:0"}, args...)
		if stdout, _, err := execute(t, args...); err == nil || !strings.Contains(err.Error(), want) || stdout != "" {
			t.Errorf("%q: %v and %q, want an error with %q", args, err, stdout, want)
		}
	}
}

func TestViewSaysWhatIsWrong(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	none, file := filepath.Join(dir, "none"), filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SPANFLAME_DIR", "off") // applies if there is no argument
	for want, args := range map[string][]string{
		"the port is in use":              {dir, "--listen", taken.Addr().String()},
		`--listen "7070"`:                 {dir, "--listen", "7070"},
		"start a service with the agent":  {none},
		"or profiles in pprof's format":   {file},
		"require each other":              {"--tempo", "http://127.0.0.1:1"},
		"--jaeger, and --pyroscope), not": {dir, "--tempo", "http://127.0.0.1:1", "--pyroscope", "http://127.0.0.1:2"},
		"either --tempo or --jaeger":      {"--tempo", "http://127.0.0.1:1", "--jaeger", "http://127.0.0.1:2", "--pyroscope", "http://127.0.0.1:3"},
		"--tempo (or --jaeger) and":       {"--pyroscope", "http://127.0.0.1:1"},
		"--jaeger requires --pyroscope":   {"--jaeger", "http://127.0.0.1:1"},
		`Jaeger's address "nowhere"`:      {"--jaeger", "nowhere", "--pyroscope", "http://127.0.0.1:2"},
		`Tempo's address "nowhere"`:       {"--tempo", "nowhere", "--pyroscope", "http://127.0.0.1:2"},
		`Grafana is "javascript:x"`:       {dir, "--grafana", "javascript:x"},
		"base directory":                  {dir, "--base", none},
		"accepts at most 1 arg(s)":        {dir, dir},
		"--slow-span -1s":                 {dir, "--slow-span", "-1s"},
		"cannot be reached":               {"http://127.0.0.1:1"},
		"--duration 0s":                   {dir, "--duration", "0"},
		"SPANFLAME_DIR is off":            {},
	} {
		if _, _, err := execute(t, append([]string{"view"}, args...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error that says %q", args, err, want)
		}
	}
}
