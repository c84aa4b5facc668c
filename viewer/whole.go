package viewer

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/url"

	"github.com/google/pprof/profile"

	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/profiles"
	"spanflame/profiles/why"
	"spanflame/viewer/internal/pprofui"
	"spanflame/viewer/source"
)

const (
	shownParts   = 12 // of the critical path
	shownCauses  = 3  // of one of them
	shownMissing = 12
)

// criticalPath is what decided how long a trace took.
type criticalPath struct {
	Service, Name, Took string // of the span that the trace began with
	Parts               []pathPart
	More, Rest          string // how many parts are not shown, and their time; empty for none
	Missing             []string
	Whole               string // address of the flame graph of all of it
}

type pathPart struct {
	Service, Request, Words string
	Took, Percent, Without  string
	Causes                  []pair
}

// whole returns a trace as one piece. The error wraps profiles.ErrNone if no span has a profile.
func (s *server) whole(ctx context.Context, id string, spans []traces.Span) (*why.Trace, error) {
	if t, ok := s.wholes.get(id); ok {
		return t, nil
	}
	main, ok := why.Main(spans, source.Marked)
	if !ok {
		return nil, profiles.ErrNone
	}
	t, err := why.Stitch(spans, main, func(sp traces.Span) (*profile.Profile, error) {
		return s.load(ctx, s.source, source.OfSpan(sp, record.Wall))
	})
	if err == nil && t.Size() <= keptSamples {
		s.wholes.put(id, t)
	}
	return t, err
}

// newCriticalPath describes the largest parts of a trace.
func newCriticalPath(r *why.Report) *criticalPath {
	c := &criticalPath{Service: r.Service, Name: r.Name, Took: took(r.Took), Whole: wholePath(r.TraceID)}
	c.Missing = notes(r.Missing[:min(len(r.Missing), shownMissing)])
	rest, large := r.Took, r.Large(shownParts)
	for _, p := range large {
		rest -= p.Took
		part := pathPart{
			Service: p.Service, Request: p.Request, Words: p.Words(), Took: took(p.Took), Percent: r.Share(p.Took), Without: took(p.Without),
		}
		for _, cause := range r.LargeCauses(p, shownCauses) {
			part.Causes = append(part.Causes, pair{took(cause.Took), cause.Words()})
		}
		c.Parts = append(c.Parts, part)
	}
	if more := len(r.Parts) - len(large); more > 0 {
		c.More, c.Rest = format.Count(more, "smaller part"), took(rest)
	}
	return c
}

func took(m why.Millis) string { return format.Value(int64(m), "nanoseconds") }

// wholeView returns the flame graph of a whole trace.
func (s *server) wholeView(r *http.Request, id string, t *why.Trace, alone traces.Span, shown view) *spanView {
	p := t.Profile()
	path := TracePath(id)
	at := path + "?" + url.Values{"whole": {"1"}}.Encode()
	v := &spanView{
		Whole: true, Duration: format.Value(sum(p, 0), "nanoseconds"), Flame: newFlame(p, 0, at, shown),
		Switches: []link{{"Show " + format.Clean(alone.Name, 100) + " alone", SpanPath(id, alone.ID)}},
		Pprof:    path + "/whole/flamegraph", Top: path + "/whole/top", Download: path + "/whole.pb.gz",
	}
	if pprofui.HasGraphviz() {
		v.Graph = path + "/whole/graph"
	}
	v.Commands = []string{"go tool pprof -http=: " + quoteShell("http://"+r.Host+v.Download)}
	return v
}

// wholeOf returns the whole trace in a path, or a refusal if there is none.
func (s *server) wholeOf(r *http.Request) (id string, t *why.Trace, err error) {
	if id, err = parseID(r.PathValue("trace"), traceDigits); err != nil {
		return "", nil, err
	}
	spans, err := s.spans(r.Context(), id)
	if err != nil {
		return "", nil, err
	}
	t, err = s.whole(r.Context(), id, spans)
	if errors.Is(err, profiles.ErrNone) {
		err = refusal{http.StatusNotFound, "The trace has no span with a wall-clock profile."}
	}
	return id, t, err
}

// wholeFile sends the profile of a whole trace as a file.
func (s *server) wholeFile(w http.ResponseWriter, r *http.Request) error {
	id, t, err := s.wholeOf(r)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := t.Profile().Write(&b); err != nil {
		return err
	}
	return send(w, b.Bytes(), id+"-wall")
}

// wholePprof serves pprof's pages for the profile of a whole trace.
func (s *server) wholePprof(w http.ResponseWriter, r *http.Request) error {
	id, t, err := s.wholeOf(r)
	if err != nil {
		return err
	}
	m, err := s.mount(r.Context(), "whole "+id, func(context.Context) (*profile.Profile, *profile.Profile, error) { return t.Profile(), nil, nil })
	if err != nil {
		return err
	}
	return s.servePprof(w, r, m, pprofui.Bar{Back: wholePath(id), BackText: "back to the trace", Title: "whole trace " + id})
}

// wholePath returns the path of the page of a trace with the flame graph of all of it.
func wholePath(id string) string { return TracePath(id) + "?whole=1#flame" }
