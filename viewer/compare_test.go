package viewer

import (
	"context"
	"errors"
	"fmt"
	"html"
	"iter"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/viewer/internal/fixture"
	"spanflame/viewer/source"
)

func TestCompare(t *testing.T) {
	d := fixture.Shop(t)
	d.Spans(
		fixture.Span{
			Trace: "u", ID: "fast", Service: "storefront", Name: "POST /checkout", Start: time.Minute,
			Took: 150 * time.Millisecond, Profiled: true,
		},
	)
	d.Wall("storefront", time.Minute, 150*time.Millisecond, fixture.Sample("span: POST /checkout;main.(*Cart).Price;main.discount", 150e6, "fast"))
	base := fixture.New(t)
	base.Profile(
		record.Meta{Service: "storefront", Type: record.CPU, Start: fixture.Began, End: fixture.Began.Add(15 * time.Second)}, "cpu",
		"nanoseconds", fixture.Sample("main.before", 10e6, ""),
	)
	// Time in a root's profile is not counted again for its child's profile.
	d.Profile(record.Meta{
		Service: "storefront", Type: record.Wall, Start: fixture.Began, End: fixture.Began.Add(time.Second),
		Labels: map[string]string{"span_scope": "child"},
	},
		"wall", "nanoseconds", fixture.Sample("span: POST /checkout;span: pricing;main.discount", 500e6, "pricing"))
	h := pages(t, open(t, d.Dir), Options{Base: open(t, base.Dir)})
	offer := page(t, h, "/compare")
	shows(t, offer, "Two spans", "the base directory")
	against := regexp.MustCompile(`href="([^"]*)"><bdi>against the base directory`).FindAllStringSubmatch(offer, -1)
	if len(against) == 0 {
		t.Fatalf("the base directory is not an option:\n%s", offer)
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
		{url.Values{"a": {fixture.TraceID("t") + "/" + fixture.SpanID("root")}, "b": {fixture.TraceID("u") + "/" + fixture.SpanID("fast")}},
			[]string{
				"storefront POST /checkout against storefront POST /checkout</h1>",
				"before <b>600 ms</b> <a href=\"" + html.EscapeString(SpanPath(fixture.TraceID("t"), fixture.SpanID("root"))),
				"after <b>150 ms</b> <a href", "−450 ms",
				`sync.(*Mutex).Lock</code></bdi> <span class="dim">in</span> <bdi><code>main.(*Cart).Price`, "[waiting: mutex]",
				"&#43;70 ms",
			}},
		{url.Values{"what": {"times"}, "service": {"storefront"}, "type": {"memory"}, "ato": {"2026-01-02T15:04:10Z"}, "bfrom": {"2026-01-02T15:04:51Z"}},
			[]string{"&#43;3 MiB", "main.leak"}},
		{url.Values{"what": {"times"}, "service": {"storefront"}, "ato": {"2026-01-02T15:04:10Z"}, "bfrom": {"2026-01-02T15:04:51Z"}},
			[]string{"before <b>600 ms</b> · after <b>150 ms</b>", "the mean of a request"}},
		{url.Values{"what": {"directories"}, "service": {"storefront"}, "type": {"cpu"}},
			[]string{"before <b>667 µs/s</b> · after <b>11.3 ms/s</b>", "main.before", "main.elsewhere"}},
	} {
		got := page(t, h, "/compare?"+tt.query.Encode())
		shows(t, got, tt.parts...)
		link := regexp.MustCompile(`/flame/[\w-]+/flamegraph`).FindString(got)
		shows(t, page(t, h, link), "back to the comparison")
	}
	for query, want := range map[string]string{
		"what=times&service=inventory&ato=2026-01-02T15:04:10Z":   "Both sides, before and after, have no profile of the type wall",
		"what=times&service=storefront&ato=2026-01-01+15:04:05":   "The side before has no profile of the type wall clock of slow",
		"what=times&service=storefront&type=cpu&bfrom=15m":        "The side after has no profile of the type CPU.",
		"a=" + spanAddress("short") + "&b=" + spanAddress("root"): "The side before has no profile",
		"a=" + spanAddress("root") + "&b=" + spanAddress("short"): "The side after has no profile",
		"what=times&service=&afrom=":                              "Say which service.",
		"what=times&service=storefront":                           "Say at least one of the times.",
		"what=spans&a=&b=":                                        "Say which two spans",
		"a=" + spanAddress("root"):                                "Say which span is the one after: choose it below.",
		"b=" + spanAddress("root"):                                "Say which span is the one before: choose it below.",
	} {
		shows(t, page(t, h, "/compare?"+query), `<p class="empty">`+want)
	}
	shows(
		t, page(t, h, "/compare?a="+spanAddress("root")), "of the same name, from the slowest to the fastest",
		"b="+fixture.TraceID("u")+"%2F"+fixture.SpanID("fast"),
	)
	shows(t, page(t, h, "/compare?a="+spanAddress("pricing")), "none of the same name is known", "b="+url.QueryEscape(spanAddress("root")))
	if got := page(t, h, "/compare"); strings.Contains(got, `class="empty"`) {
		t.Errorf("an empty form shows an error:\n%s", got)
	}
}

// Most requests that were slow are repaired. The ones that still are take longer, so that the mean of a slow request
// increases: the header and the table agree that the requests became faster.
func TestARepairIsAnImprovement(t *testing.T) {
	d := fixture.New(t)
	for i := range 80 {
		at, took := time.Duration(i)*time.Second+time.Millisecond, 20*time.Millisecond
		switch {
		case i%40 == 39:
			took = 600 * time.Millisecond
		case i < 40 && i%2 == 0:
			took = 300 * time.Millisecond
		}
		name := fmt.Sprint("request ", i)
		d.Spans(fixture.Span{Trace: name, ID: name, Service: "shop", Name: "GET /item", Start: at, Took: took, Profiled: took > 100*time.Millisecond})
		if took > 100*time.Millisecond {
			d.Wall("shop", at, took, fixture.Sample("span: GET /item;main.handle", int64(took), name),
				fixture.Sample("span: GET /item;"+wallprofile.Others+";main.helper", int64(took), name))
		}
	}
	h := pages(t, open(t, d.Dir), Options{})
	got := page(t, h, "/compare?what=times&service=shop&ato=2026-01-02T15:04:45Z&bfrom=2026-01-02T15:04:45Z")
	// 20 requests of 300 ms and one of 600 ms, divided by 40; and one of 600 ms, divided by 40.
	shows(t, got, "Each side is the mean of a request", "before <b>165 ms</b> · after <b>15.0 ms</b>", `<td class="num">165 ms</td><td class="num">15.0 ms</td>`,
		"main.handle: before 165 ms, after 15 ms, −150 ms", `<td class="num less">`)
	if strings.Contains(got, `<td class="num more">`) {
		t.Errorf("the repair is shown as a regression:\n%s", got)
	}
	// Before the traces are read, the page does not say that there are none.
	h = pages(t, &reading{Source: open(t, d.Dir), err: source.ErrReading}, Options{})
	shows(t, page(t, h, "/compare?what=times&service=shop&ato=2026-01-02T15:04:45Z&bfrom=2026-01-02T15:04:45Z"), "still being read: load the page again")
	// Without a verdict, a side is the mean of the requests that were recorded.
	h = pages(t, &reading{Source: open(t, d.Dir), err: errors.New("traces cannot be read")}, Options{})
	shows(t, page(t, h, "/compare?what=times&service=shop&ato=2026-01-02T15:04:45Z&bfrom=2026-01-02T15:04:45Z"),
		"traces cannot be read", "Each side is the mean of its requests or windows, if their number is known", "before <b>314 ms</b> · after <b>600 ms</b>")
}

// spanAddress returns a span of the trace "t" as a parameter of a comparison.
func spanAddress(id string) string { return fixture.TraceID("t") + "/" + fixture.SpanID(id) }

// A running service is compared with itself a short time ago; the second half of one that has ended, with the first.
func TestOfferedTimes(t *testing.T) {
	now := fixture.Began.Add(30 * time.Hour)
	offered := func(from, to time.Time) (words string) {
		for _, o := range choicesOf(
			"shop",
			[]source.Content{{Type: record.CPU, From: from, To: to, Several: true}, {Type: record.Wall, Version: "1"}, {Type: record.Wall, Version: "2"}},
			false, now, zone{},
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
		"a day and more": {fixture.Began, now.Add(-time.Minute), []string{
			"the last 5 minutes", "the last 15", "the hour before", "of a day ago", half,
		}, "version"},
		"20 minutes":      {now.Add(-20 * time.Minute), now.Add(-time.Minute), []string{"the last 5 minutes", half}, "last 15"},
		"it has ended":    {fixture.Began, fixture.Began.Add(time.Hour), []string{half + "2 15:34:05"}, "the last"},
		"a single moment": {fixture.Began, fixture.Began, nil, "half"},
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

// One window cannot be halved.
func TestASingleWindowIsNotHalved(t *testing.T) {
	d := fixture.New(t)
	for i, service := range []string{"once", "twice", "twice"} {
		start := fixture.Began.Add(time.Duration(i) * 15 * time.Second)
		d.Profile(
			record.Meta{Service: service, Type: record.CPU, Start: start, End: start.Add(15 * time.Second)}, "cpu",
			"nanoseconds", fixture.Sample("main.sing", 1e7, ""),
		)
	}
	h := pages(t, open(t, d.Dir), Options{})
	for service, want := range map[string]bool{"once": false, "twice": true} {
		if got := page(t, h, "/compare?what=times&service="+service); strings.Contains(got, "the half from") != want {
			t.Errorf("halves of %s are an option: %v, want %v", service, !want, want)
		}
	}
}

// Sides of different sample types are refused before their windows are read.
func TestCompareRefusesDifferentTypes(t *testing.T) {
	cpuOf := func(unit string) source.Source {
		d := fixture.New(t)
		d.Profile(record.Meta{Service: "shop", Type: record.CPU, Start: fixture.Began, End: fixture.Began.Add(15 * time.Second)}, "cpu", unit,
			fixture.Sample("main.main", 1e9, ""))
		return open(t, d.Dir)
	}
	from := &counting{Source: cpuOf("nanoseconds")}
	h := pages(t, from, Options{Base: cpuOf("count")})
	q := url.Values{"what": {"directories"}, "type": {"cpu"}, "service": {"shop"}}
	shows(t, page(t, h, "/compare?"+q.Encode()), "The sides have different sample types, cpu in count and cpu in nanoseconds")
	q.Set("kind", "compare")
	if got := get(h, "/flame/"+encodeSpec(q)+"/flamegraph"); got.Code != http.StatusNotFound {
		t.Errorf("the page of pprof has status %d, want %d", got.Code, http.StatusNotFound)
	}
	if from.series > 0 {
		t.Errorf("%d series of windows were read", from.series)
	}
}

// counting counts how often the windows of a selection are read one by one.
type counting struct {
	source.Source
	series int
}

func (c *counting) Series(ctx context.Context, sel source.Selection, most int) iter.Seq2[profiles.Window, error] {
	c.series++
	return c.Source.Series(ctx, sel, most)
}

func TestCompareTellsAChangeFromChance(t *testing.T) {
	d := fixture.New(t)
	for i := range 16 {
		start := fixture.Began.Add(time.Duration(i) * 15 * time.Second)
		slow := int64(1e9)
		if i >= 8 {
			slow = 15e8
		}
		d.Profile(record.Meta{Service: "storefront", Type: record.CPU, Start: start, End: start.Add(15 * time.Second)}, "cpu", "nanoseconds",
			fixture.Sample("main.main;main.slow", slow+fixture.Jitter(i), ""), fixture.Sample("main.main;main.same", 2e9+fixture.Jitter(i+3), ""))
	}
	from := &counting{Source: open(t, d.Dir)}
	h := pages(t, from, Options{})
	middle := fixture.Began.Add(120 * time.Second).Format(time.RFC3339)
	q := url.Values{"what": {"times"}, "type": {"cpu"}, "service": {"storefront"}, "ato": {middle}, "bfrom": {middle}}
	got := page(t, h, "/compare?"+q.Encode())
	shows(t, got, "per second: 8 windows before, 8 after", "A change of ~ is not significant")
	for name, want := range map[string]string{"main.slow": "+50", "main.same": "~"} {
		if row := rowOf(got, name); !strings.Contains(strings.ReplaceAll(row, "&#43;", "+"), want) {
			t.Errorf("%s: %q, want %s", name, row, want)
		}
	}

	shows(t, page(t, h, html.UnescapeString(regexp.MustCompile(`/flame/[^"]*`).FindString(got))), "main.slow", "back to the comparison")
	if from.series != 2 {
		t.Errorf("the pages of the comparison read %d series of windows, want one for each side", from.series)
	}

	q.Set("ato", fixture.Began.Add(15*time.Second).Format(time.RFC3339))
	shows(t, page(t, h, "/compare?"+q.Encode()), "1 window before, 8 after", "Not tested for significance, which needs four windows on each side", "main.slow")
}

// rowOf is the first line of a table that has a function.
func rowOf(page, function string) string {
	for _, row := range strings.Split(page, "<tr>") {
		if strings.Contains(row, "<code>"+function+"<") {
			return row
		}
	}
	return ""
}

// unlabelled is a source like servers: profiles do not have the IDs of their requests.
type unlabelled struct {
	source.Source
	requests []traces.Span
	asked    source.Filter
}

func (u *unlabelled) Profile(context.Context, source.Selection) (*profile.Profile, error) {
	return fixture.Profile(fixture.Began, time.Minute, "wall", "nanoseconds", nil,
		fixture.Sample("main.wait;[waiting: mutex]", 540e6, ""), fixture.Sample("main.work", 60e6, ""),
		fixture.Sample(wallprofile.Others+";main.help", 900e6, "")), nil
}

func (u *unlabelled) Windows(context.Context, source.Selection) ([]source.Window, error) {
	return make([]source.Window, 3), nil
}

func (u *unlabelled) Captured(_ context.Context, f source.Filter) ([]traces.Span, error) {
	u.asked = f
	return u.requests, nil
}

// mean returns a selection's profile as a comparison has it without a verdict.
func mean(t *testing.T, from source.Source, sel source.Selection) (*profile.Profile, error) {
	t.Helper()
	p, err := from.Profile(t.Context(), sel)
	if err != nil {
		return nil, err
	}
	return p, scale(t.Context(), from, sel, p, 0)
}

func TestMeanOfRequestsThatProfilesDoNotTell(t *testing.T) {
	sel := source.Selection{
		Service: "shop", Version: "2", Type: record.Wall, Slow: 50 * time.Millisecond, From: fixture.Began,
		To: fixture.Began.Add(time.Hour),
	}
	at := func(took time.Duration) traces.Span {
		return traces.Span{Start: fixture.Began, End: fixture.Began.Add(took)}
	}
	for _, tt := range []struct {
		requests []traces.Span
		want     int64 // of the requests' own time
	}{
		{[]traces.Span{at(100e6), at(200e6), at(300e6)}, 200e6},
		{[]traces.Span{at(600e6)}, 600e6},
		{nil, 200e6}, // nothing is known of them: the mean of the three windows
	} {
		from := &unlabelled{requests: tt.requests}
		p, err := mean(t, from, sel)
		if err != nil {
			t.Fatal(err)
		}
		if got := sum(p, 0); got < tt.want-2 || got > tt.want+2 {
			t.Errorf("%d requests: %d ns, want %d", len(tt.requests), got, tt.want)
		}
		if want := (source.Filter{
			Service: "shop", Version: "2", Slow: sel.Slow, Requests: true, From: sel.From, To: sel.To, Limit: capturedSpans,
		}); from.asked != want {
			t.Errorf("asked for %+v, want %+v", from.asked, want)
		}
	}
}

// A mean has the stacks that are in few of its windows, and so has a part of a verdict's total.
func TestMeanHasRareStacks(t *testing.T) {
	s := fixture.New(t)
	for i := range 4 {
		start := fixture.Began.Add(time.Duration(i) * time.Minute)
		s.Profile(record.Meta{Service: "shop", Type: record.CPU, Start: start, End: start.Add(15 * time.Second)}, "cpu",
			"nanoseconds", fixture.Sample(fmt.Sprint("main.main;main.f", i), 1, ""))
	}
	d, sel := open(t, s.Dir), source.Selection{Service: "shop", Type: record.CPU}
	for total, want := range map[float64]int64{0: 1, 2: 2} {
		p, err := d.Profile(t.Context(), sel)
		if err != nil {
			t.Fatal(err)
		}
		if err := scale(t.Context(), d, sel, p, total); err != nil || sum(p, 0) != want {
			t.Errorf("scaled to %v: %d, %v, want %d", total, sum(p, 0), err, want)
		}
	}
}

// A sum is divided by the number of its windows, not counting damaged ones.
func TestMeanLeavesOutDamaged(t *testing.T) {
	s := fixture.New(t)
	for i := range 3 {
		start := fixture.Began.Add(time.Duration(i) * time.Minute)
		s.Profile(
			record.Meta{Service: "shop", Type: record.CPU, Start: start, End: start.Add(15 * time.Second)}, "cpu",
			"nanoseconds", fixture.Sample("main.main", 6e8, ""),
		)
	}
	path := fixture.OneFile(t, s.Dir)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := open(t, s.Dir)
	write := func(b []byte) {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range [][]byte{whole[:len(whole)-12], whole} {
		write(b)
		p, err := mean(t, d, source.Selection{Service: "shop", Type: record.CPU})
		if err != nil || sum(p, 0) != 6e8 {
			t.Errorf("%d of %d bytes: the mean is %v, %v, want 6e8", len(b), len(whole), p, err)
		}
	}
}
