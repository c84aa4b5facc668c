package admin

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/goleak"

	"spanflame/agent/internal/guard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve serves the pages on a free port.
func serve(o Options, change ...func(*ServerOptions)) *Server {
	so := ServerOptions{Address: "127.0.0.1:0", Pages: Handler(o), Logger: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&so)
	}
	return Serve(so)
}

// start serves the pages until the end of the test and returns their URL.
func start(t *testing.T, change func(*Options), server ...func(*ServerOptions)) string {
	t.Helper()
	o := Options{
		CPUProfile: func(context.Context, io.Writer, time.Duration) error { return errors.New("busy") },
		Problems:   func() []Problem { return nil },
	}
	if change != nil {
		change(&o)
	}
	s := serve(o, server...)
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return "http://" + s.Addr()
}

func get(t *testing.T, url string, header ...string) (int, http.Header, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
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

func TestNamedProfiles(t *testing.T) {
	url := start(t, nil)
	for _, name := range []string{"allocs", "block", "goroutine", "heap", "mutex", "threadcreate"} {
		status, h, body := get(t, url+"/debug/pprof/"+name)
		if status != 200 || h.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("%s: status %d, type %q", name, status, h.Get("Content-Type"))
			continue
		}
		if _, err := profile.ParseData(body); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, body := get(t, url+"/debug/pprof/goroutine?debug=2"); !bytes.Contains(body, []byte("goroutine ")) {
		t.Errorf("goroutine?debug=2: %.80q", body)
	}
	if _, _, body := get(t, url+"/debug/pprof/"); !bytes.Contains(body, []byte(`href="heap?debug=1"`)) {
		t.Errorf("the index does not list heap: %q", body)
	}
}

func TestWrongRequests(t *testing.T) {
	url := start(t, nil)
	for _, tt := range []struct {
		path, host string
		status     int
		want       string
	}{
		{path: "/debug/pprof/nonsense", status: 404, want: `"nonsense"`},
		{path: "/debug/pprof/heap?debug=9", status: 400, want: `debug="9"`},
		{path: "/debug/pprof/heap?debug=x", status: 400, want: "want 0, 1 or 2"},
		{path: "/debug/pprof/heap?seconds=0", status: 400, want: "1 to 300"},
		{path: "/debug/pprof/profile?seconds=-1", status: 400, want: `seconds="-1"`},
		{path: "/debug/pprof/profile?seconds=301", status: 400, want: "1 to 300"},
		{path: "/debug/pprof/profile?seconds=1", status: 409, want: "busy"},
		{path: "/debug/pprof/trace?seconds=x", status: 400, want: `seconds="x"`},
		{path: "/debug/fgprof?seconds=99999999999999999999", status: 400, want: "1 to 300"},
		{path: "/elsewhere", status: 404, want: "not found"},
		{path: "/healthz", host: "attacker.example", status: 421, want: `"attacker.example"`},
		{path: "/healthz", host: "attacker.example:6060", status: 421, want: "localhost"},
		{path: "/healthz", host: "localhost:6060", status: 200, want: "ok"},
		{path: "/healthz", host: "[::1]:6060", status: 200, want: "ok"},
		{path: "/healthz", host: "10.1.2.3", status: 200, want: "ok"},
	} {
		var header []string
		if tt.host != "" {
			header = []string{"Host", tt.host}
		}
		status, _, body := get(t, url+tt.path, header...)
		if status != tt.status || !strings.Contains(string(body), tt.want) {
			t.Errorf("%s (host %q): %d %q, want %d and %q", tt.path, tt.host, status, body, tt.status, tt.want)
		}
	}
	resp, err := http.Post(url+"/debug/pprof/heap", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d, want 405", resp.StatusCode)
	}
}

func TestCPUProfile(t *testing.T) {
	var asked time.Duration
	url := start(t, func(o *Options) {
		o.CPUProfile = func(_ context.Context, w io.Writer, d time.Duration) error {
			asked = d
			_, err := io.WriteString(w, "profile")
			return err
		}
	})
	status, h, body := get(t, url+"/debug/pprof/profile?seconds=7")
	if status != 200 || string(body) != "profile" || asked != 7*time.Second {
		t.Errorf("status %d, body %q, asked for %v", status, body, asked)
	}
	if got := h.Get("Content-Disposition"); got != `attachment; filename="profile"` {
		t.Errorf("Content-Disposition %q", got)
	}
}

//go:noinline
func parkForTest(release <-chan struct{}) { <-release }

func TestDelta(t *testing.T) {
	url := start(t, nil)
	release, parked := make(chan struct{}), make(chan struct{})
	go func() {
		time.Sleep(2 * time.Second) // after the first of the two profiles
		for range 50 {
			go parkForTest(release)
		}
		close(parked)
	}()
	_, _, body := get(t, url+"/debug/pprof/goroutine?seconds=5")
	<-parked
	close(release)
	p, err := profile.ParseData(body)
	if err != nil {
		t.Fatal(err)
	}
	var parks int64
	for _, s := range p.Sample {
		for _, l := range s.Location {
			for _, line := range l.Line {
				if strings.HasSuffix(line.Function.Name, "parkForTest") {
					parks += s.Value[0]
				}
			}
		}
	}
	if parks != 50 {
		t.Errorf("the difference shows %d goroutines more in parkForTest, want 50", parks)
	}
}

func TestTraceAndFgprof(t *testing.T) {
	url := start(t, nil)
	if status, _, body := get(t, url+"/debug/pprof/trace?seconds=1"); status != 200 || !bytes.HasPrefix(body, []byte("go 1.")) {
		t.Errorf("trace: %d, %.20q", status, body)
	}
	status, _, body := get(t, url+"/debug/fgprof?seconds=1")
	if status != 200 {
		t.Fatalf("fgprof: %d %q", status, body)
	}
	if p, err := profile.ParseData(body); err != nil || len(p.Sample) == 0 {
		t.Errorf("fgprof: %v, %v", p, err)
	}
}

func TestOneTimedProfileAtATime(t *testing.T) {
	url := start(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil { // until this request is the one that is served
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, url+"/debug/fgprof?seconds=300", nil)
			if resp, err := http.DefaultClient.Do(req); err == nil {
				resp.Body.Close()
			}
		}
	}()
	for {
		status, _, body := get(t, url+"/debug/pprof/trace?seconds=1")
		if status == http.StatusConflict {
			if !strings.Contains(string(body), "another trace or fgprof profile is running") {
				t.Errorf("409: %q", body)
			}
			break
		}
		runtime.Gosched() // the other request has not started yet
	}
	cancel()
	<-ended
	for { // the client that disconnected makes room
		if status, _, _ := get(t, url+"/debug/pprof/trace?seconds=1"); status == 200 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestMetricsWithExemplars(t *testing.T) {
	registry := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "seen_total", Help: "h"})
	registry.MustRegister(c)
	c.(prometheus.ExemplarAdder).AddWithExemplar(3, prometheus.Labels{"trace_id": "abc"})
	url := start(t, func(o *Options) {
		o.Metrics = promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
	})
	_, _, body := get(t, url+"/metrics", "Accept", "application/openmetrics-text")
	if !strings.Contains(string(body), `seen_total 3.0 # {trace_id="abc"} 3.0`) {
		t.Errorf("metrics: %q", body)
	}
}

// TestStatus checks that probes do not depend on the agent's state, which only the status shows.
func TestStatus(t *testing.T) {
	var problems []Problem
	recording := ""
	url := start(t, func(o *Options) {
		o.Problems, o.Recording = func() []Problem { return problems }, func() string { return recording }
	})
	for _, test := range []struct {
		problems          []Problem
		recording         string
		ready, text, json string
	}{
		{nil, "", "ready\n", "ok\n", `{"status":"ok","problems":[]}`},
		{
			nil, "armed, mode changes: 3", "ready\nrecording of slow spans: armed, mode changes: 3\n",
			"ok\nrecording of slow spans: armed, mode changes: 3\n", `{"status":"ok","problems":[],"recording":"armed, mode changes: 3"}`,
		},
		{
			[]Problem{{"delivery", "server unreachable"}, {"wall", "busy"}}, "", "ready\n", "degraded\ndelivery: server unreachable\nwall: busy\n",
			`{"status":"degraded","problems":[{"reason":"delivery","message":"server unreachable"},{"reason":"wall","message":"busy"}]}`,
		},
	} {
		problems, recording = test.problems, test.recording
		for _, probe := range []struct{ path, want string }{{"/readyz", test.ready}, {"/healthz", "ok\n"}, {"/status", test.text}} {
			if status, _, body := get(t, url+probe.path); status != 200 || string(body) != probe.want {
				t.Errorf("%v: %s: %d %q, want %q", problems, probe.path, status, body, probe.want)
			}
		}
		for _, accept := range []string{"application/json", "text/html, application/json;q=0.9"} {
			status, h, body := get(t, url+"/status", "Accept", accept)
			if status != 200 || strings.TrimSpace(string(body)) != test.json || h.Get("Content-Type") != "application/json" {
				t.Errorf("%v: Accept %s: %d %q, want %s", problems, accept, status, body, test.json)
			}
		}
		if _, _, body := get(t, url+"/status?format=json"); strings.TrimSpace(string(body)) != test.json {
			t.Errorf("%v: format=json: %q, want %s", problems, body, test.json)
		}
	}
}

// TestPanic plants panics in the pages: the response ends, the panic is counted and logged once, and the pages work on.
func TestPanic(t *testing.T) {
	var log lines
	g := guard.New(slog.New(slog.NewTextHandler(&log, nil)))
	pages := Handler(Options{
		Guard:      g,
		Metrics:    http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("planted") }),
		CPUProfile: func(context.Context, io.Writer, time.Duration) error { panic("planted") },
		Problems:   func() []Problem { panic("planted") },
	})
	server := httptest.NewUnstartedServer(pages) // a server of the service
	var errors lines
	server.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(&errors, nil), slog.LevelError)
	server.Start()
	defer server.Close()
	for _, path := range []string{"/metrics", "/debug/pprof/profile?seconds=1", "/status"} {
		if resp, err := http.Get(server.URL + path); err == nil {
			resp.Body.Close()
			t.Errorf("%s: status %d, want a closed connection", path, resp.StatusCode)
		}
	}
	if n := g.Panics()["operator's pages"]; n != 3 {
		t.Errorf("%d panics are counted, want 3", n)
	}
	if n := log.count("panic=planted"); n != 1 || log.count("admin.TestPanic.func") == 0 || errors.count("") != 1 {
		t.Errorf("the log has %d panics, want one with its stack: %s; the server's log has %s", n, log.b.String(), errors.b.String())
	}
	if status, _, _ := get(t, server.URL+"/debug/pprof/heap"); status != 200 || len(g.Degraded()) > 0 {
		t.Errorf("after the panics: %d, %v", status, g.Degraded())
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestAbortIsNoPanic: ending a response on purpose is not counted.
func TestAbortIsNoPanic(t *testing.T) {
	g := guard.New(slog.New(slog.DiscardHandler))
	url := start(t, func(o *Options) {
		o.Guard = g
		o.Metrics = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	})
	if resp, err := http.Get(url + "/metrics"); err == nil {
		resp.Body.Close()
		t.Errorf("status %d, want a closed connection", resp.StatusCode)
	}
	if n := g.Panics(); len(n) > 0 {
		t.Errorf("counted: %v", n)
	}
}

// serveSlowly serves a CPU profile that lasts until take returns, and requests it.
func serveSlowly(t *testing.T, take func(context.Context)) (s *Server, answered <-chan int) {
	t.Helper()
	begun, status := make(chan struct{}), make(chan int, 1)
	s = serve(Options{
		CPUProfile: func(ctx context.Context, w io.Writer, _ time.Duration) error {
			close(begun)
			take(ctx)
			_, err := io.WriteString(w, "incomplete profile")
			return err
		},
	})
	go func() {
		resp, err := http.Get("http://" + s.Addr() + "/debug/pprof/profile?seconds=300")
		if err != nil {
			status <- 0
			return
		}
		resp.Body.Close()
		status <- resp.StatusCode
	}()
	<-begun
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return s, status
}

func TestShutdownEndsAProfileEarly(t *testing.T) {
	s, answered := serveSlowly(t, func(ctx context.Context) { <-ctx.Done() })
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if status := <-answered; status != http.StatusOK {
		t.Errorf("status %d, want 200 with the incomplete profile", status)
	}
}

func TestShutdownClosesConnectionsAtItsDeadline(t *testing.T) {
	release := make(chan struct{})
	s, answered := serveSlowly(t, func(context.Context) { <-release })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	ended := make(chan error)
	go func() { ended <- s.Shutdown(ctx) }()
	if status := <-answered; status != 0 {
		t.Errorf("status %d, want a closed connection", status)
	}
	select {
	case <-ended:
		t.Error("Shutdown returned while a request still ran")
	case <-time.After(20 * time.Millisecond):
	}
	close(release)
	if err := <-ended; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v, want the deadline", err)
	}
}

func TestStandardMuxIsEmpty(t *testing.T) {
	// No linked package may register handlers that a service could expose to the public unknowingly.
	req, _ := http.NewRequest(http.MethodGet, "/debug/pprof/", nil)
	if _, pattern := http.DefaultServeMux.Handler(req); pattern != "" {
		t.Errorf("http.DefaultServeMux has %q", pattern)
	}
}
