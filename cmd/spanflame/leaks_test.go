package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"spanflame/internal/record"
)

// What is in use doubles with the requests that Prometheus counted.
func TestLeaksTellsTheLoadByWork(t *testing.T) {
	dir := t.TempDir()
	saveWindows(t, dir, record.Meta{Service: "shop", Type: record.Memory}, "inuse_space", "bytes", 30, func(i int) int64 { return int64(30+i) << 20 })
	first := 0.0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at, err := strconv.ParseFloat(r.URL.Query().Get("time"), 64)
		if err != nil || r.URL.Query().Get("query") == "" {
			t.Errorf("asked for %v, %v", r.URL, err)
		}
		if first == 0 {
			first = at
		}
		// A window is a minute.
		_, _ = fmt.Fprintf(w, `{"data":{"result":[{"value":[0,"%g"]}]}}`, 30+(at-first)/60)
	}))
	defer server.Close()
	if stdout, _, err := execute(t, "leaks", dir); err == nil || exitCode(err) != codeFound {
		t.Errorf("without the work: %v\n%s", err, stdout)
	}
	stdout, _, err := execute(t, "leaks", dir, "--work", "sum(increase(requests_total[$window]))", "--prometheus", server.URL)
	if err != nil || !strings.Contains(stdout, "main.hold: follows the load") {
		t.Errorf("by the work: %v\n%s", err, stdout)
	}
	for want, args := range map[string][]string{
		"want one with [$window]": {"--work", "requests"},
		"address of Prometheus":   {"--work", "x[$window]", "--prometheus", "here"},
	} {
		if _, _, err := execute(t, append([]string{"leaks", dir}, args...)...); err == nil || exitCode(err) != codeUse || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want code %d and %q", args, err, codeUse, want)
		}
	}
}
