package compare

import (
	"math"
	"slices"
	"time"

	"spanflame/profiles"
	"spanflame/profiles/internal/stacks"
)

// comparison compares one metric.
type comparison struct {
	options       Options
	asked         Normalization // "" for the default
	sides         [2]*side
	table         *stacks.Table
	before, after *measure
	total         float64    // of both sides' normalised totals
	signed        bool       // there are values below 0
	divisors      [2]float64 // sum for each side
	scale         float64    // from before to after for Report.Diff, 0 for that of the divisors
	points        [2]points
	binned        bool // the points are parts of a time range, not windows
	tested        bool
	ranks         ranks      // if tested
	order         []int      // the side of each window in the order of time, if sides take turns
	dependence    dependence // of the total, if tested
}

// timeRange is the time from the start of the first window to the end of the last, of those with a time.
type timeRange struct{ start, end time.Time }

func (r *timeRange) add(start, end time.Time) {
	if !profiles.HasTime(start) {
		return
	}
	if r.start.IsZero() || start.Before(r.start) {
		r.start = start
	}
	if end.After(r.end) {
		r.end = end
	}
}

// points are the sums of windows that are compared with each other.
type points struct {
	of       []int // the point of each window
	divisors []float64
	factors  []float64   // of each window, nil if all are 1
	starts   []time.Time // of the first window of each, where windows are neighbors
}

// newPoints adds up neighbors, so that there are at most maxPoints.
func newPoints(divisors []float64, windows []window) points {
	batch := (len(divisors) + maxPoints - 1) / maxPoints
	var p points
	for i, w := range windows {
		p.of = append(p.of, i/batch)
		if i%batch == 0 {
			p.divisors, p.starts = append(p.divisors, 0), append(p.starts, w.start)
		}
		p.divisors[i/batch] += divisors[i]
	}
	return p
}

// newBins divides a time range into equal parts and adds up the windows that start in each; a part may have none. The
// divisor of each part is the same share of total.
func newBins(windows []window, in timeRange, total float64) points {
	var p points
	for range wallBins {
		p.divisors = append(p.divisors, total/wallBins)
	}
	for _, w := range windows {
		i := int(float64(w.start.Sub(in.start)) / float64(in.end.Sub(in.start)) * wallBins)
		p.of = append(p.of, min(max(i, 0), wallBins-1))
	}
	return p
}

// turns reports whether the sides take turns: no windows of different sides overlap, and in the order of time no more
// than two in a row are of the same side.
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

// order returns the side of each point, in the order of time.
func order(points [2]points) []int {
	starts := [2][]time.Time{points[0].starts, points[1].starts}
	var order []int
	for len(starts[0])+len(starts[1]) > 0 {
		i := earlier(starts, func(t time.Time) time.Time { return t })
		order, starts[i] = append(order, i), starts[i][1:]
	}
	return order
}

// earlier returns the side whose first element is not later than that of the other. At least one is not empty.
func earlier[T any](series [2][]T, start func(T) time.Time) int {
	if len(series[0]) == 0 || len(series[1]) > 0 && start(series[1][0]).Before(start(series[0][0])) {
		return 1
	}
	return 0
}

// values returns the normalized values of a series, one for each point.
func (p points) values(s series) []float64 {
	values := make([]float64, len(p.divisors))
	for _, v := range s {
		values[p.of[v.window]] += p.factor(v.window) * float64(v.value)
	}
	for i := range values {
		values[i] /= p.divisors[i]
	}
	return values
}

// factor returns the factor of a window's values.
func (p points) factor(window int32) float64 {
	if p.factors == nil {
		return 1
	}
	return p.factors[window]
}

// mean returns the normalized mean of a side's series.
func (c *comparison) mean(side int, s series) (mean float64) {
	p := c.points[side]
	if p.factors == nil {
		return float64(s.sum()) / c.divisors[side]
	}
	for _, v := range s {
		mean += p.factors[v.window] * float64(v.value)
	}
	return mean / c.divisors[side]
}

func (c *comparison) metric(r *Report) Metric {
	b, a := c.before, c.after
	per := perRequest
	if c.binned = c.byRequest(r); !c.binned {
		per, c.binned = c.perTime()
	}
	if !c.binned {
		var divisors [2][]float64
		per, divisors = c.divide(r)
		for i, d := range divisors {
			c.points[i] = newPoints(d, [][]window{b.windows, a.windows}[i])
		}
		c.tested = per != perSpan && min(len(b.windows), len(a.windows)) >= minWindows
	}
	for i, p := range c.points {
		for _, v := range p.divisors {
			c.divisors[i] += v
		}
	}
	if c.tested {
		c.ranks = newRanks(len(c.points[0].divisors), len(c.points[1].divisors))
		if !c.binned && turns(b.windows, a.windows) {
			c.order = order(c.points)
		}
		c.dependence = newDependence(c.points[0].values(b.total), c.points[1].values(a.total), c.order, totalCaution)
	}
	m := Metric{
		Name: b.name, Unit: b.unit, Per: per, Tested: c.tested,
		WindowsBefore: len(b.windows), WindowsAfter: len(a.windows),
		RawBefore: b.total.sum(), RawAfter: a.total.sum(), SmallestP: 1,
		Signed: c.signed, Functions: []Change{}, Stacks: []Change{}, // not null in JSON
	}
	if b.benchmark {
		m.RawBefore, m.RawAfter = m.RawBefore/profiles.BenchmarkParts, m.RawAfter/profiles.BenchmarkParts
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

// perSpan is Metric.Per of the mean of slow spans, which shows no change of a service: it can increase although requests
// became faster.
const perSpan = "span"

// perRequest is Metric.Per of the time of slow spans divided by all requests.
const perRequest = "request"

// wallBins is the number of parts of a side's time range, or of its requests, in which the slow spans are added up.
const wallBins = 20

// perTime divides wall-clock profiles of slow spans by all of the work, or by all of the time, of their side. Such windows
// contain no requests that were not slow, and there is none at times without slow requests, so the windows are added up
// in equal parts of the time range. It returns false if the profiles are not of spans, or if neither normalization was
// requested.
func (c *comparison) perTime() (per string, ok bool) {
	if !c.before.ofSpans() || !c.after.ofSpans() {
		return "", false
	}
	if !c.options.allRequests(c.asked) {
		return "", false
	}
	per = "unit of work"
	work := []float64{c.options.WorkBefore, c.options.WorkAfter}
	for i, m := range []*measure{c.before, c.after} {
		in, total := c.sides[i].measured, work[i]
		if c.asked == ByDuration {
			per, total = "second", in.end.Sub(in.start).Seconds()
		} else if in.start.IsZero() {
			in = c.sides[i].timeRange
		}
		if !in.end.After(in.start) {
			return "", false // there are only slow spans, which do not show the measured time
		}
		c.points[i] = newBins(m.windows, in, total)
	}
	c.tested = true
	return per, true
}

// allRequests reports whether the normalization is by all of the work or time, which includes requests that were not slow.
func (o Options) allRequests(asked Normalization) bool {
	return asked == ByDuration || o.Normalization == ByWork && o.Work == nil
}

// addIdle adds empty measures for the slow spans of the other side, if this side was measured but has none.
func (s *side) addIdle(other *side) {
	for _, m := range other.measures {
		missing := !slices.ContainsFunc(s.measures, func(own *measure) bool { return own.name == m.name })
		if missing && m.ofSpans() && !s.measured.start.IsZero() {
			s.measures = append(s.measures, &measure{name: m.name, unit: m.unit, sample: m.sample, wall: true})
		}
	}
}

// ofSpans reports whether a measure is of wall-clock profiles of spans.
func (m *measure) ofSpans() bool {
	return m.wall && !slices.ContainsFunc(m.windows, func(w window) bool { return w.spans == 0 })
}

// spans returns the number of spans of a measure.
func (m *measure) spans() (n int) {
	for _, w := range m.windows {
		n += w.spans
	}
	return n
}

// divide returns the divisors of the windows of both sides, and what one of them is.
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
	case c.before.benchmark:
		by(func(window) float64 { return profiles.BenchmarkParts })
		return "", divisors
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
			by(one) // windows without a length have equal weight
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
	case c.before.ofSpans() && c.after.ofSpans():
		r.note("%s: not judged: the mean of the %d slow spans before and %d after can increase although requests became faster, as requests "+
			"that are not slow are not recorded: save traces, which count all requests, give their numbers (--work-before, --work-after), "+
			"or divide by the time (--normalize duration), which profiles of another type show",
			c.before.name, c.before.spans(), c.after.spans())
		by(func(w window) float64 { return float64(w.spans) })
		return perSpan, divisors
	case !timed:
		by(one)
		r.note("%s: some profiles do not say how long they took, so windows are compared as they are, not per second", c.before.name)
		return "window", divisors
	}
	by(seconds)
	return "second", divisors
}

// large reports whether a quantity's share of the total is large enough to be reported. It uses the sum of both sides, so
// the selection does not depend on the difference. Of a total with both signs, and of one of benchmarks, nothing has a
// share, so everything is large enough.
func (c *comparison) large(before, after series) bool {
	if len(before)+len(after) == 0 || c.signed || c.before.benchmark {
		return len(before)+len(after) > 0
	}
	return c.mean(0, before)+c.mean(1, after) >= c.options.MinShare*c.total
}

// change compares a function or a stack, alone and including callees.
func (c *comparison) change(flatBefore, flatAfter, cumBefore, cumAfter series) Change {
	change := Change{Cum: c.values(cumBefore, cumAfter)}
	if flatBefore.sum() == cumBefore.sum() && flatAfter.sum() == cumAfter.sum() {
		change.Flat = change.Cum // no callees
	} else {
		change.Flat = c.values(flatBefore, flatAfter)
	}
	return change
}

// values compares one quantity.
func (c *comparison) values(before, after series) Values {
	b, a := c.mean(0, before), c.mean(1, after)
	v := Values{Before: Number(b), After: Number(a), P: 1, Q: 1}
	if c.tested {
		vb, va := c.points[0].values(before), c.points[1].values(after)
		u := uncertainty{math.Sqrt(c.dependence.inflation(vb, va, c.order)), max(c.before.grain, c.after.grain), c.signed}
		means := [2]mean{newMean(vb, c.points[0].divisors), newMean(va, c.points[1].divisors)}
		r := c.ranks.compare(vb, va, means, u, 1-c.options.Alpha)
		v.P, v.Difference, v.Ratio = r.p, r.difference, r.ratio
		v.noise = newNoise(vb, va, r.ratio, 1-c.options.Alpha, c.order != nil)
		v.noise.binned = c.binned
		v.Smallest = Number(v.noise.smallest(c.options.Alpha))
		return v
	}
	v.Smallest = Number(math.Inf(1))
	v.Difference = unbounded(a - b)
	if v.Ratio = unbounded(quotient(b, a)); c.signed {
		v.Ratio = noRatio
	}
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
				continue // the same as the other one, or not tested
			}
			all = append(all, hypothesis{family, c.Flat.P, &c.Flat.Q})
		}
	}
	add(familyFunctions, m.Functions)
	add(familyStacks, m.Stacks)
	return all
}
