//go:build !compose

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"spanflame/internal/query"
	"spanflame/workload/processes"
)

// TestSlowTraceOpensOntoItsFlameGraph tests the main purpose: the slowest trace, found by a search like a user's,
// opens onto the function that made it slow, and not onto functions of concurrent requests.
func TestSlowTraceOpensOntoItsFlameGraph(t *testing.T) {
	begun := time.Now()
	var wg sync.WaitGroup
	var checkout, asleep string
	wg.Go(func() { get(t, w.workload.Storefront.URL+"/load/cpu?ms=3000") })
	wg.Go(func() { checkout = get(t, w.workload.Storefront.URL+"/api/checkout?items=10") })
	wg.Go(func() { asleep = get(t, w.workload.Storefront.URL+"/load/sleep?ms=500") })
	wg.Wait()

	var slowest query.TraceSummary
	eventually(t, "the search for slow traces", func() error {
		found, err := w.tempo.Search(t.Context(), `{ resource.service.name = "storefront" && duration > 2s }`, begun, time.Now(), 20)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(found, func(s query.TraceSummary) bool { return s.RootName == "GET /load/cpu" })
		if i < 0 {
			return fmt.Errorf("no trace of GET /load/cpu among %v", found)
		}
		slowest = found[i]
		return nil
	})
	spans := trace(t, slowest.TraceID, "GET /load/cpu")
	root, _ := find(spans, "GET /load/cpu")
	opens := func(root query.Span, guilty, other string) {
		for _, profileType := range []string{query.CPU, query.Wall} {
			graph := flameGraph(t, root, profileType, guilty)
			if n := ownTimeIn(graph, other); n != 0 {
				t.Errorf("the %s flame graph of %s has %v of %s, which is another request's", profileType, root.Name, time.Duration(n), other)
			}
			// If other processes use the CPU, most of a request's time passes between two CPU samples.
			n, whole := graph.Find(guilty), graph.Total
			if profileType == query.CPU && float64(n) < 0.5*float64(whole) {
				t.Errorf("%s has %v of %v in the CPU flame graph of %s, want most", guilty, time.Duration(n), time.Duration(whole), root.Name)
			}
			if profileType == query.Wall && time.Duration(whole) < root.Duration()*99/100 {
				t.Errorf("the wall-clock flame graph of %s accounts for %v of %v", root.Name, time.Duration(whole), root.Duration())
			}
		}
	}
	opens(root, "workload.burnCPU", "workload.priceBasket")
	root, _ = find(trace(t, checkout, "GET /api/checkout"), "GET /api/checkout")
	opens(root, "workload.priceBasket", "workload.burnCPU")

	// A waiting request uses no CPU: that is why there are wall-clock profiles.
	root, _ = find(trace(t, asleep, "GET /load/sleep"), "GET /load/sleep")
	graph := flameGraph(t, root, query.Wall, "workload.sleepFor")
	if n := graph.Find("[waiting: sleep]"); float64(n) < 0.5*float64(root.Duration()) {
		t.Errorf("%v of the %v of GET /load/sleep are [waiting: sleep], want most", time.Duration(n), root.Duration())
	}
}

func TestTraceCrossesProcesses(t *testing.T) {
	id := get(t, w.workload.Storefront.URL+"/api/checkout")
	spans := trace(t, id, "GET /api/checkout", "pricing", "database_save_transaction", "inventory: POST /api/reserve")
	root, _ := find(spans, "GET /api/checkout")
	reserve, _ := find(spans, "inventory: POST /api/reserve")
	if root.Service != "storefront" || reserve.Service != "inventory" {
		t.Errorf("the checkout is of %q and the reservation of %q, want storefront and inventory", root.Service, reserve.Service)
	}
	byID := map[string]query.Span{}
	for _, s := range spans {
		byID[s.ID] = s
	}
	above := reserve
	for above.ParentID != "" && above.ID != root.ID {
		above = byID[above.ParentID]
	}
	if above.ID != root.ID {
		t.Errorf("the reservation is not below the checkout: %s", names(spans))
	}
	saved, _ := find(spans, "database_save_transaction")
	if !slices.ContainsFunc(spans, func(s query.Span) bool {
		return s.ParentID == saved.ID && s.Attributes["db.system.name"] == "sqlite" && strings.Contains(s.Attributes["db.query.text"], "INSERT")
	}) {
		t.Errorf("no query span with its database attributes below database_save_transaction: %s", names(spans))
	}
	for name, want := range map[string]string{"service.version": version, "deployment.environment.name": "e2e"} {
		if got := root.Resource[name]; got != want {
			t.Errorf("resource attribute %s is %q, want %q", name, got, want)
		}
	}
}

func TestLogLineCarriesTheTrace(t *testing.T) {
	id := get(t, w.workload.Storefront.URL+"/api/checkout")
	root, _ := find(trace(t, id, "GET /api/checkout"), "GET /api/checkout")
	lines := requestLines(t, w.workload.Storefront, id)
	if len(lines) != 1 {
		t.Fatalf("%d log lines of the request, want 1: %v", len(lines), lines)
	}
	l := lines[0]
	for field, want := range map[string]any{
		"span_id": root.ID, "http_method": "GET", "http_path": "/api/checkout", "http_status": 200.0,
		"service_name": "storefront", "service_version": version, "deployment_environment_name": "e2e",
	} {
		if l[field] != want {
			t.Errorf("%s is %v, want %v", field, l[field], want)
		}
	}
	if d, ok := l["duration_seconds"].(float64); !ok || d <= 0 {
		t.Errorf("duration_seconds is %v", l["duration_seconds"])
	}
	if n := len(requestLines(t, w.workload.Inventory, id)); n != 1 {
		t.Errorf("%d log lines of the inventory with the same trace, want 1", n)
	}
}

func requestLines(t *testing.T, s *processes.Service, traceID string) []map[string]any {
	t.Helper()
	var lines []map[string]any
	eventually(t, "the log line of "+s.Name, func() error {
		all, err := s.Log()
		if err != nil {
			return err
		}
		lines = nil
		for _, l := range all {
			if l["msg"] == "HTTP Request Processed" && l["trace_id"] == traceID {
				lines = append(lines, l)
			}
		}
		if lines == nil {
			return fmt.Errorf("none of %d lines has trace_id %s", len(all), traceID)
		}
		return nil
	})
	return lines
}

func TestEveryProfileTypeArrives(t *testing.T) {
	begun := time.Now()
	want := []string{
		"process_cpu:cpu:nanoseconds:cpu:nanoseconds",
		"process_cpu:samples:count:cpu:nanoseconds",
		"memory:alloc_objects:count:space:bytes",
		"memory:alloc_space:bytes:space:bytes",
		"memory:inuse_objects:count:space:bytes",
		"memory:inuse_space:bytes:space:bytes",
		"goroutines:goroutine:count:goroutine:count",
		"mutex:contentions:count:contentions:count",
		"mutex:delay:nanoseconds:contentions:count",
		"block:contentions:count:contentions:count",
		"block:delay:nanoseconds:contentions:count",
		"wall:wall:nanoseconds:wall:nanoseconds",
	}
	for _, path := range []string{"/load/cpu?ms=300", "/load/alloc?mb=64", "/load/block?ms=200"} {
		get(t, w.workload.Storefront.URL+path)
	}
	contend(t)
	for _, profileType := range want {
		eventually(t, profileType, func() error {
			g, err := w.pyroscope.FlameGraph(t.Context(), profileType,
				query.Selector{"service_name": "storefront", "service_version": version, "deployment_environment_name": "e2e"},
				begun.Add(-window), time.Now().Add(time.Second))
			if err == nil && g.Total == 0 {
				err = fmt.Errorf("no data")
				contend(t) // one contention in a hundred is recorded
			}
			return err
		})
	}
	types, err := w.pyroscope.ProfileTypes(t.Context(), begun.Add(-time.Minute), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, profileType := range want {
		if !slices.Contains(types, profileType) {
			t.Errorf("%s is not among the profile types %v", profileType, types)
		}
	}
}

// contend makes many requests wait for the same lock.
func contend(t *testing.T) {
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() { get(t, w.workload.Storefront.URL+"/load/lock?ms=1") })
	}
	wg.Wait()
}

func TestLeakIsWhereItLeaks(t *testing.T) {
	const mb = 100
	get(t, w.workload.Storefront.URL+fmt.Sprintf("/load/leak?mb=%d", mb))
	// A time range that contains the end of one window: over several windows Pyroscope adds up the memory in use.
	leaked := func() (int64, error) {
		end := time.Now().Add(-window * 3 / 4).Truncate(window)
		g, err := w.pyroscope.FlameGraph(t.Context(), query.InuseSpace, query.Selector{"service_name": "storefront", "service_version": version},
			end.Add(-window/4), end.Add(window*3/4-time.Millisecond))
		if err != nil {
			return 0, err
		}
		if g.Total == 0 {
			return 0, fmt.Errorf("no memory profile of the window that ended at %s", end)
		}
		return g.Find("workload.(*leak).grow"), nil
	}
	eventually(t, "the leak in the in-use profile", func() error {
		// The heap profile is as of the last garbage collection: cause some.
		get(t, w.workload.Storefront.URL+"/load/alloc?mb=256")
		n, err := leaked()
		if err == nil && (n < mb<<20*9/10 || n > mb<<20*11/10) {
			err = fmt.Errorf("workload.(*leak).grow holds %d bytes, want %d MiB", n, mb)
		}
		return err
	})
	if status, _, body := request(t, http.MethodDelete, w.workload.Storefront.URL+"/load/leak"); status != http.StatusOK {
		t.Fatalf("DELETE /load/leak: %d %s", status, body)
	}
	eventually(t, "the leak freed", func() error {
		get(t, w.workload.Storefront.URL+"/load/alloc?mb=256")
		n, err := leaked()
		if err == nil && n != 0 {
			err = fmt.Errorf("workload.(*leak).grow still holds %d bytes", n)
		}
		return err
	})
}

// TestSeriesDoNotGrowWithTraces runs its own services, so that other tests do not add series.
func TestSeriesDoNotGrowWithTraces(t *testing.T) {
	t.Parallel()
	begun := time.Now()
	s, err := startWorkload(t.Context(), "series", "PYROSCOPE_LABELS=run=series")
	if err != nil {
		t.Fatal(err)
	}
	// series returns the number of series once it stops growing: the profiles of a trace arrive with the windows
	// that end after it.
	labels := map[string]bool{}
	series := func() int {
		n, since := 0, time.Now()
		for n == 0 || time.Since(since) < 6*window {
			all, err := w.pyroscope.Series(t.Context(), query.Selector{"service_name": "storefront", "run": "series"}, begun, time.Now().Add(time.Second))
			if err != nil {
				t.Fatal(err)
			}
			if len(all) != n {
				n, since = len(all), time.Now()
			}
			for _, set := range all {
				for name := range set {
					labels[name] = true
				}
			}
			time.Sleep(window / 10)
		}
		return n
	}
	traces := map[string]bool{}
	send := func(n int) {
		slots := make(chan struct{}, 4)
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range n {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				id := get(t, s.Storefront.URL+"/api/checkout?items=1")
				mu.Lock()
				traces[id] = true
				mu.Unlock()
			})
		}
		wg.Wait()
	}
	send(200)
	first := series()
	send(200)
	second := series()
	if len(traces) != 400 {
		t.Fatalf("%d traces, want 400", len(traces))
	}
	// A kind of sample that the first half happened not to have may add a series; a label with a value per trace
	// would add 200.
	if first == 0 || second > first+10 {
		t.Errorf("%d series after 200 traces, %d after 400: they grow with the traces; their labels are %v", first, second, labels)
	}
	if labels["trace_id"] || labels["span_id"] {
		t.Errorf("series have the labels %v: one series a trace", labels)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if err := noRace(s); err != nil {
		t.Error(err)
	}
}

// TestUnreachableServers checks that a service whose servers are unreachable starts, serves, logs each outage once,
// and ends in time with its profiles kept.
func TestUnreachableServers(t *testing.T) {
	t.Parallel()
	s, err := startWorkload(t.Context(), "unreachable",
		"PYROSCOPE_SERVER_ADDRESS=http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://127.0.0.1:9/v1/traces",
		"OTEL_EXPORTER_OTLP_TIMEOUT=1000", "PYROSCOPE_UPLOAD_INTERVAL=1s")
	if err != nil {
		t.Fatal(err)
	}
	get(t, s.Storefront.URL+"/api/checkout")
	said := func(part string) int {
		lines, err := s.Storefront.Log()
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, l := range lines {
			if strings.Contains(fmt.Sprint(l["msg"]), part) {
				n++
			}
		}
		return n
	}
	eventually(t, "the log about profiles", func() error {
		if said("profile delivery failing; profiles are spooled") == 0 {
			return fmt.Errorf("not said")
		}
		return nil
	})
	eventually(t, "/status", func() error {
		status, _, body := request(t, http.MethodGet, s.Storefront.Admin+"/status")
		if status != http.StatusOK || !strings.Contains(string(body), "delivery: profile delivery failing since") {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
	if status, _, body := request(t, http.MethodGet, s.Storefront.Admin+"/readyz"); status != http.StatusOK {
		t.Errorf("/readyz in the outage: %d %s, want 200: the service works", status, body)
	}
	if _, _, body := request(t, http.MethodGet, s.Storefront.Admin+"/metrics"); !degradedMetric.Match(body) {
		t.Error("spanflame_degraded is not 1 in the outage")
	}
	time.Sleep(3 * time.Second) // several more attempts
	if n := said("profile delivery failing; profiles are spooled"); n != 1 {
		t.Errorf("logged the outage %d times, want once", n)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Errorf("the services did not end normally: %v", err)
	}
	printed, err := os.ReadFile(s.Storefront.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(printed), "are not delivered; they stay in ") {
		t.Errorf("the service did not log what is left and where: %s", printed)
	}
	if n := said("traces export failing"); n != 1 {
		t.Errorf("the failing export of traces was logged %d times, want once", n)
	}
}

func TestLoadEndpoints(t *testing.T) {
	for _, path := range []string{
		"/load/cpu?ms=", "/load/leak?mb=", "/load/alloc?mb=", "/load/lock?ms=", "/load/block?ms=", "/load/sleep?ms=", "/load/goroutines?n=",
	} {
		for _, value := range []string{"-1", "0", "99999999999999999999", "1e3", "x", "%00", "1&ms=2&mb=2&n=2"} {
			status, header, body := request(t, http.MethodGet, w.workload.Storefront.URL+path+value)
			if status != http.StatusBadRequest || !strings.Contains(string(body), "from 1 to") && !strings.Contains(string(body), "parameter") {
				t.Errorf("%s%s: %d %s, want 400 and what is allowed", path, value, status, body)
			}
			if header.Get("X-Trace-ID") == "" {
				t.Errorf("%s%s: no X-Trace-ID", path, value)
			}
		}
		get(t, w.workload.Storefront.URL+path+"1")
		missing, _, _ := strings.Cut(path, "?")
		get(t, w.workload.Storefront.URL+missing)
	}
	for _, path := range []string{"/load/leak", "/load/goroutines"} {
		if status, _, body := request(t, http.MethodDelete, w.workload.Storefront.URL+path); status != http.StatusOK {
			t.Errorf("DELETE %s: %d %s", path, status, body)
		}
	}
	if status, _, _ := request(t, http.MethodGet, w.workload.Storefront.URL+"/healthz"); status != http.StatusOK {
		t.Errorf("after all that /healthz is %d", status)
	}
}

// degradedMetric matches the metric that delivery fails.
var degradedMetric = regexp.MustCompile(`(?m)^spanflame_degraded\{[^}]*reason="delivery"[^}]*\} 1$`)

func TestOperatorsListener(t *testing.T) {
	for path, want := range map[string]string{
		"/healthz":                       "ok",
		"/readyz":                        "ready",
		"/status":                        "ok",
		"/metrics":                       "api_orders_processed_total",
		"/debug/pprof/goroutine?debug=1": "goroutine profile:",
	} {
		get(t, w.workload.Storefront.URL+"/api/checkout")
		eventually(t, path, func() error { // one slow answer of a server makes it unready for a moment
			if status, _, body := request(t, http.MethodGet, w.workload.Storefront.Admin+path); status != http.StatusOK || !strings.Contains(string(body), want) {
				return fmt.Errorf("%d %.300s, want %q", status, body, want)
			}
			return nil
		})
	}
	id := get(t, w.workload.Storefront.URL+"/api/checkout")
	eventually(t, "the exemplar of the last request", func() error {
		metrics := openMetrics(t, w.workload.Storefront.Admin)
		for _, want := range []string{`trace_id="` + id + `"`, `service_version="` + version + `"`} {
			if !strings.Contains(metrics, want) {
				return fmt.Errorf("no %s among the metrics", want)
			}
		}
		return nil
	})
}

// openMetrics returns /metrics in the format with exemplars.
func openMetrics(t *testing.T, admin string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, admin+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
