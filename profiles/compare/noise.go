package compare

import (
	"fmt"
	"math"
	"slices"

	"spanflame/internal/format"
	"spanflame/profiles/internal/stat"
)

// power is the probability with which the smallest change that data can show is found.
const power = 0.8

// noise describes how much a quantity varies although nothing changed.
type noise struct {
	before, after float64 // the largest change of a side that is split against itself, as a logarithm
	error         float64 // of the logarithm of the quotient of both sides, infinite if it is unknown
	freedom       float64
	binned        bool    // the values are of parts of a time range, not of windows
	apart         float64 // the factor by which sides that drift change more than the halves of a side
}

// newNoise returns the noise of two series with the interval of their quotient at a confidence. In turns, both sides
// change alike over time, which is then no noise.
func newNoise(before, after []float64, ratio Estimate, confidence float64, inTurns bool) noise {
	n := noise{before: split(before, inTurns), after: split(after, inTurns), error: math.Inf(1), freedom: float64(len(before) + len(after) - 2), apart: 1}
	if !inTurns {
		n.apart = math.Sqrt2 // they are twice as far apart, of which a random walk moves the root
	}
	width := stat.StudentQuantile(n.freedom, (1+confidence)/2)
	middle, low, high := math.Log(float64(ratio.Value)), logarithm(float64(ratio.Low)), math.Log(float64(ratio.High))
	switch {
	case !math.IsInf(low, 0) && !math.IsInf(high, 0):
		n.error = (high - low) / 2 / width
	case !math.IsInf(low, 0):
		n.error = (middle - low) / width
	case !math.IsInf(high, 0):
		n.error = (high - middle) / width
	}
	if math.IsNaN(n.error) {
		n.error = math.Inf(1)
	}
	return n
}

// split returns the larger of the changes between the odd and the even values of a series, and between its halves.
func split(values []float64, inTurns bool) float64 {
	var parts [2][]float64
	for i, v := range values {
		parts[i%2] = append(parts[i%2], v)
	}
	change := changeOf(parts[0], parts[1])
	if half := len(values) / 2; !inTurns {
		change = max(change, changeOf(values[:half], values[half:]))
	}
	return change
}

// changeOf returns the size of the change of the median, as a logarithm; 0 without one.
func changeOf(a, b []float64) float64 {
	change := math.Abs(math.Log(median(b) / median(a)))
	if math.IsNaN(change) || math.IsInf(change, 0) {
		return 0
	}
	return change
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// byChance returns the smallest change, as a logarithm, that has a p below the given one with a probability of 80 %.
func (n noise) byChance(p float64) float64 {
	return (stat.StudentQuantile(n.freedom, 1-p/2) + stat.NormalQuantile(power)) * n.error
}

// smallest returns the smallest change that the data can show, as a share: it is found with a probability of 80 %, and what
// a side does when it is split against itself, continued to the other side, is not as much.
func (n noise) smallest(p float64) float64 {
	return math.Expm1(max(n.byChance(p), n.apart*max(n.before, n.after)))
}

// advice says what to record so that a change, given as a logarithm, can be shown with so many windows before and after.
func (n noise) advice(change, p float64, windowsBefore, windowsAfter int) string {
	times := math.Pow(n.byChance(p)/change, 2)
	switch {
	case !(times > 1 && times < 1000): // the sides change by themselves, or how much is not known
		return "record for a longer time, and let the sides take turns"
	case n.binned:
		return fmt.Sprintf("record for about %.0f times as long", math.Ceil(times))
	}
	return fmt.Sprintf("record about %s on each side", format.Count(int(math.Ceil(float64(max(windowsBefore, windowsAfter))*times)), "window"))
}

// explainNoise adds a note on the smallest change of each total that the windows can show.
func (r *Report) explainNoise() {
	for _, m := range r.Metrics {
		v := m.Total.Cum
		if !m.Tested || m.Signed || v.Before == 0 || v.After == 0 {
			continue
		}
		r.note("%s: split against themselves, the windows before change by %s and those after by %s; the smallest change of the total that they can show is %s",
			m.Name, share(math.Expm1(v.noise.before)), share(math.Expm1(v.noise.after)), share(float64(v.Smallest)))
	}
}

// share writes a share as a percentage.
func share(v float64) string {
	if math.IsInf(v, 1) {
		return "not known"
	}
	return fmt.Sprintf("%.1f %%", 100*v)
}
