package viewer

import (
	"fmt"
	"html"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"spanflame/internal/wallprofile"
	"spanflame/viewer/internal/fixture"
)

// mistakes are ten problems of one directory: what each diagnosis is after its name, and how many traces have it.
var mistakes = []struct {
	route, says string
	took        time.Duration
	traces      int
}{
	{
		"POST /checkout", "%d ms (90 %%) waiting for a mutex in shop.(*Till).settle, held in turn by %d other requests: 80 ms of it in sql.(*Tx).Commit",
		400 * time.Millisecond, 40,
	},
	{"GET /pool", "%d ms (90 %%) waiting for a free connection of database/sql's pool in shop.load", 900 * time.Millisecond, 3},
	{"GET /price", "%d ms (90 %%) on the CPU in shop.price", 800 * time.Millisecond, 3},
	{"GET /gc", "%d ms (90 %%) helping the garbage collector in shop.decode", 700 * time.Millisecond, 3},
	{"GET /list", "%d ms (90 %%) waiting for the database's answer in shop.list", 600 * time.Millisecond, 3},
	{"GET /retry", "%d ms (90 %%) sleeping in shop.backoff", 500 * time.Millisecond, 3},
	{"GET /peer", "%d ms (90 %%) waiting for the answer of an HTTP call in shop.stock", 450 * time.Millisecond, 3},
	{"GET /fan", "%d ms (90 %%) waiting for a WaitGroup in shop.all", 420 * time.Millisecond, 3},
	{"GET /disk", "%d ms (90 %%) waiting for a file to reach the disk (fsync) in shop.save", 410 * time.Millisecond, 3},
	{"POST /checkout", "%d ms (90 %%) waiting for a mutex in shop.(*Stock).reserve, held by: POST /audit, another request", 405 * time.Millisecond, 1},
}

// ten saves the ten mistakes, and requests that are meant to last and take longer than all others.
func ten(t *testing.T) fixture.Saved {
	d := fixture.New(t)
	for i, m := range mistakes {
		for j := range m.traces {
			id := fmt.Sprintf("%d-%d", i, j)
			took := m.took + time.Duration(j)*time.Millisecond
			args := []any{took.Milliseconds() * 9 / 10, j + 1}[:strings.Count(m.says, "%d")]
			save(d, id, m.route, took, fmt.Sprintf(m.says, args...), fixture.Sample("shop.handle", int64(took), id))
		}
	}
	for j := range 20 {
		id := fmt.Sprintf("stream-%d", j)
		save(d, id, "GET /events", 30*time.Second, "29900 ms (100 %) waiting in a select in shop.(*feed).events",
			fixture.Sample("shop.(*feed).events;runtime.selectgo;"+wallprofile.WaitSelect.Leaf(), 299e8, id),
			fixture.Sample("shop.(*feed).events;net/http.(*response).FlushError;"+wallprofile.Syscall.Leaf(), 1e6, id))
	}
	return d
}

// save saves a trace of one span with its profile, and the diagnosis that its agent wrote.
func save(d fixture.Saved, id, route string, took time.Duration, says string, samples ...fixture.Stack) {
	d.Spans(fixture.Span{Trace: id, ID: id, Service: "shop", Name: route, Took: took, Profiled: true})
	d.Comments = []string{wallprofile.Comment(fixture.SpanID(id), fmt.Sprintf("%d ms %s: %s", took.Milliseconds(), route, says))}
	d.Wall("shop", 0, took, samples...)
}

// inOrder fails unless the page has all of the parts, one after the other.
func inOrder(t *testing.T, page string, parts ...string) {
	t.Helper()
	rest := html.UnescapeString(page)
	for _, part := range parts {
		_, after, ok := strings.Cut(rest, part)
		if !ok {
			t.Fatalf("%q does not follow in the page:\n%s", part, page)
		}
		rest = after
	}
}

// TestTenProblemsAtOnce: each problem has one row, whatever the number of its traces; the one that cost most comes first, and
// what is meant to last comes after all others, however long it took.
func TestTenProblemsAtOnce(t *testing.T) {
	h := pages(t, open(t, ten(t).Dir), Options{})
	shown := page(t, h, "/")
	if n := strings.Count(shown, `class="took"`); n != len(mistakes)+1 {
		t.Errorf("%d rows, want one for each of %d problems and the stream", n, len(mistakes))
	}
	inOrder(t, shown, "16.8 s", "POST /checkout", "53.2 %",
		"40 × · median 419 ms · slowest 439 ms · of 41 sampled requests, slow or not: median 419 ms, 99 % 439 ms",
		"waiting for a mutex in shop.(*Till).settle: mostly in sql.(*Tx).Commit", "All 40 traces",
		"2.7 s", "GET /pool", "3 × · median 901 ms · slowest 902 ms", "waiting for a free connection of database/sql's pool in shop.load",
		"on the CPU in shop.price", "helping the garbage collector in shop.decode", "waiting for the database's answer in shop.list",
		"sleeping in shop.backoff", "waiting for the answer of an HTTP call in shop.stock", "waiting for a WaitGroup in shop.all",
		"waiting for a file to reach the disk (fsync) in shop.save",
		"405 ms", "POST /checkout", "waiting for a mutex in shop.(*Stock).reserve, held by: POST /audit, another request", "The trace in a list",
		"Meant to last", "GET /events", "20 × · median 30 s", "waiting in a select in shop.(*feed).events")
	if strings.Contains(shown, "No diagnosis") {
		t.Errorf("a row has no diagnosis:\n%s", shown)
	}
}

// TestProblemOpensOntoItsTraces: a problem is listed trace by trace, the slowest first, each with its own numbers, within what
// restricts the page.
func TestProblemOpensOntoItsTraces(t *testing.T) {
	h := pages(t, open(t, ten(t).Dir), Options{})
	shown := page(t, h, "/?service=shop&min=200ms")
	shows(t, shown, `href="`+TracePath(fixture.TraceID("0-39"))+`"`)
	link := regexpOf(t, shown, `href="([^"]*problem=[^"]*)">All 40 traces`)
	if !strings.Contains(link, "service=shop") || !strings.Contains(link, "min=200ms") {
		t.Errorf("the link is %s, want it to keep what restricts the traces", link)
	}
	shown = page(t, h, link)
	inOrder(t, shown, "All problems", "POST /checkout", "waiting for a mutex in shop.(*Till).settle: mostly in sql.(*Tx).Commit",
		"40 traces, 16.8 s in all", TracePath(fixture.TraceID("0-39")), "439 ms",
		"395 ms (90 %) waiting for a mutex in shop.(*Till).settle, held in turn by 40 other requests",
		TracePath(fixture.TraceID("0-0")), "400 ms", "360 ms (90 %)")
	if n := strings.Count(shown, `class="took"`); n != 40 {
		t.Errorf("%d traces, want 40", n)
	}

	for path, want := range map[string]int{
		"/?problem=0000000000000000": http.StatusNotFound, "/?problem=x": http.StatusBadRequest, "/?show=x": http.StatusBadRequest,
	} {
		if w := get(h, path); w.Code != want {
			t.Errorf("%s: status %d, want %d", path, w.Code, want)
		}
	}
}

// TestRoutesCanBeLeftOut: the link of a row leaves its route out, in addition to those that are left out.
func TestRoutesCanBeLeftOut(t *testing.T) {
	h := pages(t, open(t, ten(t).Dir), Options{})
	shown := page(t, h, "/?without=/events")
	if strings.Contains(shown, "GET /events") {
		t.Errorf("the route that is left out is on the page:\n%s", shown)
	}
	link := regexpOf(t, shown, `href="([^"]*without=[^"]*pool[^"]*)"`)
	if u, err := url.Parse(link); err != nil || u.Query().Get("without") != "/events,GET /pool" {
		t.Errorf("the link of the row is %s", link)
	}
	shown = page(t, h, link)
	if strings.Contains(shown, "shop.load") || !strings.Contains(shown, "shop.price") {
		t.Errorf("want all but the pool:\n%s", shown)
	}
	shows(t, page(t, h, "/?without=/events&show=traces"), "902 ms")
}

// TestFastTracesAreNoProblems: traces that were neither slow nor captured are in the list alone, however many there are.
func TestFastTracesAreNoProblems(t *testing.T) {
	d := fixture.New(t)
	for i := range 30 {
		id := fmt.Sprint(i)
		d.Spans(fixture.Span{Trace: id, ID: id, Service: "shop", Name: "GET /fast", Took: 99 * time.Millisecond})
	}
	h := pages(t, open(t, d.Dir), Options{})
	shows(t, page(t, h, "/"), "No trace took 100 ms or more", `href="/?show=traces"`)
	shows(t, page(t, h, "/?show=traces"), "GET /fast")
	d.Spans(fixture.Span{Trace: "slow", ID: "slow", Service: "shop", Name: "GET /slow", Took: 100 * time.Millisecond})
	h = pages(t, open(t, d.Dir), Options{})
	shown := page(t, h, "/")
	shows(t, shown, "GET /slow", "No diagnosis: <bdi>no span of it has a flame graph")
	if strings.Contains(shown, "GET /fast") {
		t.Errorf("a fast trace is on the page:\n%s", shown)
	}
}
