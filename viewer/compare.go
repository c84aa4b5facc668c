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

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/profiles"
)

// comparison is two selections: what is looked at, and what it is compared with.
type comparison struct {
	What string // spans, times or directories
	Type profileType

	spanA, spanB string // TRACE/SPAN
	service      string
	a, b         period
}

func (c comparison) title() string {
	switch c.What {
	case "spans":
		return fmt.Sprintf("%s of span %s against span %s", c.Type.Words, c.spanA, c.spanB)
	case "directories":
		return fmt.Sprintf("%s of %s against the base directory", c.Type.Words, c.service)
	}
	return fmt.Sprintf("%s of %s in two times", c.Type.Words, c.service)
}

// comparisonParameters are those of the page Compare.
var comparisonParameters = []string{"what", "type", "a", "b", "service", "afrom", "ato", "alast", "bfrom", "bto", "blast"}

func (s *server) parseComparison(q url.Values) (comparison, error) {
	c := comparison{What: cmp.Or(q.Get("what"), "spans"), spanA: q.Get("a"), spanB: q.Get("b"), service: q.Get("service")}
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
	case "times", "directories":
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
		return c, badRequest("what=%q: want spans, times or directories.", c.What)
	}
	return c, nil
}

// complete tells whether all is said that a comparison needs.
func (c comparison) complete() bool {
	switch c.What {
	case "spans":
		return c.spanA != "" && c.spanB != ""
	case "times":
		return c.service != "" && !(c.a.from.IsZero() && c.a.to.IsZero() && c.b.from.IsZero() && c.b.to.IsZero())
	}
	return c.service != ""
}

// wanted says what a comparison needs that is not complete.
func (c comparison) wanted() string {
	switch {
	case c.What == "spans" && c.spanA == "" && c.spanB == "":
		return "Say which two spans: TRACE/SPAN, the ids of both, as in the addresses of their pages."
	case c.What == "spans" && c.spanA == "":
		return "Say which span is the one before."
	case c.What == "spans":
		return "Say which span is the one after."
	case c.service == "":
		return "Say which service."
	}
	return "Say at least one of the times."
}

// comparisonPair reads both sides, scaled so that they can be compared: the mean of a window, or of a slow
// request, for times and directories, which may have different numbers of them; a span as it is.
func (s *server) comparisonPair(ctx context.Context, c comparison) (p, base *profile.Profile, err error) {
	if !c.complete() {
		return nil, nil, badRequest("%s", c.wanted())
	}
	if c.What == "spans" {
		p, err = s.comparedSpan(ctx, c.spanB, c.Type.Type)
		if err == nil || errors.Is(err, profiles.ErrNone) {
			var err2 error
			base, err2 = s.comparedSpan(ctx, c.spanA, c.Type.Type)
			err = missing(c.Type, err2, err)
		}
		return p, base, err
	}
	before, a, b := s.sides(c)
	p, err = mean(ctx, s.source, b)
	if err == nil || errors.Is(err, profiles.ErrNone) {
		var err2 error
		base, err2 = mean(ctx, before, a)
		err = missing(c.Type, err2, err)
	}
	return p, base, err
}

// missingProfile says which side of a comparison has no profile.
type missingProfile struct{ says string }

func (m missingProfile) Error() string { return m.says }
func (missingProfile) Unwrap() error   { return profiles.ErrNone }

// missing says of the errors of both sides which of them have no profile; it is nil if both have one.
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

// sides are the selections of a comparison of times or directories, and where that of before is.
func (s *server) sides(c comparison) (before Source, a, b Selection) {
	before = s.source
	if c.What == "directories" {
		before = s.options.Base
	}
	of := Selection{Service: c.service, Type: c.Type.Type}
	a, b = of, of
	a.From, a.To, b.From, b.To = c.a.from, c.a.to, c.b.from, c.b.to
	return before, a, b
}

func (s *server) comparedSpan(ctx context.Context, id string, t record.Type) (*profile.Profile, error) {
	trace, span, _ := strings.Cut(strings.ToLower(id), "/")
	spans, err := s.source.Trace(ctx, trace)
	if err != nil {
		return nil, err
	}
	sp, ok := index(spans)[span]
	if !ok {
		return nil, refusal{http.StatusNotFound, fmt.Sprintf("There is no span %s.", id)}
	}
	return s.source.Profile(ctx, spanSelection(sp, t))
}

// mean is a selection's profile as the mean of one of its windows, or of its spans where it is of spans; as it
// is where their number is not known.
func mean(ctx context.Context, from Source, sel Selection) (*profile.Profile, error) {
	p, err := from.Profile(ctx, sel)
	if err != nil || gauge(sel.Type) {
		return p, err
	}
	n := len(spansIn(p))
	if sel.Type != record.Wall {
		if n, err = from.Windows(ctx, sel); err != nil {
			return nil, err
		}
	}
	if n > 1 {
		p.Scale(1 / float64(n))
	}
	return p, nil
}

// spansIn are the spans that samples tell of.
func spansIn(p *profile.Profile) map[string]bool {
	ids := make(map[string]bool)
	for _, sample := range p.Sample {
		for _, id := range sample.Label["span_id"] {
			ids[id] = true
		}
	}
	return ids
}

// comparePage is what the page Compare shows.
type comparePage struct {
	head
	C             comparison
	Query         map[string]string
	Types         []profileType
	SpanTypes     []profileType // those that spans have
	Ranges        []choice
	Services      []string
	HasBase       bool
	Before, After string // totals
	Changes       []change
	Verdict       *verdict // of times and directories
	Pprof         string
	Why           string
}

func (s *server) compare(w http.ResponseWriter, r *http.Request) error {
	q, err := parameters(r, comparisonParameters...)
	if err != nil {
		return err
	}
	page := comparePage{head: head{Title: "Compare", Current: "compare"}, Query: make(map[string]string), Types: profileTypes, SpanTypes: profileTypes[:2], Ranges: ranges, HasBase: s.options.Base != nil}
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
	if !page.C.complete() {
		if submitted {
			page.Why = page.C.wanted()
		}
		return s.render(w, http.StatusOK, "compare.html", page)
	}
	type result struct {
		changes       []change
		before, after string
		verdict       *verdict
	}
	done, err := once(r.Context(), s, fmt.Sprintf("compare %q", q), func(ctx context.Context) (result, error) {
		p, base, err := s.comparisonPair(ctx, page.C)
		if err != nil {
			return result{}, err
		}
		value, baseValue := sampleIndex(p), sampleIndex(base)
		if value < 0 || baseValue < 0 {
			return result{}, missingProfile{"One of the profiles has no values."}
		}
		done := result{
			changes: changes(p, base, 1, 1),
			before:  amount(sum(base, baseValue), base.SampleType[baseValue].Unit), after: amount(sum(p, value), p.SampleType[value].Unit),
		}
		if page.C.What != "spans" {
			before, a, b := s.sides(page.C)
			v, err := judge(ctx, before, s.source, a, b)
			if err != nil {
				v.Notes = append(v.Notes, clean(err.Error(), 400)) // the difference is good without it
			}
			done.verdict = &v
		}
		return done, nil
	})
	switch {
	case errors.Is(err, profiles.ErrNone):
		page.Why = clean(err.Error(), 400)
		return s.render(w, http.StatusOK, "compare.html", page)
	case err != nil:
		return err
	}
	page.Changes, page.Before, page.After, page.Verdict = done.changes, done.before, done.after, done.verdict
	q.Set("kind", "compare")
	page.Pprof = "/flame/" + encodeSpec(q) + "/flamegraph"
	return s.render(w, http.StatusOK, "compare.html", page)
}

// sum is a profile's total, without what other goroutines did beside the time of a span.
func sum(p *profile.Profile, value int) int64 {
	var n int64
	for _, s := range p.Sample {
		if !hasFrame(s, othersFrame) {
			n += s.Value[value]
		}
	}
	return n
}
