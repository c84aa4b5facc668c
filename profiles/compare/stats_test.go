package compare

import (
	"math"
	"testing"

	"github.com/aclements/go-moremath/stats"
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
	r := newRanks(5, 5).test(before, after, dependence{}, 0.95)
	if r.ratio.Value != 2 || !(r.ratio.Low > 1 && r.ratio.Low < 2 && r.ratio.High > 2) {
		t.Errorf("ratio %+v, want 2 and an interval around it", r.ratio)
	}
	if r.difference.Value != 12 || r.difference.Low > 12 || r.difference.High < 12 {
		t.Errorf("difference %+v, want 12 and an interval around it", r.difference)
	}
	if r := newRanks(2, 2).test([]float64{1, 2}, []float64{3, 4}, dependence{}, 0.95); !math.IsInf(float64(r.ratio.High), 1) || r.p < 0.3 {
		t.Errorf("of two windows a side: %+v, want an interval without bounds", r)
	}
	if r := newRanks(4, 4).test([]float64{0, 0, 0, 0}, []float64{1, 2, 3, 4}, dependence{}, 0.95); !math.IsInf(float64(r.ratio.Value), 1) {
		t.Errorf("from nothing to something the ratio is %v, want infinite", r.ratio.Value)
	}
}

func TestWindowsThatDependOnEachOtherCountForFewer(t *testing.T) {
	slow, quick := make([]float64, 20), make([]float64, 20)
	for i := range slow {
		slow[i] = 100 + 10*math.Sin(float64(i)/4)
		quick[i] = 100 + 10*float64(i%2)
	}
	if f := newDependence(slow, slow, 0).inflation(slow, slow); f < 3 {
		t.Errorf("a series that drifts raises the variance %.1f-fold, want much", f)
	}
	if f := newDependence(quick, quick, 0).inflation(quick, quick); f != 1 {
		t.Errorf("a series that alternates raises the variance %.1f-fold, want 1", f)
	}
	short := slow[:minForCorrelation-1]
	if f := newDependence(short, short, totalCaution).inflation(short, short); f != 1 {
		t.Errorf("a short series raises the variance %.1f-fold, want 1", f)
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
	var total, one float64
	all = []hypothesis{{0, 0.02, &total}}
	for range 1000 {
		all = append(all, hypothesis{1, 1, &one})
	}
	if adjust(all); math.Abs(total-0.04) > 1e-12 {
		t.Errorf("beside 1000 tests of another family, p of 0.02 becomes %g, want 0.04: each family has half of the budget", total)
	}
}
