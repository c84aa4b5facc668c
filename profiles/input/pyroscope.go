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

// defaultRange is the time range of a query without a start.
const defaultRange = time.Hour

// levels are the sample types that are measured at an instant. A server adds them up over a time range.
var levels = []string{"inuse_space", "inuse_objects", "goroutine", "goroutineleak"}

// Query is a query of a Pyroscope server, in the syntax of the addresses of its pages:
// process_cpu:cpu:nanoseconds:cpu:nanoseconds{service_name="shop",region="eu"}.
type Query struct {
	Type     string // profile type, in five parts
	Selector query.Selector
}

// ParseQuery parses a query. The only operator for labels is equality.
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

// sample returns the name of the sample type.
func (q Query) sample() string { return strings.Split(q.Type, ":")[1] }

// pyroscope divides the time range of a query into windows and requests each of them.
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
	from, to = from.Truncate(query.Cell), to.Add(query.Cell-1).Truncate(query.Cell) // so that the cell of a capture does not depend on the range
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

// pyroscopeReader reads the profiles that match a query, in windows of one step.
type pyroscopeReader struct {
	server *query.Pyroscope
	Query
	from, to time.Time // multiples of query.Cell
	step     time.Duration
}

// capture is the start and the length of a profile that an agent captured.
type capture struct {
	instance string
	start    time.Time
	length   time.Duration
}

// windows divides the captures into steps and requests the profile of each step with captures. For sample types that are
// measured at an instant, each instance has its own windows, like saved profiles, and a window with several captures is
// their mean: the server adds them up, which is correct for counted values but not for levels.
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
		count := 0 // at most one for each step, or, for levels, for each step and instance
		for start := r.from; start.Before(r.to); start = start.Add(r.step) {
			end := minTime(start.Add(r.step), r.to)
			for _, instance := range slices.Sorted(maps.Keys(instances)) {
				var within []capture
				within, instances[instance] = split(instances[instance], end)
				if len(within) == 0 {
					continue // no captures in this step
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
					continue // removed in the meantime
				}
				if err == nil && level {
					err = profiles.Scale(w.Profile, 1/float64(len(within)))
				}
				if !yield(w, err) || err != nil {
					return
				}
			}
		}
	}
}

// captures returns all captures in the time range, sorted by time.
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

// measure sets the lengths of captures. A capture ends at the next one of its instance; the last one has the median length.
// A capture before a pause is at most as long as a step or as the median length, whichever is longer.
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

// split divides captures, which are sorted by time, at end.
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

// window requests the profile of captures: all those of one step that have the given labels and those of the query. The
// window's length is the time that they cover, averaged over the instances. It differs from the step if the step is not a
// multiple of their length.
func (r pyroscopeReader) window(ctx context.Context, captures []capture, labels map[string]string) (profiles.Window, error) {
	typ, _, _ := strings.Cut(r.Type, ":")
	// The service must not be empty: a profile without one counts as foreign.
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
	// The server compares nanoseconds, including the end, but the request has milliseconds: an end one millisecond before the
	// end of the last capture's cell would exclude captures that began within that millisecond. No other capture of the
	// instance is so close.
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

// parseTime also accepts the times in the addresses of Pyroscope's pages: now, now-1h, and seconds or milliseconds since
// 1970.
func parseTime(text string, now time.Time) (time.Time, error) {
	if text == "now" {
		return now, nil
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		if n > 1e11 { // in seconds, this would be the year 5138
			return time.UnixMilli(n), nil
		}
		return time.Unix(n, 0), nil
	}
	return profiles.ParseTime(strings.TrimPrefix(text, "now-"), now)
}
