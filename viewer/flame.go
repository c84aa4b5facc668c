package viewer

import (
	"github.com/google/pprof/profile"

	"spanflame/internal/flame"
	"spanflame/internal/record"
	"spanflame/profiles"
)

// side returns a profile's default sample type, scaled, without the time of other goroutines. It is not ok if the profile
// has no values.
func side(p *profile.Profile, scale float64) (s flame.Side, ok bool) {
	s = flame.Side{Profile: p, Value: profiles.DefaultSampleIndex(p), Keep: profiles.OwnTime, Scale: scale}
	return s, s.Value >= 0
}

// newFlame draws a profile, zoomed to the frame with the index; 0 is the whole. The page that is zoomed to a frame is at
// zoomPath followed by its index.
func newFlame(p *profile.Profile, zoomPath string, zoom int) flame.Graph {
	s, ok := side(p, 1)
	if !ok {
		return flame.Graph{}
	}
	stated := p.SampleType[s.Value].Type == string(record.Wall)
	return flame.New(s, stated, zoomPath, zoom)
}

// newOthers draws the time of other goroutines that worked for the spans of a profile.
func newOthers(p *profile.Profile) flame.Graph {
	s, ok := side(p, 1)
	if !ok {
		return flame.Graph{}
	}
	s.Keep = func(sample *profile.Sample) bool { return !profiles.OwnTime(sample) }
	return flame.NewOthers(s)
}

// difference is the difference of two profiles.
type difference struct {
	Changes []flame.Change
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
	return difference{Changes: flame.Changes(b, a), tree: flame.Compare(b, a), unit: a.Unit()}
}

// draw draws the difference, zoomed as in newFlame.
func (d difference) draw(zoomPath string, zoom int) *flame.Graph {
	return flame.NewDifference(d.tree, d.unit, zoomPath, zoom)
}
