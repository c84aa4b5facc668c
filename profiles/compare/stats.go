package compare

import (
	"cmp"
	"math"
	"slices"

	"gonum.org/v1/gonum/stat"
	"gonum.org/v1/gonum/stat/combin"
	"gonum.org/v1/gonum/stat/distuv"
)

const (
	// minWindows is how many windows a side needs before chance can be told from change: with three a side
	// no arrangement of the ranks is rarer than 1 in 10.
	minWindows = 4
	// maxPoints bounds the points a side: longer series are shortened by adding up neighbours. It bounds the
	// pairs that an interval looks at, and neighbours added up depend less on each other.
	maxPoints = 64
	// minForCorrelation is how many points a side it takes to say anything about their dependence.
	minForCorrelation = 8
	// totalCaution and ownCaution are how many standard errors are added to an estimate of the correlation.
	// Too low an estimate of the total's reports changes that are none, for everything at once; of one
	// function among hundreds, chance alone makes some estimates high, which would hide its change. The figures
	// are what keeps equal sides below the promised rate in simulations with a load that drifts.
	// Of sides that take turns it is turnsCaution: what is left of the correlation there is mostly chance.
	// No more than maxCaution is added, which of few windows would leave nothing.
	totalCaution = 2
	ownCaution   = -1
	turnsCaution = -1
	maxCaution   = 0.3
	// standardConfidence is that of the interval from which the standard error of a median is taken. Four windows a
	// side suffice for it.
	standardConfidence = 0.95
	// minFreedom is what dependence leaves at least of the degrees of freedom, and maxFreedom as good as all.
	minFreedom = 2
	maxFreedom = 1e6
	// maxCorrelation bounds the estimate: beyond it a series has next to no independent points left.
	maxCorrelation = 0.95
)

// Estimate is a value with the bounds of its confidence interval. A bound that the windows do not suffice
// for is infinite.
type Estimate struct {
	Value Number `json:"value"`
	Low   Number `json:"low"`
	High  Number `json:"high"`
}

// mapped has f of all three.
func (e Estimate) mapped(f func(float64) float64) Estimate {
	return Estimate{Number(f(float64(e.Value))), Number(f(float64(e.Low))), Number(f(float64(e.High)))}
}

// logarithm is −∞ also of the bound that a quotient has where the windows do not suffice for one.
func logarithm(v float64) float64 { return math.Log(max(0, v)) }

// result is what the windows of both sides say about one quantity.
type result struct {
	difference Estimate // after minus before
	ratio      Estimate // after over before
	p          float64  // two-sided

	differences, ratios pairs
}

// test compares two series of values whose windows do not depend on each other.
//
// The p is that of the Mann–Whitney U test, and the estimates are those of Hodges and Lehmann that belong to
// it: the median of all pairwise differences (or quotients), between the pairs that the test would not
// reject.
func (rs ranks) test(before, after []float64, confidence float64) result {
	skip := rs.outside((1-confidence)/2, 1)
	r := result{p: rs.p(before, after), differences: newPairs(before, after, minus), ratios: newPairs(before, after, quotient)}
	r.difference, r.ratio = r.differences.estimate(skip), r.ratios.estimate(skip)
	return r
}

// doubt is what makes a comparison less certain than ranks alone have it.
type doubt struct {
	// widen is the factor of the standard error, at least 1, for windows that depend on each other.
	widen float64
	// grain is the size of the things that a level is made of. They stay from window to window, so that their
	// number is not known better for being counted in many: it varies as a Poisson distribution does. It is 0
	// for what every window counts anew.
	grain float64
}

// widened is the result r of a test with doubt.
//
// Where windows depend on each other, the normal deviate of the ranks is divided by d.widen. However large a change,
// that deviate is bounded by the number of windows. So is nothing of a t-test, for which the standard error is
// taken from the interval of the ranks and multiplied by d.widen. The better of the two counts, for which the p of
// the t-test is doubled, but never a smaller p than that of the ranks. The intervals are those that belong to this p.
func (rs ranks) widened(r result, before, after []float64, d doubt, confidence float64) result {
	if d.widen <= 1 && d.grain == 0 {
		return r
	}
	skip := rs.outside((1-confidence)/2, d.widen)
	ranksP := 1.0
	if r.p < 1 {
		ranksP = 2 * distuv.UnitNormal.CDF(distuv.UnitNormal.Quantile(r.p/2)/d.widen)
	}
	if d.grain == 0 {
		confidence = (1 + confidence) / 2 // the p of the t-test is doubled
	}
	freedom := freedom(float64(rs.n1+rs.n2), d.widen)
	width := quantile(freedom, (1+confidence)/2)
	wider := func(e, usual, byRanks Estimate, known float64) Estimate {
		s := spread{
			low:     d.widen * float64(usual.Value-usual.Low) / rs.errors,
			high:    d.widen * float64(usual.High-usual.Value) / rs.errors,
			freedom: freedom, width: width, known: known, confidence: confidence,
		}
		p := s.p(float64(e.Value))
		low, high := s.interval(float64(e.Value))
		if d.grain == 0 {
			p, low, high = min(2*p, ranksP), max(low, byRanks.Low), min(high, byRanks.High)
		}
		r.p = max(r.p, p)
		return Estimate{e.Value, min(e.Low, low), max(e.High, high)}
	}
	b, a := stat.Mean(before, nil), stat.Mean(after, nil)
	r.difference = wider(r.difference, r.differences.estimate(rs.usual), r.differences.estimate(skip), d.grain*(b+a))
	if e := r.ratios.estimate(rs.usual); e.Low > 0 && !math.IsInf(float64(e.High), 1) {
		logs := wider(r.ratio.mapped(logarithm), e.mapped(logarithm), r.ratios.estimate(skip).mapped(logarithm), d.grain*(1/b+1/a))
		r.ratio = logs.mapped(math.Exp)
	}
	return r
}

// spread is how uncertain an estimate is.
type spread struct {
	low, high  float64 // standard errors below and above, estimated
	freedom    float64 // of these estimates
	known      float64 // a variance to add to theirs
	confidence float64 // of the interval
	width      float64 // of the interval, in standard errors on either side, if nothing is added
}

// from is the whole standard error, of which the estimated one is a part, and its degrees of freedom.
func (s spread) from(estimated float64) (deviation, freedom float64) {
	square := estimated * estimated
	switch {
	case s.known == 0:
		return estimated, s.freedom
	case square == 0:
		return math.Sqrt(s.known), maxFreedom
	}
	return math.Sqrt(square + s.known), min(maxFreedom, s.freedom*math.Pow(1+s.known/square, 2))
}

// p is the probability of an estimate as far from 0 as v, if that is the truth.
func (s spread) p(v float64) float64 {
	if v == 0 {
		return 1
	}
	estimated := s.low
	if v < 0 {
		estimated = s.high
	}
	deviation, freedom := s.from(estimated)
	return survival(math.Abs(v)/deviation, freedom)
}

// interval is that of the estimate v.
func (s spread) interval(v float64) (low, high Number) {
	margin := func(estimated float64) float64 {
		deviation, freedom := s.from(estimated)
		if s.known == 0 {
			return s.width * deviation
		}
		return quantile(freedom, (1+s.confidence)/2) * deviation
	}
	return Number(v - margin(s.low)), Number(v + margin(s.high))
}

// freedom is how many degrees of freedom n windows have that depend on each other.
func freedom(n, widen float64) float64 { return max(minFreedom, n/widen-2) }

// quantile and survival are those of Student's t distribution, survival on both sides.
func quantile(freedom, p float64) float64 {
	return distuv.StudentsT{Sigma: 1, Nu: freedom}.Quantile(p)
}

func survival(t, freedom float64) float64 {
	return 2 * distuv.StudentsT{Sigma: 1, Nu: freedom}.Survival(t)
}

// sparse tells whether so many windows have nothing that the median quotient, or a bound of its interval, is
// nothing or infinite.
func (r result) sparse() bool {
	e := r.ratio
	return e.Value == 0 || math.IsInf(float64(e.Value), 1) ||
		e.Low == 0 || math.IsInf(float64(e.High), 1) && !math.IsInf(float64(e.Low), -1)
}

// mean is a mean of windows, each weighted by what it was divided by.
type mean struct {
	value    float64
	variance float64 // of the mean itself
	n        float64 // windows
}

func newMean(values, weights []float64) mean {
	m := mean{value: stat.Mean(values, weights), n: float64(len(values))}
	var squares, sum float64
	for i, v := range values {
		squares += math.Pow(weights[i]*(v-m.value), 2)
		sum += weights[i]
	}
	m.variance = squares / (sum * sum) * m.n / (m.n - 1)
	return m
}

// byMeans compares what many windows have nothing of, for which the medians of pairs would be nothing or
// infinite. Its p is the larger one of r, the ranks' result, and Welch's t-test, to which both intervals
// belong: that of the ratio is Fieller's. Both means are above 0, and at least one of them varies.
func (r result) byMeans(before, after mean, d doubt, confidence float64) result {
	b, a := before.value, after.value
	vb, va := before.variance*d.widen*d.widen, after.variance*d.widen*d.widen
	s := spread{freedom: freedom(2+(vb+va)*(vb+va)/(vb*vb/(before.n-1)+va*va/(after.n-1)), d.widen), known: d.grain * (b + a)}
	deviation, freedom := s.from(math.Sqrt(vb + va))
	vb, va = vb+d.grain*b, va+d.grain*a
	width := quantile(freedom, (1+confidence)/2) // in standard deviations of a mean
	r.p = max(r.p, survival(math.Abs(a-b)/deviation, freedom))
	margin := width * deviation
	r.difference = Estimate{Number(a - b), Number(a - b - margin), Number(a - b + margin)}

	// The ratios R that are not rejected have (a − R·b)² ≤ width²·(va + R²·vb).
	r.ratio = Estimate{Value: Number(a / b), High: Number(math.Inf(1))}
	squareB, squareA := b*b-width*width*vb, a*a-width*width*va
	root := math.Sqrt(max(0, a*a*b*b-squareB*squareA))
	if squareA > 0 {
		r.ratio.Low = Number(squareA / (a*b + root))
	}
	if squareB > 0 { // else the mean before may be nothing
		r.ratio.High = Number((a*b + root) / squareB)
	}
	return r
}

func minus(before, after float64) float64 { return after - before }

// quotient orders pairs as their difference does, also where there was nothing before.
func quotient(before, after float64) float64 {
	if before == 0 && after == 0 {
		return 1
	}
	return after / before
}

// ranks is the distribution of the Mann–Whitney U of n1 and n2 points that are all of one kind: the
// probability of at most u, for each u up to the middle.
type ranks struct {
	n1, n2 int
	cdf    []float64
	usual  int     // outside the interval of standardConfidence
	errors float64 // standard errors of a median that this interval has on either side, about
}

// newRanks counts out the distribution, whose generating function is the product of (1−x^(n2+i))/(1−x^i) for
// i from 1 to n1.
func newRanks(n1, n2 int) ranks {
	cdf := make([]float64, n1*n2/2+1)
	cdf[0] = 1
	for i := 1; i <= n1; i++ {
		for u := len(cdf) - 1; u >= n2+i; u-- {
			cdf[u] -= cdf[u-n2-i]
		}
		for u := i; u < len(cdf); u++ {
			cdf[u] += cdf[u-i]
		}
	}
	sum, all := 0.0, combin.GeneralizedBinomial(float64(n1+n2), float64(n1))
	for u, ways := range cdf {
		sum += ways
		cdf[u] = min(1, sum/all)
	}
	r := ranks{n1: n1, n2: n2, cdf: cdf}
	r.usual = r.outside((1-standardConfidence)/2, 1)
	if r.usual >= 0 {
		r.errors = quantile(float64(n1+n2-2), 1-cdf[r.usual])
	}
	return r
}

// p is the two-sided p of the Mann–Whitney U test. Values that are equal share their rank. They make large
// deviations rarer than the distribution says, so that p is rather too large.
func (r ranks) p(x, y []float64) float64 {
	type value struct {
		v     float64
		first bool
	}
	all := make([]value, 0, len(x)+len(y))
	for _, v := range x {
		all = append(all, value{v, true})
	}
	for _, v := range y {
		all = append(all, value{v, false})
	}
	slices.SortFunc(all, func(a, b value) int { return cmp.Compare(a.v, b.v) })
	sum := 0.0 // of the ranks of x
	for i := 0; i < len(all); {
		j, own := i, 0.0
		for ; j < len(all) && all[j].v == all[i].v; j++ {
			if all[j].first {
				own++
			}
		}
		sum += own * float64(i+1+j) / 2
		i = j
	}
	u := sum - float64(r.n1*(r.n1+1))/2
	u = math.Ceil(min(u, float64(r.n1*r.n2)-u))
	if int(u) >= len(r.cdf) {
		return 1 // it is beyond the middle for being rounded up
	}
	return min(1, 2*r.cdf[int(u)])
}

// smallest is the least p that there can be.
func (r ranks) smallest() float64 { return min(1, 2*r.cdf[0]) }

// outside is how many of the sorted pairs may lie outside an interval at each end, less one: −1 where none
// may, which makes the interval unbounded. The interval of a wider standard error leaves fewer outside.
func (r ranks) outside(tail, widen float64) int {
	tail = distuv.UnitNormal.CDF(distuv.UnitNormal.Quantile(tail) * widen)
	n, _ := slices.BinarySearchFunc(r.cdf, tail, func(p, tail float64) int {
		if p <= tail {
			return -1
		}
		return 1
	})
	return n - 1
}

// pairs are what all pairs of a window before and one after give, sorted.
type pairs []float64

func newPairs(before, after []float64, of func(before, after float64) float64) pairs {
	p := make(pairs, 0, len(before)*len(after))
	for _, b := range before {
		for _, a := range after {
			p = append(p, of(b, a))
		}
	}
	slices.Sort(p)
	return p
}

// estimate is the median, between the pairs that are left when skip more than one are left out at either end.
func (p pairs) estimate(skip int) Estimate {
	n := len(p)
	e := Estimate{Value: Number((p[(n-1)/2] + p[n/2]) / 2), Low: Number(math.Inf(-1)), High: Number(math.Inf(1))}
	if skip >= 0 {
		e.Low, e.High = Number(p[skip]), Number(p[n-1-skip])
	}
	return e
}

// dependence is what the windows before and after a window have in common with it, as relative deviations
// from the mean of their side.
type dependence struct {
	variance   float64
	covariance float64 // of neighbours, at least 0
}

// newDependence estimates the dependence of two series, and adds caution times the standard error.
//
// Where sides take turns, order says which side each window in the order of time is of. What neighbours of both
// sides have in common is in both and takes itself off their difference, so that it does not count.
func newDependence(before, after []float64, order []int, caution float64) dependence {
	sides := [2][]float64{relative(before), relative(after)}
	var with, all float64
	for _, s := range sides {
		for i, v := range s {
			all += v * v
			if i > 0 {
				with += v * s[i-1]
			}
		}
	}
	n := float64(len(before) + len(after))
	if all == 0 || min(len(before), len(after)) < minForCorrelation {
		return dependence{variance: all / n}
	}
	// A short series underestimates the correlation ρ by about (1+3ρ)/n, because its own mean was taken off.
	r, deviation := with/all, 1/math.Sqrt(n)
	bias := (1 + 3*max(r, 0)) / (n / 2)
	if order != nil {
		r -= shared(sides, order) / all
		bias, deviation, caution = 1/(n/2), deviation*math.Sqrt2, turnsCaution
	}
	r += bias + min(caution*deviation, maxCaution)
	return dependence{all / n, max(r, 0) * all / n}
}

// shared is the sum of the products of neighbours that are of different sides, for as many as there are windows.
func shared(sides [2][]float64, order []int) float64 {
	var next [2]int
	sum, pairs, last := 0.0, 0, 0.0
	for i, side := range order {
		v := sides[side][next[side]]
		next[side]++
		if i > 0 && side != order[i-1] {
			sum += v * last
			pairs++
		}
		last = v
	}
	return sum / float64(pairs) * float64(len(order))
}

// relative are the deviations from the mean, as shares of it.
func relative(values []float64) []float64 {
	mean := stat.Mean(values, nil)
	deviations := make([]float64, len(values))
	if mean != 0 {
		for i, v := range values {
			deviations[i] = v/mean - 1
		}
	}
	return deviations
}

// inflation is by how much dependence raises the variance of a comparison of two series: (1+ρ)/(1−ρ), with ρ
// the correlation of each window with the next. A load that drifts makes it larger than 1, and windows that
// follow one another then count for fewer.
//
// What functions have in common, the load, is seen best in the total: each function has at least the total's
// covariance, and its own where that is clearly more. One that varies less than that follows the load less, and is
// taken to be correlated as the total is.
func (total dependence) inflation(before, after []float64, order []int) float64 {
	own := newDependence(before, after, order, ownCaution)
	if own.variance == 0 {
		return 1
	}
	shared := total.covariance / max(own.variance, total.variance)
	r := min(max(own.covariance/own.variance, shared), maxCorrelation)
	return (1 + r) / (1 - r)
}

// hypothesis is one of the many tests of a comparison.
type hypothesis struct {
	family int // an error budget of its own
	p      float64
	q      *float64 // where the adjusted p goes
}

// adjust sets the q of each hypothesis: the false discovery rate at which it would be reported, by the
// procedure of Benjamini and Hochberg with the weights of Genovese, Roeder and Wasserman. Each family has the
// same share of the budget, so that thousands of functions do not hide a change of the total.
//
// No q is below its p: the weights would allow it to a small family beside many changes, and a change would be
// reported whose interval has no change in it.
//
// It returns how many tests each family has.
func adjust(all []hypothesis) map[int]float64 {
	size := map[int]float64{}
	for _, h := range all {
		size[h.family]++
	}
	weighted := func(h hypothesis) float64 { return h.p * float64(len(size)) * size[h.family] }
	slices.SortFunc(all, func(a, b hypothesis) int { return cmp.Compare(weighted(a), weighted(b)) })
	q := 1.0
	for i := len(all) - 1; i >= 0; i-- {
		q = min(q, weighted(all[i])/float64(i+1))
		*all[i].q = max(q, all[i].p)
	}
	return size
}
