package viewer

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
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
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

// Bounds of what is asked of the servers.
const (
	week          = 168 * time.Hour // that pages can ask for
	farthest      = 167 * time.Hour // that Tempo is asked for: a search takes 7 days at most, in whole seconds
	longest       = 23 * time.Hour  // that Pyroscope is asked for at once: a query takes a day at most, unless it is set otherwise
	searched      = 500             // traces: Tempo answers with any that match, not with the slowest
	profileMargin = time.Minute     // around a span: profiles are found by the start of their window

	// apart is the least time between the starts of two windows of an instance. Agents are told a second or more,
	// but the first window and the last are what is left of one.
	apart = 100 * time.Millisecond
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

	tempoAddress, pyroscopeAddress string // as they may be shown
}

// serverError is that of a server which was asked.
type serverError struct {
	server, address string
	err             error
}

func (e serverError) Error() string {
	if u, ok := errors.AsType[*url.Error](e.err); ok {
		return fmt.Sprintf("%s at %s does not answer: %v", e.server, e.address, u.Err)
	}
	return fmt.Sprintf("%s at %s does not answer as it should: %v", e.server, e.address, e.err)
}

func (e serverError) Unwrap() error { return e.err }

// ofTempo says of an error that it is Tempo's.
func (s *Servers) ofTempo(err error) error {
	return ofServer("Tempo", s.tempoAddress, err)
}

// ofPyroscope says of an error that it is Pyroscope's.
func (s *Servers) ofPyroscope(err error) error {
	return ofServer("Pyroscope", s.pyroscopeAddress, err)
}

// ofServer leaves an error as it is where the time of the request was over: whoever asked may have gone away.
func ofServer(server, address string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return serverError{server, address, err}
}

var _ Source = (*Servers)(nil)

// NewServers returns the servers at these base URLs.
func NewServers(tempo, pyroscope string) (*Servers, error) {
	s := &Servers{tempo: query.NewTempo(tempo), pyroscope: query.NewPyroscope(pyroscope)}
	var err error
	if s.tempoAddress, err = address("Tempo", tempo); err != nil {
		return nil, err
	}
	if s.pyroscopeAddress, err = address("Pyroscope", pyroscope); err != nil {
		return nil, err
	}
	return s, nil
}

// address is a server's base URL as it may be shown, without its password.
func address(name, base string) (string, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("%s's address %q: want http://HOST:PORT or https://HOST:PORT", name, base)
	}
	return u.Redacted(), nil
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

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// traceQL is the filter as a query, with a name that contains f.Name, or is it.
func traceQL(f Filter, whole bool, more ...string) string {
	var all []string
	if f.Service != "" {
		all = append(all, "resource.service.name = "+strconv.Quote(f.Service))
	}
	if f.Version != "" {
		all = append(all, "resource.service.version = "+strconv.Quote(f.Version))
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

// daily divides a time into parts that Pyroscope takes, which begin and end in different milliseconds.
func daily(from, to time.Time, ask func(from, to time.Time) error) error {
	if to.Sub(from) > week+time.Hour { // some room: a page's week and the margin of its profiles
		return badRequest("This would be %v of profiles. Ask for 7 days at most.", to.Sub(from).Round(time.Hour))
	}
	for ; to.Sub(from) > longest; from = from.Add(longest) {
		if err := ask(from, from.Add(longest-time.Millisecond)); err != nil {
			return err
		}
	}
	return ask(from, to)
}

// Search is of [TraceSource]. Of a longer time than Tempo takes it is the end.
func (s *Servers) Search(ctx context.Context, f Filter) (Found, error) {
	var found Found
	from, to := bounded(f.From, f.To, farthest)
	if to.Sub(from) > farthest {
		if to.Sub(from) > week {
			found.Notes = append(found.Notes, "These are of the last 7 days of that time: a search of Tempo takes no longer one.")
		}
		from = to.Add(-farthest)
	}
	summaries, err := s.tempo.Search(ctx, traceQL(f, false), from, to, searched)
	if err != nil {
		return Found{}, s.ofTempo(err)
	}
	if len(summaries) == searched {
		found.Notes = append(
			found.Notes,
			fmt.Sprintf("These are the slowest of %d traces that match; there are more. Ask for a shorter time or a longer duration.", searched),
		)
	}
	for _, t := range summaries[:min(len(summaries), f.Limit)] {
		found.Traces = append(found.Traces, Summary{TraceID: t.TraceID, Service: t.RootService, Name: t.RootName, Start: t.Start, Duration: t.Duration})
	}
	return found, nil
}

// Trace is of [TraceSource].
func (s *Servers) Trace(ctx context.Context, id string) ([]traces.Span, error) {
	spans, err := s.tempo.Trace(ctx, id)
	return spans, s.ofTempo(err)
}

// recorded is the condition that a span can have a profile where requests that take as long as slow are recorded,
// as far as a query can have it: a span inside a service counts although its request may have been quick, and a
// request is what a server or a consumer handles. Tempo can search by the duration of a whole trace, but not until
// all of its spans are in one block.
func recorded(f Filter) string {
	const marked = "span." + wallprofile.ProfileIDAttribute + ` != "" && `
	request := fmt.Sprintf("duration >= %dns", f.Slow.Nanoseconds())
	if f.Requests {
		return marked + "(kind = server || kind = consumer) && " + request
	}
	return fmt.Sprintf("%s(%s || kind != server && kind != consumer && duration >= %dns)", marked, request, min(defaultChildSpan, f.Slow).Nanoseconds())
}

// Captured is of [TraceSource].
func (s *Servers) Captured(ctx context.Context, f Filter) ([]traces.Span, error) {
	from, to := bounded(f.From, f.To, longest) // their profiles are read over the same time
	if to.Sub(from) > week {
		return nil, badRequest("This would be %v of spans. Ask for 7 days at most.", to.Sub(from).Round(time.Hour))
	}
	from = later(from, to.Add(-farthest))
	spans, err := s.tempo.Spans(ctx, traceQL(f, true, recorded(f))+" | select(resource.service.name, name)", from, to, min(f.Limit, searched))
	if err != nil {
		return nil, s.ofTempo(err)
	}
	slices.SortFunc(spans, func(a, b traces.Span) int { return b.Start.Compare(a.Start) })
	for i := range spans {
		if spans[i].Service == "" {
			spans[i].Service = f.Service // an older Tempo leaves out what the query fixes
		}
	}
	return spans[:min(len(spans), f.Limit)], nil
}

// labels are those by which Pyroscope finds the selection's profiles.
func (s Selection) labels() query.Selector {
	labels := query.Selector{record.ServiceLabel: s.Service}
	if s.Instance != "" {
		labels[record.InstanceLabel] = s.Instance
	}
	if s.Version != "" {
		labels[record.VersionLabel] = s.Version
	}
	if s.Type == record.Wall && s.SpanIDs == nil {
		labels[wallprofile.SpanScope] = wallprofile.ScopeRoot // which contain their children
	}
	return labels
}

// Profile is of [ProfileSource].
func (s *Servers) Profile(ctx context.Context, sel Selection) (*profile.Profile, error) {
	name, ok := pyroscopeTypes[sel.Type]
	if !ok {
		return nil, fmt.Errorf("profile type %q is not known to Pyroscope", sel.Type)
	}
	labels := sel.labels()
	from, to := bounded(sel.From, sel.To, longest)
	ask := func(from, to time.Time) (*profile.Profile, error) {
		p, err := s.pyroscope.Profile(ctx, name, labels, from, to)
		return p, s.ofPyroscope(err)
	}
	if sel.SpanIDs != nil {
		from, to = from.Add(-profileMargin), to.Add(profileMargin)
		ask = func(from, to time.Time) (*profile.Profile, error) {
			graph, err := s.pyroscope.SpanFlameGraph(ctx, name, labels, sel.SpanIDs, from, to)
			if err != nil {
				return nil, s.ofPyroscope(err)
			}
			return fromGraph(graph, string(sel.Type)), nil
		}
	}
	var parts []*profile.Profile
	err := daily(from, to, func(from, to time.Time) error {
		p, err := ask(from, to)
		if err == nil && len(p.Sample) > 0 && profiles.DefaultSampleIndex(p) >= 0 {
			parts = append(parts, p)
		}
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case len(parts) == 0:
		return nil, profiles.ErrNone
	}
	p := parts[0]
	if len(parts) > 1 {
		if p, err = profile.Merge(parts); err != nil {
			return nil, fmt.Errorf("merge the days' profiles: %w", err)
		}
	}
	if sel.SpanIDs == nil && gauge(sel.Type) {
		return p, s.oneWindow(ctx, p, sel)
	}
	return p, nil
}

// oneWindow scales what Pyroscope adds up over all windows of a time to the mean of a window.
func (s *Servers) oneWindow(ctx context.Context, p *profile.Profile, sel Selection) error {
	windows, err := s.windows(ctx, sel)
	if err != nil {
		return err
	}
	if whole, one := sum(p, profiles.DefaultSampleIndex(p)), meanOf(windows); whole > 0 && one > 0 {
		p.Scale(one / float64(whole))
	}
	return nil
}

// Series is of [ProfileSource]. Pyroscope does not tell how long a window was: it was until the next one of the
// instance began. The last one is left out where that matters. Of which spans a wall-clock profile is it does not
// tell either: its windows are the requests that Tempo has.
func (s *Servers) Series(ctx context.Context, sel Selection) iter.Seq2[profiles.Window, error] {
	return func(yield func(profiles.Window, error) bool) {
		windows, read := s.sampled, s.window
		if sel.Type == record.Wall {
			windows, read = s.requests, s.request
		}
		all, err := windows(ctx, sel)
		if err != nil {
			yield(profiles.Window{}, err)
			return
		}
		for _, w := range spread(all, judgedWindows) {
			w.Profile, err = read(ctx, sel, w)
			if err == nil && len(w.Profile.Sample) == 0 {
				continue // removed since, or not recorded
			}
			if !yield(profiles.Window{Meta: w.Meta, Profile: w.Profile}, err) || err != nil {
				return
			}
		}
	}
}

// serverWindow is a window that Pyroscope can be asked for.
type serverWindow struct {
	profiles.Window
	span string // whose it is, where it is of one
}

// sampled are the windows of a type that is not of spans.
func (s *Servers) sampled(ctx context.Context, sel Selection) ([]serverWindow, error) {
	points, err := s.windows(ctx, sel)
	if err != nil {
		return nil, err
	}
	var windows []serverWindow
	next := make(map[string]time.Time) // window's start, by instance
	for _, p := range slices.Backward(points) {
		instance := instanceOf(p)
		m := record.Meta{Service: sel.Service, Type: sel.Type, Start: p.Time, End: p.Time}
		if instance != "" {
			m.Labels = map[string]string{record.InstanceLabel: instance}
		}
		if end, ok := next[instance]; ok {
			m.End = end
		}
		next[instance] = p.Time
		if gauge(sel.Type) || m.End.After(m.Start) {
			windows = append(windows, serverWindow{Window: profiles.Window{Meta: m}})
		}
	}
	slices.Reverse(windows)
	return windows, nil
}

// window reads one of the sampled windows.
func (s *Servers) window(ctx context.Context, sel Selection, w serverWindow) (*profile.Profile, error) {
	sel.Instance = w.Labels[record.InstanceLabel]
	from, to := held(w.Start, w.Start)
	p, err := s.pyroscope.Profile(ctx, pyroscopeTypes[sel.Type], sel.labels(), from, to)
	return p, s.ofPyroscope(err)
}

// requests are those of a service that can have wall-clock profiles, as windows.
func (s *Servers) requests(ctx context.Context, sel Selection) ([]serverWindow, error) {
	spans, err := s.Captured(ctx, Filter{Service: sel.Service, Version: sel.Version, From: sel.From, To: sel.To, Slow: sel.Slow, Requests: true, Limit: searched})
	if err != nil {
		return nil, err
	}
	sortByStart(spans)
	windows := make([]serverWindow, len(spans))
	for i, sp := range spans {
		windows[i] = serverWindow{profiles.Window{Meta: record.Meta{Service: sel.Service, Type: sel.Type, Start: sp.Start, End: sp.End}}, sp.ID}
	}
	return windows, nil
}

// request reads the wall-clock profile of a request.
func (s *Servers) request(ctx context.Context, sel Selection, w serverWindow) (*profile.Profile, error) {
	sel.From, sel.To, sel.SpanIDs = w.Start, w.End, []string{w.span}
	p, err := s.Profile(ctx, sel)
	if errors.Is(err, profiles.ErrNone) {
		return &profile.Profile{}, nil
	}
	if err != nil {
		return nil, err
	}
	for _, sample := range p.Sample {
		sample.Label = map[string][]string{wallprofile.SpanID: {w.span}}
	}
	return p, nil
}

// LeftOut is of [ProfileSource]: what a server has can be used.
func (s *Servers) LeftOut() string { return "" }

// Windows is of [ProfileSource].
func (s *Servers) Windows(ctx context.Context, sel Selection) ([]Window, error) {
	points, err := s.windows(ctx, sel)
	windows := make([]Window, len(points))
	for i, p := range points {
		windows[i].Instance = instanceOf(p)
		windows[i].From, windows[i].To = held(p.Time, p.Time)
	}
	return windows, err
}

// Contents is of [ProfileSource]. Pyroscope does not tell when they begin and end.
func (s *Servers) Contents(ctx context.Context, service string, from, to time.Time) ([]Content, error) {
	from, to = bounded(from, to, longest)
	if to.Sub(from) > longest {
		from = to.Add(-longest)
	}
	series, err := s.pyroscope.Series(ctx, query.Selector{record.ServiceLabel: service}, from, to)
	if err != nil {
		return nil, s.ofPyroscope(err)
	}
	found := make(map[Content]bool)
	for _, labels := range series {
		for t, name := range pyroscopeTypes {
			if labels["__profile_type__"] == name {
				found[Content{Type: t, Version: labels[record.VersionLabel], Several: true}] = true
			}
		}
	}
	all := slices.Collect(maps.Keys(found))
	sortContents(all)
	return all, nil
}

// windows are the totals of the single windows of each instance of a service, by time.
func (s *Servers) windows(ctx context.Context, sel Selection) ([]query.Point, error) {
	var all []query.Point
	from, to := bounded(sel.From, sel.To, longest)
	err := daily(from, to, func(from, to time.Time) error {
		before := from.Add(-time.Millisecond) // a point is of what came after the point before it
		points, err := s.pyroscope.Totals(ctx, pyroscopeTypes[sel.Type], sel.labels(), before, to, apart, record.InstanceLabel)
		for _, p := range points {
			if p.Time.After(before) {
				all = append(all, p)
			}
		}
		return s.ofPyroscope(err)
	})
	slices.SortStableFunc(all, func(a, b query.Point) int { return a.Time.Compare(b.Time) })
	return all, err
}

// held is the time to ask for the profiles of the points from first to last. A point is of the time since the one
// before it. Its own time has no fractions of a millisecond, but its window has, and would begin after it.
func held(first, last time.Time) (from, to time.Time) {
	return first.Add(time.Millisecond - apart), last.Add(time.Millisecond)
}

func instanceOf(p query.Point) string { return p.Labels[record.InstanceLabel] }

// meanOf is the mean of values, 0 of none.
func meanOf(points []query.Point) float64 {
	mean := 0.0
	for _, p := range points {
		mean += p.Value / float64(len(points))
	}
	return mean
}

// fromGraph makes a profile of a flame graph, which is all that Pyroscope has of a span: functions without
// files and lines. It has no samples where there is nothing.
func fromGraph(graph *query.Frame, sampleType string) *profile.Profile {
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
	return p
}

// Files is of [ProfileSource]: what is on a server is in no files.
func (s *Servers) Files(context.Context, Selection) ([]string, error) { return nil, nil }

// Services is of [ProfileSource]. Of a long time it is those of its last day: the names are suggestions.
func (s *Servers) Services(ctx context.Context, from, to time.Time) ([]string, error) {
	from, to = bounded(from, to, longest)
	if to.Sub(from) > longest {
		from = to.Add(-longest)
	}
	names, err := s.pyroscope.LabelValues(ctx, record.ServiceLabel, from, to)
	slices.Sort(names)
	return names, s.ofPyroscope(err)
}

// Memory is of [ProfileSource]. Where there are more windows than points, each point is the mean of some.
func (s *Servers) Memory(ctx context.Context, service string, from, to time.Time, most int) ([]MemoryPoint, error) {
	from, to = bounded(from, to, time.Hour) // steps over a day would be too long to show growth
	windows, err := s.windows(ctx, Selection{Service: service, Type: record.Memory, From: from, To: to})
	if err != nil {
		return nil, err
	}
	windows = largest(windows, instanceOf, func(p query.Point) float64 { return p.Value })
	var points []MemoryPoint
	for some := range slices.Chunk(windows, max(1, (len(windows)+most-1)/most)) {
		from, to := held(some[0].Time, some[len(some)-1].Time)
		points = append(points, MemoryPoint{Window{instanceOf(some[0]), from, to}, int64(meanOf(some))})
	}
	return points, nil
}
