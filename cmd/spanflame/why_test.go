package main

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

// saveTrace saves a trace of one span of a second, and its profile: it waited for another request.
func saveTrace(t *testing.T, dir string, profiled bool) (traceID string) {
	t.Helper()
	r := savedRequest{
		traceID: strings.Repeat("ab", 16), spanID: strings.Repeat("cd", 8), name: "GET /cart",
		at: time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC), took: time.Second, marked: true,
	}
	if profiled {
		r.stack = []string{
			wallprofile.Syscall.Leaf(), "main.audit", wallprofile.CauseFrame(wallprofile.HeldBy, wallprofile.OtherRequest, "POST /audit"),
			wallprofile.WaitMutex.Leaf(), "sync.(*Mutex).Lock", "main.cart", wallprofile.SpanPrefix + "GET /cart",
		}
	}
	r.save(t, dir)
	return r.traceID
}

func TestWhy(t *testing.T) {
	dir, bare := t.TempDir(), t.TempDir()
	id := saveTrace(t, dir, true)
	saveTrace(t, bare, false)
	for _, args := range [][]string{{"why", "--dir", dir}, {"why", id, "--dir", dir}} {
		stdout, _, err := execute(t, args...)
		for _, want := range []string{
			"1000 ms GET /cart: 1000 ms (100 %) waiting for a mutex in main.cart, held by: POST /audit, another request: 1000 ms of it in main.audit",
			"100 %  shop, GET /cart: waiting for a mutex in main.cart", "1000 ms  held by: POST /audit, another request: in a system call in main.audit",
		} {
			if err != nil || !strings.Contains(stdout, want) {
				t.Errorf("%q: %v, want %q in\n%s", args, err, want, stdout)
			}
		}
	}
	stdout, _, err := execute(t, "why", "--dir", dir, "--format", "json")
	var r struct {
		TraceID string `json:"trace_id"`
		Parts   []struct {
			Causes []struct{ Who, Function, State string }
		}
	}
	if err := errors.Join(err, json.Unmarshal([]byte(stdout), &r)); err != nil || r.TraceID != id || r.Parts[0].Causes[0].Function != "main.audit" {
		t.Errorf("%v: %s", err, stdout)
	}
	since := time.Since(time.Date(2026, 1, 2, 14, 0, 0, 0, time.UTC)).Truncate(time.Second).String()
	for _, args := range [][]string{{"--since", since}, {"--since", since, "--service", "shop"}} {
		stdout, _, err := execute(t, append([]string{"why", "--dir", dir}, args...)...)
		if want := "1000 ms  shop, POST /audit made 1 request wait in main.cart: in a system call in main.audit\n"; err != nil || !strings.Contains(stdout, want) {
			t.Errorf("%q: %v, want %q in\n%s", args, err, want, stdout)
		}
	}
	for want, args := range map[string][]string{
		"want a duration above zero": {id, "--since", "1h", "--dir", dir}, "--last -1h0m0s: want": {"--last", "-1h", "--dir", dir},
		"is not found": {strings.Repeat("0", 32), "--dir", dir}, "no trace is found": {"--service", "other", "--dir", dir},
		"has a wall-clock profile": {"--dir", bare}, "--format": {"--format", "xml"}, "want at most one": {"a", "b"}, "directory not found": {"--dir", dir + "/none"},
	} {
		if _, _, err := execute(t, append([]string{"why"}, args...)...); err == nil || exitCode(err) != codeUse || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want code %d and %q", args, err, codeUse, want)
		}
	}
}

// TestWhyTail: the slowest requests of a name are compared with faster ones, and wrong use says what is wrong.
func TestWhyTail(t *testing.T) {
	dir, several := t.TempDir(), t.TempDir()
	id := saveTrace(t, dir, true)
	saveTrace(t, several, true)
	saveWindows(t, several, record.Meta{Service: "other", Type: record.Wall}, "wall", "nanoseconds", 1, func(int) int64 { return 1 })
	for want, args := range map[string][]string{
		`"GET /cart" has 1 slow request and 0 fast ones with a wall-clock profile`: {"--tail", "GET /cart"},
		`other names are ["GET /cart"]`:                                            {"--tail", "GET /none"},
		"want at least 4":                                                          {"--tail", "GET /cart", "--slowest", "3"},
		"want no TRACE_ID":                                                         {id, "--tail", "GET /cart"},
		"[since tail] were all set":                                                {"--tail", "GET /cart", "--since", "1h"},
		"[name tail] were all set":                                                 {"--tail", "GET /cart", "--name", "cart"},
		"[tail tempo] were all set":                                                {"--tail", "GET /cart", "--tempo", "http://127.0.0.1:1"},
		"[jaeger tail] were all set":                                               {"--tail", "GET /cart", "--jaeger", "http://127.0.0.1:1"},
		"[pyroscope tail] were all set":                                            {"--tail", "GET /cart", "--pyroscope", "http://127.0.0.1:1"},
		"--last -1h0m0s: want a duration above zero":                               {"--tail", "GET /cart", "--last", "-1h"},
		"select one with --service: other, shop":                                   {"--tail", "GET /cart", "--dir", several},
	} {
		_, _, err := execute(t, append([]string{"why", "--dir", dir}, args...)...)
		if code := exitCode(err); code != 2 || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: exit code %d, %v, want an error with %q", args, code, err, want)
		}
	}
	stdout, _, err := execute(t, "why", "--dir", filepath.Join("..", "..", "examples", "lock-convoy", "before"), "--tail", "POST /api/checkout")
	if err != nil || !strings.Contains(stdout, "waiting: mutex in spanflame/workload.(*Service).settleHoldingTill") {
		t.Errorf("%s, %v", stdout, err)
	}
}
