package viewer

import (
	"slices"

	"github.com/google/pprof/profile"

	"spanflame/internal/flame"
	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

// side returns a profile's default sample type, scaled, without the time of other goroutines. It is not ok if the profile
// has no values.
func side(p *profile.Profile, scale float64) (s flame.Side, ok bool) {
	s = flame.Side{Profile: profiles.Own(p), Value: profiles.DefaultSampleIndex(p), Keep: profiles.OwnTime, Scale: scale}
	return s, s.Value >= 0
}

// newFlame draws one of a profile's values, zoomed to the frame with the index; 0 is the whole. The page that is zoomed to a frame is at
// zoomPath followed by its index.
func newFlame(p *profile.Profile, value int, zoomPath string, zoom int) flame.Graph {
	if value < 0 {
		return flame.Graph{}
	}
	s := flame.Side{Profile: p, Value: value, Keep: profiles.OwnTime}
	stated := p.SampleType[value].Type == string(record.Wall) && slices.ContainsFunc(p.Sample, hasMarker)
	g := flame.New(s, stated, zoomPath, zoom)
	g.Total = format.Value(sum(p, value), p.SampleType[value].Unit)
	return g
}

// hasMarker reports whether a stack has a frame of a span or of a state, which wall-clock profiles of other tools have not.
func hasMarker(s *profile.Sample) bool {
	for _, l := range s.Location {
		for _, line := range l.Line {
			if line.Function != nil && wallprofile.IsMarker(line.Function.Name) {
				return true
			}
		}
	}
	return false
}

// signs returns the values above zero against those below, of a profile that is itself a difference. It is empty for any
// other.
func signs(p *profile.Profile, value int) difference {
	if !belowZero(p, value) {
		return difference{}
	}
	return bySign(p, value)
}

// belowZero reports whether a profile is itself a difference.
func belowZero(p *profile.Profile, value int) bool {
	return slices.ContainsFunc(p.Sample, func(s *profile.Sample) bool { return s.Value[value] < 0 })
}

// bySign returns the values above zero against those below.
func bySign(p *profile.Profile, value int) difference {
	above := flame.Side{Profile: p, Value: value, Keep: profiles.OwnTime}
	below := above
	below.Negative = true
	return difference{Changes: flame.Changes(below, above), tree: flame.Compare(below, above), unit: above.Unit()}
}

// newOthers draws the time of other goroutines that worked for the spans of a profile.
func newOthers(p *profile.Profile) flame.Graph {
	s, ok := side(p, 1)
	if !ok {
		return flame.Graph{}
	}
	s.Value = profiles.OthersIndex(p)
	s.Keep = func(sample *profile.Sample) bool { return !profiles.OwnTime(sample) }
	return flame.NewOthers(s)
}

// difference is the difference of two profiles.
type difference struct {
	Changes []flame.Change
	Signed  bool // the sides are differences themselves: before is what became less, after what became more
	tree    *flame.Difference
	unit    string
}

// newDifference compares two profiles, each scaled.
func newDifference(before, after *profile.Profile, beforeScale, afterScale float64) difference {
	b, ok := side(before, beforeScale)
	a, ok2 := side(after, afterScale)
	if !ok || !ok2 {
		return difference{}
	}
	if belowZero(before, b.Value) || belowZero(after, a.Value) {
		return subtract(b, a)
	}
	return difference{Changes: flame.Changes(b, a), tree: flame.Compare(b, a), unit: a.Unit()}
}

// subtract returns what became less against what became more, of two sides at least one of which is itself a difference. It
// is empty if they do not have the same sample types.
func subtract(before, after flame.Side) difference {
	scaled := func(s flame.Side, by float64) *profile.Profile {
		p := s.Profile.Copy()
		p.Scale(by * s.Scale)
		return p
	}
	p, err := profile.Merge([]*profile.Profile{scaled(after, 1), scaled(before, -1)})
	if err != nil {
		return difference{}
	}
	d := bySign(p, after.Value)
	d.Signed = true
	return d
}

// draw draws the difference, zoomed as in newFlame.
func (d difference) draw(zoomPath string, zoom int) *flame.Graph {
	return flame.NewDifference(d.tree, d.unit, zoomPath, zoom)
}
