package input

import (
	"context"
	"fmt"
	"iter"
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
	if step == 0 {
		step = max(time.Second, to.Sub(from)/defaultSteps)
	}
	if steps := to.Sub(from) / step; steps > maxWindows {
		return nil, fmt.Errorf("a step of %v divides the range of %v into %d windows: want at most %d", step, to.Sub(from), steps, maxWindows)
	}
	base := *u
	base.RawQuery, base.Fragment = "", ""
	if base.Scheme == "pyroscope" {
		base.Scheme = "http"
	}
	server := query.NewPyroscope(base.String())
	return func(yield func(profiles.Window, error) bool) {
		found := false
		for start := from; start.Before(to); start = start.Add(step) {
			w, err := window(ctx, server, q, start, minTime(start.Add(step), to))
			if err != nil {
				yield(w, fmt.Errorf("query of Pyroscope at %s: %w", base.Redacted(), err))
				return
			}
			if len(w.Profile.Sample) == 0 {
				continue // nothing was profiled then
			}
			found = true
			if !yield(w, nil) {
				return
			}
		}
		if !found {
			yield(profiles.Window{}, fmt.Errorf("query of Pyroscope at %s: %s%s from %s until %s: %w", base.Redacted(), q.Type, q.Selector,
				from.UTC().Format(time.RFC3339), to.UTC().Format(time.RFC3339), profiles.ErrNone))
		}
	}, nil
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// window asks for what was profiled from start until end, which belongs to the next window.
func window(ctx context.Context, server *query.Pyroscope, q Query, start, end time.Time) (profiles.Window, error) {
	typ, _, _ := strings.Cut(q.Type, ":")
	service := q.Selector["service_name"]
	if service == "" {
		service = "pyroscope" // a record of one that is not known has none at all
	}
	last := end.Add(-time.Millisecond)
	w := profiles.Window{Meta: record.Meta{Service: service, Type: record.Type(typ), Start: start, End: end}}
	var err error
	if w.Profile, err = server.Profile(ctx, q.Type, q.Selector, start, last); err != nil || len(w.Profile.Sample) == 0 {
		return w, err
	}
	if err := w.Profile.CheckValid(); err != nil {
		return w, err
	}
	w.Profile.TimeNanos, w.Profile.DurationNanos = start.UnixNano(), int64(end.Sub(start))
	if !slices.Contains(levels, q.sample()) {
		return w, nil
	}
	// The server adds up what several profiles found in use: the mean is what was. They are counted by the
	// seconds that have one. The point at a time is of the second before it, both ends included.
	points, err := server.Totals(ctx, q.Type, q.Selector, start.Add(time.Second-time.Millisecond), last, time.Second)
	if err != nil {
		return w, err
	}
	count := 0
	for _, p := range points {
		if !p.Time.Before(start) {
			count++
		}
	}
	if count > 1 {
		w.Profile.Scale(1 / float64(count))
	}
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
