package viewer

import (
	"cmp"
	"context"
	"errors"
	"math"
	"net/http"
	"net/url"
	"slices"
	"time"

	"spanflame/viewer/source"

	"github.com/google/pprof/profile"

	"spanflame/internal/flame"
	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/profiles"
)

// Limits of the pages by span name.
const (
	capturedSpans = 5_000 // that are searched
	mergedSpans   = 500   // whose profiles are read
	listedNames   = 200
	listedSlowest = 20
	fewSpans      = 300 // below which the slow part is a tenth: a hundredth would be one or two spans
)

// namesPage is the data of the page of span names.
type namesPage struct {
	head
	Period period
	Slow   string // the least duration of a recorded request
	Names  []listedName
}

type listedName struct {
	Path                    string
	Service, Name, Kind     string
	Requests, Median, P99   string // of all sampled requests, empty if they are not known
	Count                   int    // captured
	CapturedMedian, Slowest string
	slowest                 time.Duration
}

func (s *server) names(w http.ResponseWriter, r *http.Request) error {
	q, err := parameters(r, "last", "from", "to")
	if err != nil {
		return err
	}
	page := namesPage{head: head{Title: "By span name", Current: "names"}, Slow: format.Duration(s.options.SlowSpan)}
	if page.Period, err = parsePeriod(q, "", time.Now()); err != nil {
		return err
	}
	spans, err := s.source.Captured(
		r.Context(),
		source.Filter{From: page.Period.from, To: page.Period.to, Slow: s.options.SlowSpan, Child: defaultChildSpan, Limit: capturedSpans},
	)
	if err != nil {
		return err
	}
	all, err := s.distributions(r.Context(), source.Filter{From: page.Period.from, To: page.Period.to})
	if err != nil {
		return err
	}
	page.Names = byName(spans, q)
	page.Names = page.Names[:min(len(page.Names), listedNames)]
	for i := range page.Names {
		if n := &page.Names[i]; n.Kind == "" {
			n.Requests, n.Median, n.P99 = all.of(n.Service, n.Name)
		}
	}
	return s.render(w, http.StatusOK, "names.html", page)
}

// callKind returns a kind of spans if they are those of a caller, whose name is often that of the request that it makes, and
// "" for all other kinds.
func callKind(kind string) string {
	if kind == "client" || kind == "producer" {
		return kind
	}
	return ""
}

// byName returns the names of spans, that of the slowest first, with pages of the time range in q. Those of callers are apart
// from the spans that they call.
func byName(spans []traces.Span, q url.Values) []listedName {
	type key struct{ service, name, kind string }
	took := make(map[key][]time.Duration)
	for _, sp := range spans {
		k := key{sp.Service, sp.Name, callKind(sp.Kind)}
		took[k] = append(took[k], sp.Duration())
	}
	var names []listedName
	for k, all := range took {
		slices.Sort(all)
		of := url.Values{"service": {k.service}, "name": {k.name}}
		if k.kind != "" {
			of.Set("kind", k.kind)
		}
		for name := range q {
			of.Set(name, q.Get(name))
		}
		names = append(names, listedName{
			Path: "/name?" + of.Encode(), Service: k.service, Name: k.name, Kind: k.kind, Count: len(all), CapturedMedian: format.Duration(quantile(all, 0.5)),
			Slowest: format.Duration(all[len(all)-1]), slowest: all[len(all)-1],
		})
	}
	slices.SortFunc(names, func(a, b listedName) int {
		return cmp.Or(cmp.Compare(b.slowest, a.slowest), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Kind, b.Kind))
	})
	return names
}

// quantile returns a quantile of sorted values: the smallest value that at least this share of them does not exceed.
func quantile(sorted []time.Duration, q float64) time.Duration {
	i := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

// namePage is the data of the page of one span name.
type namePage struct {
	head
	Service, Name          string
	Count, Merged          int
	Median, P90, P99       string
	Slowest                []listedTrace
	Part                   string // whose flame graph is shown
	Parts                  []part
	Flame                  graph
	Others                 flame.Graph
	Pprof                  string
	DifferencePath         string
	SlowWords              string // such as "the slowest 1 %"
	SlowCount, MedianCount int
	Changes                []flame.Change
	Difference             *flame.Graph
	SlowMean, MedianMean   string
	Why                    string
}

// bucket is the spans of one name, divided by their duration.
type bucket struct {
	sorted            []traces.Span // slowest first
	all, slow, median []traces.Span // slowest first, at most mergedSpans each
	words             string        // for slow
}

// buckets divides spans by their duration. Around the median is a fifth of them.
func buckets(spans []traces.Span) bucket {
	sorted := slices.Clone(spans)
	slices.SortFunc(sorted, func(a, b traces.Span) int {
		return cmp.Or(cmp.Compare(b.Duration(), a.Duration()), cmp.Compare(a.ID, b.ID))
	})
	n := len(sorted)
	b := bucket{sorted: sorted, all: source.Spread(sorted, mergedSpans), words: "the slowest 1 %"}
	share := n / 100
	if n < fewSpans {
		share, b.words = n/10, "the slowest 10 %"
	}
	if n < 10 {
		share, b.words = 1, "the slowest"
	}
	b.slow = source.Spread(sorted[:min(share, n)], mergedSpans)
	b.median = source.Spread(sorted[min(n*2/5, max(n-1, 0)):min(max(n*3/5, n*2/5+1), n)], mergedSpans)
	return b
}

// selection selects the wall-clock profiles of spans.
func selection(service string, spans []traces.Span) source.Selection {
	sel := source.Selection{Service: service, Type: record.Wall, SpanIDs: make([]string, 0, len(spans))}
	for _, sp := range spans {
		sel.SpanIDs = append(sel.SpanIDs, sp.ID)
		if sel.From.IsZero() || sp.Start.Before(sel.From) {
			sel.From = sp.Start
		}
		if sp.End.After(sel.To) {
			sel.To = sp.End
		}
	}
	return sel
}

func (s *server) name(w http.ResponseWriter, r *http.Request) error {
	q, err := parameters(r, "service", "name", "kind", "last", "from", "to", "part", "frame", "dframe", "code")
	if err != nil {
		return err
	}
	view, err := parseView(q)
	if err != nil {
		return err
	}
	differenceZoom, err := parseFrame(q, "dframe")
	if err != nil {
		return err
	}
	b, err := s.bucketsOf(r.Context(), q)
	if err != nil {
		return err
	}
	page := namePage{
		head:    head{Title: q.Get("service") + " " + q.Get("name"), Current: "names"},
		Service: q.Get("service"), Name: q.Get("name"), Part: cmp.Or(q.Get("part"), "all"),
		SlowWords: b.words, SlowCount: len(b.slow), MedianCount: len(b.median), Count: len(b.sorted), Merged: len(b.all),
	}
	if len(b.all) == 0 {
		page.Why = "No span of this name and time was captured."
		return s.render(w, http.StatusOK, "name.html", page)
	}
	took := make([]time.Duration, len(b.sorted))
	for i, sp := range b.sorted {
		took[len(took)-1-i] = sp.Duration()
	}
	page.Median, page.P90, page.P99 = format.Duration(quantile(took, 0.5)), format.Duration(quantile(took, 0.9)), format.Duration(quantile(took, 0.99))
	for _, sp := range b.sorted[:min(len(b.sorted), listedSlowest)] {
		page.Slowest = append(
			page.Slowest,
			listedTrace{Path: SpanPath(sp.TraceID, sp.ID), Started: sp.Start.UTC(), Duration: format.Duration(sp.Duration())},
		)
	}
	parts := map[string][]traces.Span{"all": b.all, "slow": b.slow, "median": b.median}
	if parts[page.Part] == nil {
		return badRequest("part=%q: want all, slow or median.", page.Part)
	}
	with := func(part string) url.Values {
		of := url.Values{"part": {part}}
		for _, name := range []string{"service", "name", "kind", "last", "from", "to"} {
			if v := q.Get(name); v != "" {
				of.Set(name, v)
			}
		}
		return of
	}
	for _, p := range []link{{"all", "all"}, {b.words, "slow"}, {"around the median", "median"}} {
		page.Parts = append(page.Parts, part{link{p.Text, "/name?" + with(p.Path).Encode() + "#flame"}, p.Path == page.Part})
	}
	p, err := s.load(r.Context(), s.source, selection(page.Service, parts[page.Part]))
	switch {
	case errors.Is(err, profiles.ErrNone):
		page.Why = "There is no profile of these spans: they were in requests that were not slow, or the profiles were removed because of their age."
		return s.render(w, http.StatusOK, "name.html", page)
	case err != nil:
		return err
	}
	page.Flame, page.Others = newFlame(p, profiles.DefaultSampleIndex(p), "/name?"+with(page.Part).Encode(), view), newOthers(p)
	spec := with(page.Part)
	spec.Set("kind", "name")
	page.Pprof = "/flame/" + encodeSpec(spec) + "/flamegraph"
	spec.Set("part", "difference")
	page.DifferencePath = "/flame/" + encodeSpec(spec) + "/flamegraph"

	slow, err := s.load(r.Context(), s.source, selection(page.Service, b.slow))
	if err != nil && !errors.Is(err, profiles.ErrNone) {
		return err
	}
	median, err2 := s.load(r.Context(), s.source, selection(page.Service, b.median))
	if err2 != nil && !errors.Is(err2, profiles.ErrNone) {
		return err2
	}
	if err == nil && err2 == nil {
		one, oneMedian := 1/float64(len(b.slow)), 1/float64(len(b.median))
		differs := newDifference(median, slow, oneMedian, one)
		page.Changes = differs.Changes
		value := profiles.DefaultSampleIndex(slow)
		unit := slow.SampleType[value].Unit
		page.SlowMean = format.Value(int64(float64(sum(slow, value))*one), unit)
		page.MedianMean = format.Value(int64(float64(sum(median, profiles.DefaultSampleIndex(median)))*oneMedian), unit)
		page.Difference = differs.draw("/name?"+with(page.Part).Encode()+"&dframe=", differenceZoom)
	} else {
		page.DifferencePath = ""
	}
	return s.render(w, http.StatusOK, "name.html", page)
}

// bucketsOf returns the spans of the service and name in q.
func (s *server) bucketsOf(ctx context.Context, q url.Values) (bucket, error) {
	if q.Get("name") == "" || q.Get("service") == "" {
		return bucket{}, badRequest("Say which spans: service=…&name=…")
	}
	p, err := parsePeriod(q, "", time.Now())
	if err != nil {
		return bucket{}, err
	}
	spans, err := s.source.Captured(
		ctx,
		source.Filter{
			Service: q.Get("service"), Name: q.Get("name"), From: p.from, To: p.to, Slow: s.options.SlowSpan,
			Child: defaultChildSpan, Limit: capturedSpans,
		},
	)
	if err != nil {
		return bucket{}, err
	}
	return buckets(slices.DeleteFunc(spans, func(sp traces.Span) bool {
		return callKind(sp.Kind) != callKind(q.Get("kind"))
	})), nil
}

// namePair reads the profile of a part of the spans of one name, or those of the slowest spans and of the spans around the
// median, each as the mean of a span.
func (s *server) namePair(ctx context.Context, q url.Values) (p, base *profile.Profile, err error) {
	b, err := s.bucketsOf(ctx, q)
	if err != nil {
		return nil, nil, err
	}
	service := q.Get("service")
	switch q.Get("part") {
	case "all":
		p, err = s.source.Profile(ctx, selection(service, b.all))
	case "slow":
		p, err = s.source.Profile(ctx, selection(service, b.slow))
	case "median":
		p, err = s.source.Profile(ctx, selection(service, b.median))
	case "difference":
		if len(b.slow) == 0 || len(b.median) == 0 {
			return nil, nil, profiles.ErrNone
		}
		if p, err = s.source.Profile(ctx, selection(service, b.slow)); err != nil {
			return nil, nil, err
		}
		if base, err = s.source.Profile(ctx, selection(service, b.median)); err != nil {
			return nil, nil, err
		}
		err = cmp.Or(profiles.Scale(p, 1/float64(len(b.slow))), profiles.Scale(base, 1/float64(len(b.median))))
	default:
		err = badRequest("part=%q: want all, slow, median or difference.", q.Get("part"))
	}
	return p, base, err
}
