package viewer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"spanflame/viewer/source"

	"github.com/google/pprof/profile"

	"spanflame/internal/flame"
	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/profiles"
)

// comparison is two selections: before (a) and after (b).
type comparison struct {
	What string // spans, times, versions or directories
	Type profileType

	spanA, spanB string // TRACE/SPAN
	service      string
	a, b         period

	versionA, versionB string
}

func (c comparison) title(z zone) string {
	switch c.What {
	case "spans":
		return fmt.Sprintf("%s of %s against %s", c.Type.Words, spanOf(c.spanB), spanOf(c.spanA))
	case "versions":
		return fmt.Sprintf("%s of %s %s against %s", c.Type.Words, c.service, c.versionB, c.versionA)
	case "directories":
		return fmt.Sprintf("%s of %s against the base directory", c.Type.Words, c.service)
	}
	return fmt.Sprintf("%s of %s %s against %s", c.Type.Words, c.service, c.b.words(z), c.a.words(z))
}

// spanOf returns the name of the span of TRACE/SPAN.
func spanOf(id string) string { return "span " + id[strings.LastIndexByte(id, '/')+1:] }

// comparisonParameters are the parameters of the page Compare.
var comparisonParameters = []string{"what", "type", "a", "b", "service", "afrom", "ato", "alast", "bfrom", "bto", "blast", "aversion", "bversion"}

func (s *server) parseComparison(q url.Values) (comparison, error) {
	c := comparison{
		What: cmp.Or(q.Get("what"), "spans"), spanA: q.Get("a"), spanB: q.Get("b"), service: q.Get("service"),
		versionA: q.Get("aversion"), versionB: q.Get("bversion"),
	}
	if err := allow(q, comparisonParameters...); err != nil {
		return c, err
	}
	var err error
	if c.Type, err = parseType(cmp.Or(q.Get("type"), typeWall)); err != nil {
		return c, err
	}
	switch c.What {
	case "spans":
		for _, v := range []string{c.spanA, c.spanB} {
			if v == "" {
				continue
			}
			trace, span, ok := strings.Cut(v, "/")
			_, err1 := parseID(trace, traceDigits)
			_, err2 := parseID(span, spanDigits)
			if !ok || err1 != nil || err2 != nil {
				return c, badRequest("%q is no span: want TRACE/SPAN, the ids of both in hexadecimal digits.", v)
			}
		}
	case "times", "versions", "directories":
		now := time.Now()
		if c.a, err = parsePeriod(q, "a", now); err != nil {
			return c, err
		}
		if c.b, err = parsePeriod(q, "b", now); err != nil {
			return c, err
		}
		if c.What == "directories" && s.options.Base == nil {
			return c, badRequest("There is no base directory to compare with: start the viewer with --base DIR.")
		}
	default:
		return c, badRequest("what=%q: want spans, times, versions or directories.", c.What)
	}
	return c, nil
}

// complete reports whether the comparison has both its sides.
func (c comparison) complete() bool {
	switch c.What {
	case "spans":
		return c.spanA != "" && c.spanB != ""
	case "times":
		return c.service != "" && !(c.a.from.IsZero() && c.a.to.IsZero() && c.b.from.IsZero() && c.b.to.IsZero())
	case "versions":
		return c.service != "" && c.versionA != "" && c.versionB != ""
	}
	return c.service != ""
}

// wanted returns what is missing from an incomplete comparison.
func (c comparison) wanted() string {
	switch {
	case c.What == "spans" && c.spanA == "" && c.spanB == "":
		return "Say which two spans: choose them below, or give the ids of both as TRACE/SPAN."
	case c.What == "spans" && c.spanA == "":
		return "Say which span is the one before: choose it below."
	case c.What == "spans":
		return "Say which span is the one after: choose it below."
	case c.service == "":
		return "Say which service."
	case c.What == "versions":
		return "Say which two versions."
	}
	return "Say at least one of the times."
}

// comparisonPair reads both sides of the comparison with the parameters q, scaled so that they can be compared: a span as it
// is; times, versions and directories as the verdict on them has them, or, without its numbers, as the mean of a window or
// of a slow request. The verdict is kept, as the pages of the program pprof are of the same comparison.
func (s *server) comparisonPair(ctx context.Context, q url.Values, c comparison) (p, base *profile.Profile, v *verdict, err error) {
	if !c.complete() {
		return nil, nil, nil, badRequest("%s", c.wanted())
	}
	before, a, b, err := s.sides(ctx, c)
	if err != nil {
		return nil, nil, nil, err
	}
	p, err = s.source.Profile(ctx, b)
	if err == nil || errors.Is(err, profiles.ErrNone) {
		var err2 error
		base, err2 = before.Profile(ctx, a)
		err = missing(c.Type, err2, err)
	}
	if err != nil {
		return nil, nil, nil, err
	}
	value, baseValue := profiles.DefaultSampleIndex(p), profiles.DefaultSampleIndex(base)
	if value < 0 || baseValue < 0 {
		return nil, nil, nil, missingProfile{"One of the profiles has no values."}
	}
	if after, before := p.SampleType[value], base.SampleType[baseValue]; before.Type != after.Type || before.Unit != after.Unit {
		return nil, nil, nil, missingProfile{fmt.Sprintf("The sides have different sample types, %s in %s and %s in %s.",
			before.Type, before.Unit, after.Type, after.Unit)}
	}
	if c.What == "spans" {
		return p, base, nil, nil
	}
	key := fmt.Sprintf("%q", q)
	v, known := s.verdicts.get(key)
	if !known {
		judged, err := testChanges(ctx, before, s.source, a, b, metricOf(c.Type.Type, p.SampleType[value].Type))
		if err != nil { // the difference is shown without it
			judged = verdict{Notes: []string{format.Clean(err.Error(), 400)}}
		}
		v = &judged
		s.verdicts.put(key, v)
	}
	if err := cmp.Or(scale(ctx, before, a, base, v.totals[0]), scale(ctx, s.source, b, p, v.totals[1])); err != nil {
		return nil, nil, nil, err
	}
	return p, base, v, nil
}

// missingProfile is an error that says which side of a comparison has no profile.
type missingProfile struct{ says string }

func (m missingProfile) Error() string { return m.says }
func (missingProfile) Unwrap() error   { return profiles.ErrNone }

// missing returns an error that says which sides have no profile, given the errors of reading them, or nil.
func missing(t profileType, before, after error) error {
	none := func(err error) bool { return errors.Is(err, profiles.ErrNone) }
	what := fmt.Sprintf("no profile of the type %s.", t.Words)
	switch {
	case none(before) && none(after):
		return missingProfile{"Both sides, before and after, have " + what}
	case none(before):
		return missingProfile{"The side before has " + what}
	case before == nil && none(after):
		return missingProfile{"The side after has " + what}
	}
	return before
}

// sides returns the selections of a comparison, and the source of the side before. A base directory of another tool need not
// have the service's name, which is that of the directory: if it has a single service, it is that.
func (s *server) sides(ctx context.Context, c comparison) (before source.Source, a, b source.Selection, err error) {
	before = s.source
	switch c.What {
	case "spans":
		spanA, errA := s.spanAt(ctx, c.spanA)
		spanB, errB := s.spanAt(ctx, c.spanB)
		return before, source.OfSpan(spanA, c.Type.Type), source.OfSpan(spanB, c.Type.Type), cmp.Or(errA, errB)
	case "directories":
		before = s.options.Base
	}
	of := source.Selection{Service: c.service, Type: c.Type.Type, Slow: s.options.SlowSpan}
	a, b = of, of
	a.Version, b.Version = c.versionA, c.versionB
	a.From, a.To, b.From, b.To = c.a.from, c.a.to, c.b.from, c.b.to
	if c.What == "directories" {
		services, err := before.Services(ctx, a.From, a.To)
		if err != nil {
			return nil, a, b, err
		}
		if len(services) == 1 {
			a.Service = services[0]
		}
	}
	return before, a, b, nil
}

// spanAt returns the span at TRACE/SPAN.
func (s *server) spanAt(ctx context.Context, id string) (traces.Span, error) {
	trace, span, _ := strings.Cut(strings.ToLower(id), "/")
	spans, err := s.source.Trace(ctx, trace)
	if err != nil {
		return traces.Span{}, err
	}
	sp, ok := index(spans)[span]
	if !ok {
		return sp, refusal{http.StatusNotFound, fmt.Sprintf("There is no span %s.", id)}
	}
	return sp, nil
}

// scale scales a selection's profile to a total or, if that is 0, to the mean of its windows or, of wall-clock profiles, of
// its requests. It leaves the sum if their number is not known.
func scale(ctx context.Context, from source.Source, sel source.Selection, p *profile.Profile, total float64) error {
	ratio := ratioTo(p, total)
	if ratio == 0 {
		var err error
		if ratio, err = meanRatio(ctx, from, sel, p); err != nil || ratio == 1 {
			return err
		}
	}
	return profiles.Scale(p, ratio)
}

// ratioTo returns what a profile is multiplied by so that it has a total, or 0 if nothing gives it that.
func ratioTo(p *profile.Profile, total float64) float64 {
	if value := profiles.DefaultSampleIndex(p); value >= 0 && total > 0 {
		if all := sum(p, value); all > 0 {
			return total / float64(all)
		}
	}
	return 0
}

// meanRatio returns what a selection's profile is multiplied by so that it is a mean.
func meanRatio(ctx context.Context, from source.Source, sel source.Selection, p *profile.Profile) (float64, error) {
	if source.Level(sel.Type) {
		return 1, nil
	}
	if sel.Type == record.Wall {
		if ratio, err := requestRatio(ctx, from, sel, p); err != nil || ratio > 0 {
			return ratio, err
		}
	}
	windows, err := from.Windows(ctx, sel)
	return 1 / float64(max(len(windows), 1)), err
}

// requestRatio returns what a wall-clock profile is multiplied by so that it is the mean of its requests. If samples do not
// have the IDs of their requests, it is as long as the recorded requests took on average: the profile of a request has all
// of its time. It returns 0 if they are not known: wall-clock profiles of other tools are not of requests.
func requestRatio(ctx context.Context, from source.Source, sel source.Selection, p *profile.Profile) (float64, error) {
	if n := len(profiles.SpanIDs(p)); n > 0 {
		return 1 / float64(n), nil
	}
	requests, err := from.Captured(
		ctx,
		source.Filter{Service: sel.Service, Version: sel.Version, From: sel.From, To: sel.To, Slow: sel.Slow, Requests: true, Limit: capturedSpans},
	)
	if err != nil {
		return 0, err
	}
	took := 0.0
	for _, sp := range requests {
		took += float64(sp.Duration()) / float64(len(requests))
	}
	return ratioTo(p, took), nil
}

// comparePage is the data of the page Compare.
type comparePage struct {
	head
	C          comparison
	Query      map[string]string
	Types      []profileType
	SpanTypes  []profileType // of spans
	Services   []string
	HasBase    bool
	Choices    *choices // if the comparison is not complete
	Why        string   // why there is no result
	Result     *comparisonResult
	Difference *flame.Graph
	Pprof      string
}

// comparisonResult is the result of a comparison.
type comparisonResult struct {
	Before, After string   // totals
	Of            string   // how the page names the sample type
	Spans         []link   // before and after, of a comparison of spans
	Verdict       *verdict // of any other comparison
	difference
}

func (s *server) compare(w http.ResponseWriter, r *http.Request) error {
	q, err := parameters(r, append([]string{"frame"}, comparisonParameters...)...)
	if err != nil {
		return err
	}
	page := comparePage{
		head: head{Title: "Compare", Current: "compare"}, Query: make(map[string]string), Types: profileTypes,
		SpanTypes: profileTypes[:2], HasBase: s.options.Base != nil,
	}
	zoom, err := parseFrame(q, "frame")
	if err != nil {
		return err
	}
	q.Del("frame")
	submitted := len(q) > 0
	for name := range q {
		if q.Get(name) == "" {
			q.Del(name) // an empty field of the form
			continue
		}
		page.Query[name] = q.Get(name)
	}
	if page.C, err = s.parseComparison(q); err != nil {
		return err
	}
	if page.Services, err = s.source.Services(r.Context(), time.Time{}, time.Time{}); err != nil {
		return err
	}
	if page.C.complete() {
		page.Result, err = s.comparison(r.Context(), q, page.C)
		switch {
		case errors.Is(err, profiles.ErrNone):
			page.Why = format.Clean(err.Error(), 400)
		case err != nil:
			return err
		}
	} else if submitted {
		page.Why = page.C.wanted()
	}
	if page.Result == nil {
		if page.Choices, err = s.choices(r.Context(), page.C, page.Services); err != nil {
			return err
		}
		return s.render(w, http.StatusOK, "compare.html", page)
	}
	page.Title = format.Clean(page.C.title(s.zone), 300)
	if of := page.Result.Spans; of != nil {
		page.Title = fmt.Sprintf("%s of %s against %s", page.C.Type.Words, format.Clean(of[1].Text, 120), format.Clean(of[0].Text, 120))
	}
	page.Difference = page.Result.difference.draw("/compare?"+q.Encode()+"&frame=", zoom)
	q.Set("kind", "compare")
	page.Pprof = "/flame/" + encodeSpec(q) + "/flamegraph"
	return s.render(w, http.StatusOK, "compare.html", page)
}

// comparison returns the result of a comparison, from the cache if it is there.
func (s *server) comparison(ctx context.Context, q url.Values, c comparison) (*comparisonResult, error) {
	key := fmt.Sprintf("compare %q", q)
	if found, ok := s.compared.get(key); ok {
		return found, nil
	}
	return once(ctx, s, key, func(ctx context.Context) (*comparisonResult, error) {
		p, base, v, err := s.comparisonPair(ctx, q, c)
		if err != nil {
			return nil, err
		}
		value, baseValue := profiles.DefaultSampleIndex(p), profiles.DefaultSampleIndex(base)
		found := &comparisonResult{
			Before: format.Value(sum(base, baseValue), p.SampleType[value].Unit), After: format.Value(sum(p, value), p.SampleType[value].Unit),
			Of: c.Type.of(p.SampleType[value].Type), difference: newDifference(base, p, 1, 1),
		}
		if c.What == "spans" {
			for _, id := range []string{c.spanA, c.spanB} {
				sp, err := s.spanAt(ctx, id)
				if err != nil {
					return nil, err
				}
				found.Spans = append(found.Spans, link{sp.Service + " " + sp.Name, SpanPath(sp.TraceID, sp.ID)})
			}
		} else {
			if found.Verdict = v; len(v.Rows) > 0 {
				found.Before, found.After = v.Rows[0].Before, v.Rows[0].After
			}
		}
		if light(p) && light(base) {
			s.compared.put(key, found)
		}
		return found, nil
	})
}

// sum returns a profile's total, without the time of other goroutines that worked for a span.
func sum(p *profile.Profile, value int) int64 { return profiles.Total(p, value, profiles.OwnTime) }
