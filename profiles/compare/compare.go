// Package compare finds what changed between two sets of profiles, and whether the change is significant. The command
// "spanflame compare", the viewer and CI gates use it.
//
// Each side is a series of windows: profiles of the same metrics, recorded one after another. Every window is reduced to
// values by function and by stack, and divided by its length or by the work done in it, so that windows of different
// length and load can be compared. With at least four windows per side, each difference has a confidence interval and a
// rank test, corrected for the number of tests (docs/compare.md has the methods and their sources). With fewer windows,
// there is only the difference, and the report has a note.
//
// It reads no files and does not use the network: the caller passes the windows (package input). It does not find growth
// within one series: package leaks does.
package compare

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"math"
	"slices"
	"strings"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/profiles/internal/stacks"
)

// Normalization is the divisor of the values of a window.
type Normalization string

// Metrics of an instant, such as inuse_space, are never divided. Wall-clock profiles of slow spans are divided by the
// number of their spans, unless a normalization is chosen: then by all of the work or time of their side.
const (
	ByDuration Normalization = "duration" // the length of the window, in seconds
	ByWork     Normalization = "work"     // the work done in the window
	ByNothing  Normalization = "none"     // no division
)

const (
	defaultAlpha    = 0.05
	defaultMinShare = 0.001
)

// Work returns the amount of work done in a window, such as the number of requests. It must be above 0.
type Work func(record.Meta) (float64, error)

// Options configure Compare. The zero value compares all metrics by duration.
type Options struct {
	// Metrics are the names of the metrics to compare: a profile's sample type, such as cpu or alloc_space, with the
	// prefix mutex_ or block_ for these two profile types. The default is all metrics that both sides have; of profiles
	// that also have other sample types, counts are left out.
	Metrics []string
	// Normalization is by default ByWork if any of the fields below gives the work, otherwise ByDuration.
	Normalization Normalization
	// WorkBefore and WorkAfter are the work done in all windows of a side. It is distributed over the windows in
	// proportion to their lengths.
	WorkBefore, WorkAfter float64
	// Work, if it is not nil, returns the work of each window instead.
	Work Work
	// Alpha is the rate of false discoveries to allow, 0.05 by default: the share of comparisons of two equal sides
	// that report a change. Intervals have the confidence 1−Alpha.
	Alpha float64
	// MinShare is the smallest share of the total of both sides at which functions and stacks are tested and reported,
	// 0.001 by default.
	MinShare float64
	// ChildSpans includes wall-clock profiles of child spans. By default they are left out, because their time is in the
	// profiles of their root spans.
	ChildSpans bool
	// RequestsBefore and RequestsAfter are the spans of all requests of each side, if they are known. Wall-clock profiles of slow requests
	// are then divided by all requests. Without them it cannot be told whether requests became slower.
	RequestsBefore, RequestsAfter []traces.Span
	// Span is the name of the only requests to compare; empty for all. Only metrics whose samples name their spans are
	// compared.
	Span string
	// Diff sets Report.Diff, which needs memory for all stacks with their lines.
	Diff bool
	// Progress, if it is not nil, is called after each window with the side and the number of its windows.
	Progress func(side string, windows int)
}

// Validate returns an error that names the wrong option.
func (o Options) Validate() error {
	switch o.Normalization {
	case "", ByDuration, ByNothing:
	case ByWork:
		if o.Work == nil && o.WorkBefore == 0 {
			return errors.New("normalization by work: say how much was done on each side")
		}
	default:
		return fmt.Errorf("normalization %q: want %s, %s or %s", o.Normalization, ByDuration, ByWork, ByNothing)
	}
	for _, w := range []float64{o.WorkBefore, o.WorkAfter} {
		if w < 0 || math.IsNaN(w) || math.IsInf(w, 0) {
			return fmt.Errorf("work %g: want a number above 0", w)
		}
	}
	if (o.WorkBefore == 0) != (o.WorkAfter == 0) {
		return fmt.Errorf("work %g before and %g after: say both, or neither", o.WorkBefore, o.WorkAfter)
	}
	if o.Span != "" && (len(o.RequestsBefore) == 0 || len(o.RequestsAfter) == 0 || o.Normalization != "" || o.WorkBefore > 0 || o.Work != nil || o.ChildSpans) {
		return fmt.Errorf("span %q: the requests of both sides must be known, from saved traces, and no other normalization be chosen", o.Span)
	}
	if o.Alpha < 0 || !(o.Alpha < 1) {
		return fmt.Errorf("alpha %g: want a number between 0 and 1", o.Alpha)
	}
	if o.MinShare < 0 || !(o.MinShare < 1) {
		return fmt.Errorf("smallest share %g: want a number from 0 to below 1", o.MinShare)
	}
	return nil
}

// Compare reads both sides to their ends and compares them. It returns the first error of a window.
func Compare(ctx context.Context, before, after iter.Seq2[profiles.Window, error], o Options) (*Report, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("compare: %w", err)
	}
	o.Alpha = cmp.Or(o.Alpha, defaultAlpha)
	o.MinShare = cmp.Or(o.MinShare, defaultMinShare)
	asked := o.Normalization
	if o.Normalization == "" {
		o.Normalization = ByDuration
		if o.Work != nil || o.WorkBefore > 0 {
			o.Normalization = ByWork
		}
	}
	table, seed := stacks.NewTable(), maphash.MakeSeed()
	var sides [2]*side
	var merged [2]*profile.Profile
	for i, windows := range []iter.Seq2[profiles.Window, error]{before, after} {
		s := &side{
			name: []string{"before", "after"}[i], table: table, seed: seed, seen: map[uint64]int{}, builds: builds{},
			only: o.Metrics, childSpans: o.ChildSpans, span: o.Span, progress: o.Progress,
		}
		if known := [][]traces.Span{o.RequestsBefore, o.RequestsAfter}; asked == "" && o.Normalization == ByDuration && !o.ChildSpans &&
			len(known[0]) > 0 && len(known[1]) > 0 {
			s.requests = newRequests(known[i], o.Span)
		}
		if o.Normalization == ByWork {
			s.work = o.Work
		}
		var err error
		if merged[i], err = s.read(ctx, windows, o.Diff); err != nil {
			return nil, fmt.Errorf("compare: %s: %w", s.name, err)
		}
		sides[i] = s
	}
	r := &Report{
		Normalization: o.Normalization, Alpha: o.Alpha,
		Before: sides[0].summary(), After: sides[1].summary(), Shared: sides[0].shared(sides[1]),
		table: table,
	}
	r.explainSpans(sides[0], sides[1])
	if sides[0].requests != nil {
		r.Routes = routes(sides[0].requests, sides[1].requests)
	}
	if o.allRequests(asked) || sides[0].requests != nil {
		sides[0].addIdle(sides[1])
		sides[1].addIdle(sides[0])
	}
	pairs, err := r.pair(sides[0], sides[1], o.Metrics)
	if err != nil {
		return nil, fmt.Errorf("compare: %w", err)
	}
	slices.SortStableFunc(pairs, func(a, b [2]*measure) int { return cmp.Compare(position(a[0].name), position(b[0].name)) })
	r.Renamed = match(table, pairs, sides[0].builds, sides[1].builds)
	scales := map[string]float64{} // from before to after, by sample type
	for _, p := range pairs {
		c := comparison{options: o, asked: asked, sides: sides, table: table, before: p[0], after: p[1], signed: p[0].signed || p[1].signed}
		r.Metrics = append(r.Metrics, c.metric(r))
		scales[p[0].sample] = cmp.Or(c.scale, c.divisors[1]/c.divisors[0])
	}
	var all []hypothesis
	for i := range r.Metrics {
		all = append(all, r.Metrics[i].hypotheses()...)
	}
	families := adjust(all)
	for i := range r.Metrics {
		r.Metrics[i].markSignificant(o.Alpha)
		r.Metrics[i].cutStacks(table)
	}
	r.explainPower(families)
	r.explainNoise()
	if o.Diff && pairs[0][0].benchmark {
		return nil, errors.New("compare: the difference of benchmarks is not a profile")
	}
	if o.Diff {
		if r.Diff, err = difference(merged[0], merged[1], scales); err != nil {
			return nil, fmt.Errorf("compare: the difference as a profile: %w", err)
		}
	}
	return r, nil
}

// read reduces all windows, and also merges them if merging is requested.
func (s *side) read(ctx context.Context, windows iter.Seq2[profiles.Window, error], merge bool) (merged *profile.Profile, err error) {
	reduced := func(yield func(profiles.Window, error) bool) {
		for w, err := range windows {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(w, err)
				return
			}
			for _, w := range s.divided(w) {
				request := s.requests.find(w)
				if s.leavesOut(w, request) {
					continue
				}
				if err := s.add(w, request); !yield(w, err) {
					return
				}
			}
		}
	}
	if merge {
		merged, err = profiles.Merge(ctx, reduced)
	} else {
		for _, err = range reduced {
			if err != nil {
				break
			}
		}
	}
	if err == nil && s.windows == 0 {
		if err = profiles.ErrNone; s.children > 0 {
			err = fmt.Errorf("%w but %d of child spans, which are compared by %s=%s alone", err, s.children, wallprofile.SpanScope, wallprofile.ScopeChild)
		}
		if s.unknown > 0 {
			err = fmt.Errorf("%w but %d of requests that the saved traces do not have", err, s.unknown)
		}
	}
	return merged, err
}

func (s *side) summary() Side {
	return Side{Services: s.services, Windows: s.windows, Start: s.timeRange.start, End: s.timeRange.end}
}

// pair matches the metrics of the two sides.
func (r *Report) pair(before, after *side, wanted []string) ([][2]*measure, error) {
	find := func(s *side, name string) *measure {
		if i := slices.IndexFunc(s.measures, func(m *measure) bool { return m.name == name }); i >= 0 {
			return s.measures[i]
		}
		return nil
	}
	var pairs [][2]*measure
	for _, b := range before.measures {
		a := find(after, b.name)
		switch {
		case a == nil:
			r.note("%s left out: only the side before has it", b.name)
			continue
		case a.unit != b.unit:
			return nil, fmt.Errorf("metric %s is in %q before and in %q after: convert one of them", b.name, b.unit, a.unit)
		}
		pairs = append(pairs, [2]*measure{b, a})
	}
	for _, a := range after.measures {
		if find(before, a.name) == nil {
			r.note("%s left out: only the side after has it", a.name)
		}
	}
	for _, name := range wanted {
		if find(before, name) == nil || find(after, name) == nil {
			return nil, fmt.Errorf("metric %q is not on both sides: before has %s, after has %s", name, before.names(), after.names())
		}
	}
	if len(pairs) == 0 {
		return nil, fmt.Errorf("the sides have no metric in common: before has %s, after has %s", before.names(), after.names())
	}
	return pairs, nil
}

// metricOrder is the order of metrics in a report: what most users look for comes first. Other metrics follow.
var metricOrder = []string{"sec/op", "B/op", "allocs/op", "cpu", "wall", "alloc_space", "inuse_space", "mutex_delay", "block_delay", "delay", "goroutine"}

func position(metric string) int {
	if i := slices.Index(metricOrder, metric); i >= 0 {
		return i
	}
	return len(metricOrder)
}

// names returns the names of all metrics in the windows, including those that are not compared.
func (s *side) names() string { return cmp.Or(strings.Join(s.metrics, ", "), "none") }
