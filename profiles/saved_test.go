package profiles_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"spanflame/internal/record"
	"spanflame/profiles"
)

// TestLasts: a request is meant to last if it sends parts and is idle between them, however long it takes.
func TestLasts(t *testing.T) {
	ms := int64(time.Millisecond)
	flush := stack{[]string{"[syscall]", "syscall.write", "net/http.(*response).FlushError", "main.events", "span: GET /events"}, "", ms}
	hijack := stack{[]string{"net/http.(*response).Hijack", "main.socket", "span: GET /socket"}, "", ms}
	message := "[for: a message of a gRPC stream]"
	of := func(frames ...string) stack { return stack{append(frames, "span: GET /events"), "", 500 * ms} }
	idle := of("[waiting: select]", "runtime.selectgo", "main.events")
	for name, tt := range map[string]struct {
		want   bool
		stacks []stack
	}{
		"server-sent events": {true, []stack{idle, flush}},
		"events that another sends": {true, []stack{of("[waiting: sleep]", "main.tick", "[woken by: main.tick, no request]", "[waiting: select]",
			"main.events"), flush}},
		"a WebSocket":               {true, []stack{of("[waiting: network]", "ws.(*Conn).Read", "main.socket"), hijack}},
		"a gRPC stream":             {true, []stack{of(message, "[waiting: select]", "google.golang.org/grpc.(*serverStream).RecvMsg", "main.watch")}},
		"nothing was sent":          {false, []stack{idle}},
		"parts after a query":       {false, []stack{of("[waiting: network]", "store.(*conn).Read", "main.export"), flush}},
		"parts after a lock":        {false, []stack{of("[waiting: mutex]", "sync.(*Mutex).Lock", "main.events"), flush}},
		"parts of what is computed": {false, []stack{of("main.compute"), flush}},
		"parts after another service": {false, []stack{of("[for: the answer of an HTTP call]", "[waiting: select]", "net/http.(*persistConn).roundTrip",
			"main.a"), flush}},
		"as long computed as idle":          {false, []stack{idle, of("main.compute"), flush}},
		"others of the request are as idle": {false, []stack{of("[waiting: select]", "main.prefetch", others), of("main.compute"), flush}},
		"nothing":                           {false, nil},
	} {
		if got := profiles.Lasts(newProfile(record.Wall, noon, time.Second, tt.stacks...)); got != tt.want {
			t.Errorf("%s: %t, want %t", name, got, tt.want)
		}
	}
}

// TestDiagnoses: all that was saved about the spans of a file is read, and of each whether it lasts.
func TestDiagnoses(t *testing.T) {
	dir := t.TempDir()
	frames := []string{"[waiting: select]", "runtime.selectgo", "main.events"}
	p := newProfile(record.Wall, noon, time.Second, stack{frames, "00000000000000aa", 1e9}, stack{frames, "00000000000000bb", 1e9},
		stack{[]string{"[syscall]", "net/http.(*response).FlushError", "main.events"}, "00000000000000bb", 1e6})
	p.Comments = []string{"made by hand", "span_id=00000000000000aa 1 ms a", "span_id=00000000000000bb 2 ms b"}
	path := save(t, dir, meta(record.Wall), p)
	want := []profiles.Diagnosed{{SpanID: "00000000000000aa", Text: "1 ms a"}, {SpanID: "00000000000000bb", Text: "2 ms b", Lasts: true}}
	if got, err := profiles.Diagnoses(path); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for name, content := range map[string]string{"none": "", "text": "no profile"} {
		bad := filepath.Join(dir, name)
		if err := os.WriteFile(bad, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := profiles.Diagnoses(bad); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}
