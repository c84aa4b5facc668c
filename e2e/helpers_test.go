// Package e2e walks the user's way on real servers: the shop's services as processes of their own, a real
// Pyroscope and a real Tempo, and everything asked for through the servers' own APIs.
package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"spanflame/internal/query"
)

// patience bounds every wait for something to arrive. It is long because machines are slow at times; a test
// that passes does not use it.
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

// eventually asks again until ask is content, and fails the test with what it said last.
func eventually(t *testing.T, what string, ask func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err = ask(); err == nil {
			return
		}
	}
	t.Fatalf("%s: still not so after %s: %v", what, patience, err)
}

// find is the first span of that name, "service: name" where several services have one.
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
