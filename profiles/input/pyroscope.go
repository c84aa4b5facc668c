package input

import (
	"cmp"
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

	"spanflame/internal/query"
	"spanflame/internal/record"
	"spanflame/profiles"
)

// defaultRange is how far a query without a start looks back.
const defaultRange = time.Hour

// levels are the sample types that are measured at an instant. A server adds them up over a time range.
var levels = []string{"inuse_space", "inuse_objects", "goroutine", "goroutineleak"}

// Query is a query of a Pyroscope server, as its own pages have it in their addresses:
// process_cpu:cpu:nanoseconds:cpu:nanoseconds{service_name="shop",region="eu"}.
type Query struct {
	Type     string // of the profile, five parts
	Selector query.Selector
}

// ParseQuery reads a query. Labels are compared for equality alone.
func ParseQuery(text string) (Query, error) {
	bad := func(why string) (Query, error) {
		return Query{}, fmt.Errorf(`query %q: %s; want one like process_cpu:cpu:nanoseconds:cpu:nanoseconds{service_name="shop"}`, text, why)
	}
	name, rest, braces := strings.Cut(text, "{")
	q := Query{Type: strings.TrimSpace(name), Selector: query.Selector{}}
	if !typePattern.MatchString(q.Type) {
		return bad("the profile's type does not have five parts")
	}
	rest = strings.TrimSpace(rest)
	for rest != "}" && braces {
		m := labelPattern.FindStringSubmatch(rest)
		if m == nil {
			return bad(`a label is not like name="value", with a comma between two`)
		}
		value, err := strconv.Unquote(m[2])
		if err != nil {
			return bad("the value of label " + m[1] + " is not quoted")
		}
		if _, twice := q.Selector[m[1]]; twice {
			return bad("label " + m[1] + " is there twice")
		}
		q.Selector[m[1]] = value
		if rest = rest[len(m[0]):]; m[3] == "" && rest != "}" {
			return bad("after the labels something else follows")
		}
	}
	return q, nil
}

var (
	typePattern  = regexp.MustCompile(`^[a-z0-9_]+(:[a-z0-9_]+){4}$`)
	labelPattern = regexp.MustCompile(`^\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*("(?:[^"\\]|\\.)*")\s*(,?)\s*`)
)

// sample is the name of the sample type.
func (q Query) sample() string { return strings.Split(q.Type, ":")[1] }

// pyroscope divides the time range of a query into windows and asks for each.
func pyroscope(ctx context.Context, u *url.URL, o Options, now time.Time) (iter.Seq2[profiles.Window, error], error) {
	params := u.Query()
	q, err := ParseQuery(params.Get("query"))
	if err != nil {
		return nil, err
	}
	from, to, step := o.Query.From, o.Query.To, o.Step
	for _, p := range []struct {
		name string
		at   *time.Time
	}{{"from", &from}, {"until", &to}} {
		if text := params.Get(p.name); text != "" {
			if *p.at, err = parseTime(text, now); err != nil {
				return nil, fmt.Errorf("%s=%s: %w", p.name, text, err)
			}
		}
	}
	if text := params.Get("step"); text != "" {
		if step, err = time.ParseDuration(text); err != nil || step < time.Second {
			return nil, fmt.Errorf("step=%s: want a duration of 1s or more", text)
		}
	}
	if to.IsZero() {
		to = now
	}
	if from.IsZero() {
		from = to.Add(-defaultRange)
	}
	if !from.Before(to) {
		return nil, fmt.Errorf("the query's range from %s until %s is empty", from.UTC().Format(time.RFC3339), to.UTC().Format(time.RFC3339))
	}
	from, to = from.Truncate(query.Cell), to.Add(query.Cell-1).Truncate(query.Cell) // a capture is in the same cell whatever the range
	if step == 0 {
		step = to.Sub(from) / defaultSteps
	}
	step = max(time.Second, step.Round(query.Cell))
	if steps := to.Sub(from) / step; steps > maxWindows {
		return nil, fmt.Errorf("a step of %v divides the range of %v into %d windows: want at most %d", step, to.Sub(from), steps, maxWindows)
	}
	base := *u
	base.RawQuery, base.Fragment = "", ""
	if base.Scheme == "pyroscope" {
		base.Scheme = "http"
	}
	r := pyroscopeReader{server: query.NewPyroscope(base.String()), Query: q, from: from, to: to, step: step}
	failed := func(err error) error {
		if _, silent := errors.AsType[*url.Error](err); !silent && !errors.Is(err, profiles.ErrNone) {
			err = fmt.Errorf("%w (is it the address of a Pyroscope server?)", err)
		}
		return fmt.Errorf("query of Pyroscope at %s: %w", base.Redacted(), err)
	}
	return func(yield func(profiles.Window, error) bool) {
		found := false
		for w, err := range r.windows(ctx) {
			if err != nil {
				yield(profiles.Window{}, failed(err))
				return
			}
			found = true
			if !yield(w, nil) {
				return
			}
		}
		if !found {
			yield(profiles.Window{}, failed(fmt.Errorf("%s%s from %s until %s: %w", q.Type, q.Selector,
				from.UTC().Format(time.RFC3339), to.UTC().Format(time.RFC3339), profiles.ErrNone)))
		}
	}, nil
}

// pyroscopeReader reads the profiles that a query chooses, in windows of a step each.
type pyroscopeReader struct {
	server *query.Pyroscope
	Query
	from, to time.Time // multiples of query.Cell
	step     time.Duration
}

// capture is a profile that an agent captured, and how long it was of.
type capture struct {
	instance string
	start    time.Time
	length   time.Duration
}

// windows divides the captures by steps and asks for the profile of each step that has any. Of what is measured at
// an instant each instance has windows of its own, as its saved profiles would be, and a window that has several
// captures is their mean: the server adds them up, which is right for what a capture counted, and for no level.
func (r pyroscopeReader) windows(ctx context.Context) iter.Seq2[profiles.Window, error] {
	return func(yield func(profiles.Window, error) bool) {
		captures, err := r.captures(ctx)
		if err != nil {
			yield(profiles.Window{}, err)
			return
		}
		level := slices.Contains(levels, r.sample())
		instances := byInstance(captures)
		separate := level && len(instances) > 1
		if !separate {
			instances = map[string][]capture{"": captures}
		}
		count := 0 // at most as many as steps, but for levels, which have as many for each instance
		for start := r.from; start.Before(r.to); start = start.Add(r.step) {
			end := minTime(start.Add(r.step), r.to)
			for _, instance := range slices.Sorted(maps.Keys(instances)) {
				var within []capture
				within, instances[instance] = split(instances[instance], end)
				if len(within) == 0 {
					continue // nothing was profiled then
				}
				if count++; count > maxWindows {
					yield(profiles.Window{}, fmt.Errorf("%d instances have more than %d windows of %v: choose some by their labels, a longer step or a shorter range",
						len(instances), maxWindows, r.step))
					return
				}
				var labels map[string]string
				if separate {
					labels = map[string]string{record.InstanceLabel: instance} // empty for those without one
				}
				w, err := r.window(ctx, within, labels)
				if err == nil && len(w.Profile.Sample) == 0 {
					continue // removed since
				}
				if err == nil && level {
					w.Profile.Scale(1 / float64(len(within)))
				}
				if !yield(w, err) || err != nil {
					return
				}
			}
		}
	}
}

// captures returns all captures of the range, by time.
func (r pyroscopeReader) captures(ctx context.Context) ([]capture, error) {
	found, err := r.server.Captures(ctx, r.Type, r.Selector, r.from, r.to.Add(-time.Millisecond), record.InstanceLabel)
	if err != nil {
		return nil, err
	}
	var all []capture
	for _, c := range found {
		all = append(all, capture{instance: c.Labels[record.InstanceLabel], start: c.Start})
	}
	r.measure(all)
	return all, nil
}

// measure sets the lengths of captures: each is until the next one of the instance, and the last one as long as
// most are. What came after a pause is no longer than a step or than most are.
func (r pyroscopeReader) measure(captures []capture) {
	var lengths []time.Duration
	next := map[string]time.Time{}
	for i, c := range slices.Backward(captures) {
		if at, ok := next[c.instance]; ok {
			captures[i].length = at.Sub(c.start)
			lengths = append(lengths, captures[i].length)
		}
		next[c.instance] = c.start
	}
	usual := r.step
	if len(lengths) > 0 {
		slices.Sort(lengths)
		usual = lengths[len(lengths)/2]
	}
	for i := range captures {
		captures[i].length = min(cmp.Or(captures[i].length, usual), max(usual, r.step))
	}
}

// split divides captures, which are by time, at an end.
func split(captures []capture, end time.Time) (before, after []capture) {
	n, _ := slices.BinarySearchFunc(captures, end, func(c capture, end time.Time) int { return c.start.Compare(end) })
	return captures[:n], captures[n:]
}

func byInstance(captures []capture) map[string][]capture {
	by := map[string][]capture{}
	for _, c := range captures {
		by[c.instance] = append(by[c.instance], c)
	}
	return by
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// window asks for the profile of captures. They are all of one step that have these labels besides those of the
// query. Its length is what they cover, on average of the
// instances: a step that is no multiple of theirs has one more or less of them.
func (r pyroscopeReader) window(ctx context.Context, captures []capture, labels map[string]string) (profiles.Window, error) {
	typ, _, _ := strings.Cut(r.Type, ":")
	// A record of a service that is not known has none at all.
	w := profiles.Window{Meta: record.Meta{
		Service: cmp.Or(r.Selector[record.ServiceLabel], "pyroscope"), Type: record.Type(typ), Labels: labels, Start: captures[0].start,
	}}
	selector := maps.Clone(r.Selector)
	maps.Copy(selector, labels)
	var covered time.Duration
	for _, c := range captures {
		covered += c.length
	}
	covered /= time.Duration(len(byInstance(captures)))
	w.End = w.Start.Add(covered)
	// The server selects by nanoseconds, the end included, and is told milliseconds: a millisecond before the end of the
	// last capture's cell would leave out what began within it. No other capture of the instance is as near.
	end := captures[len(captures)-1].start.Add(query.Cell)
	var err error
	if w.Profile, err = r.server.Profile(ctx, r.Type, selector, w.Start, end); err != nil || len(w.Profile.Sample) == 0 {
		return w, err
	}
	if err := w.Profile.CheckValid(); err != nil {
		return w, err
	}
	w.Profile.TimeNanos, w.Profile.DurationNanos = w.Start.UnixNano(), int64(covered)
	return w, nil
}

// parseTime also takes the times that Pyroscope's pages have in their addresses: now, now-1h, and seconds or
// milliseconds since 1970.
func parseTime(text string, now time.Time) (time.Time, error) {
	if text == "now" {
		return now, nil
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		if n > 1e11 { // as seconds it would be the year 5138
			return time.UnixMilli(n), nil
		}
		return time.Unix(n, 0), nil
	}
	return profiles.ParseTime(strings.TrimPrefix(text, "now-"), now)
}
