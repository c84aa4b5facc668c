package viewer

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"spanflame/viewer/source"

	"golang.org/x/sync/errgroup"

	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/profiles"
)

// Limits of the page of slow traces.
const (
	listedTraces    = 50
	diagnoseTime    = 2 * time.Second // for all diagnoses of a page; the others are shown the next time
	diagnosedAtOnce = 2               // at the same time
	settleTime      = 30 * time.Second
)

// slowTracesPage is the data of the page of slow traces.
type slowTracesPage struct {
	head
	Service, Name, Min string
	Period             period
	Services           []string
	Traces             []listedTrace
	Notes              []string
	Filtered           bool
}

type listedTrace struct {
	Path          string
	Service, Name string
	Started       time.Time
	Duration      string
	Width         string // of the bar, in percent
	Spans         string // their number, in words
	Errors        int
	Diagnosis     string
	Why           string // why there is none
}

func (s *server) slowTraces(w http.ResponseWriter, r *http.Request) error {
	q, err := parameters(r, "service", "name", "min", "last", "from", "to")
	if err != nil {
		return err
	}
	now := time.Now()
	page := slowTracesPage{
		head:    head{Title: "Slow traces", Current: "traces"},
		Service: q.Get("service"), Name: q.Get("name"), Min: q.Get("min"),
		Filtered: len(q) > 0,
	}
	if page.Period, err = parsePeriod(q, "", now); err != nil {
		return err
	}
	f := source.Filter{Service: page.Service, Name: page.Name, From: page.Period.from, To: page.Period.to, Limit: listedTraces}
	if f.Min, err = parseMin(page.Min); err != nil {
		return err
	}
	found, err := s.source.Search(r.Context(), f)
	if err != nil {
		return err
	}
	page.Notes = found.Notes
	if page.Services, err = s.source.Services(r.Context(), f.From, f.To); err != nil {
		return err
	}
	page.Traces = make([]listedTrace, len(found.Traces))
	ctx, cancel := context.WithTimeout(r.Context(), diagnoseTime)
	defer cancel()
	var some errgroup.Group
	some.SetLimit(diagnosedAtOnce)
	for i, t := range found.Traces {
		l := &page.Traces[i]
		*l = listedTrace{
			Path: TracePath(t.TraceID), Service: t.Service, Name: t.Name, Started: t.Start.UTC(), Duration: format.Duration(t.Duration), Errors: t.Errors,
		}
		if t.Spans > 0 {
			l.Spans = format.Count(t.Spans, "span")
		}
		if longest := found.Traces[0].Duration; longest > 0 {
			l.Width = format.Percent(float64(t.Duration) / float64(longest))
		}
		some.Go(func() error {
			var d diagnosis
			if d, l.Why = s.diagnose(ctx, t.TraceID); d.of(t) {
				l.Diagnosis = d.rest
			} else {
				l.Diagnosis = d.text
			}
			return nil
		})
	}
	_ = some.Wait() // none of them fails
	return s.render(w, http.StatusOK, "traces.html", page)
}

// diagnosis is one line that says where the time of a span went.
type diagnosis struct {
	name string        // of the span
	took time.Duration // of the span
	text string        // empty if there is none
	rest string        // the text without the span's duration and name
}

// of reports whether the diagnosis begins with the duration, in milliseconds, and the name of the trace.
func (d diagnosis) of(t source.Summary) bool {
	return d.name == t.Name && (d.took-t.Duration).Abs() <= time.Millisecond
}

// diagnose returns the diagnosis of a trace's slowest request, or why there is none.
func (s *server) diagnose(ctx context.Context, traceID string) (d diagnosis, why string) {
	if d, ok := s.diagnoses.get(traceID); ok {
		return d, ""
	}
	const later = "not read yet: load the page again, or open the trace"
	if ctx.Err() != nil {
		return d, later
	}
	spans, err := s.source.Trace(ctx, traceID)
	if err != nil {
		return d, later
	}
	span, ok := mainSpan(spans)
	if !ok {
		return d, "no span of it has a flame graph"
	}
	d, err = s.diagnoseSpan(ctx, span)
	switch {
	case errors.Is(err, profiles.ErrNone):
		return d, whyNot(span, typeWall, index(spans), time.Now(), s.options.SlowSpan)
	case err != nil:
		return d, later
	}
	s.diagnoses.put(traceID, d)
	return d, ""
}

// diagnoseSpan returns the diagnosis of a span: the one that its agent, which knows more, saved with the wall-clock profile,
// or one that is made from the profile.
func (s *server) diagnoseSpan(ctx context.Context, span traces.Span) (diagnosis, error) {
	p, err := s.load(ctx, s.source, source.OfSpan(span, record.Wall))
	if err != nil {
		return diagnosis{}, err
	}
	text := cmp.Or(profiles.SavedDiagnosis(p, span.ID), profiles.Diagnose(p, span.Name, span.Duration()))
	if text == "" {
		return diagnosis{}, profiles.ErrNone
	}
	d := diagnosis{name: span.Name, took: span.Duration(), text: format.Clean(text, 400)}
	d.rest = d.text
	if _, rest, ok := strings.Cut(text, " "+span.Name+": "); ok {
		d.rest = format.Clean(rest, 400)
	}
	return d, nil
}

// mainSpan returns the span whose flame graph a trace's page shows first: the longest with a profile that enters a service,
// or else the longest with a profile.
func mainSpan(spans []traces.Span) (traces.Span, bool) {
	byID := index(spans)
	var best traces.Span
	found, isEntry := false, false
	for _, s := range spans {
		if !source.Marked(s) {
			continue
		}
		e := entry(s, byID)
		if !found || e && !isEntry || e == isEntry && s.Duration() > best.Duration() {
			best, found, isEntry = s, true, e
		}
	}
	return best, found
}
