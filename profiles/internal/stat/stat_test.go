package stat_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/mat"
	gonum "gonum.org/v1/gonum/stat"
	"gonum.org/v1/gonum/stat/combin"
	"gonum.org/v1/gonum/stat/distuv"

	"spanflame/profiles/internal/stat"
)

// near fails unless two values are equal but for rounding.
func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.IsNaN(got) || math.Abs(got-want) > 1e-9*math.Max(1e-6, math.Abs(want)) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// TestDistributions compares with gonum's distributions.
func TestDistributions(t *testing.T) {
	for _, x := range []float64{-6, -1.5, 0, 0.3, 2, 5} {
		near(t, "Normal", stat.Normal(x), distuv.UnitNormal.CDF(x))
		for _, freedom := range []float64{2, 2.5, 7, 126, 1e6} {
			student := distuv.StudentsT{Sigma: 1, Nu: freedom}
			near(t, "StudentTwoSided", stat.StudentTwoSided(freedom, x), 2*student.Survival(math.Abs(x)))
		}
	}
	for _, p := range []float64{1e-9, 0.01, 0.3, 0.5, 0.77, 0.975, 0.999999} {
		near(t, "NormalQuantile", stat.NormalQuantile(p), distuv.UnitNormal.Quantile(p))
		for _, freedom := range []float64{2, 2.5, 7, 126, 1e6} {
			near(t, "StudentQuantile", stat.StudentQuantile(freedom, p), distuv.StudentsT{Sigma: 1, Nu: freedom}.Quantile(p))
		}
	}
	for n := 1; n < 30; n++ {
		for k := 1; k <= n; k++ {
			near(t, "AtLeastHeads", stat.AtLeastHeads(float64(k), float64(n)), distuv.Binomial{N: float64(n), P: 0.5}.Survival(float64(k-1)))
			near(t, "Choices", stat.Choices(n, k), float64(combin.Binomial(n, k)))
		}
	}
}

// TestRegressions compares with gonum's regressions, of which that with two variables is one of linear algebra.
func TestRegressions(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		n := 3 + random.IntN(100)
		x, z, y, all := make([]float64, n), make([]float64, n), make([]float64, n), mat.NewDense(n, 3, nil)
		for i := range n {
			x[i] = float64(i) + random.Float64()
			z[i] = 3*x[i] + 10*random.NormFloat64()
			y[i] = 1e6 + 5*x[i] - 7*z[i] + random.NormFloat64()
			all.SetRow(i, []float64{1, x[i], z[i]})
		}
		near(t, "Mean", stat.Mean(x), gonum.Mean(x, nil))
		a, b, correlation := stat.Line(x, y)
		wantA, wantB := gonum.LinearRegression(x, y, nil, false)
		near(t, "Line's a", a, wantA)
		near(t, "Line's b", b, wantB)
		near(t, "Line's correlation", correlation, gonum.Correlation(x, y, nil))
		var fit mat.VecDense
		if err := fit.SolveVec(all, mat.NewVecDense(n, y)); err != nil {
			t.Fatal(err)
		}
		near(t, "Partial", stat.Partial(x, z, y), fit.AtVec(2))
	}
}
