// Package compare says what changed between two sets of profiles, and whether the change is more than
// chance. The command "spanflame compare", the viewer and CI gates use it.
//
// Each side is a series of windows: profiles of the same metrics taken one after another. Every window is
// reduced to values by function and by stack, and divided by its length or by the work done in it, so that
// windows of different length and load can be set side by side. With at least four windows a side each
// difference has a confidence interval and a rank test, corrected for how many are made (docs/compare.md has
// the methods and their sources). With fewer there is the difference alone, and the report says so.
//
// It reads no files and knows no network: the caller brings the windows (package input). It does not look for
// growth within one series: that is package leaks.
package compare

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/profiles"
	"spanflame/profiles/internal/stacks"
)

// Normalization is what the values of a window are divided by.
type Normalization string

// Metrics of an instant, such as inuse_space, are divided by nothing in any case, and wall-clock profiles by
// the number of their spans unless it is by work.
const (
	ByDuration Normalization = "duration" // the length of the window, in seconds
	ByWork     Normalization = "work"     // the work done in it
	ByNothing  Normalization = "none"     // compare window with window
)

const (
	defaultAlpha    = 0.05
	defaultMinShare = 0.001

	maxStacks     = 1000 // in a report
	maxStackDepth = 512  // functions of a stack in a report

	// mostOf is the share of a change that a callee must have to explain it.
	mostOf = 0.8
	// maxCalls bounds the functions on the way from a change to what explains it.
	maxCalls = 64
)

// Work returns how much work, such as requests, was done in a window: more than 0.
type Work func(record.Meta) (float64, error)

// Options is how to compare. Its zero value compares all metrics by duration.
type Options struct {
	// Metrics are the names of those to compare: a profile's sample type, such as cpu or alloc_space, with
	// mutex_ or block_ in front for these two. The default is all that the sides have in common, but
	// counts only of profiles that have nothing else.
	Metrics []string
	// Normalization is ByDuration, or ByWork where there is any work below, by default.
	Normalization Normalization
	// WorkBefore and WorkAfter are the work done in all windows of a side. It is spread by their lengths.
	WorkBefore, WorkAfter float64
	// Work gives the work of each window instead.
	Work Work
	// Alpha is the rate of false discoveries to allow, 0.05 by default: how often a comparison of two equal
	// sides reports a change. Intervals are of the confidence 1−Alpha.
	Alpha float64
	// MinShare is the share of the total, of both sides together, from which functions and stacks are tested
	// and reported: 0.001 by default.
	MinShare float64
	// ChildSpans compares wall-clock profiles of child spans, too. They are left out otherwise: their time is
	// in the profiles of their roots.
	ChildSpans bool
	// Diff asks for Report.Diff, which takes memory for all stacks with their lines.
	Diff bool
	// Progress, if it is not nil, is called after each window with the side and the number of its windows.
	Progress func(side string, windows int)
}

// Validate says which option is wrong.
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
	if o.Alpha < 0 || !(o.Alpha < 1) {
		return fmt.Errorf("alpha %g: want a number between 0 and 1", o.Alpha)
	}
	if o.MinShare < 0 || !(o.MinShare < 1) {
		return fmt.Errorf("smallest share %g: want a number from 0 to below 1", o.MinShare)
	}
	return nil
}

// Number is a float64 that is null in JSON where it is infinite or undefined.
type Number float64

// MarshalJSON implements json.Marshaler.
func (n Number) MarshalJSON() ([]byte, error) {
	if f := float64(n); !math.IsNaN(f) && !math.IsInf(f, 0) {
		return json.Marshal(f)
	}
	return []byte("null"), nil
}

// Report is a comparison.
type Report struct {
	Before        Side          `json:"before"`
	After         Side          `json:"after"`
	Shared        int           `json:"shared_windows,omitempty"` // windows that are the same on both sides
	Normalization Normalization `json:"normalization"`
	Alpha         float64       `json:"alpha"`
	Metrics       []Metric      `json:"metrics"`
	Renamed       []Rename      `json:"renamed,omitempty"`
	Notes         []string      `json:"notes,omitempty"` // what a reader has to know to trust the rest

	// Diff is the difference as a profile that "go tool pprof" opens as one, if Options.Diff asked for it.
	// Values are those of after, less those of before scaled to the length or the work of after.
	Diff *profile.Profile `json:"-"`

	table *stacks.Table // of both sides, also of what is too small to be reported
}

// Side is what was read of one side.
type Side struct {
	Services []string  `json:"services,omitempty"`
	Windows  int       `json:"windows"`
	Start    time.Time `json:"start"`
	End      time.Time `json:"end"`
}

// Rename is a function that was matched although its name changed.
type Rename struct {
	Before string `json:"before"`
	After  string `json:"after"`
}

// Metric is the comparison of one metric.
type Metric struct {
	Name string `json:"name"`
	Unit string `json:"unit"` // of the raw values
	Per  string `json:"per"`  // what values were divided by: "second", "unit of work", "span", "window", or "" for an instant
	// WindowsBefore and WindowsAfter have this metric.
	WindowsBefore int `json:"windows_before"`
	WindowsAfter  int `json:"windows_after"`
	// RawBefore and RawAfter are the totals as the profiles have them. Their difference is that of
	// "go tool pprof -diff_base".
	RawBefore int64 `json:"raw_before"`
	RawAfter  int64 `json:"raw_after"`
	// Tested tells whether there are enough windows to tell a change from chance.
	Tested bool `json:"tested"`
	// SmallestP is the least p that so many windows can give.
	SmallestP float64  `json:"smallest_p"`
	Total     Change   `json:"total"`
	Functions []Change `json:"functions"` // by the size of the change, what explains one before its callers
	Stacks    []Change `json:"stacks"`    // the first thousand: those whose change is more than chance, by its size, then others
	// Small is how many functions are not reported because their share is too small.
	Small int `json:"small_functions"`

	// Flame is both sides as one tree.
	Flame *Frame `json:"-"`
}

// Change is the change of one quantity.
type Change struct {
	Name  string   `json:"name,omitempty"`  // of the function
	Stack []string `json:"stack,omitempty"` // outermost function first
	Flat  Values   `json:"flat"`            // of the function or stack alone; of the total it is the total
	Cum   Values   `json:"cum"`             // with what it called

	node int32 // of the stack
	explained
}

// explained is what a change comes from, by which changes are ordered: where a function became slower, so did all that
// call it, up to main, and they come after it.
type explained struct {
	size    float64 // of the change that explains it, its own if no callee's does
	calls   int     // how far away that is
	reached int     // how many changes explain that one in turn, with itself
}

// Values are both sides of one quantity, divided as Metric.Per says.
type Values struct {
	Before Number `json:"before"`
	After  Number `json:"after"`
	// Difference and Ratio of after to before. With a test they are the medians over all pairs of windows,
	// or the difference and the ratio of the means where so many windows have nothing that those medians say
	// nothing, with their intervals; else those of Before and After, with no bounds.
	Difference Estimate `json:"difference"`
	Ratio      Estimate `json:"ratio"`
	// P is the probability of a difference at least as large by chance, and Q the rate of false discoveries
	// among all that are as unlikely. Both are 1 where nothing was tested.
	P float64 `json:"p"`
	Q float64 `json:"q"`
	// Significant tells whether Q is at most Alpha.
	Significant bool `json:"significant"`
}

// change is that of the means.
func (v Values) change() float64 { return float64(v.After - v.Before) }

// Significant tells whether the change is more than chance, alone or with what was called.
func (c Change) Significant() bool { return c.Flat.Significant || c.Cum.Significant }

// leaf tells whether nothing was called: both values are one.
func (c Change) leaf() bool { return c.Flat.Before == c.Cum.Before && c.Flat.After == c.Cum.After }

// magnitude is how large the change is, in the metric's unit.
func (c Change) magnitude() float64 {
	return max(math.Abs(float64(c.Flat.Difference.Value)), math.Abs(float64(c.Cum.Difference.Value)))
}

// Changed are the functions whose change is more than chance.
func (m Metric) Changed() []Change {
	var changed []Change
	for _, c := range m.Functions {
		if c.Significant() {
			changed = append(changed, c)
		}
	}
	return changed
}

// Compare reads both sides to their ends and compares them. It fails at the first window that has an error.
func Compare(ctx context.Context, before, after iter.Seq2[profiles.Window, error], o Options) (*Report, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("compare: %w", err)
	}
	o.Alpha = cmp.Or(o.Alpha, defaultAlpha)
	o.MinShare = cmp.Or(o.MinShare, defaultMinShare)
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
		s := &side{name: []string{"before", "after"}[i], table: table, seed: seed, seen: map[uint64]int{}, only: o.Metrics, childSpans: o.ChildSpans, progress: o.Progress}
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
	pairs, err := r.pair(sides[0], sides[1], o.Metrics)
	if err != nil {
		return nil, fmt.Errorf("compare: %w", err)
	}
	slices.SortStableFunc(pairs, func(a, b [2]*measure) int { return cmp.Compare(position(a[0].name), position(b[0].name)) })
	r.Renamed = match(table, pairs)
	scales := map[string]float64{} // from before to after, by sample type
	for _, p := range pairs {
		c := comparison{options: o, table: table, before: p[0], after: p[1]}
		r.Metrics = append(r.Metrics, c.metric(r))
		scales[p[0].sample] = c.divisors[1] / c.divisors[0]
	}
	var all []hypothesis
	for i := range r.Metrics {
		all = append(all, r.Metrics[i].hypotheses()...)
	}
	families := adjust(all)
	for i := range r.Metrics {
		r.Metrics[i].judge(o.Alpha)
		r.Metrics[i].cutStacks(table)
	}
	r.explainPower(families)
	if o.Diff {
		if r.Diff, err = difference(merged[0], merged[1], scales); err != nil {
			return nil, fmt.Errorf("compare: the difference as a profile: %w", err)
		}
	}
	return r, nil
}

// read reduces all windows, and merges them too if that is asked for.
func (s *side) read(ctx context.Context, windows iter.Seq2[profiles.Window, error], merge bool) (merged *profile.Profile, err error) {
	reduced := func(yield func(profiles.Window, error) bool) {
		for w, err := range windows {
			if err == nil {
				err = ctx.Err()
			}
			if err == nil && s.leavesOut(w) {
				continue
			}
			if err == nil {
				err = s.add(w)
			}
			if !yield(w, err) {
				return
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
			err = fmt.Errorf("%w but %d of child spans, which are compared by %s=%s alone", err, s.children, scopeLabel, scopeChild)
		}
	}
	return merged, err
}

func (s *side) summary() Side {
	return Side{Services: s.services, Windows: s.windows, Start: s.start, End: s.end}
}

// pair matches the metrics of both sides.
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
			r.Notes = append(r.Notes, fmt.Sprintf("%s is left out: only the windows before have it", b.name))
			continue
		case a.unit != b.unit:
			return nil, fmt.Errorf("metric %s is in %q before and in %q after: convert one of them", b.name, b.unit, a.unit)
		}
		pairs = append(pairs, [2]*measure{b, a})
	}
	for _, a := range after.measures {
		if find(before, a.name) == nil {
			r.Notes = append(r.Notes, fmt.Sprintf("%s is left out: only the windows after have it", a.name))
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

// metricOrder is that of the metrics in a report, what most users look for first. Others follow.
var metricOrder = []string{"cpu", "wall", "alloc_space", "inuse_space", "mutex_delay", "block_delay", "delay", "goroutine"}

func position(metric string) int {
	if i := slices.Index(metricOrder, metric); i >= 0 {
		return i
	}
	return len(metricOrder)
}

// names are those of all metrics that there are, also of those that are not compared.
func (s *side) names() string { return cmp.Or(strings.Join(s.metrics, ", "), "none") }

// comparison is that of one metric.
type comparison struct {
	options       Options
	table         *stacks.Table
	before, after *measure
	total         float64    // of both sides' normalised totals
	divisors      [2]float64 // sums of the sides' own
	points        [2]points
	tested        bool
	ranks         ranks      // if tested
	order         []int      // the side of each window in the order of time, if sides take turns
	dependence    dependence // of the total, if tested
}

// points is what the windows of a side are divided by, once neighbours are added up.
type points struct {
	batch    int // neighbours a point
	divisors []float64
	starts   []time.Time // of the first window of each
}

func newPoints(divisors []float64, windows []window) points {
	p := points{batch: (len(divisors) + maxPoints - 1) / maxPoints}
	for chunk := range slices.Chunk(divisors, p.batch) {
		sum := 0.0
		for _, d := range chunk {
			sum += d
		}
		p.divisors = append(p.divisors, sum)
	}
	for chunk := range slices.Chunk(windows, p.batch) {
		p.starts = append(p.starts, chunk[0].start)
	}
	return p
}

// turns tells whether the sides take turns: of windows in the order of time no two of both sides overlap, and no more
// than two in a row are of one side.
func turns(before, after []window) bool {
	sides := [2][]window{before, after}
	var end time.Time
	last, row := -1, 0
	for len(sides[0])+len(sides[1]) > 0 {
		i := earlier(sides, func(w window) time.Time { return w.start })
		w := sides[i][0]
		sides[i] = sides[i][1:]
		if row++; i != last {
			last, row = i, 1
		}
		if w.start.IsZero() || w.start.Before(end) || row > 2 {
			return false
		}
		end = w.start.Add(w.length)
	}
	return true
}

// order is the side of each point in the order of time.
func order(points [2]points) []int {
	starts := [2][]time.Time{points[0].starts, points[1].starts}
	var order []int
	for len(starts[0])+len(starts[1]) > 0 {
		i := earlier(starts, func(t time.Time) time.Time { return t })
		order, starts[i] = append(order, i), starts[i][1:]
	}
	return order
}

// earlier is the series of which the first is not after that of the other. One of them is not empty.
func earlier[T any](series [2][]T, start func(T) time.Time) int {
	if len(series[0]) == 0 || len(series[1]) > 0 && start(series[1][0]).Before(start(series[0][0])) {
		return 1
	}
	return 0
}

// values are the normalised values of a series, a point each.
func (p points) values(s series) []float64 {
	values := make([]float64, len(p.divisors))
	for _, v := range s {
		values[int(v.window)/p.batch] += float64(v.value)
	}
	for i := range values {
		values[i] /= p.divisors[i]
	}
	return values
}

func (c *comparison) metric(r *Report) Metric {
	b, a := c.before, c.after
	per, divisors := c.divide(r)
	for i, d := range divisors {
		for _, v := range d {
			c.divisors[i] += v
		}
		c.points[i] = newPoints(d, [][]window{b.windows, a.windows}[i])
	}
	if c.tested = min(len(b.windows), len(a.windows)) >= minWindows; c.tested {
		c.ranks = newRanks(len(c.points[0].divisors), len(c.points[1].divisors))
		if turns(b.windows, a.windows) {
			c.order = order(c.points)
		}
		c.dependence = newDependence(c.points[0].values(b.total), c.points[1].values(a.total), c.order, totalCaution)
	}
	m := Metric{
		Name: b.name, Unit: b.unit, Per: per, Tested: c.tested,
		WindowsBefore: len(b.windows), WindowsAfter: len(a.windows),
		RawBefore: b.total.sum(), RawAfter: a.total.sum(), SmallestP: 1,
	}
	if c.tested {
		m.SmallestP = c.ranks.smallest()
	}
	total := c.values(b.total, a.total)
	m.Total = Change{Name: "total", Flat: total, Cum: total}
	c.total = float64(total.Before + total.After)

	functions := map[int32]int{} // where each is in m.Functions
	for id := range int32(len(c.table.Names)) {
		cb, ca := at(b.cum, id), at(a.cum, id)
		if len(cb)+len(ca) == 0 {
			continue
		}
		if !c.large(cb, ca) {
			m.Small++
			continue
		}
		change := c.change(at(b.flat, id), at(a.flat, id), cb, ca)
		change.Name = c.table.Names[id]
		functions[id] = len(m.Functions)
		m.Functions = append(m.Functions, change)
	}
	for id := range int32(len(c.table.Nodes)) {
		if cb, ca := at(b.tree, id), at(a.tree, id); c.large(cb, ca) {
			change := c.change(at(b.self, id), at(a.self, id), cb, ca)
			change.node = id
			m.Stacks = append(m.Stacks, change)
		}
	}
	c.explain(&m, functions)
	m.Flame = c.flame(m.Total.Cum)
	return m
}

// explain finds what the changes of functions and stacks come from, and orders them by that. The index of each function
// in m.Functions is given, and m.Stacks are in the order of their nodes.
func (c *comparison) explain(m *Metric, functions map[int32]int) {
	byStack, byFunction := newExplanation(m.Stacks), newExplanation(m.Functions)
	stackOf := map[int32]int{}
	calls := map[[2]int]float64{} // change of a function when called by another
	for i := range m.Stacks {
		node := m.Stacks[i].node
		stackOf[node] = i
		caller := c.table.Nodes[node].Parent
		if caller == stacks.Root {
			continue
		}
		change := m.Stacks[i].Cum.change()
		byStack.add(stackOf[caller], i, change) // a caller is as large, so that it is there
		calls[[2]int{functions[c.table.Nodes[caller].Function], functions[c.table.Nodes[node].Function]}] += change
	}
	for _, call := range slices.SortedFunc(maps.Keys(calls), func(a, b [2]int) int { return slices.Compare(a[:], b[:]) }) {
		byFunction.add(call[0], call[1], calls[call])
	}
	byStack.order()
	byFunction.order()
}

// explanation leads from changes to those of callees that have most of them.
type explanation struct {
	changes []Change
	callees [][]int // of each change
}

func newExplanation(changes []Change) explanation {
	return explanation{changes, make([][]int, len(changes))}
}

// add says how much of a caller's change is in its calls of a callee.
func (e explanation) add(caller, callee int, change float64) {
	if whole := e.changes[caller].Cum.change(); whole != 0 && change/whole >= mostOf {
		e.callees[caller] = append(e.callees[caller], callee)
	}
}

// order sorts the changes by what explains them, and those that one change explains from there up. That is the one from
// which the fewest others are reached: none, but where functions call each other.
func (e explanation) order() {
	reached := make([]int, len(e.changes))
	for i := range e.changes {
		reached[i] = len(e.reach(i))
	}
	for i := range e.changes {
		for _, r := range e.reach(i) {
			if origin := &e.changes[i].explained; r.calls == 0 || reached[r.change] < origin.reached {
				*origin = explained{e.changes[r.change].magnitude(), r.calls, reached[r.change]}
			}
		}
	}
	slices.SortStableFunc(e.changes, func(x, y Change) int {
		return cmp.Or(cmp.Compare(y.size, x.size), cmp.Compare(x.calls, y.calls), cmp.Compare(x.magnitude(), y.magnitude()))
	})
}

// callee is a change that is reached from another.
type callee struct{ change, calls int }

// reach is a change itself, and those of callees that explain it, the nearest first.
func (e explanation) reach(change int) []callee {
	all := []callee{{change, 0}}
	for i := 0; i < len(all) && len(all) < maxCalls; i++ {
		for _, next := range e.callees[all[i].change] {
			if !slices.ContainsFunc(all, func(c callee) bool { return c.change == next }) {
				all = append(all, callee{next, all[i].calls + 1})
			}
		}
	}
	return all
}

// divide says what the windows of both sides are divided by.
func (c *comparison) divide(r *Report) (per string, divisors [2][]float64) {
	sides := [2]*measure{c.before, c.after}
	work := [2]float64{c.options.WorkBefore, c.options.WorkAfter}
	by := func(of func(window) float64) {
		for i, m := range sides {
			divisors[i] = make([]float64, len(m.windows))
			for j, w := range m.windows {
				divisors[i][j] = of(w)
			}
		}
	}
	timed := true
	for _, m := range sides {
		for _, w := range m.windows {
			timed = timed && w.length > 0
		}
	}
	one := func(window) float64 { return 1 }
	seconds := func(w window) float64 { return w.length.Seconds() }
	switch {
	case c.before.level:
		by(one)
		return "", divisors
	case c.options.Normalization == ByNothing:
		by(one)
		return "window", divisors
	case c.options.Normalization == ByWork && c.options.Work != nil:
		by(func(w window) float64 { return w.work })
		return "unit of work", divisors
	case c.options.Normalization == ByWork:
		if by(seconds); !timed {
			by(one) // windows without a length count alike
		}
		for i, d := range divisors {
			sum := 0.0
			for _, v := range d {
				sum += v
			}
			for j := range d {
				d[j] *= work[i] / sum
			}
		}
		return "unit of work", divisors
	case c.before.wall:
		by(func(w window) float64 { return float64(w.spans) })
		return "span", divisors
	case !timed:
		by(one)
		r.Notes = append(r.Notes, fmt.Sprintf("%s: a profile does not say how long it took, so windows are compared as they are, not per second", c.before.name))
		return "window", divisors
	}
	by(seconds)
	return "second", divisors
}

// large tells whether a quantity has enough of the total to be reported. It looks at both sides together, so
// that which are tested says nothing about which differ.
func (c *comparison) large(before, after series) bool {
	if len(before)+len(after) == 0 {
		return false
	}
	sum := float64(before.sum())/c.divisors[0] + float64(after.sum())/c.divisors[1]
	return sum >= c.options.MinShare*c.total
}

// change compares a function or a stack, alone and with what it called.
func (c *comparison) change(flatBefore, flatAfter, cumBefore, cumAfter series) Change {
	change := Change{Cum: c.values(cumBefore, cumAfter)}
	if flatBefore.sum() == cumBefore.sum() && flatAfter.sum() == cumAfter.sum() {
		change.Flat = change.Cum // it calls nothing
	} else {
		change.Flat = c.values(flatBefore, flatAfter)
	}
	return change
}

// values compares one quantity.
func (c *comparison) values(before, after series) Values {
	b, a := float64(before.sum())/c.divisors[0], float64(after.sum())/c.divisors[1]
	v := Values{Before: Number(b), After: Number(a), P: 1, Q: 1}
	if c.tested {
		vb, va := c.points[0].values(before), c.points[1].values(after)
		d := doubt{math.Sqrt(c.dependence.inflation(vb, va, c.order)), max(c.before.grain, c.after.grain)}
		confidence := 1 - c.options.Alpha
		r := c.ranks.test(vb, va, confidence)
		if b > 0 && a > 0 && r.sparse() {
			r = r.byMeans(newMean(vb, c.points[0].divisors), newMean(va, c.points[1].divisors), d, confidence)
		} else {
			r = c.ranks.widened(r, vb, va, d, confidence)
		}
		v.P, v.Difference, v.Ratio = r.p, r.difference, r.ratio
		return v
	}
	v.Difference = unbounded(a - b)
	v.Ratio = unbounded(quotient(b, a))
	return v
}

func unbounded(v float64) Estimate {
	return Estimate{Number(v), Number(math.Inf(-1)), Number(math.Inf(1))}
}

// Families of tests, each with a share of the error budget.
const (
	familyTotals = iota
	familyFunctions
	familyStacks
)

// hypotheses are the metric's tests.
func (m *Metric) hypotheses() []hypothesis {
	if !m.Tested {
		return nil
	}
	all := []hypothesis{{familyTotals, m.Total.Cum.P, &m.Total.Cum.Q}}
	add := func(family int, changes []Change) {
		for i := range changes {
			c := &changes[i]
			all = append(all, hypothesis{family, c.Cum.P, &c.Cum.Q})
			if c.leaf() || c.Flat.Before == 0 && c.Flat.After == 0 {
				continue // it is the same question, or none
			}
			all = append(all, hypothesis{family, c.Flat.P, &c.Flat.Q})
		}
	}
	add(familyFunctions, m.Functions)
	add(familyStacks, m.Stacks)
	return all
}

// judge marks what is significant.
func (m *Metric) judge(alpha float64) {
	mark := func(v *Values) { v.Significant = v.Q <= alpha }
	mark(&m.Total.Cum)
	m.Total.Flat = m.Total.Cum
	for _, changes := range [][]Change{m.Functions, m.Stacks} {
		for i := range changes {
			c := &changes[i]
			mark(&c.Cum)
			if mark(&c.Flat); c.leaf() {
				c.Flat = c.Cum
			}
		}
	}
}

// cutStacks keeps the stacks that come first, and spells them out. A profile whose stacks are deep has as many
// stacks, and all of them spelled out would take the square of its size.
func (m *Metric) cutStacks(t *stacks.Table) {
	slices.SortStableFunc(m.Stacks, func(a, b Change) int { return cmp.Compare(rank(b), rank(a)) })
	m.Stacks = slices.Clip(m.Stacks[:min(len(m.Stacks), maxStacks)])
	for i := range m.Stacks {
		path := t.Path(m.Stacks[i].node)
		if deep := len(path) - maxStackDepth; deep > 0 {
			path = append([]string{fmt.Sprintf("[%d more]", deep)}, path[deep:]...)
		}
		m.Stacks[i].Stack = path
	}
}

// explainSpans says which spans wall-clock profiles are of, where that may surprise.
func (r *Report) explainSpans(before, after *side) {
	if n := before.children + after.children; n > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("wall: %d profiles of child spans are left out, since their time is in those of their roots; %s=%s chooses them", n, scopeLabel, scopeChild))
	}
	if before.unscoped || after.unscoped {
		r.Notes = append(r.Notes, fmt.Sprintf("wall: not all profiles say whether they are of root or of child spans; where they are of both, time counts twice: choose %s=%q", scopeLabel, scopeRoot))
	}
}

// explainPower says where the number of windows forbids an answer. Families are the numbers of tests in each.
func (r *Report) explainPower(families map[int]float64) {
	for _, m := range r.Metrics {
		n := fmt.Sprintf("%s: %s before and %d after", m.Name, countWindows(m.WindowsBefore), m.WindowsAfter)
		if !m.Tested {
			r.Notes = append(r.Notes, fmt.Sprintf("%s: whether the differences are more than chance is unknown; it takes %d a side to tell", n, minWindows))
			continue
		}
		least := m.SmallestP * float64(len(families))
		switch {
		case least*families[familyTotals] > r.Alpha:
			r.Notes = append(r.Notes, fmt.Sprintf("%s: the smallest p that so few can give is %.2g; corrected for the number of tests, only where nearly everything changes is that more than chance; take more windows", n, m.SmallestP))
		case least*families[familyFunctions] > r.Alpha:
			r.Notes = append(r.Notes, fmt.Sprintf("%s: the smallest p that so few can give is %.2g; corrected for the number of tests, the change of a function that alone changes among %d is not told from chance; take more windows", n, m.SmallestP, len(m.Functions)))
		}
	}
}
