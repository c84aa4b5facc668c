package viewer

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"spanflame/internal/traces"
	"spanflame/viewer/internal/fixture"
)

func TestByName(t *testing.T) {
	d := fixture.New(t)
	var spans []fixture.Span
	var samples []fixture.Stack
	for i := range 20 { // the two slowest wait for a lock
		name := fmt.Sprintf("s%d", i)
		took := time.Duration(100+i) * time.Millisecond
		stack := "span: GET /;main.work"
		if i >= 18 {
			took, stack = time.Second, "span: GET /;main.lock;[waiting: mutex]"
		}
		spans = append(
			spans,
			fixture.Span{Trace: name, ID: name, Service: "svc", Name: "GET /", Start: time.Duration(i) * 2 * time.Second, Took: took, Profiled: true},
		)
		samples = append(samples, fixture.Sample(stack, int64(took), name))
	}
	d.Spans(spans...)
	d.Spans( // what agents mark, too, but do not record
		fixture.Span{Trace: "quick", ID: "quick", Service: "svc", Name: "GET /quick", Took: 60 * time.Millisecond, Profiled: true},
		fixture.Span{Trace: "quick", ID: "inside quick", Parent: "quick", Service: "svc", Name: "load", Took: 50 * time.Millisecond, Profiled: true},
		fixture.Span{Trace: "s19", ID: "inside", Parent: "s19", Service: "svc", Name: "load", Took: 50 * time.Millisecond, Profiled: true},
		fixture.Span{Trace: "s19", ID: "short inside", Parent: "inside", Service: "svc", Name: "load", Took: 5 * time.Millisecond, Profiled: true},
		fixture.Span{Trace: "s19", ID: "elsewhere", Parent: "s19", Service: "other", Name: "GET /other", Took: 50 * time.Millisecond, Profiled: true},
	)
	d.Spans(fixture.Span{Trace: "s18", ID: "call", Parent: "s18", Service: "svc", Name: "GET /", Client: true, Took: 900 * time.Millisecond, Profiled: true})
	for i := range 5 { // so fast that they have no profile
		name := fmt.Sprint("fast", i)
		d.Spans(fixture.Span{Trace: name, ID: name, Service: "svc", Name: "GET /", Took: 10 * time.Millisecond, Profiled: true})
	}
	d.Wall("svc", 0, time.Minute, samples...)
	h := pages(t, open(t, d.Dir), Options{})
	list := page(t, h, "/names")
	shows(t, list, "GET /", `<td class="num">25</td><td class="num">107 ms</td><td class="num">1 s</td><td class="num">20</td><td class="num">109 ms</td>`,
		`load</bdi></a></td><td class="num">3</td><td class="num">50 ms</td><td class="num">50 ms</td><td class="num">1</td>`,
		`GET /</bdi></a> <span class="chip">client</span></td><td class="num"></td><td class="num"></td><td class="num"></td>`+
			`<td class="num">1</td><td class="num">900 ms`)
	shows(t, page(t, h, "/name?service=svc&name=GET+%2F&kind=client"), "1 captured span")
	if strings.Contains(list, "quick") || strings.Contains(list, "other") {
		t.Errorf("names of spans that cannot have profiles:\n%s", list)
	}
	shows(t, page(t, pages(t, open(t, d.Dir), Options{SlowSpan: 50 * time.Millisecond}), "/names"),
		"of 50 ms and more", "GET /quick", "GET /other",
		`load</bdi></a></td><td class="num">3</td><td class="num">50 ms</td><td class="num">50 ms</td><td class="num">2</td>`)
	got := page(t, h, "/name?service=svc&name=GET+%2F")
	shows(t, got, "20 captured spans", "median <b>109 ms</b>",
		"The mean of 2 spans, <b>1 s</b>, against the mean of the 4 around the median, <b>110 ms</b>",
		"main.lock: before 0 ns, after 1 s, &#43;1 s", "the slowest 10 %",
		"&#43;1 s", "main.lock", "main.work", "[waiting: mutex]", SpanPath(fixture.TraceID("s19"), fixture.SpanID("s19")))
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

// The mean of the slowest spans has the stacks that are in few of them.
func TestByNameHasRareStacks(t *testing.T) {
	d := fixture.New(t)
	var samples []fixture.Stack
	for i := range 30 {
		name := fmt.Sprint("s", i)
		stack, value := "span: GET /;main.work", int64(100e6)
		if i >= 27 { // the slowest 10 %
			stack, value = fmt.Sprint("span: GET /;main.rare", i), 1
		}
		d.Spans(fixture.Span{Trace: name, ID: name, Service: "svc", Name: "GET /", Took: time.Duration(100+i) * time.Millisecond, Profiled: true})
		samples = append(samples, fixture.Sample(stack, value, name))
	}
	d.Wall("svc", 0, time.Minute, samples...)
	spec := url.Values{"kind": {"name"}, "service": {"svc"}, "name": {"GET /"}, "part": {"difference"}}
	shows(t, page(t, pages(t, open(t, d.Dir), Options{}), "/flame/"+encodeSpec(spec)+"/flamegraph"), "main.rare", "main.work")
}

// If there are many spans, the profiles of an even selection are merged; all spans are counted.
func TestByNameSaysWhatItMerged(t *testing.T) {
	d := fixture.New(t)
	var spans []fixture.Span
	for i := range mergedSpans + 48 {
		name := fmt.Sprint(i)
		spans = append(
			spans,
			fixture.Span{Trace: name, ID: name, Service: "svc", Name: "GET /", Took: time.Second + time.Duration(i)*time.Millisecond, Profiled: true},
		)
	}
	d.Spans(spans...)
	h := pages(t, open(t, d.Dir), Options{})
	shows(t, page(t, h, "/names"), `<td class="num">548</td>`)
	got := page(t, h, "/name?service=svc&name=GET+%2F")
	shows(t, got, "548 captured spans, 500 of them merged, evenly from the slowest to the fastest")
	for i := range listedSlowest { // without gaps
		name := fmt.Sprint(mergedSpans + 47 - i)
		shows(t, got, SpanPath(fixture.TraceID(name), fixture.SpanID(name)))
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
			spans = append(spans, traces.Span{ID: fmt.Sprint(i), Start: fixture.Began, End: fixture.Began.Add(time.Duration(i))})
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
