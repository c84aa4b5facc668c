package viewer

import (
	"context"
	"fmt"
	"html"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"runtime"
	gcmetrics "runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/format"
	"spanflame/internal/traces"
	"spanflame/viewer/internal/fixture"
	"spanflame/viewer/source"
)

func TestURLCanBeAskedFor(t *testing.T) {
	for listening, want := range map[string]string{
		"0.0.0.0:7070": "http://localhost:7070", "[::]:7070": "http://localhost:7070",
		"127.0.0.1:7070": "http://127.0.0.1:7070", "[::1]:80": "http://[::1]:80", "192.0.2.1:80": "http://192.0.2.1:80",
	} {
		addr, err := net.ResolveTCPAddr("tcp", listening)
		if err != nil {
			t.Fatal(err)
		}
		if got := URL(addr); got != want {
			t.Errorf("%s: %s, want %s", listening, got, want)
		}
	}
}

func TestGuard(t *testing.T) {
	h := pages(t, open(t, fixture.Shop(t).Dir), Options{Hosts: []string{"Profiles.example", "10.0.0.7", ""}})
	for _, tt := range []struct {
		method, host, path string
		status             int
	}{
		{"GET", "localhost:7070", "/", 200},
		{"GET", "127.0.0.1:7070", "/", 200},
		{"GET", "127.8.9.1", "/", 200},
		{"GET", "[::1]:7070", "/", 200},
		{"GET", "profiles.example", "/", 200},
		{"GET", "10.0.0.7:80", "/", 200},
		{"HEAD", "localhost", "/", 200},
		{"GET", "evil.example", "/", 421},
		{"GET", "10.0.0.8", "/", 421},
		{"GET", "localhost.evil.example", "/", 421},
		{"GET", "evil.example", "/style.css", 421},
		{"POST", "localhost", "/", 405},
		{"DELETE", "localhost", rootPath(), 405},
		{"OPTIONS", "localhost", "/", 405},
		{"GET", "localhost", "/?name=" + strings.Repeat("x", maxURL), 414},
		{"GET", "localhost", "/nowhere", 404},
		{"GET", "localhost", "/trace/" + fixture.TraceID("none"), 404},
		{"GET", "localhost", "/trace/..%2f..%2fetc", 400},
		{"GET", "localhost", rootPath() + "?span=" + fixture.SpanID("none"), 404},
		{"GET", "localhost", rootPath() + "?sugar=1", 400},
		{"GET", "localhost", "/?min=1ms&min=2ms", 400},
		{"GET", "localhost", "/?min=-1s", 400},
		{"GET", "localhost", "/?last=soon", 400},
		{"GET", "localhost", "/?from=2026-01-02T00:00:00Z&to=2025-01-01T00:00:00Z", 400},
		{"GET", "localhost", "/name", 400},
		{"GET", "localhost", "/flame/none/top", 400},
		{"GET", "localhost", "/compare?what=directories&service=storefront", 400},
		{"GET", "localhost", "/compare?a=x/y", 400},
		{"GET", "localhost", "/memory/plot.svg?service=none", 404},
	} {
		r := httptest.NewRequest(tt.method, "http://localhost"+tt.path, nil)
		r.Host = tt.host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != tt.status {
			t.Errorf("%s %s of %q: status %d, want %d", tt.method, tt.path[:min(len(tt.path), 60)], tt.host, w.Code, tt.status)
		}
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Content-Security-Policy": policy, "Referrer-Policy": "no-referrer",
		} {
			if got := w.Header().Get(name); got != want {
				t.Errorf("%s %s of %q: %s %q, want %q", tt.method, tt.path, tt.host, name, got, want)
			}
		}
	}
}

// hostile are names that would break out of where they are written.
var hostile = []string{
	`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `'); alert(1); ('`, "javascript:alert(1)", "</title><script>alert(1)</script>",
	"new\nline\r\n\x00\x1b[31m", "\u202ethgil ot tfel\u202c", "{{.Title}}", "--></style><b>", strings.Repeat("long", 2500),
}

func TestHostileNames(t *testing.T) {
	for i, name := range hostile {
		d := fixture.New(t)
		service := name[:min(len(name), 3_000)]
		d.Spans(fixture.Span{
			ID: "root", Service: service, Name: name, Took: 600 * time.Millisecond, Profiled: true, Failed: true, Attributes: map[string]string{name: name},
		})
		d.Wall(
			strings.ReplaceAll(service, "\x00", ""), 0, 600*time.Millisecond,
			fixture.Sample("span: "+name+";"+strings.ReplaceAll(name, ";", ",")+";[waiting: "+name+"]", 600e6, "root"),
		)
		h := pages(t, open(t, d.Dir), Options{GrafanaURL: "http://grafana.example"})
		of := url.Values{"service": {service}, "name": {name}}.Encode()
		paths := []string{
			"/", "/?show=traces", "/waits", "/?" + url.Values{"name": {name[:min(len(name), 2_000)]}}.Encode(), rootPath(), "/names",
			"/compare?" + url.Values{"service": {service}, "what": {"times"}}.Encode(),
			"/memory?" + url.Values{"service": {service}}.Encode(),
		}
		if len(of) < maxURL-10 {
			paths = append(paths, "/name?"+of)
		}
		if get(h, wallPath()+"/flamegraph").Code == http.StatusOK {
			paths = append(paths, wallPath()+"/flamegraph", wallPath()+"/top", wallPath()+"/peek")
		} else if i != 5 { // a service's name cannot have a zero byte
			t.Errorf("%.60q: no flame graph", name)
		}
		for _, path := range paths {
			// The fields of the forms have the names as they are: they are sent again.
			got := regexp.MustCompile(` value="[^"]*"`).ReplaceAllString(page(t, h, path), "")
			for _, bad := range []string{"<script>alert", "<img src=x", "</style><b>", "\u202e", "\x1b", "\x00", "href=\"javascript:"} {
				if strings.Contains(got, bad) {
					at := strings.Index(got, bad)
					t.Errorf("%.60q: %.80s has %q: …%q…", name, path, bad, got[max(0, at-80):min(len(got), at+80)])
				}
			}
			if len(got) > 1<<20 {
				t.Errorf("%.60q: %.80s has %d bytes", name, path, len(got))
			}
		}
	}
}

// TestServerThatFails: a failing server is answered with 502 and logged, with its address but without its password.
func TestServerThatFails(t *testing.T) {
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no room left", http.StatusServiceUnavailable)
	}))
	t.Cleanup(broken.Close)
	gone := httptest.NewServer(nil)
	gone.Close()
	empty := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") }))
	t.Cleanup(empty.Close)
	secret := func(address string) string { return strings.Replace(address, "http://", "http://shop:hunter2@", 1) }
	shown := func(address string) string { return strings.Replace(address, "http://", "http://shop:xxxxx@", 1) }
	trace := TracePath(fixture.TraceID("t"))
	for _, tt := range []struct{ tempo, pyroscope, path, want string }{
		{gone.URL, empty.URL, "/", "Tempo at " + shown(gone.URL) + " is unreachable: dial tcp "},
		{gone.URL, empty.URL, trace, "Tempo at " + shown(gone.URL) + " is unreachable: dial tcp "},
		{gone.URL, empty.URL, "/names", "Tempo at " + shown(gone.URL) + " is unreachable: dial tcp "},
		{broken.URL, empty.URL, "/", "Tempo at " + shown(broken.URL) + " failed: "},
		{empty.URL, gone.URL, "/", "Pyroscope at " + shown(gone.URL) + " is unreachable: dial tcp "},
		{empty.URL, gone.URL, "/memory", "Pyroscope at " + shown(gone.URL) + " is unreachable: dial tcp "},
		{empty.URL, broken.URL, "/compare", "Pyroscope at " + shown(broken.URL) + " failed: "},
		{empty.URL, gone.URL, "/memory/plot.svg?service=shop", "Pyroscope at " + shown(gone.URL) + " is unreachable: dial tcp "},
	} {
		from, err := source.NewServers(secret(tt.tempo), secret(tt.pyroscope))
		if err != nil {
			t.Fatal(err)
		}
		var log strings.Builder
		h, err := New(from, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		w := get(h, tt.path)
		if got := html.UnescapeString(w.Body.String()); w.Code != http.StatusBadGateway || !strings.Contains(got, tt.want) || strings.Contains(got, "hunter2") {
			t.Errorf("%s: status %d, want %d and %q:\n%s", tt.path, w.Code, http.StatusBadGateway, tt.want, got)
		}
		if !strings.Contains(log.String(), " at http") || strings.Contains(log.String(), "hunter2") {
			t.Errorf("%s: logged %s", tt.path, &log)
		}
	}
}

func TestTooLongForServers(t *testing.T) {
	servers, err := source.NewServers("http://127.0.0.1:9", "http://127.0.0.1:9") // they are not asked
	if err != nil {
		t.Fatal(err)
	}
	w := get(pages(t, servers, Options{}), "/names?from=2026-01-01T00:00:00Z&to=2026-01-15T00:00:00Z")
	if w.Code != http.StatusBadRequest {
		t.Errorf("two weeks: status %d, want %d", w.Code, http.StatusBadRequest)
	}
	shows(t, w.Body.String(), "The time range is too long: 336h0m0s of spans; ask for 7 days at most.")
}

// TestManyAtOnce asks for pages of a directory 64 at a time while it is written to. The memory that is in use meanwhile, and
// afterwards, is limited.
func TestManyAtOnce(t *testing.T) {
	d := fixture.Shop(t)
	// A trace so large that 64 copies of it would be above the bound.
	var large []fixture.Span
	for i := range 2_000 {
		large = append(
			large,
			fixture.Span{
				Trace: "large", ID: fmt.Sprint("large", i), Service: "storefront", Name: "GET /large", Took: time.Millisecond,
				Attributes: map[string]string{"text": strings.Repeat("x", 2_000)},
			},
		)
	}
	d.Spans(large...)
	h := pages(t, open(t, d.Dir), Options{})
	page(t, h, TracePath(fixture.TraceID("large"))) // and with it the index, which is bounded by itself
	before := liveHeap()
	ctx, stop := context.WithCancel(t.Context())
	var writing, asking, measuring sync.WaitGroup
	writing.Go(func() {
		file := d.TraceFile("storefront", "growing")
		for i := 0; ctx.Err() == nil && i < 3_000; i++ {
			name := fmt.Sprintf("w%d", i)
			start := time.Duration(i) * time.Second
			whole := fixture.Line(
				t,
				fixture.Span{Trace: name, ID: name, Service: "storefront", Name: "GET /", Start: start, Took: 200 * time.Millisecond, Profiled: true},
			)
			d.Write(file, whole[:len(whole)/2])
			d.Write(file, whole[len(whole)/2:])
			d.Wall("storefront", start, 200*time.Millisecond, fixture.Sample("span: GET /;main.work", 200e6, name))
			time.Sleep(time.Millisecond)
		}
	})
	var alive uint64
	var whole atomic.Int64 // pages
	measuring.Go(func() {
		for ctx.Err() == nil {
			alive = max(alive, liveHeap())
			time.Sleep(10 * time.Millisecond)
		}
	})
	paths := []string{
		"/", rootPath(), wallPath() + "/flamegraph", wallPath() + "/top", wallPath() + ".pb.gz", "/names",
		"/name?service=storefront&name=GET+%2F", "/memory", "/memory/plot.svg?service=storefront",
		"/compare?what=times&type=cpu&service=storefront&ato=2026-01-02T15:05:00Z",
		"/profiles?service=storefront&type=wall", "/compare", TracePath(fixture.TraceID("large")),
	}
	for i := range 64 {
		asking.Go(func() {
			for j := range 3 {
				path := paths[(i+j)%len(paths)]
				if i%4 == 0 {
					path = TracePath(fixture.TraceID("large"))
				}
				// Under the race detector on a busy machine a page may be refused for the time that it takes; it is
				// never wrong.
				switch w := get(h, path); w.Code {
				case http.StatusOK:
					whole.Add(1)
				case http.StatusServiceUnavailable:
				default:
					t.Errorf("%s: status %d: %s", path, w.Code, w.Body)
				}
			}
		})
	}
	asking.Wait()
	stop()
	writing.Wait()
	measuring.Wait()
	if whole.Load() == 0 {
		t.Error("every page was refused")
	}
	if grown := int64(alive - before); alive > before && grown > 192<<20 {
		t.Errorf("%s more were alive at the same time, want 192 MiB at most", format.Bytes(grown))
	}
	if kept := int64(liveHeap()) - int64(before); kept > 32<<20 {
		t.Errorf("%s more are kept when all is answered, want 32 MiB at most", format.Bytes(kept))
	}
}

// liveHeap returns the number of reachable bytes.
func liveHeap() uint64 {
	runtime.GC()
	live := []gcmetrics.Sample{{Name: "/gc/heap/live:bytes"}}
	gcmetrics.Read(live)
	return live[0].Value.Uint64()
}

// blocking is a source whose traces come when the gate opens.
type blocking struct {
	source.Source
	gate    chan struct{}
	reading atomic.Int64
}

func (b *blocking) Trace(ctx context.Context, id string) ([]traces.Span, error) {
	b.reading.Add(1)
	defer b.reading.Add(-1)
	select {
	case <-b.gate:
		return nil, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// A limited number of pages is made at a time; a client that waits too long gets a status with Retry-After; and a client
// that has not read its answer delays no other.
func TestPagesAreMadeAFewAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from := &blocking{gate: make(chan struct{})}
		h := pages(t, from, Options{})
		var asking sync.WaitGroup
		var status [64]int
		for i := range status {
			asking.Go(func() { status[i] = get(h, rootPath()).Code })
		}
		synctest.Wait()
		if n := from.reading.Load(); n != pagesAtOnce {
			t.Errorf("%d pages are being made for %d requests, want %d", n, len(status), pagesAtOnce)
		}
		asking.Wait() // the gate stays closed: their time is over
		for _, got := range status {
			if got != http.StatusServiceUnavailable {
				t.Errorf("status %d, want %d", got, http.StatusServiceUnavailable)
			}
		}
		close(from.gate)
		unread := &slowReader{ResponseRecorder: httptest.NewRecorder(), gate: make(chan struct{})}
		for range pagesAtOnce {
			asking.Go(func() { h.ServeHTTP(unread, httptest.NewRequest(http.MethodGet, "http://localhost"+rootPath(), nil)) })
		}
		synctest.Wait()
		if w := get(h, rootPath()); w.Code != http.StatusNotFound {
			t.Errorf("behind slow readers: status %d, want %d", w.Code, http.StatusNotFound)
		}
		close(unread.gate)
		asking.Wait()
	})
}

// slowReader takes an answer when the gate opens.
type slowReader struct {
	*httptest.ResponseRecorder
	gate chan struct{}
}

func (s *slowReader) Header() http.Header { return make(http.Header) }

func (s *slowReader) WriteHeader(int) {}

func (s *slowReader) Write(b []byte) (int, error) {
	<-s.gate
	return len(b), nil
}

// A large profile is shown, but not kept.
func TestLargeProfilesAreNotKept(t *testing.T) {
	small, large := &profile.Profile{Sample: make([]*profile.Sample, keptSamples)}, &profile.Profile{Sample: make([]*profile.Sample, keptSamples+1)}
	if !light(small) || light(large) {
		t.Errorf("kept are profiles of %d samples: %v, of %d: %v", len(small.Sample), light(small), len(large.Sample), light(large))
	}
}

func TestCache(t *testing.T) {
	c := newCache[int](2, time.Hour)
	c.put("a", 1)
	c.put("b", 2)
	c.get("a")
	c.put("c", 3)
	for key, want := range map[string]bool{"a": true, "b": false, "c": true} {
		if _, ok := c.get(key); ok != want {
			t.Errorf("%s is kept: %v, want %v", key, ok, want)
		}
	}
	c = newCache[int](2, -1)
	c.put("a", 1)
	if _, ok := c.get("a"); ok || c.values.Len() != 0 {
		t.Error("a value outlived its time")
	}
}
