package profiles

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/pprof/profile"
)

// CheckPGO returns an error if Go's compiler would reject a profile for profile-guided optimization, or ignore it.
func CheckPGO(p *profile.Profile) error {
	var types []string
	for _, t := range p.SampleType {
		types = append(types, t.Type+"/"+t.Unit)
	}
	switch {
	case !slices.Contains(types, "samples/count") && !slices.Contains(types, "cpu/nanoseconds"):
		return fmt.Errorf("not usable for profile-guided optimization: it has %s, want samples/count or cpu/nanoseconds", strings.Join(types, ", "))
	case len(p.Sample) == 0:
		return errors.New("not usable for profile-guided optimization: it has no samples")
	}
	for _, s := range p.Sample {
		for _, l := range s.Location {
			if slices.ContainsFunc(l.Line, func(line profile.Line) bool { return line.Function != nil && line.Function.StartLine != 0 }) {
				return nil
			}
		}
	}
	return errors.New("not usable for profile-guided optimization: no function has a start line, as profiles of Go programs have since Go 1.20; " +
		"it is of another language, or was written by a tool that drops them")
}
