package compare

import (
	"cmp"
	"math"
	"slices"

	"spanflame/profiles/internal/stat"
)

const (
	// minWindows is the number of windows that a side needs for a test: with three per side no arrangement of
	// the ranks is rarer than 1 in 10.
	minWindows = 4
	// maxPoints limits the points of a side: longer series are shortened by adding up neighbours. This limits
	// the number of pairs of an interval, and sums of neighbours depend less on each other.
	maxPoints = 64
	// minForCorrelation is the number of points per side from which their dependence can be estimated.
	minForCorrelation = 8
	// totalCaution and ownCaution are the numbers of standard errors added to an estimate of the correlation.
	// If the total's correlation is estimated too low, false changes are reported for everything at once. Of
	// hundreds of functions, some have a high estimate by chance, which would hide their changes. With these
	// values, simulations of equal sides with a drifting load stay below the promised rate.
	// For sides that take turns turnsCaution applies: the correlation that remains there is mostly chance.
	// At most maxCaution is added: with few windows, more would hide every change.
	totalCaution = 2
	ownCaution   = -1
	turnsCaution = -1
	maxCaution   = 0.3
	// standardConfidence is the confidence of the interval from which the standard error of a median is derived. Four
	// windows per side suffice for it.
	standardConfidence = 0.95
	// minFreedom and maxFreedom limit the degrees of freedom.
	minFreedom = 2
	maxFreedom = 1e6
	// nextToNothing is the ratio below which one side is next to nothing compared to the other.
	nextToNothing = 0.1
	// maxCorrelation limits the estimate: above it a series has almost no independent points left.
	maxCorrelation = 0.95
)

// Estimate is a value with the limits of its confidence interval. A limit is infinite if there are too few windows
// to compute it.
type Estimate struct {
	Value Number `json:"value"`
	Low   Number `json:"low"`
	High  Number `json:"high"`
}

// noRatio is the ratio of values that are not both above 0.
var noRatio = Estimate{Number(math.NaN()), Number(math.NaN()), Number(math.NaN())}

// mapped applies f to the value and both limits.
func (e Estimate) mapped(f func(float64) float64) Estimate {
	return Estimate{Number(f(float64(e.Value))), Number(f(float64(e.Low))), Number(f(float64(e.High)))}
}

// logarithm returns the natural logarithm. It is −∞ also for the infinite lower limit of a quotient.
func logarithm(v float64) float64 { return math.Log(max(0, v)) }

// result is the outcome of a test of one quantity.
type result struct {
	difference Estimate // after minus before
	ratio      Estimate // after over before
	p          float64  // two-sided

	differences, ratios pairs
}

// compare compares two series of values, with the means of both.
//
// Where one side is next to nothing, the logarithms of its values are mostly noise, in which a change of any size is lost.
// The means show it, so the smaller p of both ways counts. Equal sides are hardly ever so far apart.
func (rs ranks) compare(before, after []float64, means [2]mean, u uncertainty, confidence float64) result {
	r := rs.test(before, after, confidence)
	if u.signed {
		r.ratio, r.ratios = noRatio, nil
		return rs.widened(r, before, after, u, confidence)
	}
	if means[0].value == 0 || means[1].value == 0 {
		return rs.widened(r, before, after, u, confidence)
	}
	byMeans := r.byMeans(means[0], means[1], u, confidence)
	if r.sparse() {
		return byMeans
	}
	if w := rs.widened(r, before, after, u, confidence); !r.lopsided() || w.p <= byMeans.p {
		return w
	}
	return byMeans
}

// test compares two series of values whose windows do not depend on each other.
//
// The p is that of the Mann–Whitney U test. The estimates are the corresponding ones of Hodges and Lehmann: the
// median of all pairwise differences (or quotients), with the range of the pairs that the test would not reject.
func (rs ranks) test(before, after []float64, confidence float64) result {
	skip := rs.outside((1-confidence)/2, 1)
	r := result{p: rs.p(before, after), differences: newPairs(before, after, minus), ratios: newPairs(before, after, quotient)}
	r.difference, r.ratio = r.differences.estimate(skip), r.ratios.estimate(skip)
	return r
}

// uncertainty is what makes a comparison less certain than its ranks.
type uncertainty struct {
	// widen is the factor of the standard error, at least 1, for windows that depend on each other.
	widen float64
	// grain is the size of the units of a level, such as the bytes that one sample of the heap stands for. They
	// stay from window to window, so counting them in more windows does not make their number more certain: it
	// has a Poisson distribution. It is 0 for values that each window counts separately.
	grain float64
	// signed is set for values some of which are below 0. They have no ratio.
	signed bool
}

// widened returns the result r of a test, corrected for the uncertainty u.
//
// Where windows depend on each other, the normal deviate of the ranks is divided by u.widen. However large a change,
// this deviate is limited by the number of windows. A t-test has no such limit; its standard error is taken from the
// interval of the ranks and multiplied by u.widen. The smaller p of the two counts, where the p of the t-test is
// doubled, but p is never smaller than that of the uncorrected ranks. The intervals belong to this p.
func (rs ranks) widened(r result, before, after []float64, u uncertainty, confidence float64) result {
	if u.widen <= 1 && u.grain == 0 {
		return r
	}
	skip := rs.outside((1-confidence)/2, u.widen)
	ranksP := 1.0
	if r.p < 1 {
		ranksP = 2 * stat.Normal(stat.NormalQuantile(r.p/2)/u.widen)
	}
	if u.grain == 0 {
		confidence = (1 + confidence) / 2 // the p of the t-test is doubled
	}
	freedom := freedom(float64(rs.n1+rs.n2), u.widen)
	width := stat.StudentQuantile(freedom, (1+confidence)/2)
	wider := func(e, usual, byRanks Estimate, known float64) Estimate {
		s := spread{
			low:     u.widen * float64(usual.Value-usual.Low) / rs.errors,
			high:    u.widen * float64(usual.High-usual.Value) / rs.errors,
			freedom: freedom, width: width, known: known, confidence: confidence,
		}
		p := s.p(float64(e.Value))
		low, high := s.interval(float64(e.Value))
		if u.grain == 0 {
			p, low, high = min(2*p, ranksP), max(low, byRanks.Low), min(high, byRanks.High)
		}
		r.p = max(r.p, p)
		return Estimate{e.Value, min(e.Low, low), max(e.High, high)}
	}
	b, a := stat.Mean(before), stat.Mean(after)
	r.difference = wider(r.difference, r.differences.estimate(rs.usual), r.differences.estimate(skip), u.grain*(math.Abs(b)+math.Abs(a)))
	if len(r.ratios) == 0 {
		return r
	}
	if e := r.ratios.estimate(rs.usual); e.Low > 0 && !math.IsInf(float64(e.High), 1) {
		logs := wider(r.ratio.mapped(logarithm), e.mapped(logarithm), r.ratios.estimate(skip).mapped(logarithm), u.grain*(1/b+1/a))
		r.ratio = logs.mapped(math.Exp)
	}
	return r
}

// spread is the standard error of an estimate.
type spread struct {
	low, high  float64 // standard errors below and above, estimated
	freedom    float64 // of these estimates
	known      float64 // a variance to add to theirs
	confidence float64 // of the interval
	width      float64 // of the interval, in standard errors on either side, if nothing is added
}

// from returns the whole standard error, of which the estimated one is a part, and its degrees of freedom.
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

// p returns the probability of an estimate at least as far from 0 as v if the true value is 0.
func (s spread) p(v float64) float64 {
	if v == 0 {
		return 1
	}
	estimated := s.low
	if v < 0 {
		estimated = s.high
	}
	deviation, freedom := s.from(estimated)
	return stat.StudentTwoSided(freedom, v/deviation)
}

// interval returns the confidence interval of the estimate v.
func (s spread) interval(v float64) (low, high Number) {
	margin := func(estimated float64) float64 {
		deviation, freedom := s.from(estimated)
		if s.known == 0 {
			return s.width * deviation
		}
		return stat.StudentQuantile(freedom, (1+s.confidence)/2) * deviation
	}
	return Number(v - margin(s.low)), Number(v + margin(s.high))
}

// freedom returns the degrees of freedom of n windows that depend on each other.
func freedom(n, widen float64) float64 { return max(minFreedom, n/widen-2) }

// sparse reports whether so many windows have a value of 0 that the median quotient, or a limit of its interval, is
// 0 or infinite.
func (r result) sparse() bool {
	e := r.ratio
	return e.Value == 0 || math.IsInf(float64(e.Value), 1) ||
		e.Low == 0 || math.IsInf(float64(e.High), 1) && !math.IsInf(float64(e.Low), -1)
}

// lopsided reports whether one side is next to nothing compared to the other.
func (r result) lopsided() bool {
	return r.ratio.Value < nextToNothing || r.ratio.Value > 1/nextToNothing
}

// mean is a mean over windows, each weighted by its divisor.
type mean struct {
	value    float64
	variance float64 // of the mean itself
	n        float64 // windows
}

func newMean(values, weights []float64) mean {
	m := mean{n: float64(len(values))}
	var sum, squares float64
	for i, v := range values {
		m.value += weights[i] * v
		sum += weights[i]
	}
	m.value /= sum
	for i, v := range values {
		squares += math.Pow(weights[i]*(v-m.value), 2)
	}
	m.variance = squares / (sum * sum) * m.n / (m.n - 1)
	return m
}

// byMeans compares quantities that are 0 in many windows, where the medians of pairs would be 0 or infinite. Its p is
// the larger one of the ranks' result r and of Welch's t-test. Both intervals belong to the t-test; the interval of the
// ratio is Fieller's. Both means must be above 0, and at least one of them must vary.
func (r result) byMeans(before, after mean, u uncertainty, confidence float64) result {
	b, a := before.value, after.value
	vb, va := before.variance*u.widen*u.widen, after.variance*u.widen*u.widen
	s := spread{freedom: freedom(2+(vb+va)*(vb+va)/(vb*vb/(before.n-1)+va*va/(after.n-1)), u.widen), known: u.grain * (b + a)}
	deviation, freedom := s.from(math.Sqrt(vb + va))
	vb, va = vb+u.grain*b, va+u.grain*a
	width := stat.StudentQuantile(freedom, (1+confidence)/2) // in standard deviations of a mean
	r.p = max(r.p, stat.StudentTwoSided(freedom, (a-b)/deviation))
	margin := width * deviation
	r.difference = Estimate{Number(a - b), Number(a - b - margin), Number(a - b + margin)}

	// The ratios R that are not rejected have (a − R·b)² ≤ width²·(va + R²·vb).
	r.ratio = Estimate{Value: Number(a / b), High: Number(math.Inf(1))}
	squareB, squareA := b*b-width*width*vb, a*a-width*width*va
	root := math.Sqrt(max(0, a*a*b*b-squareB*squareA))
	if squareA > 0 {
		r.ratio.Low = Number(squareA / (a*b + root))
	}
	if squareB > 0 { // otherwise the true mean before may be 0
		r.ratio.High = Number((a*b + root) / squareB)
	}
	return r
}

func minus(before, after float64) float64 { return after - before }

// quotient returns after/before, in the same order as their difference, also for a before of 0.
func quotient(before, after float64) float64 {
	if before == 0 && after == 0 {
		return 1
	}
	return after / before
}

// ranks is the distribution of the Mann–Whitney U of n1 and n2 points of one population: the probability of at most u,
// for each u up to the middle.
type ranks struct {
	n1, n2 int
	cdf    []float64
	usual  int     // pairs outside the interval of standardConfidence
	errors float64 // about half the width of this interval, in standard errors of a median
}

// newRanks computes the distribution from its generating function, the product of (1−x^(n2+i))/(1−x^i) for i from 1
// to n1.
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
	sum, all := 0.0, stat.Choices(n1+n2, n1)
	for u, ways := range cdf {
		sum += ways
		cdf[u] = min(1, sum/all)
	}
	r := ranks{n1: n1, n2: n2, cdf: cdf}
	r.usual = r.outside((1-standardConfidence)/2, 1)
	if r.usual >= 0 {
		r.errors = stat.StudentQuantile(float64(n1+n2-2), 1-cdf[r.usual])
	}
	return r
}

// p returns the two-sided p of the Mann–Whitney U test. Equal values share their rank. They make large deviations rarer
// than in the distribution, so p errs on the large side.
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
		return 1 // rounded up beyond the middle
	}
	return min(1, 2*r.cdf[int(u)])
}

// smallest returns the smallest possible p.
func (r ranks) smallest() float64 { return min(1, 2*r.cdf[0]) }

// outside returns the number of sorted pairs outside an interval at each end, minus one: −1 if there is none, which
// makes the interval infinite. A larger standard error leaves fewer pairs outside.
func (r ranks) outside(tail, widen float64) int {
	tail = stat.Normal(stat.NormalQuantile(tail) * widen)
	n, _ := slices.BinarySearchFunc(r.cdf, tail, func(p, tail float64) int {
		if p <= tail {
			return -1
		}
		return 1
	})
	return n - 1
}

// pairs are the sorted differences or quotients of all pairs of a window before and a window after.
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

// estimate returns the median, and as its interval the pairs at index skip from either end.
func (p pairs) estimate(skip int) Estimate {
	n := len(p)
	e := Estimate{Value: Number((p[(n-1)/2] + p[n/2]) / 2), Low: Number(math.Inf(-1)), High: Number(math.Inf(1))}
	if skip >= 0 {
		e.Low, e.High = Number(p[skip]), Number(p[n-1-skip])
	}
	return e
}

// dependence describes how much neighbouring windows have in common, in relative deviations from the mean of their
// side.
type dependence struct {
	variance   float64
	covariance float64 // of neighbours, at least 0
}

// newDependence estimates the dependence of two series, and adds caution times the standard error.
//
// If the sides take turns, order has the side of each window, in the order of time. The part that neighbours of different
// sides have in common cancels out in their difference, so it does not count.
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
	// A short series underestimates the correlation ρ by about (1+3ρ)/n, because its own mean was subtracted.
	r, deviation := with/all, 1/math.Sqrt(n)
	bias := (1 + 3*max(r, 0)) / (n / 2)
	if order != nil {
		r -= shared(sides, order) / all
		bias, deviation, caution = 1/(n/2), deviation*math.Sqrt2, turnsCaution
	}
	r += bias + min(caution*deviation, maxCaution)
	return dependence{all / n, max(r, 0) * all / n}
}

// shared returns the sum of the products of neighbours of different sides, scaled to the number of windows.
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

// relative returns the deviations from the mean, as shares of it.
func relative(values []float64) []float64 {
	mean := stat.Mean(values)
	deviations := make([]float64, len(values))
	if mean != 0 {
		for i, v := range values {
			deviations[i] = v/mean - 1
		}
	}
	return deviations
}

// inflation returns the factor by which dependence raises the variance of a comparison of two series: (1+ρ)/(1−ρ), with
// ρ the correlation of each window with the next. With a drifting load it is larger than 1, and consecutive windows
// count for fewer.
//
// The load, which all functions have in common, is seen best in the total: each function has at least the total's
// covariance, and its own if that is clearly larger. A function that varies less than the total follows the load less,
// and is assumed to have the total's correlation.
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
	q      *float64 // receives the adjusted p
}

// adjust sets the q of each hypothesis: the false discovery rate at which it would be reported, by the
// procedure of Benjamini and Hochberg with the weights of Genovese, Roeder and Wasserman. Each family has the
// same share of the budget, so that thousands of functions do not hide a change of the total.
//
// No q is below its p. The weights would allow that for a small family next to many changes, and a change would be
// reported although its interval contains no change.
//
// It returns the number of tests in each family.
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
