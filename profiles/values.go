package profiles

import (
	"math"
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

// Scale multiplies all values of a profile, and rounds their sum once rather than each value: the mean of many windows, in
// most of which a stack was not, has no whole number of it. It merges samples that differ in their labels alone.
func Scale(p *profile.Profile, ratio float64) error {
	for _, s := range p.Sample {
		s.Label, s.NumLabel, s.NumUnit = nil, nil, nil
	}
	merged, err := profile.Merge([]*profile.Profile{p})
	if err != nil {
		return err
	}
	p.Sample, p.Location, p.Function, p.Mapping = merged.Sample, merged.Location, merged.Function, merged.Mapping
	for i := range p.SampleType {
		var sum, scaled int64 // so far
		for _, s := range p.Sample {
			sum += s.Value[i]
			s.Value[i] = int64(math.Round(float64(sum)*ratio)) - scaled
			scaled += s.Value[i]
		}
	}
	p.Sample = slices.DeleteFunc(p.Sample, func(s *profile.Sample) bool {
		return !slices.ContainsFunc(s.Value, func(v int64) bool { return v != 0 })
	})
	return nil
}

// OthersIndex returns the index of the values that have the time of other goroutines, or of those to show first if a
// profile has none of its own.
func OthersIndex(p *profile.Profile) int {
	if i := SampleIndex(p, wallprofile.OthersType); i >= 0 {
		return i
	}
	return DefaultSampleIndex(p)
}

// OwnTime reports whether a sample is of a span's own time: all samples are, except those that a wall-clock profile has
// of other goroutines that worked for the span.
func OwnTime(s *profile.Sample) bool { return !Calls(s, wallprofile.Others) }

// Waits reports whether a sample of a wall-clock profile is of a goroutine that waited.
func Waits(s *profile.Sample) bool {
	n := wallprofile.Causes(len(s.Location), func(i int) string { return Outermost(s.Location[i]) })
	return n < len(s.Location) && wallprofile.KindOf(innermost(s.Location[n])) == wallprofile.KindWaiting
}

// innermost returns the innermost function of a location, empty if it has none.
func innermost(l *profile.Location) string {
	if len(l.Line) > 0 && l.Line[0].Function != nil {
		return l.Line[0].Function.Name
	}
	return ""
}

// Own returns a wall-clock profile without the causes of its waits: its stacks end in the goroutine that waited, and in
// that one's state. It shares everything but the list of samples with p, which may be of any type and is not changed.
func Own(p *profile.Profile) *profile.Profile {
	samples := slices.Clone(p.Sample)
	for i, s := range samples {
		if n := wallprofile.Causes(len(s.Location), func(i int) string { return Outermost(s.Location[i]) }); n > 0 {
			cut := *s
			cut.Location = s.Location[n:]
			samples[i] = &cut
		}
	}
	return WithSamples(p, samples)
}

// WithSamples returns a profile that has other samples than p, and shares everything else with it.
func WithSamples(p *profile.Profile, samples []*profile.Sample) *profile.Profile {
	return &profile.Profile{
		SampleType: p.SampleType, DefaultSampleType: p.DefaultSampleType, Sample: samples,
		Mapping: p.Mapping, Location: p.Location, Function: p.Function, Comments: p.Comments, DocURL: p.DocURL,
		DropFrames: p.DropFrames, KeepFrames: p.KeepFrames, TimeNanos: p.TimeNanos, DurationNanos: p.DurationNanos,
		PeriodType: p.PeriodType, Period: p.Period,
	}
}

// Outermost returns the outermost function of a location, empty if it has none.
func Outermost(l *profile.Location) string {
	if n := len(l.Line); n > 0 && l.Line[n-1].Function != nil {
		return l.Line[n-1].Function.Name
	}
	return ""
}
