package source

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/url"
	"slices"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/query"
	"spanflame/internal/record"
	"spanflame/internal/redact"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

// Limits of requests to the servers.
const (
	week          = 168 * time.Hour // of profiles or spans
	searched      = 500             // traces: the servers answer with any that match, not with the slowest
	profileMargin = time.Minute     // around a span, as profiles are found by the start of their window
)

// pyroscopeTypes are the names that Pyroscope has for the types.
var pyroscopeTypes = map[record.Type]string{
	record.CPU: query.CPU, record.Wall: query.Wall, record.Memory: query.InuseSpace,
	record.Mutex: query.MutexDelay, record.Block: query.BlockDelay, record.Goroutine: query.Goroutines,
}

// Servers is a Tempo or Jaeger server with the traces and a Pyroscope server with the profiles.
type Servers struct {
	Traces
	pyroscope        *query.Pyroscope
	pyroscopeAddress string // without its password
}

// ServerError means that a server did not answer, or answered with an error.
type ServerError struct {
	server, address string
	err             error
}

func (e ServerError) Error() string {
	if u, ok := errors.AsType[*url.Error](e.err); ok {
		return fmt.Sprintf("%s at %s is unreachable: %v", e.server, e.address, u.Err)
	}
	return fmt.Sprintf("%s at %s failed: %v", e.server, e.address, e.err)
}

func (e ServerError) Unwrap() error { return e.err }

// ofPyroscope wraps an error of Pyroscope.
func (s *Servers) ofPyroscope(err error) error {
	return ofServer("Pyroscope", s.pyroscopeAddress, err)
}

// ofServer wraps an error of a server, unless the caller canceled the request or its time was over.
func ofServer(server, address string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return ServerError{server, address, err}
}

var _ Source = (*Servers)(nil)

// NewServers returns Tempo and Pyroscope at two base URLs.
func NewServers(tempo, pyroscope string) (*Servers, error) {
	at, err := address("Tempo", tempo)
	if err != nil {
		return nil, err
	}
	return newServers(&tempoTraces{query.NewTempo(tempo), at}, pyroscope)
}

// NewServersWithJaeger returns Jaeger and Pyroscope at two base URLs.
func NewServersWithJaeger(jaeger, pyroscope string) (*Servers, error) {
	at, err := address("Jaeger", jaeger)
	if err != nil {
		return nil, err
	}
	return newServers(&jaegerTraces{query.NewJaeger(jaeger), at}, pyroscope)
}

func newServers(from Traces, pyroscope string) (*Servers, error) {
	at, err := address("Pyroscope", pyroscope)
	if err != nil {
		return nil, err
	}
	return &Servers{from, query.NewPyroscope(pyroscope), at}, nil
}

// address returns a server's base URL without its password.
func address(name, base string) (string, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("%s's address %q: want http://HOST:PORT or https://HOST:PORT", name, redact.URL(base))
	}
	return u.Redacted(), nil
}

// limited returns a time range that has both ends: the end is now and the start as long before it as back, unless given.
func limited(from, to time.Time, back time.Duration) (time.Time, time.Time) {
	if to.IsZero() {
		to = time.Now()
	}
	if from.IsZero() {
		from = to.Add(-back)
	}
	return from, to
}

// checkLength returns an error if a time range of profiles is longer than a week and the margin around its spans.
func checkLength(from, to time.Time) error {
	if to.Sub(from) > week+time.Hour {
		return fmt.Errorf("%w: %v of profiles; ask for 7 days at most", ErrTooLong, to.Sub(from).Round(time.Hour))
	}
	return nil
}

// checkSpans returns an error if a time range of spans is longer than a week.
func checkSpans(from, to time.Time) error {
	if to.Sub(from) > week {
		return fmt.Errorf("%w: %v of spans; ask for 7 days at most", ErrTooLong, to.Sub(from).Round(time.Hour))
	}
	return nil
}

// labels returns the labels that select profiles in Pyroscope.
func (s Selection) labels() query.Selector {
	labels := query.Selector{record.ServiceLabel: s.Service}
	if s.Instance != "" {
		labels[record.InstanceLabel] = s.Instance
	}
	if s.Version != "" {
		labels[record.VersionLabel] = s.Version
	}
	if s.Type == record.Wall && s.SpanIDs == nil {
		labels[wallprofile.SpanScope] = wallprofile.ScopeRoot // whose profiles include those of their children
	}
	return labels
}

// Profile implements [Profiles].
func (s *Servers) Profile(ctx context.Context, sel Selection) (*profile.Profile, error) {
	name, ok := pyroscopeTypes[sel.Type]
	if !ok {
		return nil, fmt.Errorf("profile type %q on Pyroscope: %w", sel.Type, profiles.ErrNone)
	}
	labels := sel.labels()
	from, to := limited(sel.From, sel.To, query.Longest)
	get := func(name string, from, to time.Time) (*profile.Profile, error) {
		p, err := s.pyroscope.Profile(ctx, name, labels, from, to)
		return p, s.ofPyroscope(err)
	}
	if sel.SpanIDs != nil {
		from, to = from.Add(-profileMargin), to.Add(profileMargin)
		get = func(name string, from, to time.Time) (*profile.Profile, error) {
			graph, err := s.pyroscope.SpanFlameGraph(ctx, name, labels, sel.SpanIDs, from, to)
			if err != nil {
				return nil, s.ofPyroscope(err)
			}
			return fromGraph(graph, string(sel.Type)), nil
		}
	}
	ask := func(from, to time.Time) (*profile.Profile, error) {
		p, err := get(name, from, to)
		if err != nil || sel.Type != record.Wall {
			return p, err
		}
		others, err := get(query.WallOthers, from, to)
		if err != nil {
			return nil, err
		}
		return withOthers(p, others)
	}
	if err := checkLength(from, to); err != nil {
		return nil, err
	}
	var parts []*profile.Profile
	err := query.Daily(from, to, func(from, to time.Time) error {
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
	if sel.SpanIDs == nil && Level(sel.Type) {
		return p, s.oneWindow(ctx, p, sel)
	}
	return p, nil
}

// withOthers returns a wall-clock profile as agents make it, of the two parts that Pyroscope keeps apart.
func withOthers(own, others *profile.Profile) (*profile.Profile, error) {
	if len(others.Sample) == 0 {
		return own, nil
	}
	wall := &profile.ValueType{Type: string(record.Wall), Unit: "nanoseconds"}
	for i, p := range []*profile.Profile{own, others} {
		p.SampleType = []*profile.ValueType{wall, {Type: wallprofile.OthersType, Unit: "nanoseconds"}}
		p.DefaultSampleType, p.PeriodType = wall.Type, wall
		for _, s := range p.Sample {
			values := []int64{0, 0}
			values[i] = s.Value[0]
			s.Value = values
		}
	}
	p, err := profile.Merge([]*profile.Profile{own, others})
	if err != nil {
		return nil, fmt.Errorf("merge the time of other goroutines: %w", err)
	}
	return p, nil
}

// oneWindow scales a profile, which Pyroscope added up over all windows of a time range, to the mean of a window.
func (s *Servers) oneWindow(ctx context.Context, p *profile.Profile, sel Selection) error {
	windows, err := s.windows(ctx, sel)
	if err != nil {
		return err
	}
	if whole, one := profiles.Total(p, profiles.DefaultSampleIndex(p), profiles.OwnTime), meanOf(windows); whole > 0 && one > 0 {
		return profiles.Scale(p, one/float64(whole))
	}
	return nil
}

// Series implements [Profiles]. Pyroscope does not say how long a window was: it is taken to end when the next one of the
// instance starts, and the last one is left out if its length matters. It does not say either which span a wall-clock
// profile is of: its windows are the requests that Tempo has.
func (s *Servers) Series(ctx context.Context, sel Selection, most int) iter.Seq2[profiles.Window, error] {
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
		for _, w := range Spread(all, most) {
			w.Profile, err = read(ctx, sel, w)
			if err == nil && len(w.Profile.Sample) == 0 {
				continue // removed in the meantime, or not recorded
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
	capture query.Capture // if the window is not of a span
	span    string        // ID, if the window is of one span
}

// sampled returns the windows of a type that is not of spans.
func (s *Servers) sampled(ctx context.Context, sel Selection) ([]serverWindow, error) {
	points, err := s.windows(ctx, sel)
	if err != nil {
		return nil, err
	}
	var windows []serverWindow
	next := make(map[string]time.Time) // start of the next window, by instance
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
		if Level(sel.Type) || m.End.After(m.Start) {
			windows = append(windows, serverWindow{Window: profiles.Window{Meta: m}, capture: p})
		}
	}
	slices.Reverse(windows)
	return windows, nil
}

// window reads one of the sampled windows.
func (s *Servers) window(ctx context.Context, sel Selection, w serverWindow) (*profile.Profile, error) {
	sel.Instance = w.Labels[record.InstanceLabel]
	p, err := s.pyroscope.Profile(ctx, pyroscopeTypes[sel.Type], sel.labels(), w.capture.Start, w.capture.End)
	return p, s.ofPyroscope(err)
}

// requests returns the requests that can have wall-clock profiles, as windows.
func (s *Servers) requests(ctx context.Context, sel Selection) ([]serverWindow, error) {
	spans, err := s.Captured(
		ctx,
		Filter{Service: sel.Service, Version: sel.Version, From: sel.From, To: sel.To, Slow: sel.Slow, Requests: true, Limit: searched},
	)
	if err != nil {
		return nil, err
	}
	sortByStart(spans)
	windows := make([]serverWindow, len(spans))
	for i, sp := range spans {
		m := record.Meta{Service: sel.Service, Type: sel.Type, Start: sp.Start, End: sp.End}
		windows[i] = serverWindow{Window: profiles.Window{Meta: m}, span: sp.ID}
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

// LeftOut implements [Profiles]. All profiles of a server are usable, so it is empty.
func (s *Servers) LeftOut() string { return "" }

// Windows implements [Profiles].
func (s *Servers) Windows(ctx context.Context, sel Selection) ([]Window, error) {
	points, err := s.windows(ctx, sel)
	windows := make([]Window, len(points))
	for i, p := range points {
		windows[i] = Window{Instance: instanceOf(p), From: p.Start, To: p.End}
	}
	return windows, err
}

// Contents implements [Profiles]. Pyroscope does not say when they start and end.
func (s *Servers) Contents(ctx context.Context, service string, from, to time.Time) ([]Content, error) {
	from, to = limited(from, to, query.Longest)
	if to.Sub(from) > query.Longest {
		from = to.Add(-query.Longest)
	}
	series, err := s.pyroscope.Series(ctx, query.Selector{record.ServiceLabel: service}, from, to)
	if err != nil {
		return nil, s.ofPyroscope(err)
	}
	found := make(map[Content]bool)
	for _, labels := range series {
		for t, name := range pyroscopeTypes {
			if labels["__profile_type__"] == name && labels[wallprofile.SpanScope] != wallprofile.ScopeFast {
				found[Content{Type: t, Version: labels[record.VersionLabel], Several: true}] = true
			}
		}
	}
	all := slices.Collect(maps.Keys(found))
	sortContents(all)
	return all, nil
}

// windows returns the totals of the windows of each instance of a service, by time.
func (s *Servers) windows(ctx context.Context, sel Selection) ([]query.Capture, error) {
	name, ok := pyroscopeTypes[sel.Type]
	if !ok {
		return nil, nil
	}
	from, to := limited(sel.From, sel.To, query.Longest)
	if err := checkLength(from, to); err != nil {
		return nil, err
	}
	all, err := s.pyroscope.Captures(ctx, name, sel.labels(), from, to, record.InstanceLabel)
	return all, s.ofPyroscope(err)
}

func instanceOf(p query.Capture) string { return p.Labels[record.InstanceLabel] }

// meanOf returns the mean of values, which is 0 for none.
func meanOf(points []query.Capture) float64 {
	mean := 0.0
	for _, p := range points {
		mean += p.Value / float64(len(points))
	}
	return mean
}

// fromGraph makes a profile of a flame graph, in which form alone Pyroscope returns the profile of a span: functions
// without files and lines. The profile of an empty graph has no samples.
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
		for _, name := range slices.Backward(stack[1:]) { // without the root, which stands for all
			sample.Location = append(sample.Location, location(name))
		}
		p.Sample = append(p.Sample, sample)
	})
	return p
}

// Files implements [Profiles]. Profiles of a server are not in files, so it returns none.
func (s *Servers) Files(context.Context, Selection) ([]string, error) { return nil, nil }

// Services implements [Profiles]. Of a long time range it returns those of the last day: the names are suggestions.
func (s *Servers) Services(ctx context.Context, from, to time.Time) ([]string, error) {
	from, to = limited(from, to, query.Longest)
	if to.Sub(from) > query.Longest {
		from = to.Add(-query.Longest)
	}
	names, err := s.pyroscope.LabelValues(ctx, record.ServiceLabel, from, to)
	slices.Sort(names)
	return names, s.ofPyroscope(err)
}

// Memory implements [Profiles]. If there are more windows than points, each point is the mean of several.
func (s *Servers) Memory(ctx context.Context, sel Selection, most int) ([]MemoryPoint, error) {
	sel.Type = record.Memory
	sel.From, sel.To = limited(sel.From, sel.To, time.Hour)
	windows, err := s.windows(ctx, sel)
	if err != nil {
		return nil, err
	}
	windows = largest(windows, instanceOf, func(p query.Capture) float64 { return p.Value })
	var points []MemoryPoint
	for some := range slices.Chunk(windows, max(1, (len(windows)+most-1)/most)) {
		w := Window{Instance: instanceOf(some[0]), From: some[0].Start, To: some[len(some)-1].End}
		points = append(points, MemoryPoint{Window: w, Bytes: int64(meanOf(some))})
	}
	return points, nil
}
