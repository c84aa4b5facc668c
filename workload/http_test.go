package workload

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/trace"
)

// Every answer, good or bad, carries the id of its trace and leaves exactly one log line with the same id.
func TestEveryRequestIsTracedAndLoggedOnce(t *testing.T) {
	s := newServices(t, Config{})
	for _, tc := range []struct {
		method, path string
		status       int
		route        string
		span         string
	}{
		{"GET", "/faults", 200, "/faults", "GET /faults"},
		{"GET", "/load/sleep?ms=1", 200, "/load/sleep", "GET /load/sleep"},
		{"GET", "/load/sleep?ms=-1", 400, "/load/sleep", "GET /load/sleep"},
		{"GET", "/nowhere", 404, "", "GET"},
		{"GET", "/", 404, "", "GET"},
		{"PUT", "/load/cpu", 405, "", "PUT"},
		{"GET", "/a//b", 307, "", "GET"},
		{"HACK", "/healthz", 405, "", "HTTP"},
	} {
		t.Run(tc.method+" "+tc.path, func(t *testing.T) {
			s.spans.Reset()
			got := s.do(t, tc.method, s.storefrontURL+tc.path, nil)
			if got.status != tc.status {
				t.Errorf("status %d, want %d: %s", got.status, tc.status, got.body)
			}
			span := s.span(t, tc.span, trace.SpanKindServer)
			id := span.SpanContext.TraceID().String()
			if got.header.Get("X-Trace-ID") != id {
				t.Errorf("X-Trace-ID %q, want %q", got.header.Get("X-Trace-ID"), id)
			}
			lines := s.log.requests(t, "trace_id", id)
			if len(lines) != 1 {
				t.Fatalf("%d log lines, want 1", len(lines))
			}
			path, _, _ := strings.Cut(tc.path, "?")
			want := map[string]any{"http_method": tc.method, "http_path": path, "http_route": tc.route,
				"http_status": float64(tc.status), "span_id": span.SpanContext.SpanID().String()}
			for field, value := range want {
				if lines[0][field] != value {
					t.Errorf("logged %s=%v, want %v", field, lines[0][field], value)
				}
			}
			if seconds, ok := lines[0]["duration_seconds"].(float64); !ok || seconds <= 0 {
				t.Errorf("logged duration_seconds=%v, want a number above 0", lines[0]["duration_seconds"])
			}
			if tc.status == 405 && got.header.Get("Allow") == "" {
				t.Error("405 without Allow")
			}
			if tc.status >= 400 && got.fields["error"] == nil {
				t.Errorf("no error in %s", got.body)
			}
		})
	}
}

// Health checks come every few seconds. They do not count in the service's metrics, but a failed one is logged.
func TestHealthRequestsAreNotCounted(t *testing.T) {
	s := newServices(t, Config{})
	s.spans.Reset()
	for _, path := range []string{"/healthz", "/readyz"} {
		if got := s.get(t, path); got.status != 200 || got.header.Get("X-Trace-ID") != "" {
			t.Errorf("%s: %d with X-Trace-ID %q, want 200 and none", path, got.status, got.header.Get("X-Trace-ID"))
		}
	}
	if spans := s.spans.GetSpans(); len(spans) != 0 {
		t.Errorf("spans: %s", s.spanNames())
	}
	if lines := s.log.requests(t, "http_status", 200.0); len(lines) != 0 {
		t.Errorf("logged %v", lines)
	}
	s.get(t, "/load/sleep?ms=1")
	for _, p := range s.metric(t, "http.server.request.duration").(metricdata.Histogram[float64]).DataPoints {
		if route := value(p.Attributes.ToSlice(), "http.route"); route != "/load/sleep" || p.Count != 1 {
			t.Errorf("%d requests of %s are counted, want one of /load/sleep", p.Count, route)
		}
	}
	if err := s.storefront.orders.db.Close(); err != nil {
		t.Fatal(err)
	}
	s.get(t, "/readyz")
	if lines := s.log.requests(t, "http_path", "/readyz"); len(lines) != 1 || lines[0]["error"] == nil {
		t.Errorf("a failed probe is logged as %v, want one line with the error", lines)
	}
}

func TestPanicIsA500AndTheServiceLives(t *testing.T) {
	s := newServices(t, Config{})
	s.storefront.handle("GET /panic", func(*http.Request) (any, error) { panic("out of coffee") })
	s.storefront.handle("GET /panic-late", func(r *http.Request) (any, error) { return func() {}, nil })
	got := s.get(t, "/panic")
	if got.status != 500 || strings.Contains(got.body, "coffee") {
		t.Errorf("got %d %s, want 500 without the panic's text", got.status, got.body)
	}
	span := s.span(t, "GET /panic", trace.SpanKindServer)
	if span.Status.Code != codes.Error || len(span.Events) != 1 {
		t.Errorf("span status %v with %d events, want an error with the exception", span.Status, len(span.Events))
	}
	lines := s.log.requests(t, "http_path", "/panic")
	if len(lines) != 1 || lines[0]["error"] != "panic: out of coffee" || lines[0]["level"] != "ERROR" ||
		!strings.Contains(lines[0]["stack"].(string), "TestPanicIsA500") {
		t.Errorf("logged %v, want one ERROR line with the panic and its stack", lines)
	}
	if got := s.get(t, "/panic-late"); got.status != 500 {
		t.Errorf("an answer that cannot be encoded: %d %s, want 500", got.status, got.body)
	}
	if got := s.get(t, "/healthz"); got.status != 200 {
		t.Errorf("after the panic: %d, want 200", got.status)
	}
}

func TestHostileRequestsStaySmall(t *testing.T) {
	s := newServices(t, Config{})
	got := s.get(t, "/"+strings.Repeat("é", 20_000)+"%ff%00<script>")
	if got.status != 404 || len(got.body) > 1000 {
		t.Errorf("got %d with %d bytes, want a short 404", got.status, len(got.body))
	}
	for _, line := range s.log.requests(t, "http_status", 404.0) {
		if path := line["http_path"].(string); len(path) > maxLoggedPath+len("…") {
			t.Errorf("logged a path of %d bytes", len(path))
		}
	}
	got = s.get(t, "/load/cpu?ms="+strings.Repeat("9", 30_000))
	if got.status != 400 || len(got.body) > 1000 {
		t.Errorf("got %d with %d bytes, want a short 400", got.status, len(got.body))
	}
}

func TestReadinessFollowsTheDatabase(t *testing.T) {
	s := newServices(t, Config{})
	if got := s.get(t, "/readyz"); got.status != 200 {
		t.Fatalf("readyz: %d %s", got.status, got.body)
	}
	if err := s.storefront.orders.db.Close(); err != nil {
		t.Fatal(err)
	}
	if got := s.get(t, "/readyz"); got.status != 503 {
		t.Errorf("readyz without database: %d %s, want 503", got.status, got.body)
	}
	if got := s.get(t, "/healthz"); got.status != 200 {
		t.Errorf("healthz without database: %d, want 200", got.status)
	}
}

func TestValidate(t *testing.T) {
	for want, cfg := range map[string]Config{
		`role ""`:               {},
		`leak limit -1 MiB`:     {Role: Inventory, LeakLimitMB: -1},
		`drain timeout -1s`:     {Role: Inventory, DrainTimeout: -time.Second},
		`listen address "8080"`: {Role: Inventory, Listen: "8080"},
		`inventory URL "ftp:`:   {Role: Storefront, InventoryURL: "ftp://x"},
		`inventory URL "http:/`: {Role: Storefront, InventoryURL: "http://"},
		`inventory URL "%zz"`:   {Role: Storefront, InventoryURL: "%zz"},
		`must begin with postg`: {Role: Storefront, DatabaseURL: "mysql://u:secret@h/d"},
		`DATABASE_URL: `:        {Role: Storefront, DatabaseURL: "postgres://u:secret@h:port/d"},
		`directory of the orde`: {Role: Storefront, Database: "/dev/null/orders.db"},
		`open the order databa`: {Role: Storefront, Database: "/"},
	} {
		_, err := New(t.Context(), cfg)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New(%+v): %v, want an error with %q", cfg, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

// serveOn runs Serve on a listener of its own and returns its address and a way to stop and wait.
func serveOn(t *testing.T, s *Service) (url string, stop func() error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	return "http://" + ln.Addr().String(), func() error { cancel(); return <-served }
}

func TestServeFinishesRequestsInFlight(t *testing.T) {
	s := newServices(t, Config{DrainTimeout: time.Minute})
	running, finish := make(chan struct{}), make(chan struct{})
	s.storefront.handle("GET /slow", func(*http.Request) (any, error) {
		close(running)
		<-finish
		return health{Status: "finished"}, nil
	})
	url, stop := serveOn(t, s.storefront)
	answered := make(chan answer)
	go func() { answered <- s.do(t, "GET", url+"/slow", nil) }()
	<-running
	stopped := make(chan error)
	go func() { stopped <- stop() }()
	// The listener closes first, so a refused connection means that the stop has begun.
	for {
		conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			break
		}
		conn.Close()
	}
	close(finish)
	if got := <-answered; got.status != 200 || got.fields["status"] != "finished" {
		t.Errorf("the request in flight got %d %s", got.status, got.body)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestServeCancelsRequestsAfterTheDrainTimeout(t *testing.T) {
	s := newServices(t, Config{DrainTimeout: time.Millisecond})
	running := make(chan struct{})
	s.storefront.handle("GET /stuck", func(r *http.Request) (any, error) {
		close(running)
		<-r.Context().Done()
		return nil, r.Context().Err()
	})
	url, stop := serveOn(t, s.storefront)
	answered := make(chan answer)
	go func() { answered <- s.do(t, "GET", url+"/stuck", nil) }()
	<-running
	if err := stop(); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if got := <-answered; got.status != statusCancelled {
		t.Errorf("the cancelled request got %d %s, want %d", got.status, got.body, statusCancelled)
	}
}

func TestRunReportsABusyAddress(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	err = Run(t.Context(), Config{Role: Storefront, Listen: ln.Addr().String(), Logger: (&logBook{}).logger(),
		MeterProvider: sdkmetric.NewMeterProvider(), Database: filepath.Join(t.TempDir(), "orders.db")})
	if err == nil || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Errorf("Run: %v, want an error that names %s", err, ln.Addr())
	}
}

func TestRunStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, Config{Role: Inventory, Listen: "127.0.0.1:0", Logger: (&logBook{}).logger()}); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
}
