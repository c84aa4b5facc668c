package viewer

import (
	"context"
	"fmt"
	"html"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	gcmetrics "runtime/metrics"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
)

func TestSlowTraceOpensOntoItsFlameGraph(t *testing.T) {
	h := pages(t, shop(t).open(), Options{})
	list := page(t, h, "/")
	shows(t, list, `href="`+rootPath()+`"`, "600 ms", "POST /checkout", "4 spans", "1 with errors",
		`<bdi>450 ms (75 %) waiting for a mutex in main.(*Cart).Price</bdi>`) // the duration and the name are above it

	tr := page(t, h, rootPath())
	shows(t, tr, "4 spans of 2 services", "600 ms POST /checkout: 450 ms (75 %) waiting for a mutex",
		"/checkout", "POST /reserve failed", "POST /reserve event", // attributes, errors and events
		"[waiting: mutex]: 450 ms, 75 %", // of the span's own 600 ms, not of what others did
		"main.discount: 80 ms, 13.3 % (running on the CPU 100 %)",
		`sync.(*Mutex).Lock</code></bdi> <span class="dim">in</span> <bdi><code>main.(*Cart).Price`,
		"Other goroutines worked 300 ms for it", "main.prefetch",
		"Shorter than 10 ms: so short a span has no flame graph of its own. Its time is in the flame graph of the span around it, POST /checkout.",
		"go tool pprof -http=: http://localhost"+wallPath()+".pb.gz", "-tagfocus=span_id="+spanID("root"),
	)
	shows(t, page(t, h, "/compare?"+url.Values{"a": {traceID("t") + "/" + spanID("root")}, "type": {typeCPU}}.Encode()), `value="`+traceID("t"), "Two spans")
	shows(t, tr, "Compare with another span")
	cpu := page(t, h, rootPath()+"?span="+spanID("root")+"&type=cpu")
	shows(t, cpu, "main.discount: 80 ms, 100 %")
	if strings.Contains(cpu, "main.elsewhere") {
		t.Error("the CPU flame graph has another span's samples")
	}
	// Where there is none, a link leads to the reason.
	shows(t, tr, `href="?span=`+spanID("short")+`#flame"`)
	none := page(t, h, rootPath()+"?span="+spanID("inventory"))
	shows(t, none, "There is none.", "Faster than a request has to be slow to be recorded")
}

// The agent's own sentence is shown where it was saved with the profile, and it begins with the duration and name
// of its span where the card has others.
func TestDiagnosisIsTheAgents(t *testing.T) {
	d := newSaved(t)
	d.spans(
		span{trace: "a", id: "a", service: "svc", name: "GET /: x", took: 600 * time.Millisecond, profiled: true},
		span{trace: "b", id: "b", service: "front", name: "GET /front", took: 900 * time.Millisecond},
		span{trace: "b", id: "inside b", parent: "b", service: "svc", name: "GET /back", took: 700 * time.Millisecond, profiled: true},
	)
	d.comments = []string{
		"span_id=" + spanID("a") + " 601 ms GET /: x: 450 ms (75 %) waiting for a mutex in main.a, held by main.audit",
		"span_id=" + spanID("other") + " 5 ms x",
	}
	d.wall("svc", 0, time.Second,
		sample{"main.a;sync.(*Mutex).Lock;[waiting: mutex]", 600e6, "a"}, sample{"main.b;time.Sleep;[waiting: sleep]", 700e6, "inside b"})
	h := pages(t, d.open(), Options{})
	shows(t, page(t, h, "/"), "1 span<", "2 spans<",
		"<bdi>450 ms (75 %) waiting for a mutex in main.a, held by main.audit</bdi>", "<bdi>700 ms GET /back: 700 ms (100 %) sleeping in main.b</bdi>")
	shows(t, page(t, h, TracePath(traceID("a"))), "601 ms GET /: x: 450 ms (75 %) waiting for a mutex in main.a, held by main.audit", "1 span of 1 service")
	w := get(h, fmt.Sprintf("%s/span/%s/wall.pb.gz", TracePath(traceID("a")), spanID("a")))
	p, err := profile.Parse(w.Body)
	if err != nil || !slices.Equal(p.Comments, d.comments[:1]) {
		t.Errorf("the download's comments are %q, %v, want the span's own", p.Comments, err)
	}
}

func TestZoom(t *testing.T) {
	h := pages(t, shop(t).open(), Options{})
	all := page(t, h, rootPath())
	m := regexp.MustCompile(`href="([^"]*)" aria-label="main\.discount: `).FindStringSubmatch(all)
	if m == nil {
		t.Fatalf("main.discount is no link:\n%s", all)
	}
	path, _, _ := strings.Cut(html.UnescapeString(m[1]), "#")
	zoomed := page(t, h, path)
	shows(t, zoomed, "Zoomed to <bdi><code>main.discount</code></bdi>", "show all")
	if strings.Contains(zoomed, ">[waiting: mutex]</text>") {
		t.Error("what is beside the frame is still there")
	}
	if w := regexp.MustCompile(`width="100%" height="21"><a[^>]*aria-label="main\.discount`); !w.MatchString(zoomed) {
		t.Errorf("main.discount does not take the whole width:\n%s", zoomed)
	}
}

func TestPprofPages(t *testing.T) {
	h := pages(t, shop(t).open(), Options{})
	for _, name := range []string{"flamegraph", "top", "peek?f=discount"} {
		w := get(h, wallPath()+"/"+name)
		shows(t, w.Body.String(), "discount", "back to the trace", SpanPath(traceID("t"), spanID("root")))
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
	h := pages(t, shop(t).open(), Options{})
	for typ, want := range map[string]int64{"wall": 600e6, "cpu": 80e6} {
		w := get(h, fmt.Sprintf("%s/span/%s/%s.pb.gz", rootPath(), spanID("root"), typ))
		p, err := profile.Parse(w.Body)
		if err != nil || w.Code != http.StatusOK {
			t.Fatalf("%s: status %d, %v", typ, w.Code, err)
		}
		if got := sum(p, 0); got != want {
			t.Errorf("%s: total of the span's own time %d, want %d", typ, got, want)
		}
		if got := w.Header().Get("Content-Disposition"); got != fmt.Sprintf(`attachment; filename="%s-%s.pb.gz"`, spanID("root"), typ) {
			t.Errorf("%s: %s", typ, got)
		}
	}
}

func TestGrafanaLink(t *testing.T) {
	h := pages(t, shop(t).open(), Options{GrafanaURL: "https://grafana.example/sub/"})
	m := regexp.MustCompile(`href="(https://grafana\.example/sub/explore\?[^"]*)"`).FindStringSubmatch(page(t, h, rootPath()))
	if m == nil {
		t.Fatal("no link to Grafana")
	}
	u, err := url.Parse(html.UnescapeString(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	shows(t, u.Query().Get("panes"), traceID("t"), `"spanId":"`+spanID("root")+`"`, `"datasource":"tempo"`)
	for _, bad := range []string{"javascript:alert(1)", "grafana", "http://"} {
		if _, err := New(shop(t).open(), Options{GrafanaURL: bad}); err == nil {
			t.Errorf("Grafana's address %q was taken", bad)
		}
	}
}

func TestGuard(t *testing.T) {
	h := pages(t, shop(t).open(), Options{Hosts: []string{"Profiles.example", "10.0.0.7", ""}})
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
		{"GET", "localhost", "/trace/" + traceID("none"), 404},
		{"GET", "localhost", "/trace/..%2f..%2fetc", 400},
		{"GET", "localhost", rootPath() + "?span=" + spanID("none"), 404},
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
		d := newSaved(t)
		service := name[:min(len(name), 3_000)]
		d.spans(span{
			id: "root", service: service, name: name, took: 600 * time.Millisecond, profiled: true, failed: true, attributes: map[string]string{name: name},
		})
		d.wall(
			strings.ReplaceAll(service, "\x00", ""), 0, 600*time.Millisecond,
			sample{"span: " + name + ";" + strings.ReplaceAll(name, ";", ",") + ";[waiting: " + name + "]", 600e6, "root"},
		)
		h := pages(t, d.open(), Options{GrafanaURL: "http://grafana.example"})
		of := url.Values{"service": {service}, "name": {name}}.Encode()
		paths := []string{
			"/", "/?" + url.Values{"name": {name[:min(len(name), 2_000)]}}.Encode(), rootPath(), "/names",
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

func TestByName(t *testing.T) {
	d := newSaved(t)
	var spans []span
	var samples []sample
	for i := range 20 { // the two slowest wait for a lock
		name := fmt.Sprintf("s%d", i)
		took := time.Duration(100+i) * time.Millisecond
		stack := "span: GET /;main.work"
		if i >= 18 {
			took, stack = time.Second, "span: GET /;main.lock;[waiting: mutex]"
		}
		spans = append(spans, span{trace: name, id: name, service: "svc", name: "GET /", start: time.Duration(i) * 2 * time.Second, took: took, profiled: true})
		samples = append(samples, sample{stack, int64(took), name})
	}
	d.spans(spans...)
	d.spans( // what agents mark, too, but do not record
		span{trace: "quick", id: "quick", service: "svc", name: "GET /quick", took: 60 * time.Millisecond, profiled: true},
		span{trace: "quick", id: "inside quick", parent: "quick", service: "svc", name: "load", took: 50 * time.Millisecond, profiled: true},
		span{trace: "s19", id: "inside", parent: "s19", service: "svc", name: "load", took: 50 * time.Millisecond, profiled: true},
		span{trace: "s19", id: "short inside", parent: "inside", service: "svc", name: "load", took: 5 * time.Millisecond, profiled: true},
		span{trace: "s19", id: "elsewhere", parent: "s19", service: "other", name: "GET /other", took: 50 * time.Millisecond, profiled: true},
	)
	d.wall("svc", 0, time.Minute, samples...)
	h := pages(t, d.open(), Options{})
	list := page(t, h, "/names")
	shows(t, list, "GET /", `<td class="num">20</td><td class="num">109 ms</td>`, "load</bdi></a></td><td class=\"num\">1</td>")
	if strings.Contains(list, "quick") || strings.Contains(list, "other") {
		t.Errorf("names of spans that cannot have profiles:\n%s", list)
	}
	shows(t, page(t, pages(t, d.open(), Options{SlowSpan: 50 * time.Millisecond}), "/names"),
		"of 50 ms and more", "GET /quick", "GET /other", "load</bdi></a></td><td class=\"num\">2</td>")
	got := page(t, h, "/name?service=svc&name=GET+%2F")
	shows(t, got, "20 captured spans", "median <b>109 ms</b>", "The mean of 2 spans, <b>1 s</b>, against the mean of the 4 around the median, <b>110 ms</b>", "main.lock: before 0 ns, after 1 s, &#43;1 s", "the slowest 10 %",
		"&#43;1 s", "main.lock", "main.work", "[waiting: mutex]", SpanPath(traceID("s19"), spanID("s19")))
	links := regexp.MustCompile(`/flame/[\w-]+/flamegraph`).FindAllString(got, -1)
	if len(links) < 2 {
		t.Errorf("%d flame graphs can be opened in pprof, want that of the spans and the difference", len(links))
	}
	for _, link := range links {
		shows(t, page(t, h, link), "main.work", "back to the name")
	}
	if quick := page(t, h, "/name?service=svc&name=GET+%2Fquick"); !strings.Contains(quick, "No span of this name") {
		t.Errorf("requests that are not recorded have a page:\n%s", quick)
	}
	slow := page(t, h, "/name?service=svc&name=GET+%2F&part=slow")
	shows(t, slow, "[waiting: mutex]: 2 s, 100 %")
	shows(t, page(t, h, "/name?service=svc&name=none"), "No span of this name")
}

// Of many spans the profiles of some are merged, evenly; counted are all.
func TestByNameSaysWhatItMerged(t *testing.T) {
	d := newSaved(t)
	var spans []span
	for i := range mergedSpans + 48 {
		name := fmt.Sprint(i)
		spans = append(spans, span{trace: name, id: name, service: "svc", name: "GET /", took: time.Second + time.Duration(i)*time.Millisecond, profiled: true})
	}
	d.spans(spans...)
	h := pages(t, d.open(), Options{})
	shows(t, page(t, h, "/names"), `<td class="num">548</td>`)
	got := page(t, h, "/name?service=svc&name=GET+%2F")
	shows(t, got, "548 captured spans, 500 of them merged, evenly from the slowest to the fastest")
	for i := range listedSlowest { // without gaps
		name := fmt.Sprint(mergedSpans + 47 - i)
		shows(t, got, SpanPath(traceID(name), spanID(name)))
	}
}

func TestBuckets(t *testing.T) {
	for _, tt := range []struct {
		n, slow, median int
		words           string
	}{
		{0, 0, 0, "the slowest"}, {1, 1, 1, "the slowest"}, {9, 1, 2, "the slowest"}, {10, 1, 2, "the slowest 10 %"},
		{299, 29, 60, "the slowest 10 %"}, {1000, 10, 200, "the slowest 1 %"},
	} {
		var spans []traces.Span
		for i := range tt.n {
			spans = append(spans, traces.Span{ID: fmt.Sprint(i), Start: began, End: began.Add(time.Duration(i))})
		}
		b := buckets(spans)
		if len(b.slow) != tt.slow || len(b.median) != tt.median || b.words != tt.words {
			t.Errorf("of %d: %d are slow, %d around the median, %q; want %d, %d, %q", tt.n, len(b.slow), len(b.median), b.words, tt.slow, tt.median, tt.words)
		}
		if tt.n > 0 && b.slow[0].Duration() != time.Duration(tt.n-1) {
			t.Errorf("of %d: the slowest takes %d", tt.n, b.slow[0].Duration())
		}
	}
}

func TestCompare(t *testing.T) {
	d := shop(t)
	d.spans(span{trace: "u", id: "fast", service: "storefront", name: "POST /checkout", start: time.Minute, took: 150 * time.Millisecond, profiled: true})
	d.wall("storefront", time.Minute, 150*time.Millisecond, sample{"span: POST /checkout;main.(*Cart).Price;main.discount", 150e6, "fast"})
	base := newSaved(t)
	base.profile(
		record.Meta{Service: "storefront", Type: record.CPU, Start: began, End: began.Add(15 * time.Second)}, "cpu",
		"nanoseconds", sample{"main.before", 10e6, ""},
	)
	// What a root's profile has is not counted once more for its child's own.
	d.profile(record.Meta{Service: "storefront", Type: record.Wall, Start: began, End: began.Add(time.Second), Labels: map[string]string{"span_scope": "child"}},
		"wall", "nanoseconds", sample{"span: POST /checkout;span: pricing;main.discount", 500e6, "pricing"})
	h := pages(t, d.open(), Options{Base: base.open()})
	offer := page(t, h, "/compare")
	shows(t, offer, "Two spans", "the base directory")
	against := regexp.MustCompile(`href="([^"]*)"><bdi>against the base directory`).FindAllStringSubmatch(offer, -1)
	if len(against) == 0 {
		t.Fatalf("the base directory is not offered:\n%s", offer)
	}
	for _, link := range against {
		if !strings.Contains(link[1], "type=cpu") {
			continue
		}
		shows(t, page(t, h, html.UnescapeString(link[1])), "main.before")
	}
	for _, tt := range []struct {
		query url.Values
		parts []string
	}{
		{url.Values{"a": {traceID("t") + "/" + spanID("root")}, "b": {traceID("u") + "/" + spanID("fast")}},
			[]string{
				"storefront POST /checkout against storefront POST /checkout</h1>",
				"before <b>600 ms</b> <a href=\"" + html.EscapeString(SpanPath(traceID("t"), spanID("root"))),
				"after <b>150 ms</b> <a href", "−450 ms",
				`sync.(*Mutex).Lock</code></bdi> <span class="dim">in</span> <bdi><code>main.(*Cart).Price`, "[waiting: mutex]",
				"&#43;70 ms",
			}},
		{url.Values{"what": {"times"}, "service": {"storefront"}, "type": {"memory"}, "ato": {"2026-01-02T15:04:10Z"}, "bfrom": {"2026-01-02T15:04:51Z"}},
			[]string{"&#43;3 MiB", "main.leak"}},
		{url.Values{"what": {"times"}, "service": {"storefront"}, "ato": {"2026-01-02T15:04:10Z"}, "bfrom": {"2026-01-02T15:04:51Z"}},
			[]string{"before <b>600 ms</b> · after <b>150 ms</b>", "the mean of one slow request"}},
		{url.Values{"what": {"directories"}, "service": {"storefront"}, "type": {"cpu"}},
			[]string{"before <b>10 ms</b> · after <b>170 ms</b>", "main.before", "main.elsewhere"}},
	} {
		got := page(t, h, "/compare?"+tt.query.Encode())
		shows(t, got, tt.parts...)
		link := regexp.MustCompile(`/flame/[\w-]+/flamegraph`).FindString(got)
		shows(t, page(t, h, link), "back to the comparison")
	}
	for query, want := range map[string]string{
		"what=times&service=inventory&ato=2026-01-02T15:04:10Z":                   "Both sides, before and after, have no profile of the type wall clock of slow requests.",
		"what=times&service=storefront&ato=2026-01-01+15:04:05":                   "The side before has no profile of the type wall clock of slow requests.",
		"what=times&service=storefront&type=cpu&bfrom=15m":                        "The side after has no profile of the type CPU.",
		"a=" + traceID("t") + "/" + spanID("short") + "&b=" + spanAddress("root"): "The side before has no profile",
		"a=" + spanAddress("root") + "&b=" + spanAddress("short"):                 "The side after has no profile",
		"what=times&service=&afrom=":                                              "Say which service.",
		"what=times&service=storefront":                                           "Say at least one of the times.",
		"what=spans&a=&b=":                                                        "Say which two spans",
		"a=" + spanAddress("root"):                                                "Say which span is the one after: choose it below.",
		"b=" + spanAddress("root"):                                                "Say which span is the one before: choose it below.",
	} {
		shows(t, page(t, h, "/compare?"+query), `<p class="empty">`+want)
	}
	shows(t, page(t, h, "/compare?a="+spanAddress("root")), "of the same name, from the slowest to the fastest", "b="+traceID("u")+"%2F"+spanID("fast"))
	shows(t, page(t, h, "/compare?a="+spanAddress("pricing")), "none of the same name is known", "b="+url.QueryEscape(spanAddress("root")))
	if got := page(t, h, "/compare"); strings.Contains(got, `class="empty"`) {
		t.Errorf("a form that nobody filled in complains:\n%s", got)
	}
}

// spanAddress is how a span of the trace "t" is given to be compared.
func spanAddress(id string) string { return traceID("t") + "/" + spanID(id) }

func TestParseTime(t *testing.T) {
	now := began
	for v, want := range map[string]time.Time{
		"":                          {},
		"2026-01-02T15:04:05Z":      began,
		"2026-01-02T16:04:05+01:00": began,
		"2026-01-02 15:04:05":       began,
		"2026-01-02 15:04:05 UTC":   began,
		" 2026-01-02T15:04:05 ":     began,
		"15m":                       began.Add(-15 * time.Minute),
		"0s":                        began,
	} {
		if got, err := parseTime(v, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v, want %v", v, got, err, want)
		}
	}
	for _, v := range []string{"now", "15", "-15m", "200000h", "1969-12-31T23:59:59Z", "2262-01-01T00:00:00Z", "15:04"} {
		if got, err := parseTime(v, now); err == nil {
			t.Errorf("%q: %v, want an error", v, got)
		}
	}
	if got, err := parseTime("15m", time.Time{}); err == nil {
		t.Errorf("how long ago, where there is no now: %v", got)
	}
}

// A service that runs is compared with what it was a moment ago; one that has ended, with what it was before the middle.
func TestOfferedTimes(t *testing.T) {
	now := began.Add(30 * time.Hour)
	offered := func(from, to time.Time) (words string) {
		for _, o := range offeredTypes(
			"shop",
			[]Content{{Type: record.CPU, From: from, To: to, Several: true}, {Type: record.Wall, Version: "1"}, {Type: record.Wall, Version: "2"}},
			false, now,
		) {
			for _, l := range o.Links {
				if o.Words == "CPU" {
					words += l.Text + "; "
				}
			}
		}
		return words
	}
	const half = "the half from 2026-01-0"
	for name, tt := range map[string]struct {
		from, to time.Time
		want     []string
		not      string
	}{
		"a day and more":  {began, now.Add(-time.Minute), []string{"the last 5 minutes", "the last 15", "the hour before", "of a day ago", half}, "version"},
		"20 minutes":      {now.Add(-20 * time.Minute), now.Add(-time.Minute), []string{"the last 5 minutes", half}, "last 15"},
		"it has ended":    {began, began.Add(time.Hour), []string{half + "2 15:34:05"}, "the last"},
		"a single moment": {began, began, nil, "half"},
		"it is not known": {time.Time{}, time.Time{}, []string{"the last 5 minutes", "of a day ago"}, "half"},
	} {
		got := offered(tt.from, tt.to)
		for _, want := range tt.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		if strings.Contains(got, tt.not) {
			t.Errorf("%s: %q, not %q", name, got, tt.not)
		}
	}
}

func TestPeriodInWords(t *testing.T) {
	for want, p := range map[string]period{
		"at any time": {}, "since 2026-01-02 15:04:05": {from: began}, "until 2026-01-02 15:04:05": {to: began},
		"from 2026-01-02 15:04:05 to 2026-01-02 15:05:05": {from: began, to: began.Add(time.Minute)},
	} {
		if got := p.words(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestMemory(t *testing.T) {
	h := pages(t, shop(t).open(), Options{})
	got := page(t, h, "/memory")
	shows(t, got, "Memory of", "10 MiB", "13 MiB", "240 MiB an hour", "&#43;3 MiB", "main.leak", "/memory/plot.svg?service=storefront")
	if _, table, _ := strings.Cut(got, "Where it differs most"); strings.Contains(table, "main.steady") {
		t.Error("what did not grow is in the table")
	}
	shows(t, got, `class="more" href="/memory?service=storefront&amp;frame=`, `aria-label="main.leak: before 0 B, after 3 MiB, &#43;3 MiB"`,
		`class="same" href="/memory?service=storefront&amp;frame=`)
	shows(t, page(t, h, regexpOf(t, got, `href="(/memory[^"]*&amp;frame=\d+)#difference" aria-label="main.leak`)), "Zoomed to <bdi><code>main.leak")
	drawn := make(map[string]bool)
	for _, address := range regexp.MustCompile(`/memory/plot\.svg[^" ]*`).FindAllString(got, -1) {
		w := get(h, html.UnescapeString(address))
		svg := w.Body.String()
		if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "image/svg+xml" || !strings.Contains(svg, "<svg") {
			t.Errorf("%s: status %d, %s", address, w.Code, w.Header().Get("Content-Type"))
		}
		drawn[svg] = true
	}
	if len(drawn) != 2 {
		t.Errorf("%d different plots, want one on a light and one on a dark background", len(drawn))
	}
	shows(t, page(t, h, regexp.MustCompile(`/flame/[\w-]+/flamegraph`).FindString(got)), "main.leak", "back to memory")
	shows(t, page(t, h, "/memory?service=inventory"), "There are no profiles of a service &#34;inventory&#34;. There are of: storefront.")
	shows(t, page(t, h, "/memory?service=storefront&last=15m"), "There are fewer than two memory profiles")
}

// Two instances with windows at the same times: what the one holds is no growth of the other's.
func TestMemoryIsOfOneInstance(t *testing.T) {
	d := newSaved(t)
	for i, held := range []struct{ steady, leaking int64 }{{5 << 20, 10 << 20}, {5 << 20, 12 << 20}, {5 << 20, 14 << 20}} {
		for instance, bytes := range map[string]int64{"pod-1": held.steady, "pod-2": held.leaking} {
			start := began.Add(time.Duration(i) * 15 * time.Second)
			d.profile(record.Meta{
				Service: "storefront", Type: record.Memory, Start: start, End: start.Add(15 * time.Second), Labels: map[string]string{"service_instance_id": instance},
			}, "inuse_space", "bytes", sample{"main.main;main.hold", bytes, ""})
		}
	}
	h := pages(t, d.open(), Options{})
	got := page(t, h, "/memory")
	shows(t, got, "<b>10 MiB</b>", "<b>14 MiB</b>", "pod-2", "&#43;4 MiB", "main.hold")
	shows(t, page(t, h, regexp.MustCompile(`/flame/[\w-]+/flamegraph`).FindString(got)), "main.hold")

	// Of all windows it is the mean of one, not their sum.
	shows(t, page(t, h, "/compare?what=times&type=memory&service=storefront&ato=2026-01-02T15:04:20Z&bfrom=2026-01-02T15:04:20Z"),
		"before <b>7.5 MiB</b>", "after <b>9 MiB</b>")
}

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

func TestEmptyDirectorySaysWhatToDo(t *testing.T) {
	h := pages(t, newSaved(t).open(), Options{})
	shows(t, page(t, h, "/"), "There are no traces yet", "spanflame demo")
	shows(t, page(t, h, "/?name=x"), "No trace matches")
	shows(t, page(t, h, "/names"), "No span with a profile")
	shows(t, page(t, h, "/memory"), "There are no profiles yet")
	if _, err := OpenDirectory(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a directory that is not there was opened")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDirectory(file); err == nil {
		t.Error("a file was opened as a directory")
	}
}

func TestWhyNot(t *testing.T) {
	now := began.Add(time.Hour)
	attributes := func(id string) map[string]string { return map[string]string{wallprofile.ProfileIDAttribute: id} }
	at := func(id, parent string, took time.Duration, marked bool) traces.Span {
		s := traces.Span{ID: id, ParentID: parent, Service: "svc", Name: "name of " + id, Start: began, End: began.Add(took)}
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
		"Shorter than 10 ms: so short a span has no flame graph of its own. Its time is in the flame graph of the span around it, name of slow.": {at("a", "slow", time.Millisecond, false), typeWall},
		"The agent did not mark this span":              {at("b", "", time.Second, false), typeWall},
		"Not there yet":                                 {late, typeWall},
		"No CPU sample fell into this span":             {slow, typeCPU},
		"CPU samples carry the id of the span":          {at("c", "slow", time.Second, true), typeCPU},
		"Faster than a request has to be slow":          {fast, typeWall},
		"The request that it belongs to was not slow":   {at("d", "fast", 40*time.Millisecond, true), typeWall},
		"Unknown. The recording may have been over its": {slow, typeWall},
	} {
		byID := index([]traces.Span{slow, fast, late, tt.span})
		if got := whyNot(tt.span, tt.typ, byID, now, defaultSlowSpan); !strings.HasPrefix(got, want) {
			t.Errorf("%s of %s: %q, want %q", tt.typ, tt.span.ID, got, want)
		}
	}
}

func TestCircularTrace(t *testing.T) {
	d := newSaved(t)
	d.spans(
		span{id: "a", parent: "b", service: "svc", name: "a", took: time.Second, profiled: true},
		span{id: "b", parent: "a", service: "svc", name: "b", took: time.Second},
		span{id: "c", parent: "c", service: "svc", name: "c", took: time.Second},
		span{id: "d", parent: "e", service: "svc", name: "d", took: time.Second},
		span{id: "e", parent: "d", service: "svc", name: "e", took: time.Second},
		span{id: "f", parent: "e", service: "svc", name: "below the circle", took: time.Second},
	)
	shows(t, page(t, pages(t, d.open(), Options{}), rootPath()), "6 spans", "below the circle")
}

// TestManyAtOnce asks 64-fold for pages of a directory that is being written. What is alive meanwhile, and what is kept
// after it, is bounded.
func TestManyAtOnce(t *testing.T) {
	d := shop(t)
	// A trace so large that 64 copies of it would be above the bound.
	var large []span
	for i := range 2_000 {
		large = append(
			large,
			span{
				trace: "large", id: fmt.Sprint("large", i), service: "storefront", name: "GET /large", took: time.Millisecond,
				attributes: map[string]string{"text": strings.Repeat("x", 2_000)},
			},
		)
	}
	d.spans(large...)
	h := pages(t, d.open(), Options{})
	page(t, h, TracePath(traceID("large"))) // and with it the index, which is bounded by itself
	before := liveHeap()
	ctx, stop := context.WithCancel(t.Context())
	var writing, asking, measuring sync.WaitGroup
	writing.Go(func() {
		file := d.traceFile("storefront", "growing")
		for i := 0; ctx.Err() == nil && i < 3_000; i++ {
			name := fmt.Sprintf("w%d", i)
			start := time.Duration(i) * time.Second
			whole := asLine(t, span{trace: name, id: name, service: "storefront", name: "GET /", start: start, took: 200 * time.Millisecond, profiled: true})
			d.write(file, whole[:len(whole)/2])
			d.write(file, whole[len(whole)/2:])
			d.wall("storefront", start, 200*time.Millisecond, sample{"span: GET /;main.work", 200e6, name})
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
		"/compare?what=times&type=cpu&service=storefront&ato=2026-01-02T15:05:00Z", "/profiles?service=storefront&type=wall", "/compare", TracePath(traceID("large")),
	}
	for i := range 64 {
		asking.Go(func() {
			for j := range 3 {
				path := paths[(i+j)%len(paths)]
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
	if grown := int64(alive - before); alive > before && grown > 128<<20 {
		t.Errorf("%s more were alive at the same time, want 128 MiB at most", format.Bytes(grown))
	}
	if kept := int64(liveHeap()) - int64(before); kept > 32<<20 {
		t.Errorf("%s more are kept when all is answered, want 32 MiB at most", format.Bytes(kept))
	}
}

// liveHeap is how many bytes are reachable.
func liveHeap() uint64 {
	runtime.GC()
	live := []gcmetrics.Sample{{Name: "/gc/heap/live:bytes"}}
	gcmetrics.Read(live)
	return live[0].Value.Uint64()
}

// blocking is a source whose traces come when the gate opens.
type blocking struct {
	Source
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

// However many ask, so many pages are made at a time; who waits too long is told to come back; and who has not read his
// answer yet holds up nobody.
func TestPagesAreMadeAFewAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &blocking{gate: make(chan struct{})}
		h := pages(t, source, Options{})
		var asking sync.WaitGroup
		var status [64]int
		for i := range status {
			asking.Go(func() { status[i] = get(h, rootPath()).Code })
		}
		synctest.Wait()
		if n := source.reading.Load(); n != pagesAtOnce {
			t.Errorf("%d pages are being made for %d requests, want %d", n, len(status), pagesAtOnce)
		}
		asking.Wait() // the gate stays closed: their time is over
		for _, got := range status {
			if got != http.StatusServiceUnavailable {
				t.Errorf("status %d, want %d", got, http.StatusServiceUnavailable)
			}
		}
		close(source.gate)
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
func (s *slowReader) WriteHeader(int)     {}
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

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain text": "plain text", "שלום": "שלום", "a\nb\x00": `a\x0ab\x00`, "\u202eabc": `\u202eabc`, "\u2028": `\u2028`,
		"123456789012": "1234567890…", "\xff": "\ufffd",
	} {
		if got := format.Clean(in, 10); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{"/a/b.pb.gz": "/a/b.pb.gz", "a b": "'a b'", "it's": `'it'\''s'`, "": "''", "$(x)": "'$(x)'"} {
		if got := quoteShell(in); got != want {
			t.Errorf("quoteShell(%q) = %s, want %s", in, got, want)
		}
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
	if _, ok := c.get("a"); ok || len(c.values) != 0 {
		t.Error("a value outlived its time")
	}
}

// FuzzAddress asks for every page with any parameters: an address never makes the pages fail.
func FuzzAddress(f *testing.F) {
	d := shop(f)
	h := pages(f, d.open(), Options{Base: d.open()})
	for _, seed := range []string{
		"/?service=storefront&name=pricing&min=10ms&last=15m", "/?from=2026-01-02T15:04&to=2026-01-02T15:04:05Z",
		rootPath() + "?span=" + spanID("root") + "&type=cpu&frame=3",
		wallPath() + "/flamegraph?f=main&si=wall", wallPath() + "/top?n=1", wallPath() + "/peek?f=(",
		wallPath() + ".pb.gz", "/names?last=1h", "/name?service=storefront&name=pricing&part=slow&frame=9",
		"/compare?what=times&service=storefront&type=cpu&afrom=2026-01-02T15:04:05Z&blast=1h",
		"/compare?a=" + traceID("t") + "/" + spanID("root"), "/memory?service=storefront&last=1h",
		"/memory/plot.svg?service=storefront",
		"/flame/" + encodeSpec(
			url.Values{"kind": {"memory"}, "service": {"storefront"}, "afrom": {"2026-01-02T15:04:05Z"}},
		) + "/top", "/flame/" + encodeSpec(url.Values{"kind": {"name"}}) + "/flamegraph", "/trace/%2e%2e/x",
		"/profiles?service=storefront&type=memory&version=1&last=24h&frame=2",
		"/profiles.pb.gz?service=storefront&from=2026-01-02T15:04:05Z",
		"/compare?what=versions&service=storefront&aversion=1&bversion=2&frame=1",
		"/flame/" + encodeSpec(
			url.Values{"kind": {"profiles"}, "service": {"storefront"}, "type": {"cpu"}},
		) + "/top", "/name?service=storefront&name=pricing&dframe=2", "/memory?service=storefront&frame=1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, address string) {
		u, err := url.ParseRequestURI(address)
		if err != nil || !strings.HasPrefix(address, "/") || u.Host != "" || strings.Contains(u.Path, "/graph") { // which runs another program
			return
		}
		r := httptest.NewRequest(http.MethodGet, "http://localhost/", nil)
		r.URL, r.RequestURI = u, address
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Errorf("%q: status %d: %s", address, w.Code, w.Body)
		}
	})
}

// Without a word of which, a page is of the service whose request was the slowest, not of the first of the alphabet; where
// there are no traces of any, of that.
func TestTheServiceToLookAt(t *testing.T) {
	d := shop(t)
	d.profile(record.Meta{Service: "aviary", Type: record.CPU, Start: began, End: began.Add(15 * time.Second)}, "cpu", "nanoseconds", sample{"main.sing", 1e7, ""})
	h := pages(t, d.open(), Options{})
	for _, path := range []string{"/profiles", "/memory"} {
		shows(t, page(t, h, path), `of <bdi class="service">storefront</bdi>`)
	}
	quiet := newSaved(t)
	for _, service := range []string{"zoo", "aviary"} {
		quiet.profile(
			record.Meta{Service: service, Type: record.CPU, Start: began, End: began.Add(15 * time.Second)}, "cpu",
			"nanoseconds", sample{"main.sing", 1e7, ""},
		)
	}
	shows(t, page(t, pages(t, quiet.open(), Options{}), "/profiles"), `of <bdi class="service">aviary</bdi>`)
}

// One window cannot be halved.
func TestASingleWindowIsNotHalved(t *testing.T) {
	d := newSaved(t)
	for i, service := range []string{"once", "twice", "twice"} {
		start := began.Add(time.Duration(i) * 15 * time.Second)
		d.profile(record.Meta{Service: service, Type: record.CPU, Start: start, End: start.Add(15 * time.Second)}, "cpu", "nanoseconds", sample{"main.sing", 1e7, ""})
	}
	h := pages(t, d.open(), Options{})
	for service, want := range map[string]bool{"once": false, "twice": true} {
		if got := page(t, h, "/compare?what=times&service="+service); strings.Contains(got, "the half from") != want {
			t.Errorf("halves of %s are offered: %v, want %v", service, !want, want)
		}
	}
}

func TestDamagedProfileIsPassedOverAndSaid(t *testing.T) {
	d := shop(t)
	m := record.Meta{Service: "storefront", Type: record.Memory, Start: began.Add(20 * time.Second), End: began.Add(35 * time.Second)}
	path := filepath.Join(d.dir, "profiles", filepath.FromSlash(m.SavedPath()))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("\x1f\x8bno profile"), 0o644); err != nil {
		t.Fatal(err)
	}
	h := pages(t, d.open(), Options{})
	shows(t, page(t, h, "/memory?service=storefront"), "13 MiB", "main.leak", "left out: 1, such as "+path)
	shows(t, page(t, h, "/profiles?service=storefront&type=memory"), "left out: 1, such as "+path)
	shows(t, page(t, h, "/"), "Profiles that cannot be used and are left out: 1, such as "+path)
}

// A tree that was cut says so, also as one side of a difference; zoomed deep, each frame above links to itself.
func TestDeepStacks(t *testing.T) {
	deep := func(depth int) *profile.Profile {
		var b strings.Builder
		for i := range depth {
			fmt.Fprintf(&b, ";main.f%d", i)
		}
		return pprofOf(began, time.Second, "cpu", "nanoseconds", nil, sample{b.String()[1:], 9e8, ""})
	}
	whole, cut := deep(maxFlameDepth), deep(maxFlameDepth+1)
	if newFlame(whole, "", 0).Cut || !newFlame(cut, "", 0).Cut {
		t.Error("want the deeper graph alone to be cut")
	}
	for name, tt := range map[string]struct {
		after, before *profile.Profile
		want          bool
	}{"neither": {whole, whole, false}, "after": {cut, whole, true}, "before": {whole, cut, true}} {
		if got := newDifference(differenceTree(tt.after, tt.before, 1, 1), "nanoseconds", "", 0).Cut; got != tt.want {
			t.Errorf("%s is cut: %v, want %v", name, got, tt.want)
		}
	}
	for i, f := range newFlame(whole, "/at?frame=", maxFlameDepth/2).Frames {
		if want := fmt.Sprintf("/at?frame=%d#flame", i); f.Path != want {
			t.Errorf("frame %d of a single stack links to %s, want %s", i, f.Path, want)
		}
	}
}

// A single window is of one instance, though others have one of the same time.
func TestWindowOfOneInstance(t *testing.T) {
	d := newSaved(t)
	for _, instance := range []string{"left", "right"} {
		d.profile(record.Meta{
			Service: "shop", Type: record.CPU, Start: began, End: began.Add(15 * time.Second), Labels: map[string]string{record.InstanceLabel: instance},
		}, "cpu", "nanoseconds", sample{"main." + instance, 5e8, ""})
	}
	h := pages(t, d.open(), Options{})
	all := page(t, h, "/profiles")
	shows(t, all, "main.left", "main.right", "2 windows")
	window := regexpOf(t, all, `<li><a href="(/profiles\?[^"]*instance=left[^"]*)"`)
	one := page(t, h, window)
	shows(t, one, "main.left", "1 window from", "<bdi>left</bdi>")
	if strings.Contains(one, "main.right") {
		t.Error("the window of one instance has the other's functions")
	}
	if p, err := profile.Parse(get(h, regexpOf(t, one, `href="(/profiles\.pb\.gz[^"]*)"`)).Body); err != nil || sum(p, 0) != 5e8 {
		t.Errorf("the download of one instance: %v, %v", p, err)
	}
}

// A page of profiles is of no single span, and does not speak of one where all of the time is other goroutines'.
func TestProfilesOfOthersAlone(t *testing.T) {
	d := newSaved(t)
	d.wall("shop", 0, time.Second, sample{wallprofile.Others + ";main.help", 9e8, "root"})
	got := page(t, pages(t, d.open(), Options{}), "/profiles?type=wall")
	shows(t, got, "There is nothing to draw.", "Other goroutines worked 900 ms")
	if strings.Contains(got, "own goroutine") {
		t.Error("the page speaks of a span's own goroutine")
	}
}
