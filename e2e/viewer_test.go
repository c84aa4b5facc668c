//go:build !compose

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/query"
	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
	"spanflame/viewer"
	"spanflame/viewer/source"
	"spanflame/workload/faults"
	"spanflame/workload/processes"
)

// viewed is a workload that saves what it sends: its pages can be had from the directory and from the servers.
type viewed struct {
	dir               string
	instance          string
	workload          *processes.Workload
	directory         string // URL of the pages over the directory
	servers           string // URL of the pages over Tempo and Pyroscope
	local, remote     source.Source
	from              time.Time
	lock, sleep, cart query.Span
	prices            query.Span // waits for the lock that the report holds
	report            query.Span // waits for the inventory
}

// view drives a workload that does both, and serves the pages over both.
func view(t *testing.T) *viewed {
	t.Helper()
	var v *viewed
	delivered(t, func(run int) *processes.Workload {
		v = drive(t, run)
		return v.workload
	})
	v.open(t)
	return v
}

// drive starts a workload that does both, drives it, and stops it: requests that wait for a lock for 900 ms, sleep for
// 500 ms, compute, and wait for the other service, during ordinary load.
func drive(t *testing.T, run int) *viewed {
	t.Helper()
	name := fmt.Sprintf("%s-%d", strings.ReplaceAll(t.Name(), "/", "-"), run)
	v := &viewed{dir: t.TempDir(), instance: name, from: time.Now()}
	var err error
	if v.workload, err = startWorkload(t.Context(), name, "SPANFLAME_DIR="+v.dir, "SPANFLAME_SLOW_SPAN="+slowSpan.String(),
		"OTEL_RESOURCE_ATTRIBUTES=service.version="+version+",service.instance.id="+name); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceValue(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		return v.workload.Stop(ctx)
	})
	t.Cleanup(func() {
		if err := errors.Join(stop(), noRace(v.workload)); err != nil {
			t.Error(err)
		}
	})
	var load sync.WaitGroup
	var lock, sleep, cart string
	at := v.workload.Storefront.URL
	for range 3 {
		load.Go(func() {
			for range 5 {
				get(t, at+"/api/checkout?items=2")
			}
		})
	}
	load.Go(func() {
		get(t, at+"/load/leak?mb=20")
		lock = get(t, at+"/load/lock?ms=900")
		get(t, at+"/load/leak?mb=40")
		sleep = get(t, at+"/load/sleep?ms=500")
	})
	load.Wait()
	cart = get(t, at+"/api/checkout?items=20")
	fault, err := faults.Find(t.Context(), "report-lock", at)
	if err == nil {
		err = fault.On(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	prices, report := waitForTheReport(t, at)
	v.lock, _ = find(trace(t, lock, "GET /load/lock"), "GET /load/lock")
	v.sleep, _ = find(trace(t, sleep, "GET /load/sleep"), "GET /load/sleep")
	v.cart, _ = find(trace(t, cart, "GET /api/checkout"), "GET /api/checkout")
	flameGraph(t, v.lock, query.Wall, "contendedLock")
	flameGraph(t, v.sleep, query.Wall, "sleepFor")
	flameGraph(t, v.cart, query.Wall, "priceBasket")
	flameGraph(t, v.cart, query.CPU, "priceBasket")
	v.prices, _ = find(trace(t, prices, "GET /api/prices"), "GET /api/prices")
	flameGraph(t, v.prices, query.Wall, "reportHoldingLock")
	v.report, _ = find(trace(t, report, "POST /api/report"), "POST /api/report")
	flameGraph(t, v.report, query.Wall, "reportHoldingLock")
	var warehouse query.Span
	eventually(t, "the inventory's part of the trace "+report, func() error {
		spans := trace(t, report)
		i := slices.IndexFunc(spans, func(s query.Span) bool { return s.Service == "inventory" })
		if i < 0 {
			return fmt.Errorf("it has %s", names(spans))
		}
		warehouse = spans[i]
		return nil
	})
	flameGraph(t, warehouse, query.Wall, "askWarehouse")
	if err := stop(); err != nil { // the last windows are saved, and nothing changes any more
		t.Fatal(err)
	}
	return v
}

// waitForTheReport returns the traces of a report and of the request that waited longest for the lock which it holds.
func waitForTheReport(t *testing.T, storefront string) (prices, report string) {
	t.Helper()
	reported := make(chan string)
	go func() {
		defer close(reported)
		resp, err := http.Post(storefront+"/api/report", "", http.NoBody)
		if err != nil {
			t.Error(err)
			return
		}
		_ = resp.Body.Close()
		reported <- resp.Header.Get("X-Trace-ID")
	}()
	for longest := time.Duration(0); ; {
		start := time.Now()
		one := get(t, storefront+"/api/prices")
		if took := time.Since(start); took > longest {
			prices, longest = one, took
		}
		select {
		case report = <-reported:
			return prices, report
		default:
		}
	}
}

// open serves the pages over the directory and over the servers.
func (v *viewed) open(t *testing.T) {
	t.Helper()
	dir, err := source.OpenDirectory(v.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dir.Close(); err != nil {
			t.Error(err)
		}
	})
	v.local, v.directory = dir, servePages(t, dir)
	servers, err := source.NewServers(w.stack.Tempo().URL, w.stack.Pyroscope().URL)
	if err != nil {
		t.Fatal(err)
	}
	v.remote, v.servers = servers, servePages(t, servers)
}

// slowSpan is from which duration the agents of these tests capture a request.
const slowSpan = 50 * time.Millisecond

// servePages serves the pages over a source. Whatever they log fails the test.
func servePages(t *testing.T, source source.Source) string {
	t.Helper()
	handler, err := viewer.New(source, viewer.Options{SlowSpan: slowSpan, Log: slog.New(slog.NewTextHandler(testLog{t}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.URL
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Errorf("the viewer logged: %s", b)
	return len(b), nil
}

// content is a page that there is.
func content(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d, %v: %s", url, resp.StatusCode, err, b)
	}
	return string(b)
}

// stacks is a profile as the viewer hands it out: values by the names of the functions, without the shapes, which
// Pyroscope leaves out.
func stacks(t *testing.T, address string) map[string]int64 {
	t.Helper()
	p, err := profile.Parse(strings.NewReader(content(t, address)))
	if err != nil {
		t.Fatal(err)
	}
	value := slices.IndexFunc(p.SampleType, func(v *profile.ValueType) bool { return v.Unit == "nanoseconds" })
	of := make(map[string]int64)
	for _, sample := range p.Sample {
		var names []string
		for _, l := range slices.Backward(sample.Location) {
			for _, line := range slices.Backward(l.Line) {
				names = append(names, wallprofile.ReplaceShapes(line.Function.Name, ""))
			}
		}
		of[strings.Join(names, ";")] += sample.Value[value]
	}
	return of
}

func TestViewerShowsTheSameFromServersAsFromTheDirectory(t *testing.T) {
	v := view(t)
	for _, tt := range []struct {
		span query.Span
		typ  string
	}{{v.lock, "wall"}, {v.sleep, "wall"}, {v.cart, "wall"}, {v.cart, "cpu"}, {v.prices, "wall"}} {
		if err := sameFlame(t, v.directory, v.servers, tt.span, tt.typ); err != nil {
			t.Errorf("%s of %s: %v", tt.typ, tt.span.Name, err)
		}
	}
	wholeTraceIsTheSame(t, v)
	since := "&" + url.Values{"from": {v.from.UTC().Format(time.RFC3339)}}.Encode()
	for _, pages := range []string{v.directory, v.servers} {
		for path, want := range map[string][]string{
			// Other tests, too, have requests wait for the lock: more than a page lists.
			"/?service=storefront&name=load/lock&min=800ms&show=traces" + since: {
				viewer.TracePath(v.lock.TraceID), "waiting for a mutex in workload.(*contendedLock).wait",
			},
			"/?service=storefront&name=load/lock&min=800ms" + since: {
				"GET /load/lock", "waiting for a mutex in workload.(*contendedLock).wait",
			},
			"/names?" + url.Values{"from": {v.from.UTC().Format(time.RFC3339)}}.Encode():                     {"GET /load/lock"},
			"/name?last=1h&" + url.Values{"service": {"storefront"}, "name": {"GET /api/checkout"}}.Encode(): {"workload.priceBasket", "against the median"},
			"/memory?last=1h&service=storefront":                                                             {"/memory/plot.svg", "workload.(*leak).grow"},
		} {
			// Tempo may have the spans of one trace in two places for a moment, and then finds those of one of them.
			eventually(t, pages+path, func() error {
				html := content(t, pages+path)
				for _, part := range want {
					if !strings.Contains(html, part) {
						return fmt.Errorf("%q is not on the page:\n%s", part, html)
					}
				}
				return nil
			})
		}
	}
	memoryIsOfOneWindow(t, v)
	comparisonIsOfOneRequest(t, v)
	profilesAreThere(t, v)
}

// sameFlame returns an error unless the pages at two addresses have the same profile of a span, and draw it in the same way.
func sameFlame(t *testing.T, here, there string, span query.Span, typ string) error {
	t.Helper()
	return same(t, here, there, fmt.Sprintf("%s/span/%s/%s.pb.gz", viewer.TracePath(span.TraceID), span.ID, typ),
		strings.Replace(viewer.SpanPath(span.TraceID, span.ID), "#", "&type="+typ+"#", 1))
}

// wholeTraceIsTheSame fails unless the profile of a whole trace, of two services, is that of the directory also from the servers.
func wholeTraceIsTheSame(t *testing.T, v *viewed) {
	t.Helper()
	path := viewer.TracePath(v.report.TraceID)
	if err := same(t, v.directory, v.servers, path+"/whole.pb.gz", path+"?whole=1"); err != nil {
		t.Errorf("the whole trace: %v", err)
	}
	var sum, inventory int64
	for stack, took := range stacks(t, v.servers+path+"/whole.pb.gz") {
		sum += took
		if before, after, ok := strings.Cut(stack, " of inventory;"); ok &&
			strings.Contains(before, "reportHoldingLock") && strings.Contains(after, "askWarehouse") {
			inventory += took
		}
	}
	if sum != int64(v.report.Duration()) || 2*inventory < sum {
		t.Errorf("the whole trace took %v, its profile has %v, of them %v in the inventory:\n%v",
			v.report.Duration(), time.Duration(sum), time.Duration(inventory), stacks(t, v.servers+path+"/whole.pb.gz"))
	}
	for _, pages := range []string{v.directory, v.servers} {
		html := content(t, pages+path)
		if !strings.Contains(html, "What decided how long it took") || !strings.Contains(html, "in workload.askWarehouse") {
			t.Errorf("%s does not say what decided how long the trace took", pages+path)
		}
	}
}

// lines are the places of frames, which a directory has and Pyroscope has not.
var lines = regexp.MustCompile(`, at [^"<]+:\d+| <bdi class="dim">[^<]+:\d+</bdi>`)

// same returns an error unless the pages at two addresses have the same file of a profile, and draw the same flame graph.
func same(t *testing.T, here, there, file, page string) error {
	t.Helper()
	local, remote := stacks(t, here+file), stacks(t, there+file)
	if len(local) == 0 || !maps.Equal(local, remote) {
		return fmt.Errorf(
			"%d stacks at %s, %d at %s; only at the first:\n%v\nonly at the second:\n%v",
			len(local), here, len(remote), there, without(local, remote), without(remote, local),
		)
	}
	drawn := func(pages string) string {
		_, flame, _ := strings.Cut(content(t, pages+page), `<svg class="flame"`)
		flame, _, _ = strings.Cut(flame, `<ul class="actions">`)
		return lines.ReplaceAllString(flame, "")
	}
	if h, th := drawn(here), drawn(there); h != th || h == "" {
		return fmt.Errorf("drawn differently:\n%s\n%s", h, th)
	}
	return nil
}

// without returns the values of a that b has not.
func without(a, b map[string]int64) map[string]int64 {
	rest := maps.Clone(a)
	maps.DeleteFunc(rest, func(stack string, v int64) bool { return b[stack] == v })
	return rest
}

// comparisonIsOfOneRequest fails unless a comparison of wall-clock profiles with themselves shows no difference: divided by
// all requests, which the traces of the directory count, or as the mean of a slow one.
func comparisonIsOfOneRequest(t *testing.T, v *viewed) {
	t.Helper()
	from, to := v.from.UTC().Format(time.RFC3339), time.Now().UTC().Format(time.RFC3339)
	q := url.Values{"what": {"times"}, "service": {"storefront"}, "type": {"wall"}, "afrom": {from}, "ato": {to}, "bfrom": {from}, "bto": {to}}
	for pages, per := range map[string]string{v.directory: "per request", v.servers: "per span"} {
		got := content(t, pages+"/compare?"+q.Encode())
		m := regexp.MustCompile(`before <b>([\d.]+ m?s)</b> · after <b>([\d.]+ m?s)</b>`).FindStringSubmatch(got)
		if m == nil || m[1] != m[2] || !strings.Contains(got, per) {
			t.Errorf("%s: %q, want the same on both sides, %s:\n%s", pages, m, per, got)
		}
	}
}

// profilesAreThere fails unless both have a service's types and the version of its profiles.
func profilesAreThere(t *testing.T, v *viewed) {
	t.Helper()
	for name, from := range map[string]source.Source{"directory": v.local, "servers": v.remote} {
		contents, err := from.Contents(t.Context(), "storefront", v.from, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []record.Type{record.CPU, record.Wall, record.Memory, record.Goroutine} {
			if !slices.ContainsFunc(contents, func(c source.Content) bool { return c.Type == want && c.Version == version }) {
				t.Errorf("the %s: no %s profiles of version %s: %v", name, want, version, contents)
			}
		}
	}
	for _, pages := range []string{v.directory, v.servers} {
		got := content(t, pages+"/profiles?last=1h&service=storefront&version="+url.QueryEscape(version))
		for _, want := range []string{"of CPU", "workload.priceBasket", "Windows"} {
			if !strings.Contains(got, want) {
				t.Errorf("%q is not on the page of profiles:\n%s", want, got)
			}
		}
	}
}

// memoryIsOfOneWindow fails if the memory that the servers tell of is not what was in use at a moment: Pyroscope
// adds up the windows of a time.
func memoryIsOfOneWindow(t *testing.T, v *viewed) {
	t.Helper()
	of := source.Selection{ // the servers have the memory of other storefronts, too
		Service: "storefront", Instance: v.instance, Type: record.Memory, From: v.from, To: time.Now(),
	}
	memory := func(from source.Source, most int) []source.MemoryPoint {
		points, err := from.Memory(t.Context(), of, most)
		if err != nil || len(points) == 0 {
			t.Fatalf("memory: %d points, %v", len(points), err)
		}
		return points
	}
	all := memory(v.remote, 10_000)
	most := slices.MaxFunc(all, func(a, b source.MemoryPoint) int { return cmp.Compare(a.Bytes, b.Bytes) }).Bytes
	for _, p := range memory(v.local, 10_000) {
		if !slices.ContainsFunc(all, func(q source.MemoryPoint) bool { return q.Bytes == p.Bytes }) {
			t.Errorf("%d bytes at %v are not among those of the servers: %v", p.Bytes, p.From, all)
		}
	}
	for _, p := range memory(v.local, 10_000) {
		// Asked for from here, the point of the window has the window's own millisecond, of which the server counts
		// only the beginning as that time.
		since := of
		since.From = p.From.Truncate(time.Millisecond).Add(time.Millisecond - 100*time.Millisecond)
		for w, err := range v.remote.Series(t.Context(), since, 240) {
			if err != nil {
				t.Fatal(err)
			}
			if sum := total(w.Profile); sum != p.Bytes {
				t.Errorf("the first window from %v has %d bytes, want the %d of %v", since.From, sum, p.Bytes, p.From)
			}
			break
		}
	}
	windows := 0
	for w, err := range v.remote.Series(t.Context(), of, 240) {
		if err != nil || windows == len(all) {
			t.Fatalf("more windows than %d, or %v", len(all), err)
		}
		if sum := total(w.Profile); sum != all[windows].Bytes {
			t.Errorf("window %d, from %v: its profile has %d bytes, its point %d", windows, w.Start, sum, all[windows].Bytes)
		}
		windows++
	}
	if windows != len(all) {
		t.Errorf("%d windows, want %d", windows, len(all))
	}
	for _, p := range memory(v.remote, 2) {
		if p.Bytes > most {
			t.Errorf("%d bytes from %v to %v, but no window had more than %d", p.Bytes, p.From, p.To, most)
		}
		part := of
		part.From, part.To = p.From, p.To
		merged, err := v.remote.Profile(t.Context(), part)
		if err != nil {
			t.Error(err)
			continue
		}
		sum := total(merged)
		if off := max(sum, p.Bytes) - min(sum, p.Bytes); off > p.Bytes/100 {
			t.Errorf("the profile from %v to %v is of %d bytes, the point of %d", p.From, p.To, sum, p.Bytes)
		}
	}
}

// total is the sum of a profile's first values.
func total(p *profile.Profile) (sum int64) {
	for _, s := range p.Sample {
		sum += s.Value[0]
	}
	return sum
}

// TestGoToolPprofShowsTheSame reads the very files with the reader's own tool.
func TestGoToolPprofShowsTheSame(t *testing.T) {
	v := view(t)
	for _, tt := range []struct {
		span query.Span
		typ  string
	}{{v.lock, "wall"}, {v.cart, "wall"}, {v.cart, "cpu"}} {
		page := content(t, v.directory+strings.Replace(viewer.SpanPath(tt.span.TraceID, tt.span.ID), "#", "&type="+tt.typ+"#", 1))
		file := filepath.Join(t.TempDir(), "downloaded.pb.gz")
		if err := os.WriteFile(
			file,
			[]byte(content(t, fmt.Sprintf("%s%s/span/%s/%s.pb.gz", v.directory, viewer.TracePath(tt.span.TraceID), tt.span.ID, tt.typ))),
			0o644,
		); err != nil {
			t.Fatal(err)
		}
		downloaded := top(t, file)
		saved := top(t, append([]string{"-tagfocus=span_id=" + tt.span.ID}, commandFiles(t, page)...)...)
		if !slices.Equal(downloaded, saved) {
			t.Errorf("%s of %s: pprof says of the download %q, of the saved files %q", tt.typ, tt.span.Name, downloaded, saved)
		}
		if len(downloaded) == 0 {
			t.Errorf("%s of %s: pprof has nothing", tt.typ, tt.span.Name)
		}
		for _, f := range downloaded {
			if !strings.Contains(page, wallprofile.ReplaceShapes(f, "")) {
				t.Errorf("%s of %s: %s is not on the page", tt.typ, tt.span.Name, f)
			}
		}
	}
}

// top are the functions with the most time of their own, as pprof prints them.
func top(t *testing.T, args ...string) []string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command("go", append([]string{"tool", "pprof", "-top", "-nodecount=3", "-nodefraction=0.01", "-symbolize=none"}, args...)...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	_, table, _ := strings.Cut(string(out), "cum%\n")
	var functions []string
	for _, l := range strings.Split(strings.TrimSpace(table), "\n") {
		fields := strings.Fields(l)
		if len(fields) > 5 {
			functions = append(functions, strings.TrimSuffix(strings.Join(fields[5:], " "), " (inline)"))
		}
	}
	return functions
}

// commandFiles are the files of the command that the page shows.
func commandFiles(t *testing.T, page string) []string {
	t.Helper()
	_, line, ok := strings.Cut(page, "-tagfocus=span_id=")
	line, _, _ = strings.Cut(line, "</pre>")
	fields := strings.Fields(line)
	if !ok || len(fields) < 2 {
		t.Fatalf("the page has no command for the saved files:\n%s", page)
	}
	return fields[1:]
}
