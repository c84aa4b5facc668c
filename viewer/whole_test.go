package viewer

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/profiles"
	"spanflame/viewer/internal/fixture"
)

// chain saves a trace of three services, of which the last has no profile.
func chain(t *testing.T) fixture.Saved {
	t.Helper()
	const ms = time.Millisecond
	const answer = ";net/http.(*persistConn).roundTrip;[waiting: select];[for: the answer of an HTTP call]"
	d := fixture.New(t)
	d.Spans(
		fixture.Span{ID: "root", Service: "storefront", Name: "POST /checkout", Took: 600 * ms, Profiled: true},
		fixture.Span{ID: "call", Parent: "root", Service: "storefront", Name: "HTTP POST", Start: 100 * ms, Took: 500 * ms, Client: true},
	)
	d.Spans(
		fixture.Span{ID: "reserve", Parent: "call", Service: "inventory", Name: "POST /reserve", Took: 450 * ms, Profiled: true},
		fixture.Span{ID: "ask", Parent: "reserve", Service: "inventory", Name: "GET", Took: 100 * ms, Client: true},
	)
	d.Spans(fixture.Span{ID: "stock", Parent: "ask", Service: "warehouse", Name: "GET /stock", Took: 90 * ms})
	d.Wall("storefront", 0, 600*ms,
		fixture.Sample("span: POST /checkout;main.price", 100e6, "root"), fixture.Sample("span: POST /checkout;span: HTTP POST;main.reserve"+answer, 500e6, "root"))
	d.Wall("inventory", 0, 450*ms,
		fixture.Sample("span: POST /reserve;main.hold;sync.(*Mutex).Lock;[waiting: mutex];[held by: POST /audit, another request];main.audit", 350e6, "reserve"),
		fixture.Sample("span: POST /reserve;span: GET;main.stock"+answer, 100e6, "reserve"))
	return d
}

// TestWholeTrace: the page of a trace has its critical path, and its flame graph across services with one switch.
func TestWholeTrace(t *testing.T) {
	h := pages(t, open(t, chain(t).Dir), Options{})
	tr := page(t, h, rootPath())
	shows(t, tr, "Parts of the 600 ms of <bdi>storefront POST /checkout</bdi>",
		`<td class="num">58 %</td><td class="num">350 ms</td><td><bdi class="service">inventory</bdi> <bdi>POST /reserve</bdi></td>`+
			`<td><bdi>waiting for a mutex in main.hold</bdi><br><span class="dim">350 ms</span> <bdi>held by: POST /audit, another request: on the CPU in main.audit`+
			`</bdi></td><td class="num">250 ms</td>`,
		"network, or the queue before POST /reserve", "GET /stock of warehouse (90 ms): no wall-clock profile: another tracer or language, or no agent.")
	path := regexpOf(t, tr, `href="([^"]*)"><bdi>Show the whole trace, across services`)
	whole := page(t, h, path)
	shows(t, whole, "Flame graph of the whole trace", "span: POST /checkout of storefront: 600 ms, 100 %", "span: POST /reserve of inventory: 450 ms, 75 %",
		"main.audit: 350 ms, 58.3 %", "[network, or the queue before POST /reserve]: 50 ms, 8.33 %",
		"[no profile: another tracer or language, or no agent]: 90 ms, 15 %", "Show POST /checkout alone")
	zoomed := page(t, h, regexpOf(t, whole, `href="([^"]*)" aria-label="main\.audit: `))
	shows(t, zoomed, "Zoomed to <bdi><code>main.audit</code></bdi>", "Flame graph of the whole trace")
	follow(t, h, rootPath(), path)
	for _, name := range []string{"flamegraph", "top", "peek?f=audit"} {
		shows(t, get(h, rootPath()+"/whole/"+name).Body.String(), "main.audit", "back to the trace")
	}
}

func TestDownloadOfAWholeTrace(t *testing.T) {
	h := pages(t, open(t, chain(t).Dir), Options{})
	for range 2 { // the second time from the cache, which writing must not change
		w := get(h, rootPath()+"/whole.pb.gz")
		p, err := profile.Parse(w.Body)
		if err != nil || w.Code != http.StatusOK {
			t.Fatalf("status %d, %v", w.Code, err)
		}
		if got := profiles.Total(p, 0, nil); got != 600e6 || !strings.HasPrefix(profiles.SavedDiagnosis(p, fixture.SpanID("root")), "600 ms POST /checkout: ") {
			t.Errorf("it has %v and %q", time.Duration(got), p.Comments)
		}
	}
}

// A trace without any profile has neither.
func TestNoWholeTrace(t *testing.T) {
	d := fixture.New(t)
	d.Spans(fixture.Span{ID: "root", Service: "shop", Name: "GET /", Took: time.Second, Profiled: true})
	h := pages(t, open(t, d.Dir), Options{})
	for _, path := range []string{rootPath(), rootPath() + "?whole=1"} {
		if tr := page(t, h, path); strings.Contains(tr, "whole trace") || strings.Contains(tr, "critical path") {
			t.Errorf("%s has a part without a profile:\n%s", path, tr)
		}
	}
	for _, path := range []string{"/whole.pb.gz", "/whole/top"} {
		if w := get(h, rootPath()+path); w.Code != http.StatusNotFound {
			t.Errorf("%s: status %d", path, w.Code)
		}
	}
}
