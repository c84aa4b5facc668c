package workload

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// loadEndpoints is the table of the package comment.
var loadEndpoints = []struct {
	path, param string
	min, max    int
	delete      bool
}{
	{"/load/cpu", "ms", 1, 10_000, false},
	{"/load/leak", "mb", 1, 1024, true},
	{"/load/alloc", "mb", 1, 4096, false},
	{"/load/lock", "ms", 1, 10_000, false},
	{"/load/block", "ms", 1, 30_000, false},
	{"/load/sleep", "ms", 1, 30_000, false},
	{"/load/goroutines", "n", 1, 100_000, true},
	{"/load/goroutines", "ms", 1, 600_000, true},
}

func TestLoadEndpointParameters(t *testing.T) {
	s := newServices(t, Config{})
	for _, e := range loadEndpoints {
		for name, query := range map[string]string{
			"empty":           e.param + "=",
			"negative":        e.param + "=-5",
			"zero":            e.param + "=0",
			"one above range": fmt.Sprintf("%s=%d", e.param, e.max+1),
			"overflow":        e.param + "=99999999999999999999999999",
			"minus overflow":  e.param + "=-99999999999999999999999999",
			"not numeric":     e.param + "=abc",
			"float":           e.param + "=1.5",
			"exponent":        e.param + "=1e3",
			"hexadecimal":     e.param + "=0x10",
			"space":           e.param + "=+1+",
			"other digits":    e.param + "=%D9%A3",
			"no equals sign":  e.param,
			"twice":           e.param + "=1&" + e.param + "=2",
			"twice the same":  e.param + "=1&" + e.param + "=1",
			"misspelt":        e.param + "s=1",
			"upper case":      strings.ToUpper(e.param) + "=1",
			"nul":             e.param + "=1%00",
		} {
			got := s.get(t, e.path+"?"+query)
			if got.status != 400 {
				t.Errorf("%s: GET %s?%s: %d %s, want 400", name, e.path, query, got.status, got.body)
				continue
			}
			message, _ := got.fields["error"].(string)
			for field, want := range map[string]string{"parameter": e.param, "allowed": fmt.Sprintf("from %d to %d", e.min, e.max)} {
				said, _ := got.fields[field].(string)
				if !strings.Contains(strings.ToLower(said), want) || !strings.Contains(message, said) {
					t.Errorf("%s: GET %s?%s: %s: want %s %q in it", name, e.path, query, got.body, field, want)
				}
			}
		}
		for _, query := range []string{"%zz", e.param + "=1;x=2", "%"} {
			if got := s.get(t, e.path+"?"+query); got.status != 400 {
				t.Errorf("malformed: GET %s?%s: %d %s, want 400", e.path, query, got.status, got.body)
			}
		}
		allow := "GET, HEAD"
		methods := []string{"POST", "PUT", "PATCH", "DELETE"}
		if e.delete {
			allow = "DELETE, GET, HEAD"
			methods = methods[:3]
		}
		for _, method := range methods {
			got := s.do(t, method, s.storefrontURL+e.path, nil)
			if got.status != 405 || got.header.Get("Allow") != allow {
				t.Errorf("%s %s: %d, Allow %q, want 405, %q", method, e.path, got.status, got.header.Get("Allow"), allow)
			}
		}
	}
	if got := s.do(t, "DELETE", s.storefrontURL+"/load/leak?mb=1", nil); got.status != 400 {
		t.Errorf("DELETE with a parameter: %d %s, want 400", got.status, got.body)
	}
	if n := s.storefront.leak.release(); n != 0 {
		t.Errorf("%d MiB leaked by refused requests", n)
	}
	if n := s.storefront.parking.drain(); n != 0 {
		t.Errorf("%d goroutines parked by refused requests", n)
	}
	if got := s.get(t, "/healthz"); got.status != 200 {
		t.Errorf("the service is not alive: %d", got.status)
	}
}

func TestLoadEndpointsWorkInASpanOfTheirOwn(t *testing.T) {
	s := newServices(t, Config{})
	for _, path := range []string{
		"/load/cpu", "/load/cpu?ms=1", "/load/leak", "/load/leak?mb=1", "/load/alloc", "/load/alloc?mb=1", "/load/lock", "/load/lock?ms=1",
		"/load/block", "/load/block?ms=1", "/load/sleep", "/load/sleep?ms=1", "/load/goroutines", "/load/goroutines?n=1&ms=1",
	} {
		s.spans.Reset()
		got := s.get(t, path)
		if got.status != 200 {
			t.Errorf("GET %s: %d %s", path, got.status, got.body)
			continue
		}
		route, _, _ := strings.Cut(path, "?")
		server := s.span(t, "GET "+route, trace.SpanKindServer)
		own := s.span(t, "load_"+strings.TrimPrefix(route, "/load/"), trace.SpanKindInternal)
		if own.Parent.SpanID() != server.SpanContext.SpanID() {
			t.Errorf("GET %s: its span is not a child of the server span", path)
		}
	}
}

func TestLoadEndpointsOfTheInventory(t *testing.T) {
	s := newServices(t, Config{})
	if got := s.do(t, "GET", s.inventoryURL+"/load/cpu?ms=1", nil); got.status != 200 {
		t.Errorf("GET /load/cpu: %d %s", got.status, got.body)
	}
	if got := s.do(t, "POST", s.inventoryURL+"/api/checkout", nil); got.status != 404 {
		t.Errorf("the inventory answers checkouts: %d", got.status)
	}
}

func TestLeakRetainsUntilItIsDeleted(t *testing.T) {
	s := newServices(t, Config{LeakLimitMB: 40})
	before := heapInUse()
	for _, want := range []float64{15, 30} {
		if got := s.get(t, "/load/leak?mb=15"); got.status != 200 || got.fields["retained"] != want {
			t.Fatalf("leak: %d %s, want %v MiB retained", got.status, got.body, want)
		}
	}
	if grown := heapInUse() - before; grown < 30<<20 {
		t.Errorf("the heap grew by %d bytes, want at least 30 MiB", grown)
	}
	if got := s.get(t, "/load/leak?mb=11"); got.status != 507 || !strings.Contains(got.body, "limit of 40") {
		t.Errorf("above the limit: %d %s, want 507 that names the limit", got.status, got.body)
	}
	if got := s.do(t, "DELETE", s.storefrontURL+"/load/leak", nil); got.status != 200 || got.fields["released"] != 30.0 {
		t.Errorf("delete: %d %s, want 30 released", got.status, got.body)
	}
	if left := heapInUse() - before; left > 10<<20 {
		t.Errorf("%d bytes still held after DELETE", left)
	}
	if got := s.get(t, "/load/leak?mb=40"); got.status != 200 {
		t.Errorf("after DELETE the limit is free again: %d %s", got.status, got.body)
	}
}

func heapInUse() int64 {
	runtime.GC()
	runtime.GC() // the second collection frees what pools hold
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestParkedGoroutinesCanBeDrained(t *testing.T) {
	s := newServices(t, Config{})
	if got := s.get(t, "/load/goroutines?n=500"); got.status != 200 || got.fields["retained"] != 500.0 {
		t.Fatalf("park: %d %s", got.status, got.body)
	}
	if n := runtime.NumGoroutine(); n < 500 {
		t.Errorf("%d goroutines, want at least the 500 that are parked", n)
	}
	if got := s.get(t, "/load/goroutines?n=99501"); got.status != 507 {
		t.Errorf("above the limit: %d %s, want 507", got.status, got.body)
	}
	if got := s.do(t, "DELETE", s.storefrontURL+"/load/goroutines", nil); got.status != 200 || got.fields["released"] != 500.0 {
		t.Errorf("delete: %d %s, want 500 released", got.status, got.body)
	}
}

func TestParkedGoroutinesLeaveOnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParking(10)
		for _, d := range []time.Duration{time.Second, time.Minute} {
			if _, err := p.park(5, d); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n, err := p.park(6, time.Minute); err == nil || n != 5 {
			t.Errorf("after a second %d are parked (%v), want 5 and a refusal", n, err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := p.drain(); n != 0 {
			t.Errorf("%d still parked after their time", n)
		}
	})
}

// Each timed load lasts for its time, and ends at once when its request does.
func TestLoadsTakeTheirTimeAndHonourCancellation(t *testing.T) {
	loads := map[string]func(context.Context, time.Duration) error{
		"sleep": sleepFor,
		"block": waitForChannel,
	}
	for name, load := range loads {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			if err := load(t.Context(), 30*time.Second); err != nil || time.Since(start) != 30*time.Second {
				t.Errorf("%s: %v after %v, want 30 s", name, err, time.Since(start))
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start = time.Now()
			if err := load(ctx, 30*time.Second); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 1100*time.Millisecond {
				t.Errorf("%s cancelled after 1 s: %v after %v", name, err, time.Since(start))
			}
		})
	}
}

func TestWorkHonoursCancellation(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	work := map[string]func() error{
		"cpu":     func() error { _, err := burnCPU(ctx, time.Hour); return err },
		"alloc":   func() error { return churnMemory(ctx, 1<<30) },
		"leak":    func() error { _, err := newLeak(1<<30).grow(ctx, 1<<30); return err },
		"lock":    func() error { return new(contendedLock).contend(ctx, time.Hour) },
		"pricing": func() error { _, err := priceBasket(ctx, fillBasket(1<<20), new(Service).handlingFee); return err },
	}
	for name, do := range work {
		if err := do(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", name, err)
		}
	}
}

func TestCPUBurnsForItsTime(t *testing.T) {
	start := time.Now()
	if _, err := burnCPU(t.Context(), 20*time.Millisecond); err != nil || time.Since(start) < 20*time.Millisecond {
		t.Errorf("%v after %v, want at least 20 ms", err, time.Since(start))
	}
}

// Even a single request waits for the mutex, and concurrent requests queue: they never hold it at the same time.
func TestLockIsContended(t *testing.T) {
	const hold = 20 * time.Millisecond
	defer runtime.SetMutexProfileFraction(runtime.SetMutexProfileFraction(1))
	var lock contendedLock
	start := time.Now()
	var requests sync.WaitGroup
	for range 3 {
		requests.Go(func() {
			if err := lock.contend(t.Context(), hold); err != nil {
				t.Error(err)
			}
		})
	}
	requests.Wait()
	if took := time.Since(start); took < 3*hold {
		t.Errorf("three requests took %v, want at least %v", took, 3*hold)
	}
	records := make([]runtime.BlockProfileRecord, 1000)
	n, _ := runtime.MutexProfile(records)
	var seen []string
	for _, r := range records[:n] {
		frames := runtime.CallersFrames(r.Stack())
		for more := true; more; {
			var f runtime.Frame
			f, more = frames.Next()
			seen = append(seen, f.Function)
		}
	}
	if want := "spanflame/workload.(*contendedLock).holdAndRelease"; !slices.Contains(seen, want) {
		t.Errorf("the mutex profile does not show %s", want)
	}
}

// When a client disconnects, the work of its request ends.
func TestRequestCancellationReachesTheLoad(t *testing.T) {
	s := newServices(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	req := httptest.NewRequestWithContext(ctx, http.MethodGet, "/load/sleep?ms=30000", nil)
	time.AfterFunc(10*time.Millisecond, cancel)
	rec := httptest.NewRecorder()
	s.storefront.ServeHTTP(rec, req)
	if rec.Code != statusCancelled {
		t.Errorf("status %d, want %d", rec.Code, statusCancelled)
	}
}

func FuzzQueryInts(f *testing.F) {
	for _, seed := range []string{"", "ms=1", "ms=", "ms=1&ms=2", "%zz", "ms=99999999999999999999", "x=1", "ms=-1;", "ms=%00"} {
		f.Add(seed)
	}
	p := param{name: "ms", fallback: 7, min: 1, max: 10}
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.URL.RawQuery = query
		values, err := queryInts(r, p)
		if err == nil {
			if len(values) != 1 || values[0] < p.min || values[0] > p.max {
				t.Errorf("%q: accepted %v", query, values)
			}
			return
		}
		var refused *apiError
		if !errors.As(err, &refused) || refused.status != http.StatusBadRequest || len(refused.Message) > 1000 {
			t.Errorf("%q: %v, want a short 400", query, err)
		}
	})
}
