// Package e2e tests spanflame like a user: it runs the workload's services as processes, with a real Pyroscope and
// a real Tempo, and reads everything through the servers' own APIs.
package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spanflame/internal/query"
	"spanflame/internal/wallprofile"
	"spanflame/workload/processes"
)

// patience limits every wait. It is long because machines are slow at times; a passing test does not need it.
const patience = 90 * time.Second

// get sends one request and returns its trace id.
func get(t *testing.T, url string) (traceID string) {
	t.Helper()
	status, header, body := request(t, http.MethodGet, url)
	if status != http.StatusOK {
		t.Fatalf("%s: status %d: %s", url, status, body)
	}
	id := header.Get("X-Trace-ID")
	if len(id) != 32 {
		t.Fatalf("%s: X-Trace-ID %q, want 32 hex digits", url, id)
	}
	return id
}

func request(t *testing.T, method, url string) (int, http.Header, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, body
}

// ownTimeIn is query.Frame.Find for a span's own time: not below a frame that says who else was at work meanwhile.
func ownTimeIn(f *query.Frame, part string) (sum int64) {
	switch {
	case wallprofile.IsCause(f.Name):
		return 0
	case strings.Contains(f.Name, part):
		return f.Total
	}
	for _, c := range f.Children {
		sum += ownTimeIn(c, part)
	}
	return sum
}

// eventually calls ask until it returns no error, and fails the test with its last error after patience.
func eventually(t *testing.T, what string, ask func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err = ask(); err == nil {
			return
		}
	}
	t.Fatalf("%s: not reached after %s: %v", what, patience, err)
}

// delivered runs a workload until, at its end, Pyroscope has what the workload saved. On a busy machine it can refuse profiles,
// or take one twice because its answer came too late: what a service then leaves for its next start is not to be seen.
func delivered(t *testing.T, run func(n int) *processes.Workload) {
	t.Helper()
	for n := range 4 {
		problem := undelivered(t, run(n))
		if problem == "" {
			return
		}
		t.Logf("not all profiles were delivered at once: %s", problem)
	}
	t.Fatal("in none of 4 runs were all profiles delivered at once")
}

// undelivered returns which profiles were not delivered at the first attempt, or an empty text.
func undelivered(t *testing.T, s *processes.Workload) string {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(filepath.Dir(s.Storefront.LogFile), "spool-*", "*", "*.pb.gz*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		return fmt.Sprintf("%d are still in the spool", len(left))
	}
	for _, service := range []*processes.Service{s.Storefront, s.Inventory} {
		log, err := os.ReadFile(service.LogFile)
		if err != nil {
			t.Fatal(err)
		}
		if _, line, failed := strings.Cut(string(log), "profile delivery failing"); failed {
			line, _, _ = strings.Cut(line, "\n")
			return service.Name + ": profile delivery failing" + line
		}
	}
	return ""
}

// find returns the first span of that name, or of "service: name" if several services have such a span.
func find(spans []query.Span, name string) (query.Span, bool) {
	for _, s := range spans {
		if s.Name == name || s.Service+": "+s.Name == name {
			return s, true
		}
	}
	return query.Span{}, false
}

func names(spans []query.Span) string {
	var all []string
	for _, s := range spans {
		all = append(all, fmt.Sprintf("%s %q", s.Service, s.Name))
	}
	return strings.Join(all, ", ")
}

func functions(f *query.Frame) string {
	var all []string
	f.Walk(func(_ []string, f *query.Frame) { all = append(all, f.Name) })
	return strings.Join(all, ", ")
}
