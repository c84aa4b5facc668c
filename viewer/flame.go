package viewer

import (
	"cmp"
	"net/url"
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

// view is how a flame graph is shown.
type view struct {
	frame   int  // the one that takes the whole width; 0 is the whole graph
	ownCode bool // of the service's own functions alone
}

// parseView parses the parameters of a view, and removes them.
func parseView(q url.Values) (v view, err error) {
	if v.frame, err = parseFrame(q, "frame"); err != nil {
		return v, err
	}
	if code := q.Get("code"); code != "" {
		if code != "own" {
			return v, badRequest("code=%q: want own.", code)
		}
		v.ownCode = true
	}
	q.Del("frame")
	q.Del("code")
	return v, nil
}

// graph is a flame graph with the link to that of the service's own functions, or back to all.
type graph struct {
	flame.Graph
	Code link
}

// newFlame draws one of a profile's values for the page at a path with parameters.
func newFlame(p *profile.Profile, value int, at string, v view) graph {
	if value < 0 {
		return graph{}
	}
	g := graph{Code: link{"Show the service's own functions alone", at + "&code=own#flame"}}
	if v.ownCode {
		g.Code = link{"Show all functions", at + "#flame"}
		at += "&code=own"
	}
	s := flame.Side{Profile: p, Value: value, Keep: profiles.OwnTime, OwnCode: v.ownCode}
	stated := p.SampleType[value].Type == string(record.Wall) && slices.ContainsFunc(p.Sample, hasMarker)
	g.Graph = flame.New(s, stated, at+"&frame=", v.frame)
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
	a, b := after.Profile.Copy(), before.Profile.Copy()
	if err := cmp.Or(profiles.Scale(a, after.Scale), profiles.Scale(b, -before.Scale)); err != nil {
		return difference{}
	}
	p, err := profile.Merge([]*profile.Profile{a, b})
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
