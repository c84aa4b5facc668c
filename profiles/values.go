package profiles

import (
	"slices"

	"github.com/google/pprof/profile"

	"spanflame/internal/wallprofile"
)

// SampleIndex returns the index of a sample type among a profile's values, or -1 if the profile does not have it.
func SampleIndex(p *profile.Profile, sampleType string) int {
	return slices.IndexFunc(p.SampleType, func(t *profile.ValueType) bool { return t.Type == sampleType })
}

// DefaultSampleIndex returns the index of the value to show first: that of the profile's default sample type, otherwise
// the last one, as in go tool pprof. It is -1 if the profile has no values.
func DefaultSampleIndex(p *profile.Profile) int {
	if i := SampleIndex(p, p.DefaultSampleType); i >= 0 {
		return i
	}
	return len(p.SampleType) - 1
}

// Total returns the sum of the values at an index, over the samples that keep accepts; nil accepts all.
func Total(p *profile.Profile, index int, keep func(*profile.Sample) bool) int64 {
	var sum int64
	for _, s := range p.Sample {
		if keep == nil || keep(s) {
			sum += s.Value[index]
		}
	}
	return sum
}

// Calls reports whether a function of that name is on a sample's stack.
func Calls(s *profile.Sample, function string) bool {
	for _, l := range s.Location {
		for _, line := range l.Line {
			if line.Function != nil && line.Function.Name == function {
				return true
			}
		}
	}
	return false
}

// OwnTime reports whether a sample is of a span's own time: all samples are, except those that a wall-clock profile has
// of other goroutines that worked for the span.
func OwnTime(s *profile.Sample) bool { return !Calls(s, wallprofile.Others) }
