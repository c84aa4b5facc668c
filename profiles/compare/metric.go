package compare

import (
	"math"
	"slices"
	"time"

	"spanflame/profiles/internal/stacks"
)

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
		r.note("%s: some profiles do not say how long they took, so windows are compared as they are, not per second", c.before.name)
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
