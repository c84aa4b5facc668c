package viewer

import (
	"context"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/query"
	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/profiles"
)

// Bounds of what is asked of the servers.
const (
	farthest      = 167 * time.Hour // back from now where no time is given: a search of Tempo takes 7 days at most
	longest       = 23 * time.Hour  // likewise for profiles: a query of Pyroscope takes a day at most, unless it is set otherwise
	searched      = 500             // traces: Tempo answers with any that match, not with the slowest
	profileMargin = time.Minute     // around a span: profiles are found by the start of their window
)

// pyroscopeTypes are the names by which Pyroscope knows the types.
var pyroscopeTypes = map[record.Type]string{
	record.CPU: query.CPU, record.Wall: query.Wall, record.Memory: query.InuseSpace,
	record.Mutex: query.MutexDelay, record.Block: query.BlockDelay, record.Goroutine: query.Goroutines,
}

// Servers is a Tempo with the traces and a Pyroscope with the profiles.
type Servers struct {
	tempo     *query.Tempo
	pyroscope *query.Pyroscope
}

var _ Source = (*Servers)(nil)

// NewServers returns the servers at these base URLs.
func NewServers(tempo, pyroscope string) (*Servers, error) {
	for name, base := range map[string]string{"Tempo": tempo, "Pyroscope": pyroscope} {
		if u, err := url.Parse(base); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("%s's address %q: want http://HOST:PORT or https://HOST:PORT", name, base)
		}
	}
	return &Servers{query.NewTempo(tempo), query.NewPyroscope(pyroscope)}, nil
}

// bounded gives a range an end, and a beginning so far before it, where it has none.
func bounded(from, to time.Time, back time.Duration) (time.Time, time.Time) {
	if to.IsZero() {
		to = time.Now()
	}
	if from.IsZero() {
		from = to.Add(-back)
	}
	return from, to
}

// traceQL is the filter as a query, with a name that contains f.Name, or is it.
func traceQL(f Filter, whole bool, more ...string) string {
	var all []string
	if f.Service != "" {
		all = append(all, "resource.service.name = "+strconv.Quote(f.Service))
	}
	switch {
	case f.Name != "" && whole:
		all = append(all, "name = "+strconv.Quote(f.Name))
	case f.Name != "":
		all = append(all, "name =~ "+strconv.Quote("(?i).*"+regexp.QuoteMeta(f.Name)+".*"))
	}
	if f.Min > 0 {
		all = append(all, fmt.Sprintf("traceDuration >= %dns", f.Min.Nanoseconds()))
	}
	return "{ " + strings.Join(append(all, more...), " && ") + " }"
}

// Search is of [TraceSource].
func (s *Servers) Search(ctx context.Context, f Filter) (Found, error) {
	from, to := bounded(f.From, f.To, farthest)
	summaries, err := s.tempo.Search(ctx, traceQL(f, false), from, to, searched)
	if err != nil {
		return Found{}, err
	}
	var found Found
	if len(summaries) == searched {
		found.Notes = append(found.Notes, fmt.Sprintf("These are the slowest of %d traces that match; there are more. Ask for a shorter time or a longer duration.", searched))
	}
	for _, t := range summaries[:min(len(summaries), f.Limit)] {
		found.Traces = append(found.Traces, Summary{TraceID: t.TraceID, Service: t.RootService, Name: t.RootName, Start: t.Start, Duration: t.Duration})
	}
	return found, nil
}

// Trace is of [TraceSource].
func (s *Servers) Trace(ctx context.Context, id string) ([]traces.Span, error) {
	return s.tempo.Trace(ctx, id)
}

// Captured is of [TraceSource].
func (s *Servers) Captured(ctx context.Context, f Filter) ([]traces.Span, error) {
	from, to := bounded(f.From, f.To, longest) // their profiles are read over the same time
	spans, err := s.tempo.Spans(ctx, traceQL(f, true, `span.pyroscope.profile.id != ""`)+" | select(resource.service.name, name)", from, to, min(f.Limit, searched))
	if err != nil {
		return nil, err
	}
	slices.SortFunc(spans, func(a, b traces.Span) int { return b.Start.Compare(a.Start) })
	for i := range spans {
		if spans[i].Service == "" {
			spans[i].Service = f.Service // an older Tempo leaves out what the query fixes
		}
	}
	return spans[:min(len(spans), f.Limit)], nil
}

// Profile is of [ProfileSource].
func (s *Servers) Profile(ctx context.Context, sel Selection) (*profile.Profile, error) {
	name, ok := pyroscopeTypes[sel.Type]
	if !ok {
		return nil, fmt.Errorf("profile type %q is not known to Pyroscope", sel.Type)
	}
	labels := query.Selector{"service_name": sel.Service}
	from, to := bounded(sel.From, sel.To, longest)
	if sel.SpanIDs != nil {
		graph, err := s.pyroscope.SpanFlameGraph(ctx, name, labels, sel.SpanIDs, from.Add(-profileMargin), to.Add(profileMargin))
		if err != nil {
			return nil, err
		}
		return fromGraph(graph, string(sel.Type))
	}
	if sel.Type == record.Wall {
		labels["span_scope"] = "root" // which contain their children
	}
	p, err := s.pyroscope.Profile(ctx, name, labels, from, to)
	if err != nil {
		return nil, err
	}
	if len(p.Sample) == 0 || sampleIndex(p) < 0 {
		return nil, profiles.ErrNone
	}
	if sel.Type == record.Memory {
		return p, s.oneWindow(ctx, p, labels, from, to)
	}
	return p, nil
}

// oneWindow scales memory in use, which Pyroscope adds up over all windows of a time, to that of one window.
func (s *Servers) oneWindow(ctx context.Context, p *profile.Profile, labels query.Selector, from, to time.Time) error {
	points, err := s.pyroscope.Totals(ctx, query.InuseSpace, labels, from, to, max(to.Sub(from), time.Second))
	if err != nil {
		return err
	}
	mean := 0.0
	for _, pt := range points {
		mean += pt.Value / float64(len(points))
	}
	if whole := sum(p, sampleIndex(p)); whole > 0 && mean > 0 {
		p.Scale(mean / float64(whole))
	}
	return nil
}

// fromGraph makes a profile of a flame graph, which is all that Pyroscope has of a span: functions without
// files and lines.
func fromGraph(graph *query.Frame, sampleType string) (*profile.Profile, error) {
	if sampleType == string(record.CPU) {
		sampleType = "cpu"
	}
	p := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: sampleType, Unit: "nanoseconds"}},
		PeriodType: &profile.ValueType{Type: sampleType, Unit: "nanoseconds"}, Period: 1,
	}
	locations := make(map[string]*profile.Location)
	location := func(name string) *profile.Location {
		l := locations[name]
		if l == nil {
			f := &profile.Function{ID: uint64(len(locations)) + 1, Name: name, SystemName: name}
			l = &profile.Location{ID: f.ID, Line: []profile.Line{{Function: f}}}
			locations[name] = l
			p.Function, p.Location = append(p.Function, f), append(p.Location, l)
		}
		return l
	}
	graph.Walk(func(stack []string, f *query.Frame) {
		if f.Self <= 0 || len(stack) < 2 {
			return
		}
		sample := &profile.Sample{Value: []int64{f.Self}}
		for _, name := range slices.Backward(stack[1:]) { // without the root, which is all
			sample.Location = append(sample.Location, location(name))
		}
		p.Sample = append(p.Sample, sample)
	})
	if len(p.Sample) == 0 {
		return nil, profiles.ErrNone
	}
	return p, nil
}

// Files is of [ProfileSource]: what is on a server is in no files.
func (s *Servers) Files(context.Context, Selection) ([]string, error) { return nil, nil }

// Services is of [ProfileSource]. Of a long time it is those of its last day: the names are suggestions.
func (s *Servers) Services(ctx context.Context, from, to time.Time) ([]string, error) {
	from, to = bounded(from, to, longest)
	if to.Sub(from) > longest {
		from = to.Add(-longest)
	}
	names, err := s.pyroscope.LabelValues(ctx, "service_name", from, to)
	slices.Sort(names)
	return names, err
}

// Memory is of [ProfileSource].
func (s *Servers) Memory(ctx context.Context, service string, from, to time.Time, most int) ([]MemoryPoint, error) {
	from, to = bounded(from, to, time.Hour) // steps over a day would be too long to show growth
	step := max(to.Sub(from)/time.Duration(most), 15*time.Second)
	totals, err := s.pyroscope.Totals(ctx, query.InuseSpace, query.Selector{"service_name": service}, from, to, step)
	if err != nil {
		return nil, err
	}
	var points []MemoryPoint
	for _, t := range totals {
		points = append(points, MemoryPoint{From: t.Time.Add(-step), To: t.Time, Bytes: int64(t.Value)})
	}
	return spread(points, most), nil
}
