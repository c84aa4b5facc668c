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
	// No more than maxCaution is added, which of few windows would leave nothing.
	totalCaution = 2
	ownCaution   = -1
	maxCaution   = 0.25
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

// result is what the windows of both sides say about one quantity.
type result struct {
	difference Estimate // after minus before
	ratio      Estimate // after over before
	p          float64  // two-sided
}

// test compares two series of values, each in the order of time. Both the test and the interval are widened by
// a factor where neighbouring windows depend on each other.
//
// The p is that of the Mann–Whitney U test, and the estimates are those of Hodges and Lehmann that belong to
// it: the median of all pairwise differences (or quotients), between the pairs that the test would not
// reject.
func (r ranks) test(before, after []float64, widen, confidence float64) result {
	p := r.p(before, after)
	if widen > 1 && p < 1 {
		p = 2 * distuv.UnitNormal.CDF(distuv.UnitNormal.Quantile(p/2)/widen)
	}
	skip := r.outside((1-confidence)/2, widen)
	return result{
		p:          p,
		difference: pairwise(before, after, skip, func(b, a float64) float64 { return a - b }),
		ratio:      pairwise(before, after, skip, quotient),
	}
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
func (r result) byMeans(before, after mean, widen, confidence float64) result {
	b, a := before.value, after.value
	vb, va := before.variance, after.variance
	freedom := (vb + va) * (vb + va) / (vb*vb/(before.n-1) + va*va/(after.n-1))
	t := distuv.StudentsT{Sigma: 1, Nu: freedom}
	deviation := widen * math.Sqrt(vb+va)
	width := t.Quantile((1+confidence)/2) * widen // in standard deviations of a mean
	r.p = max(r.p, 2*t.Survival(math.Abs(a-b)/deviation))
	margin := width * math.Sqrt(vb+va)
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
	return ranks{n1, n2, cdf}
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
// may, which makes the interval unbounded.
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

// pairwise is the median of all pairs, between the pairs that are left when skip more than one are left out
// at either end.
func pairwise(before, after []float64, skip int, of func(before, after float64) float64) Estimate {
	pairs := make([]float64, 0, len(before)*len(after))
	for _, b := range before {
		for _, a := range after {
			pairs = append(pairs, of(b, a))
		}
	}
	slices.Sort(pairs)
	n := len(pairs)
	e := Estimate{Value: Number((pairs[(n-1)/2] + pairs[n/2]) / 2), Low: Number(math.Inf(-1)), High: Number(math.Inf(1))}
	if skip >= 0 {
		e.Low, e.High = Number(pairs[skip]), Number(pairs[n-1-skip])
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
func newDependence(before, after []float64, caution float64) dependence {
	n := float64(len(before) + len(after))
	var with, all float64
	for _, s := range [][]float64{before, after} {
		mean := stat.Mean(s, nil)
		if mean == 0 {
			continue
		}
		for i, v := range s {
			all += (v/mean - 1) * (v/mean - 1)
			if i > 0 {
				with += (v/mean - 1) * (s[i-1]/mean - 1)
			}
		}
	}
	if all == 0 || min(len(before), len(after)) < minForCorrelation {
		return dependence{variance: all / n}
	}
	// A short series underestimates the correlation ρ by about (1+3ρ)/n, because its own mean was taken off.
	r := with / all
	r += (1+3*max(r, 0))/(n/2) + min(caution/math.Sqrt(n), maxCaution)
	return dependence{all / n, max(r, 0) * all / n}
}

// inflation is by how much dependence raises the variance of a comparison of two series: (1+ρ)/(1−ρ), with ρ
// the correlation of each window with the next. A load that drifts makes it larger than 1, and windows that
// follow one another then count for fewer.
//
// What functions have in common, the load, is seen best in the total: each function has at least the total's
// covariance, and its own where that is clearly more. One that varies less than that follows the load less, and is
// taken to be correlated as the total is.
func (total dependence) inflation(before, after []float64) float64 {
	own := newDependence(before, after, ownCaution)
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
func adjust(all []hypothesis) {
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
}
