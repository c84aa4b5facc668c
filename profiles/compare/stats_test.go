package compare

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aclements/go-moremath/stats"

	"github.com/google/pprof/profile"
)

// TestRanks compares the distribution with another implementation of it.
func TestRanks(t *testing.T) {
	for _, n := range [][2]int{{1, 6}, {4, 4}, {5, 7}, {20, 20}, {50, 49}} {
		r, want := newRanks(n[0], n[1]), stats.UDist{N1: n[0], N2: n[1]}
		for u := 0; u < len(r.cdf); u += 1 + len(r.cdf)/7 {
			if p := want.CDF(float64(u)); math.Abs(r.cdf[u]/p-1) > 1e-9 {
				t.Errorf("%d and %d points: P(U ≤ %d) is %g, want %g", n[0], n[1], u, r.cdf[u], p)
			}
		}
	}
	if p := newRanks(maxPoints, maxPoints).cdf; p[0] <= 0 || math.Abs(p[len(p)-1]-0.5) > 0.01 {
		t.Errorf("of the most points, the distribution runs from %g to %g", p[0], p[len(p)-1])
	}
}

func TestMannWhitney(t *testing.T) {
	for _, tt := range []struct {
		x, y []float64
		want float64
	}{
		{[]float64{1, 2, 3, 4}, []float64{5, 6, 7, 8}, 2.0 / 70},
		{[]float64{5, 6, 7, 8}, []float64{1, 2, 3, 4}, 2.0 / 70},
		{[]float64{2, 3, 4, 9}, []float64{1, 5, 6, 7, 8}, 92.0 / 126},
		{[]float64{3, 3, 3, 3}, []float64{3, 3, 3, 3}, 1},
	} {
		if p := newRanks(len(tt.x), len(tt.y)).p(tt.x, tt.y); math.Abs(p-tt.want) > 1e-12 {
			t.Errorf("%v and %v: p = %g, want %g", tt.x, tt.y, p, tt.want)
		}
	}
	x, y := []float64{0, 0, 0, 0, 1}, []float64{0, 1, 2, 2, 2}
	exact, err := stats.MannWhitneyUTest(x, y, stats.LocationDiffers)
	if p := newRanks(5, 5).p(x, y); err != nil || p < exact.P {
		t.Errorf("with ties p is %g, want at least that of the exact test, %g (%v)", p, exact.P, err)
	}
}

func TestEstimates(t *testing.T) {
	before, after := []float64{10, 11, 12, 13, 14}, []float64{20, 22, 24, 26, 28}
	r := newRanks(5, 5).test(before, after, 0.95)
	if r.ratio.Value != 2 || !(r.ratio.Low > 1 && r.ratio.Low < 2 && r.ratio.High > 2) {
		t.Errorf("ratio %+v, want 2 and an interval around it", r.ratio)
	}
	if r.difference.Value != 12 || r.difference.Low > 12 || r.difference.High < 12 {
		t.Errorf("difference %+v, want 12 and an interval around it", r.difference)
	}
	if r := newRanks(2, 2).test([]float64{1, 2}, []float64{3, 4}, 0.95); !math.IsInf(float64(r.ratio.High), 1) || r.p < 0.3 {
		t.Errorf("of two windows a side: %+v, want an interval without bounds", r)
	}
	if r := newRanks(4, 4).test([]float64{0, 0, 0, 0}, []float64{1, 2, 3, 4}, 0.95); !math.IsInf(float64(r.ratio.Value), 1) {
		t.Errorf("from nothing to something the ratio is %v, want infinite", r.ratio.Value)
	}
}

// TestSparse: values are 0 in many windows, so the median quotient would be 0.
func TestSparse(t *testing.T) {
	before := []float64{300, 320, 310, 0, 330, 290, 310, 300, 320, 310}
	after := []float64{0, 0, 80, 0, 0, 90, 0, 70, 0, 0}
	ones := slices.Repeat([]float64{1}, 10)
	r := newRanks(10, 10).test(before, after, 0.95)
	if !r.sparse() {
		t.Fatalf("%+v is not sparse", r)
	}
	r = r.byMeans(newMean(before, ones), newMean(after, ones), uncertainty{widen: 1}, 0.95)
	if want := 24.0 / 279; math.Abs(float64(r.ratio.Value)-want) > 1e-12 ||
		!(float64(r.ratio.Low) < want && float64(r.ratio.High) > want && r.ratio.High < 0.25) {
		t.Errorf("ratio %+v, want the means' %.3g within a short interval", r.ratio, want)
	}
	if r.difference.Value != 24-279 || r.difference.High >= 0 || r.p > 0.001 {
		t.Errorf("difference %+v and p %g, want %v and a small p", r.difference, r.p, 24-279)
	}

	// A mean that may be nothing bounds no quotient.
	few := []float64{0, 0, 0, 0, 0, 0, 0, 0, 10, 20}
	many := []float64{90, 100, 110, 100, 0, 100, 95, 105, 100, 100}
	r = newRanks(10, 10).test(few, many, 0.95).byMeans(newMean(few, ones), newMean(many, ones), uncertainty{widen: 1}, 0.95)
	if r.ratio.Low <= 1 || !math.IsInf(float64(r.ratio.High), 1) {
		t.Errorf("from next to nothing, the ratio is %+v, want a bound below alone", r.ratio)
	}

	if m := newMean([]float64{1, 4}, []float64{3, 1}); m.value != 7.0/4 || m.variance <= 0 {
		t.Errorf("a weighted mean is %+v, want 1.75", m)
	}
}

// TestMeansAgreeWithAnotherWelch compares the test of the means with another implementation of it.
func TestMeansAgreeWithAnotherWelch(t *testing.T) {
	before, after := []float64{0, 5, 9, 0, 7, 11}, []float64{3, 0, 0, 2, 0, 0, 4, 1}
	want, err := stats.TwoSampleWelchTTest(stats.Sample{Xs: before}, stats.Sample{Xs: after}, stats.LocationDiffers)
	if err != nil {
		t.Fatal(err)
	}
	ones := slices.Repeat([]float64{1}, 8)
	r := result{}.byMeans(newMean(before, ones[:6]), newMean(after, ones), uncertainty{widen: 1}, 0.95)
	if math.Abs(r.p-want.P) > 1e-9 {
		t.Errorf("p is %g, want %g", r.p, want.P)
	}
}

// TestTheIntervalAgreesWithTheTest has series of chance, many with windows of nothing: an interval has no change
// in it exactly if the test does not reject that, but for a bound that is no change where values are equal.
func TestTheIntervalAgreesWithTheTest(t *testing.T) {
	const alpha = 0.05
	rng := rand.New(rand.NewPCG(5, 6))
	rejected, sparse, lopsided := 0, 0, 0
	for range 3000 {
		var sides [2][]float64
		var means [2]mean
		for i := range sides {
			size, empty := rng.ExpFloat64(), rng.Float64()
			n := 4 + rng.IntN(20)
			for range n {
				v := 0.0
				if rng.Float64() > empty {
					v = size * math.Exp(rng.NormFloat64())
				}
				sides[i] = append(sides[i], v)
			}
			means[i] = newMean(sides[i], slices.Repeat([]float64{1}, n))
		}
		if means[0].value == 0 || means[1].value == 0 {
			continue
		}
		u := uncertainty{widen: 1 + rng.Float64(), grain: float64(rng.IntN(2)) * rng.Float64()}
		ranks := newRanks(len(sides[0]), len(sides[1]))
		r := ranks.test(sides[0], sides[1], 1-alpha)
		if r.sparse() {
			sparse++
		} else if r.lopsided() {
			lopsided++
		}
		if r = ranks.compare(sides[0], sides[1], means, u, 1-alpha); r.p > alpha {
			continue
		}
		rejected++
		if e := r.ratio; e.Low < 1 && e.High > 1 || !(e.Low <= e.Value && e.Value <= e.High) {
			t.Errorf("%v and %v: p is %g, but the ratio is %+v", sides[0], sides[1], r.p, e)
		}
		if e := r.difference; e.Low < 0 && e.High > 0 || !(e.Low <= e.Value && e.Value <= e.High) {
			t.Errorf("%v and %v: p is %g, but the difference is %+v", sides[0], sides[1], r.p, e)
		}
	}
	if rejected < 100 || sparse < 100 || lopsided < 50 {
		t.Errorf("%d were rejected, %d sparse and %d lopsided: the test says too little", rejected, sparse, lopsided)
	}
}

func TestWindowsThatDependOnEachOtherCountForFewer(t *testing.T) {
	slow, quick := make([]float64, 20), make([]float64, 20)
	for i := range slow {
		slow[i] = 100 + 10*math.Sin(float64(i)/4)
		quick[i] = 100 + 10*float64(i%2)
	}
	if f := newDependence(slow, slow, nil, 0).inflation(slow, slow, nil); f < 3 {
		t.Errorf("a series that drifts raises the variance %.1f-fold, want much", f)
	}
	if f := newDependence(quick, quick, nil, 0).inflation(quick, quick, nil); f != 1 {
		t.Errorf("a series that alternates raises the variance %.1f-fold, want 1", f)
	}
	short := slow[:minForCorrelation-1]
	if f := newDependence(short, short, nil, totalCaution).inflation(short, short, nil); f != 1 {
		t.Errorf("a short series raises the variance %.1f-fold, want 1", f)
	}
}

// TestALargeChangeIsNotBoundedByTheRanks: eight windows a side that depend on each other tell a doubled value.
func TestALargeChangeIsNotBoundedByTheRanks(t *testing.T) {
	before := []float64{100, 104, 98, 101, 97, 103, 99, 102}
	after := make([]float64, len(before))
	for i, v := range before {
		after[i] = 2 * v
	}
	rs := newRanks(8, 8)
	plain := rs.test(before, after, 0.95)
	wide := rs.widened(plain, before, after, uncertainty{widen: 1.5}, 0.95)
	if wide.p != plain.p {
		t.Errorf("p is %g with uncertainty and %g without, want the ranks' own", wide.p, plain.p)
	}
	if wide.ratio.Low >= plain.ratio.Low || wide.ratio.High <= plain.ratio.High || wide.ratio.Low < 1.5 {
		t.Errorf("the interval %+v with uncertainty, %+v without; want a wider one, far from no change", wide.ratio, plain.ratio)
	}
	if coarse := rs.widened(plain, before, after, uncertainty{widen: 1, grain: 100}, 0.95); coarse.p < 0.3 || coarse.difference.Low > 0 {
		t.Errorf("from one thing to two, p is %g and the difference %+v", coarse.p, coarse.difference)
	}
	equal, twice := []float64{1, 1, 1, 1, 1, 1, 1, 2}, []float64{4, 4, 4, 4, 4, 4, 4, 4}
	if same := rs.test(equal, twice, 0.95); rs.widened(same, equal, twice, uncertainty{widen: 2}, 0.95).p != same.p {
		t.Errorf("of values that are equal, p is %g, want the ranks' own %g", rs.widened(same, equal, twice, uncertainty{widen: 2}, 0.95).p, same.p)
	}
	if short := newRanks(4, 4).test(before[:4], after[:4], 0.99); !math.IsInf(float64(short.ratio.High), 1) {
		t.Errorf("four windows a side have the interval %+v of 99 %%, want none", short.ratio)
	} else if wide := newRanks(4, 4).widened(short, before[:4], after[:4], uncertainty{widen: 1, grain: 1}, 0.99); math.IsNaN(float64(wide.ratio.Low)) ||
		!math.IsInf(float64(wide.ratio.High), 1) {
		t.Errorf("with uncertainty it is %+v, want none either", wide.ratio)
	}
}

// TestNoiseOfNextToNothingHidesNoChange has a side whose values are tiny and vary a hundredfold. In logarithms, and with
// windows that depend on each other, their noise hid that the other side is a thousand times as large.
func TestNoiseOfNextToNothingHidesNoChange(t *testing.T) {
	large := []float64{5.9, 5.7, 6.1, 5.8, 6.0, 5.9, 5.6, 6.2}
	tiny := []float64{1e-6, 8e-4, 3e-6, 1e-4, 2e-5, 4e-6, 3e-4, 1e-5}
	ones := slices.Repeat([]float64{1}, 8)
	means := [2]mean{newMean(large, ones), newMean(tiny, ones)}
	rs, u := newRanks(8, 8), uncertainty{widen: 3}
	if r := rs.widened(rs.test(large, tiny, 0.95), large, tiny, u, 0.95); r.p < 0.05 {
		t.Fatalf("by ranks and logarithms p is %g: the test says too little", r.p)
	}
	if r := rs.compare(large, tiny, means, u, 0.95); r.p > 0.01 || r.ratio.High > 0.001 || r.difference.High > -4 {
		t.Errorf("from a lot to next to nothing: p is %g, ratio %+v, difference %+v", r.p, r.ratio, r.difference)
	}
	if r := rs.compare(tiny, large, [2]mean{means[1], means[0]}, u, 0.95); r.p > 0.01 || r.ratio.Low < 1000 || r.difference.Low < 4 {
		t.Errorf("from next to nothing to a lot: p is %g, ratio %+v, difference %+v", r.p, r.ratio, r.difference)
	}
}

// TestTurns has windows of a minute, by the side that each minute is of.
func TestTurns(t *testing.T) {
	minutes := func(sides string, length time.Duration) (windows [2][]window) {
		start := time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)
		for i, side := range sides {
			s := strings.IndexRune("BA", side)
			windows[s] = append(windows[s], window{start: start.Add(time.Duration(i) * time.Minute), length: length})
		}
		return windows
	}
	for sides, want := range map[string]bool{"BABABABA": true, "ABBAABBA": true, "BBAABA": true, "BBBAAA": false, "BABABAAA": false, "BBBBAAAA": false} {
		w := minutes(sides, time.Minute)
		if turns(w[0], w[1]) != want {
			t.Errorf("%s: turns is %v, want %v", sides, !want, want)
		}
		var got strings.Builder
		for _, side := range order([2]points{newPoints(make([]float64, len(w[0])), w[0]), newPoints(make([]float64, len(w[1])), w[1])}) {
			got.WriteByte("BA"[side])
		}
		if got.String() != sides {
			t.Errorf("the order is %s, want %s", &got, sides)
		}
	}
	if w := minutes("BABABABA", 2*time.Minute); turns(w[0], w[1]) {
		t.Error("windows of two instances at a time take turns")
	}
	if w := minutes("BABA", time.Minute); turns(append(w[0], window{}), append(w[1], window{})) {
		t.Error("windows without a time take turns")
	}
}

// TestADriftThatBothSidesShareDoesNotCount has a load that drifts while sides take turns, and sides that drift apart.
func TestADriftThatBothSidesShareDoesNotCount(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	var shared, own [2][]float64
	var order []int
	walk := func(v *float64) float64 {
		*v = 0.95**v + 0.3*rng.NormFloat64()
		return 100 + *v
	}
	var load, mine [2]float64
	for range 30 {
		for side := range 2 {
			order = append(order, side)
			shared[side] = append(shared[side], walk(&load[0]))
			own[side] = append(own[side], walk(&mine[side]))
		}
	}
	inflation := func(sides [2][]float64, order []int) float64 {
		return newDependence(sides[0], sides[1], order, totalCaution).inflation(sides[0], sides[1], order)
	}
	if f := inflation(shared, order); f > 1.5 {
		t.Errorf("a drift that both share raises the variance %.1f-fold", f)
	}
	if f := inflation(shared, nil); f < 3 {
		t.Errorf("a drift raises the variance %.1f-fold where sides do not take turns, want much", f)
	}
	if f := inflation(own, order); f < 3 {
		t.Errorf("a drift of each side's own raises the variance %.1f-fold, want much", f)
	}
}

// TestAdjust has the example of Benjamini and Hochberg (1995, section 4): of 15 tests, 4 are rejected at 0.05.
func TestAdjust(t *testing.T) {
	ps := []float64{0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1}
	qs := make([]float64, len(ps))
	var all []hypothesis
	for i, p := range ps {
		all = append(all, hypothesis{0, p, &qs[i]})
	}
	adjust(all)
	rejected := 0
	for _, q := range qs {
		if q <= 0.05 {
			rejected++
		}
	}
	if rejected != 4 {
		t.Errorf("%d are rejected, want 4: %v", rejected, qs)
	}
	// Next to many changes a family of one has a large weight, but no q below its p.
	qs = make([]float64, 100)
	all = []hypothesis{{0, 0.3, &qs[0]}}
	for i := range qs[1:] {
		all = append(all, hypothesis{1, 1e-6, &qs[i+1]})
	}
	if adjust(all); qs[0] < 0.3 {
		t.Errorf("with 99 other changes, p of 0.3 becomes %g", qs[0])
	}
	var total, one float64
	all = []hypothesis{{0, 0.02, &total}}
	for range 1000 {
		all = append(all, hypothesis{1, 1, &one})
	}
	if adjust(all); math.Abs(total-0.04) > 1e-12 {
		t.Errorf("with 1000 tests of another family, p of 0.02 becomes %g, want 0.04: each family has half of the budget", total)
	}
}

func TestGrain(t *testing.T) {
	bytes := &profile.ValueType{Type: "space", Unit: "bytes"}
	for _, tt := range []struct {
		of   *profile.Profile
		unit string
		want float64
	}{
		{&profile.Profile{PeriodType: bytes, Period: 1 << 20}, "bytes", 1 << 20},
		{&profile.Profile{PeriodType: bytes}, "bytes", heapRate}, // of a tool that does not say it
		{&profile.Profile{}, "bytes", heapRate},
		{&profile.Profile{PeriodType: bytes, Period: 1 << 20}, "count", 1},
	} {
		if got := grain(tt.of, tt.unit); got != tt.want {
			t.Errorf("%v of %v: %v, want %v", tt.unit, tt.of.Period, got, tt.want)
		}
	}
}

// TestTheNoteCountsAllTests: functions of all metrics are corrected together, with and without callees.
func TestTheNoteCountsAllTests(t *testing.T) {
	r := Report{Alpha: 0.05, Metrics: []Metric{{
		Name: "cpu", Tested: true, WindowsBefore: 8, WindowsAfter: 8, SmallestP: 0.0002, Functions: make([]Change, 30),
	}}}
	r.explainPower(map[int]float64{familyTotals: 2, familyFunctions: 95, familyStacks: 200})
	if len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "correction for 95 tests of functions, in all metrics") {
		t.Errorf("the notes are %q, want one that counts the tests", r.Notes)
	}
}

// TestNothingIsNotExplained has a caller whose callees changed by as much in both directions.
func TestNothingIsNotExplained(t *testing.T) {
	e := newExplanation([]Change{{Name: "caller"}, {Name: "up"}, {Name: "down"}})
	e.add(0, 1, 5)
	e.add(0, 2, -5)
	if len(e.callees[0]) != 0 {
		t.Errorf("a change of 0 is explained by %v", e.callees[0])
	}
}
