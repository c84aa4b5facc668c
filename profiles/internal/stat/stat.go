// Package stat computes the distributions and regressions that packages compare and leaks need, from gonum's special
// functions. Gonum's own packages of statistics would do, but they import its linear algebra, all of which the linker
// keeps: 2 MB of a program. It does not decide what a value means.
package stat

import (
	"math"

	"gonum.org/v1/gonum/mathext"
)

// Normal returns the probability that a standard normal variable is at most x.
func Normal(x float64) float64 { return math.Erfc(-x/math.Sqrt2) / 2 }

// NormalQuantile returns the inverse of [Normal].
func NormalQuantile(p float64) float64 { return mathext.NormalQuantile(p) }

// StudentQuantile returns the t that a variable with Student's t distribution exceeds with the probability 1−p.
func StudentQuantile(freedom, p float64) float64 {
	if p == 0.5 {
		return 0
	}
	x := mathext.InvRegIncBeta(freedom/2, 0.5, 2*min(p, 1-p))
	return math.Copysign(math.Sqrt(freedom*(1-x)/x), p-0.5)
}

// StudentTwoSided returns the probability that a variable with Student's t distribution is at least as far from 0 as t.
func StudentTwoSided(freedom, t float64) float64 {
	return mathext.RegIncBeta(freedom/2, 0.5, freedom/(t*t+freedom))
}

// AtLeastHeads returns the probability of at least k heads, k > 0, in n tosses of a fair coin.
func AtLeastHeads(k, n float64) float64 { return mathext.RegIncBeta(k, n-k+1, 0.5) }

// Choices returns the number of ways to choose k of n.
func Choices(n, k int) float64 {
	ways := 1.0
	for i := 1; i <= k; i++ {
		ways *= float64(n-k+i) / float64(i)
	}
	return ways
}

// Mean returns the mean of values.
func Mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}

// Line returns a and b of the least-squares fit y = a + b·x, and the correlation of x and y.
func Line(x, y []float64) (a, b, correlation float64) {
	meanX, meanY := Mean(x), Mean(y)
	var xx, xy, yy float64
	for i := range x {
		dx, dy := x[i]-meanX, y[i]-meanY
		xx, xy, yy = xx+dx*dx, xy+dx*dy, yy+dy*dy
	}
	return meanY - xy/xx*meanX, xy / xx, xy / math.Sqrt(xx*yy)
}

// Partial returns c of the least-squares fit y = a + b·x + c·z. It is the slope over that part of z which x does not
// explain (the theorem of Frisch, Waugh and Lovell).
func Partial(x, z, y []float64) float64 {
	a, b, _ := Line(x, z)
	rest := make([]float64, len(z))
	for i := range z {
		rest[i] = z[i] - a - b*x[i]
	}
	_, c, _ := Line(rest, y)
	return c
}
