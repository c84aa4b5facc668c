package profiles

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/wallprofile"
)

// Diagnose returns one line on what took most of a span's own time, such as
// "612 ms POST /api/checkout: 571 ms (93 %) waiting for a mutex in workload.(*Stock).Reserve", from the
// wall-clock profile of that span alone. It is empty for a profile that has none of the span's own time.
func Diagnose(p *profile.Profile, spanName string, duration time.Duration) string {
	times := make(map[wallprofile.Place]int64)
	for _, s := range p.Sample {
		if at, own := placeOf(s); own && len(s.Value) > 0 {
			times[at] += s.Value[0]
		}
	}
	if len(times) == 0 {
		return ""
	}
	top := slices.MinFunc(slices.Collect(maps.Keys(times)), func(a, b wallprofile.Place) int {
		return cmp.Or(cmp.Compare(times[b], times[a]), strings.Compare(a.Function, b.Function), strings.Compare(a.Leaf, b.Leaf))
	})
	return wallprofile.Diagnosis(spanName, duration, top, time.Duration(times[top]), "")
}

// placeOf returns the place of a sample, and whether its time is the span's own rather than that of other goroutines.
func placeOf(s *profile.Sample) (at wallprofile.Place, own bool) {
	innermost := true
	var stack []*profile.Function
	for _, l := range s.Location {
		for _, line := range l.Line {
			switch f := line.Function; {
			case f == nil:
				continue
			case f.Name == wallprofile.Others:
				return wallprofile.Place{}, false
			case innermost && wallprofile.IsBracketed(f.Name):
				at.Leaf = f.Name
			case !strings.HasPrefix(f.Name, wallprofile.SpanPrefix):
				stack = append(stack, f)
			}
			innermost = false
		}
	}
	at.Function = wallprofile.Blamed(func(yield func(function, file string) bool) {
		for _, f := range stack {
			if !yield(f.Name, f.Filename) {
				return
			}
		}
	})
	return at, true
}

// SavedDiagnosis returns the diagnosis that the agent saved with a wall-clock profile for a span, in a comment such as
// "span_id=4466fc8554eaf499 612 ms POST /api/checkout: …"; it is empty if there is none. It can have more
// than Diagnose, such as the holder of a lock.
func SavedDiagnosis(p *profile.Profile, spanID string) string {
	for _, c := range p.Comments {
		if id, diagnosis, ok := wallprofile.ParseComment(c); ok && id == spanID {
			return diagnosis
		}
	}
	return ""
}
