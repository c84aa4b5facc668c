package leaks

import (
	"cmp"
	"math"
	"slices"
	"time"

	"spanflame/profiles/internal/stat"
)

const (
	// blocks is the number of parts into which a series is divided. The lowest value of each is its floor: garbage and
	// short-lived objects on top of it do not count.
	blocks = 24

	normalQuantile = 1.96 // of intervals of 95 %

	// stoppedShare is the share of the earlier rate at which the last third must still grow.
	// A cache that fills up exponentially falls below it once the series is twice as long as its time constant.
	stoppedShare = 0.5

	// Growth follows the load if the load explains at least this share of it …
	loadShare = 0.5
	// … and the memory grew by no more than the load did, give or take a quarter.
	loadSlack = 1.25
	// loadRise is the ratio from which the load counts as risen.
	loadRise = 1.1
	// collinear is the correlation from which the effects of load and time cannot be separated.
	collinear = 0.9
)

// growth is a stack that grew.
type growth struct {
	process int
	kind    Kind
	node    int32

	slope, low, high float64 // per minute, since it began
	began            time.Time
	grown, last      float64
	p, q             float64
	tests            int    // number of tests in the same run
	reason           string // why it is no leak, "" if it may be one
	held             bool   // it stopped growing when the load stopped, and has not been released since
}

// growing returns the stacks of a run that grew enough to be tested. The number of tests is the number of stacks that
// were ever large enough to grow by that much: smaller ones are excluded by their size, which says nothing about a
// trend (Bourgon, Gentleman and Huber 2010, "Independent filtering").
func (t *timeline) growing(run span, load []float64, least float64) []*growth {
	n := run.end - run.start
	minutes := make([]float64, n)
	for i, end := range t.ends[run.start:run.end] {
		minutes[i] = end.Sub(t.ends[run.start]).Minutes()
	}
	var found []*growth
	tests := 0
	values := make([]float64, n)
	for id, points := range t.stacks {
		clear(values)
		for _, p := range points {
			if run.start <= p.window && p.window < run.end {
				values[p.window-run.start] = p.value
			}
		}
		if slices.Max(values) < least {
			continue
		}
		tests++
		third := n / 3
		grown := stat.Mean(values[n-third:]) - stat.Mean(values[:third])
		if grown <= 0 {
			continue
		}
		grown *= 1.5 // from the middle of the first third to that of the last is two thirds of the series
		g := &growth{node: id, grown: grown, last: values[n-1]}
		if grown < least {
			continue
		}
		g.fit(minutes, values, load, t.ends[run.start:run.end], t.starts[run.start], t.unit)
		if g.reason == reasonStopped {
			g.hold(minutes, values, load, t.ends[run.start:run.end], t.starts[run.start], t.unit)
		}
		found = append(found, g)
	}
	slices.SortFunc(found, func(a, b *growth) int { return cmp.Compare(a.node, b.node) })
	for _, g := range found {
		g.tests = tests
	}
	return found
}

// fit fits the trend and finds reasons against a leak.
func (g *growth) fit(minutes, values, load []float64, ends []time.Time, start time.Time, unit float64) {
	at, floor := floors(minutes, values)
	g.p = max(mannKendall(floor), signTest(floor))
	from := hinge(at, floor)
	g.began = start
	if from > 0 {
		i, _ := slices.BinarySearch(minutes, at[from])
		g.began = ends[min(i, len(ends)-1)]
	}
	g.slope, g.low, g.high = theilSen(at[from:], floor[from:])
	// Sampling errors add up, and the line follows them: the error of n samples is √n.
	if length := at[len(at)-1] - at[from]; length > 0 && g.slope > 0 {
		sampling := normalQuantile * math.Sqrt(g.slope*length*unit) / length
		g.low = g.slope - math.Hypot(g.slope-g.low, sampling)
		g.high = g.slope + math.Hypot(g.high-g.slope, sampling)
	}
	switch {
	case stopped(at, floor, unit):
		g.reason = reasonStopped
	case load != nil && follows(minutes, values, load):
		g.reason = "follows the load"
	case g.slope <= 0, g.last < slices.Max(floor)/2: // released in the last part
		g.reason = "rises and falls"
	}
}

// reasonStopped is why a stack that no longer grows is no leak.
const reasonStopped = "stopped growing"

const (
	// The load has stopped if it is below this share of what it was, for at least an idleShare of the series.
	idleLoad   = 0.2
	idleShare  = 0.1
	minIdle    = 4   // windows
	stillHeld  = 0.9 // share of what a stack held when the load stopped
	busyHeight = 0.9 // quantile of the load that is taken for what it was
)

// hold looks at the series up to the time at which the load stopped, if it did. A stack that grew until then like a leak,
// and has been held since, is not known to have stopped: a leak cannot grow without work.
func (g *growth) hold(minutes, values, load []float64, ends []time.Time, start time.Time, unit float64) {
	busy := busyUntil(load)
	if busy < MinWindows || len(values)-busy < max(minIdle, int(idleShare*float64(len(values)))) ||
		slices.Min(values[busy:]) < stillHeld*values[busy-1] {
		return
	}
	until := *g
	until.reason = ""
	if until.fit(minutes[:busy], values[:busy], load[:busy], ends[:busy], start, unit); until.reason == "" {
		*g = until
		g.held = true
	}
}

// busyUntil returns the number of windows before the load stopped; all of them if it did not.
func busyUntil(load []float64) int {
	if len(load) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(load))
	least := idleLoad * sorted[int(busyHeight*float64(len(sorted)-1))]
	for i, l := range slices.Backward(load) {
		if l >= least {
			return i + 1
		}
	}
	return 0
}

// floors returns the lowest values of the parts of the series, and their times.
func floors(minutes, values []float64) (at, floor []float64) {
	n := min(blocks, len(values))
	for i := range n {
		from, to := i*len(values)/n, (i+1)*len(values)/n
		lowest := from
		for j := from; j < to; j++ {
			if values[j] < values[lowest] {
				lowest = j
			}
		}
		at, floor = append(at, minutes[lowest]), append(floor, values[lowest])
	}
	return at, floor
}

// mannKendall returns the one-sided p of the Mann–Kendall test for an upward trend, corrected for ties and continuity.
func mannKendall(values []float64) float64 {
	s, variance := kendall(values)
	if s <= 0 || variance == 0 {
		return 1
	}
	return stat.Normal((1 - s) / math.Sqrt(variance))
}

// kendall returns the score of Mann and Kendall, and its variance if there is no trend.
func kendall(values []float64) (s, variance float64) {
	ties := map[float64]float64{}
	for i, v := range values {
		ties[v]++
		for _, later := range values[i+1:] {
			s += float64(cmp.Compare(later, v))
		}
	}
	term := func(n float64) float64 { return n * (n - 1) * (2*n + 5) }
	variance = term(float64(len(values)))
	for _, n := range ties {
		variance -= term(n)
	}
	return s, variance / 18
}

// signTest returns the one-sided p of the number of upward steps of a series. It is valid for a random walk, whose
// steps are independent, and conservative for a series that returns to a mean. The Mann–Kendall test takes a random walk
// for a trend.
func signTest(values []float64) float64 {
	up, steps := 0.0, 0.0
	for i := 1; i < len(values); i++ {
		switch {
		case values[i] > values[i-1]:
			up++
			steps++
		case values[i] < values[i-1]:
			steps++
		}
	}
	if up == 0 {
		return 1
	}
	return stat.AtLeastHeads(up, steps)
}

// theilSen returns the median of the slopes of all pairs, with Sen's confidence interval.
func theilSen(at, values []float64) (slope, low, high float64) {
	var slopes []float64
	for i := range values {
		for j := i + 1; j < len(values); j++ {
			if at[j] > at[i] {
				slopes = append(slopes, (values[j]-values[i])/(at[j]-at[i]))
			}
		}
	}
	if len(slopes) == 0 {
		return 0, 0, 0
	}
	slices.Sort(slopes)
	_, variance := kendall(values)
	width := normalQuantile * math.Sqrt(variance)
	n := len(slopes)
	lowest := int((float64(n) - width) / 2)
	lowest = min(max(lowest, 0), (n-1)/2)
	return (slopes[(n-1)/2] + slopes[n/2]) / 2, slopes[lowest], slopes[n-1-lowest]
}

// hinge returns the index at which a level series began to rise: the best fit by a level followed by a line.
func hinge(at, values []float64) int {
	best, least := 0, math.Inf(1)
	for from := range len(values) * 3 / 4 {
		x := make([]float64, len(at))
		for i := range at {
			x[i] = max(0, at[i]-at[from])
		}
		a, b, _ := stat.Line(x, values)
		var sum float64
		for i, v := range values {
			sum += (v - a - b*x[i]) * (v - a - b*x[i])
		}
		// A later start has to fit clearly better: noise alone makes one of them fit best.
		if sum < 0.9*least {
			best, least = from, sum
		}
	}
	return best
}

// stopped reports whether the last third rises much less than the part before it, by more than the standard error of
// sampling once in unit bytes.
func stopped(at, values []float64, unit float64) bool {
	split := len(values) * 2 / 3
	before, _, _ := theilSen(at[:split], values[:split])
	after, _, _ := theilSen(at[split:], values[split:])
	length := at[len(at)-1] - at[split]
	if after <= 0 || before <= 0 || length <= 0 {
		return after <= 0
	}
	return after+math.Sqrt(before*length*unit)/length < stoppedShare*before
}

// follows reports whether the load rose and the memory rose with it, and no more than it.
func follows(minutes, values, load []float64) bool {
	third := len(values) / 3
	ends := func(s []float64) (first, last float64) {
		return stat.Mean(s[:third]), stat.Mean(s[len(s)-third:])
	}
	firstLoad, lastLoad := ends(load)
	first, last := ends(values)
	if lastLoad < loadRise*firstLoad || last*firstLoad > loadSlack*lastLoad*first {
		return false
	}
	if _, _, correlation := stat.Line(minutes, load); correlation > collinear {
		return true // the effects cannot be separated, and the load suffices
	}
	return stat.Partial(minutes, load, values)*(lastLoad-firstLoad) >= loadShare*(last-first)
}

// correct sets the q of each stack by the procedure of Benjamini and Hochberg, among all stacks that were large enough to
// be tested.
func correct(found []*growth) {
	tests := 0
	counted := map[[2]any]bool{}
	for _, g := range found {
		if run := [2]any{g.process, g.kind}; !counted[run] {
			counted[run] = true
			tests += g.tests
		}
	}
	sorted := slices.SortedFunc(slices.Values(found), func(a, b *growth) int { return cmp.Compare(a.p, b.p) })
	q := 1.0
	for i, g := range slices.Backward(sorted) {
		q = min(q, g.p*float64(tests)/float64(i+1))
		g.q = q
	}
}
