package flame

import (
	"cmp"
	"math"
	"slices"

	"github.com/google/pprof/profile"

	"spanflame/internal/format"
	"spanflame/internal/wallprofile"
)

const changedRows = 20 // of the table of changes

// Change is the change of a function's own value between two sides.
type Change struct {
	Name, In, State string // In is the caller, if it says more
	Before, After   string
	By              string // the difference
	More            bool
	W               string // of the bar, in percent
	by              float64
	at              place
}

// Changes returns the largest changes of functions' own values, with the states in which they spent them.
func Changes(before, after Side) []Change {
	b, a := ownValues(before), ownValues(after)
	unit := after.Unit()
	var all []Change
	most := 0.0
	seen := make(map[place]bool)
	for _, values := range []map[place]float64{a, b} {
		for at := range values {
			by := a[at] - b[at]
			if seen[at] || by == 0 {
				continue
			}
			seen[at] = true
			most = max(most, math.Abs(by))
			all = append(all, Change{
				Name: format.Clean(at.function, 200), In: format.Clean(at.in, 200), State: format.Clean(at.state, 100),
				Before: format.Value(round(b[at]), unit), After: format.Value(round(a[at]), unit), By: format.Difference(round(by), unit),
				More: by > 0, by: by, at: at,
			})
		}
	}
	slices.SortFunc(all, func(a, b Change) int {
		return cmp.Or(cmp.Compare(math.Abs(b.by), math.Abs(a.by)), a.at.compare(b.at))
	})
	all = all[:min(len(all), changedRows)]
	for i := range all {
		all[i].W = format.Percent(math.Abs(all[i].by) / most)
	}
	return all
}

// ownValues returns the values of functions without those that they called, scaled.
func ownValues(side Side) map[place]float64 {
	values := make(map[place]float64)
	for _, s := range side.Profile.Sample {
		v := side.value(s)
		if v == 0 {
			continue
		}
		at, _ := side.place(s)
		values[at] += side.scale() * float64(v)
	}
	return values
}

// place returns where a sample ended, and the line of that function.
func (s Side) place(sample *profile.Sample) (at place, line profile.Line) {
	behalf := false
	for _, l := range sample.Location[causes(sample):] {
		for _, in := range l.Line {
			if s.leavesOut(in) {
				continue
			}
			switch name := functionName(in); {
			case wallprofile.IsBracketed(name):
				at.state = name
			case at.function == "":
				at.function, behalf, line = name, onBehalf(name), in
			case behalf && !onBehalf(name):
				at.in, behalf = name, false
			}
		}
	}
	return at, line
}
