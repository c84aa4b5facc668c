package otelsetup

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

// TestStreamsAndHijackedConnections: instrumented handlers that send events, or take over their connection, work under
// the agent, and their spans have profiles.
func TestStreamsAndHijackedConnections(t *testing.T) {
	cfg := quiet(t)
	cfg.Agent.Dir, cfg.Agent.SlowSpan, cfg.Agent.WallCPUShare = t.TempDir(), time.Millisecond, 1
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	next := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 5 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
			select { // the client has the event before the next one is sent
			case <-next:
			case <-r.Context().Done():
				return
			}
		}
	})
	mux.HandleFunc("GET /raw", func(w http.ResponseWriter, _ *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		rw.Flush()
		time.Sleep(20 * time.Millisecond)
		line, err := rw.ReadString('\n')
		if err != nil {
			t.Error(err)
		}
		fmt.Fprint(rw, strings.ToUpper(line))
		rw.Flush()
	})
	traced := otelhttp.NewHandler(mux, "", otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return r.URL.Path }))
	ended := make(chan struct{}, 2) // a server does not wait for hijacked connections
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		traced.ServeHTTP(w, r)
		ended <- struct{}{}
	}))
	defer server.Close()

	resp, err := http.Get(server.URL + "/events")
	if err != nil {
		t.Fatal(err)
	}
	events := bufio.NewReader(resp.Body)
	for i := range 5 {
		if line, err := events.ReadString('\n'); err != nil || line != fmt.Sprintf("data: %d\n", i) {
			t.Fatalf("event %d is %q, %v", i, line, err)
		}
		if _, err := events.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
		next <- struct{}{}
	}
	if rest, err := io.ReadAll(events); err != nil || len(rest) > 0 {
		t.Errorf("after the last event: %q, %v", rest, err)
	}
	resp.Body.Close()

	c, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "GET /raw HTTP/1.1\r\nHost: x\r\n\r\nhello\n")
	if b, err := io.ReadAll(c); err != nil || !strings.HasSuffix(string(b), "\r\n\r\nHELLO\n") {
		t.Errorf("the connection has %q, %v", b, err)
	}
	c.Close()
	<-ended
	<-ended
	server.Close()
	http.DefaultClient.CloseIdleConnections()
	if err := a.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}

	profiled := map[string]int64{} // nanoseconds by span
	for _, r := range savedProfiles(t, cfg.Agent.Dir, "svc") {
		if r.Type != record.Wall || r.Labels[wallprofile.SpanScope] != wallprofile.ScopeRoot {
			continue
		}
		p, err := profile.ParseData(r.Profile)
		if err != nil {
			t.Fatal(err)
		}
		for _, sample := range p.Sample {
			for _, id := range sample.Label[wallprofile.SpanID] {
				profiled[id] += sample.Value[0]
			}
		}
	}
	spans := savedSpans(t, cfg.Agent.Dir, "svc")
	for _, name := range []string{"/events", "/raw"} {
		if s := spans[name]; s.Duration() < 20*time.Millisecond || profiled[s.ID] != s.Duration().Nanoseconds() {
			t.Errorf("%s: a span of %v, and a profile of %v", name, s.Duration(), time.Duration(profiled[s.ID]))
		}
	}
}
