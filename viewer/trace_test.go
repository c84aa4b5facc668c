package viewer

import (
	"fmt"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/viewer/internal/fixture"
	"spanflame/viewer/source"
)

func TestSlowTraceOpensOntoItsFlameGraph(t *testing.T) {
	h := pages(t, open(t, fixture.Shop(t).Dir), Options{})
	list := page(t, h, "/?show=traces")
	shows(t, list, `href="`+rootPath()+`"`, "600 ms", "POST /checkout", "4 spans", "1 with errors",
		`<bdi>450 ms (75 %) waiting for a mutex in main.(*Cart).Price (passwd:1)</bdi>`) // the duration and the name are above it

	tr := page(t, h, rootPath())
	shows(t, tr, "4 spans of 2 services", "600 ms POST /checkout: 450 ms (75 %) waiting for a mutex",
		"/checkout", "POST /reserve failed", "POST /reserve event", // attributes, errors and events
		"began with the trace", "began 10 ms after the trace",
		"[waiting: mutex]: 450 ms, 75 %", // of the span's own 600 ms, not of what others did
		"main.discount: 80 ms, 13.3 %, at passwd:1 (running on the CPU 100 %)",
		`sync.(*Mutex).Lock</code></bdi> <span class="dim">in</span> <bdi><code>main.(*Cart).Price`,
		"Other goroutines that it started, in addition to its own time: 300 ms waiting", "main.prefetch",
		"Shorter than 10 ms: such a short span has no flame graph of its own. Its time is in the flame graph of the span around it, POST /checkout.",
		"go tool pprof -http=: http://localhost"+wallPath()+".pb.gz", "-tagfocus=span_id="+fixture.SpanID("root"),
	)
	shows(
		t,
		page(t, h, "/compare?"+url.Values{"a": {fixture.TraceID("t") + "/" + fixture.SpanID("root")}, "type": {typeCPU}}.Encode()),
		`value="`+fixture.TraceID("t"), "Two spans",
	)
	shows(t, tr, "Compare with another span")
	// The service's own functions alone have all of the time, at a click, also zoomed.
	shows(t, tr, `href="`+rootPath()+`?span=`+fixture.SpanID("root")+`&amp;type=wall&amp;code=own#flame"`)
	own := page(t, h, rootPath()+"?span="+fixture.SpanID("root")+"&type=wall&code=own")
	shows(t, own, "all: 600 ms, 100 %", "main.(*Cart).Price: 530 ms", "[waiting: mutex]: 450 ms, 75 %", "&amp;code=own&amp;frame=2#flame",
		`&amp;type=wall#flame">Show all functions`)
	if svg, _, _ := strings.Cut(own, `id="below-flame"`); strings.Contains(svg, "sync.(*Mutex).Lock") {
		t.Error("the flame graph of own functions has another")
	}
	if status := get(h, rootPath()+"?code=mine").Code; status != http.StatusBadRequest {
		t.Errorf("code=mine has status %d", status)
	}
	cpu := page(t, h, rootPath()+"?span="+fixture.SpanID("root")+"&type=cpu")
	shows(t, cpu, "main.discount: 80 ms, 100 %")
	if strings.Contains(cpu, "main.elsewhere") {
		t.Error("the CPU flame graph has another span's samples")
	}
	// Where there is none, a link leads to the reason.
	shows(t, tr, `href="?span=`+fixture.SpanID("short")+`#flame"`)
	none := page(t, h, rootPath()+"?span="+fixture.SpanID("inventory"))
	shows(t, none, "There is none.", "Faster than the least duration of a request that is recorded")
}

// A page shows who a span waited for, and on request the span's own time alone. The totals are the same.
func TestCausesOfWaits(t *testing.T) {
	d := fixture.New(t)
	const held = "span: GET /;main.lock;sync.(*Mutex).Lock;[waiting: mutex];[held by: POST /audit, another request];main.audit"
	d.Wall("shop", 0, time.Second, fixture.Sample(held+";[waiting: sleep]", 450e6, "root"), fixture.Sample(held, 50e6, "root"),
		fixture.Sample("span: GET /;main.work", 100e6, "root"))
	d.Spans(fixture.Span{ID: "root", Service: "shop", Name: "GET /", Took: 600 * time.Millisecond, Profiled: true})
	h := pages(t, open(t, d.Dir), Options{})
	all := page(t, h, rootPath())
	shows(t, all, "600 ms GET /: 500 ms (83 %) waiting for a mutex in main.lock (passwd:1), held by: POST /audit, another request: 450 ms of it "+
		"sleeping in main.audit (passwd:1)",
		"[held by: POST /audit, another request]: 500 ms, 83.3 %", "main.audit: 500 ms, 83.3 %", "Hide who it waited for", "[waiting: mutex]: 500 ms, 83.3 %")
	own := page(t, h, rootPath()+"?span="+fixture.SpanID("root")+"&type=wall&own=1")
	shows(t, own, "Show who it waited for", "[waiting: mutex]: 500 ms, 83.3 %")
	if strings.Contains(own, "main.audit: ") {
		t.Error("the span's own time has the work of another request")
	}
	for _, p := range []string{all, own} {
		shows(t, p, `<bdi><code>sync.(*Mutex).Lock</code></bdi> <span class="dim">in</span> <bdi><code>main.lock`)
	}
}

// Two spans are compared by what they did themselves: who made them wait, and what that one did, differs each time.
func TestCausesAreNotCompared(t *testing.T) {
	d := fixture.New(t)
	for i, name := range []string{"root", "later"} {
		waited := fmt.Sprintf("span: GET /;main.lock;sync.(*Mutex).Lock;[waiting: mutex];[held by: POST /audit%d, another request];main.audit%d", i, i)
		d.Wall("shop", time.Duration(i)*time.Minute, time.Second, fixture.Sample(waited, int64(500e6+i*100e6), name))
		d.Spans(fixture.Span{ID: name, Service: "shop", Name: "GET /", Start: time.Duration(i) * time.Minute, Took: 600 * time.Millisecond, Profiled: true})
	}
	compared := page(t, pages(t, open(t, d.Dir), Options{}), "/compare?a="+spanAddress("root")+"&b="+spanAddress("later")+"&type=wall")
	shows(t, compared, "main.lock", "[waiting: mutex]")
	if strings.Contains(compared, "main.audit") || strings.Contains(compared, "held by") {
		t.Errorf("the comparison has the causes of waits:\n%s", compared)
	}
}

func TestZoom(t *testing.T) {
	h := pages(t, open(t, fixture.Shop(t).Dir), Options{})
	all := page(t, h, rootPath())
	m := regexp.MustCompile(`href="([^"]*)" aria-label="main\.discount: `).FindStringSubmatch(all)
	if m == nil {
		t.Fatalf("main.discount is no link:\n%s", all)
	}
	path, _, _ := strings.Cut(html.UnescapeString(m[1]), "#")
	zoomed := page(t, h, path)
	shows(t, zoomed, "Zoomed to <bdi><code>main.discount</code></bdi>", "show all")
	if strings.Contains(zoomed, ">[waiting: mutex]</text>") {
		t.Error("the frame's sibling is still shown")
	}
	if w := regexp.MustCompile(`width="100%" height="21"><a[^>]*aria-label="main\.discount`); !w.MatchString(zoomed) {
		t.Errorf("main.discount does not take the whole width:\n%s", zoomed)
	}
}

func TestPprofPages(t *testing.T) {
	h := pages(t, open(t, fixture.Shop(t).Dir), Options{})
	for _, name := range []string{"flamegraph", "top", "peek?f=discount"} {
		w := get(h, wallPath()+"/"+name)
		shows(t, w.Body.String(), "discount", "back to the trace", SpanPath(fixture.TraceID("t"), fixture.SpanID("root")))
		policy := w.Header().Get("Content-Security-Policy")
		if !strings.Contains(policy, "sandbox allow-scripts") || !strings.Contains(policy, "script-src 'nonce-") || strings.Contains(policy, "unsafe") {
			t.Errorf("%s: policy %q", name, policy)
		}
	}
	if w := get(h, wallPath()+"/"); w.Code != http.StatusFound || w.Header().Get("Location") != "flamegraph" {
		t.Errorf("the first page: status %d to %q", w.Code, w.Header().Get("Location"))
	}
	// The profile names /etc/passwd as its source, and pprof would write the user's settings.
	for _, name := range []string{"source?f=discount", "disasm?f=discount", "saveconfig?config=x", "deleteconfig?config=x", "download", "nothing"} {
		if w := get(h, wallPath()+"/"+name); w.Code != http.StatusNotFound || strings.Contains(w.Body.String(), "root:") {
			t.Errorf("%s: status %d: %s", name, w.Code, w.Body)
		}
	}
	if w := get(h, wallPath()+"/top?f=(("); w.Code != http.StatusBadRequest || w.Header().Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("a bad expression: status %d, %s", w.Code, w.Header().Get("Content-Type"))
	}
}

func TestDownloadIsTheSpanAlone(t *testing.T) {
	h := pages(t, open(t, fixture.Shop(t).Dir), Options{})
	for typ, want := range map[string]int64{"wall": 600e6, "cpu": 80e6} {
		w := get(h, fmt.Sprintf("%s/span/%s/%s.pb.gz", rootPath(), fixture.SpanID("root"), typ))
		p, err := profile.Parse(w.Body)
		if err != nil || w.Code != http.StatusOK {
			t.Fatalf("%s: status %d, %v", typ, w.Code, err)
		}
		if got := sum(p, 0); got != want {
			t.Errorf("%s: total of the span's own time %d, want %d", typ, got, want)
		}
		if got := w.Header().Get("Content-Disposition"); got != fmt.Sprintf(`attachment; filename="%s-%s.pb.gz"`, fixture.SpanID("root"), typ) {
			t.Errorf("%s: %s", typ, got)
		}
	}
}

func TestGrafanaLink(t *testing.T) {
	h := pages(t, open(t, fixture.Shop(t).Dir), Options{GrafanaURL: "https://grafana.example/sub/"})
	m := regexp.MustCompile(`href="(https://grafana\.example/sub/explore\?[^"]*)"`).FindStringSubmatch(page(t, h, rootPath()))
	if m == nil {
		t.Fatal("no link to Grafana")
	}
	u, err := url.Parse(html.UnescapeString(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	shows(t, u.Query().Get("panes"), fixture.TraceID("t"), `"spanId":"`+fixture.SpanID("root")+`"`, `"datasource":"tempo"`)
	for _, bad := range []string{"javascript:alert(1)", "grafana", "http://"} {
		if _, err := New(open(t, fixture.Shop(t).Dir), Options{GrafanaURL: bad}); err == nil {
			t.Errorf("Grafana's address %q was taken", bad)
		}
	}
}

func TestWhyNot(t *testing.T) {
	now := fixture.Began.Add(time.Hour)
	attributes := func(id string) map[string]string { return map[string]string{wallprofile.ProfileIDAttribute: id} }
	at := func(id, parent string, took time.Duration, marked bool) traces.Span {
		s := traces.Span{ID: id, ParentID: parent, Service: "svc", Name: "name of " + id, Start: fixture.Began, End: fixture.Began.Add(took)}
		if marked {
			s.Attributes = attributes(id)
		}
		return s
	}
	slow, fast := at("slow", "", time.Second, true), at("fast", "", 50*time.Millisecond, true)
	late := at("late", "", time.Second, true)
	late.End = now.Add(-time.Second)
	for want, tt := range map[string]struct {
		span traces.Span
		typ  string
	}{
		"Shorter than 10 ms: such a short span has no flame graph of its own. Its time is in the flame graph of the span around it, " +
			"name of slow.": {at("a", "slow", time.Millisecond, false), typeWall},
		"The agent did not mark this span":       {at("b", "", time.Second, false), typeWall},
		"Not there yet":                          {late, typeWall},
		"There is no CPU sample of this span":    {slow, typeCPU},
		"CPU samples carry the id of the span":   {at("c", "slow", time.Second, true), typeCPU},
		"Faster than the least duration":         {fast, typeWall},
		"Its request was faster than the least":  {at("d", "fast", 40*time.Millisecond, true), typeWall},
		"The reason is not known. Recording may": {slow, typeWall},
	} {
		byID := index([]traces.Span{slow, fast, late, tt.span})
		if got := whyNot(tt.span, tt.typ, byID, now, defaultSlowSpan); !strings.HasPrefix(got, want) {
			t.Errorf("%s of %s: %q, want %q", tt.typ, tt.span.ID, got, want)
		}
	}
}

func TestCircularTrace(t *testing.T) {
	d := fixture.New(t)
	d.Spans(
		fixture.Span{ID: "a", Parent: "b", Service: "svc", Name: "a", Took: time.Second, Profiled: true},
		fixture.Span{ID: "b", Parent: "a", Service: "svc", Name: "b", Took: time.Second},
		fixture.Span{ID: "c", Parent: "c", Service: "svc", Name: "c", Took: time.Second},
		fixture.Span{ID: "d", Parent: "e", Service: "svc", Name: "d", Took: time.Second},
		fixture.Span{ID: "e", Parent: "d", Service: "svc", Name: "e", Took: time.Second},
		fixture.Span{ID: "f", Parent: "e", Service: "svc", Name: "below the circle", Took: time.Second},
	)
	shows(t, page(t, pages(t, open(t, d.Dir), Options{}), rootPath()), "6 spans", "below the circle")
}

// Of a trace that the sampler decided against, only slow requests are saved: they say nothing about all requests.
func TestUnsampledTrace(t *testing.T) {
	d := fixture.New(t)
	d.Spans(fixture.Span{
		ID: "slow", Service: "shop", Name: "GET /item", Took: time.Second, Profiled: true, Attributes: map[string]string{wallprofile.UnsampledAttribute: "true"},
	})
	d.Spans(fixture.Span{Trace: "sampled", ID: "sampled", Service: "shop", Name: "GET /item", Took: time.Second})
	from := open(t, d.Dir)
	h := pages(t, from, Options{})
	shows(t, page(t, h, TracePath(fixture.TraceID("t"))), "The sampler decided against this trace")
	if got := page(t, h, TracePath(fixture.TraceID("sampled"))); strings.Contains(got, "The sampler decided") {
		t.Error("the page of a sampled trace shows that it is not sampled")
	}
	requests, err := from.Requests(t.Context(), source.Filter{Service: "shop"})
	if err != nil || len(requests) != 1 || requests[0].ID != fixture.SpanID("sampled") {
		t.Errorf("all requests are %v, %v, want the sampled one", requests, err)
	}
	if got := page(t, h, "/"); !strings.Contains(got, "of 1 sampled requests") || strings.Contains(got, "of all") {
		t.Errorf("the page calls the sampled request all requests:\n%s", got)
	}
}

// Many queries that are equal but for their values are one row, and a call says what it calls.
func TestRepeatsAreOneRow(t *testing.T) {
	d := fixture.New(t)
	all := []fixture.Span{
		{ID: "root", Service: "shop", Name: "GET", Took: time.Second, Attributes: map[string]string{"http.request.method": "GET", "url.path": "/basket"}},
		{ID: "call", Parent: "root", Service: "shop", Name: "HTTP POST", Client: true, Start: 900 * time.Millisecond, Took: 90 * time.Millisecond,
			Attributes: map[string]string{"http.request.method": "POST", "url.full": "http://user:secret@stock/reserve?token=1"}},
	}
	for i := range 500 {
		q := fixture.Span{
			ID: fmt.Sprint("query", i), Parent: "root", Service: "shop", Name: "query", Client: true, Start: time.Duration(i) * time.Millisecond,
			Took: time.Millisecond, Attributes: map[string]string{"db.statement": "SELECT price FROM items WHERE id = ?"},
		}
		switch i {
		case 100:
			q.Failed = true
		case 200:
			q.Took = 7 * time.Millisecond
		case 300:
			q.Attributes = map[string]string{"db.statement": "SELECT 1"}
		case 400: // the same query of another value
			q.Attributes = map[string]string{"db.statement": "SELECT price FROM items WHERE id = 400"}
		}
		all = append(all, q)
	}
	d.Spans(all...)
	h := pages(t, open(t, d.Dir), Options{})
	got := page(t, h, TracePath(fixture.TraceID("t")))
	shows(t, got, "GET /basket", "POST http://user:xxxxx@stock/reserve", "× 498, 504 ms in all; the longest:", `<span class="took">7 ms</span>`,
		"SELECT price FROM items WHERE id = ?", "SELECT 1")
	if n := strings.Count(got, `<span class="what">`); n != 5 {
		t.Errorf("%d rows, want the request, its call, the failed query, the other one, and one for 498", n)
	}
}
