package viewer

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"spanflame/internal/traces"
	"spanflame/profiles"
)

// Bounds of the page of slow traces.
const (
	listedTraces    = 50
	diagnoseTime    = 2 * time.Second // for all of a page's diagnoses; the rest is there the next time
	diagnosedAtOnce = 2               // at the same time
	settleTime      = 30 * time.Second
)

// slowTracesPage is what the page of slow traces shows.
type slowTracesPage struct {
	head
	Service, Name, Min string
	Period             period
	Ranges             []choice
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
	Spans         string
	Errors        int
	Diagnosis     string
	Why           string // there is none
}

func (s *server) slowTraces(w http.ResponseWriter, r *http.Request) error {
	q, err := parameters(r, "service", "name", "min", "last", "from", "to")
	if err != nil {
		return err
	}
	now := time.Now()
	page := slowTracesPage{
		head: head{Title: "Slow traces", Current: "traces"}, Ranges: ranges,
		Service: q.Get("service"), Name: q.Get("name"), Min: q.Get("min"),
		Filtered: len(q) > 0,
	}
	if page.Period, err = parsePeriod(q, "", now); err != nil {
		return err
	}
	f := Filter{Service: page.Service, Name: page.Name, From: page.Period.from, To: page.Period.to, Limit: listedTraces}
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
			Path: TracePath(t.TraceID), Service: t.Service, Name: t.Name, Started: t.Start.UTC(), Duration: duration(t.Duration), Errors: t.Errors,
		}
		if t.Spans > 0 {
			l.Spans = strconv.Itoa(t.Spans)
		}
		if longest := found.Traces[0].Duration; longest > 0 {
			l.Width = percent(float64(t.Duration) / float64(longest))
		}
		some.Go(func() error {
			l.Diagnosis, l.Why = s.diagnose(ctx, t.TraceID)
			return nil
		})
	}
	_ = some.Wait() // none of them fails
	return s.render(w, http.StatusOK, "traces.html", page)
}

// diagnose says in one line where the time of a trace's slowest request went, or why that cannot be said.
func (s *server) diagnose(ctx context.Context, traceID string) (sentence, why string) {
	if d, ok := s.diagnoses.get(traceID); ok {
		return d, ""
	}
	const later = "not looked at yet: load the page again, or open the trace"
	if ctx.Err() != nil {
		return "", later
	}
	spans, err := s.source.Trace(ctx, traceID)
	if err != nil {
		return "", later
	}
	span, ok := mainSpan(spans)
	if !ok {
		return "", "no span of it has a flame graph"
	}
	sentence, err = s.sentence(ctx, span)
	switch {
	case errors.Is(err, profiles.ErrNone):
		return "", whyNot(span, typeWall, index(spans), time.Now())
	case err != nil:
		return "", later
	}
	s.diagnoses.put(traceID, sentence)
	return sentence, ""
}

// sentence diagnoses a span by its wall-clock profile.
func (s *server) sentence(ctx context.Context, span traces.Span) (string, error) {
	t, err := parseType(typeWall)
	if err != nil {
		return "", err
	}
	p, err := s.load(ctx, s.source, spanSelection(span, t.Type))
	if err != nil {
		return "", err
	}
	sentence := profiles.Diagnose(p, span.Name, span.Duration())
	if sentence == "" {
		return "", profiles.ErrNone
	}
	return clean(sentence, 400), nil
}

// mainSpan is the span that a trace's page opens with: the longest that enters a service and has a profile,
// else the longest that has one.
func mainSpan(spans []traces.Span) (traces.Span, bool) {
	byID := index(spans)
	var best traces.Span
	found, isEntry := false, false
	for _, s := range spans {
		if !captured(s) {
			continue
		}
		e := entry(s, byID)
		if !found || e && !isEntry || e == isEntry && s.Duration() > best.Duration() {
			best, found, isEntry = s, true, e
		}
	}
	return best, found
}
