//go:build long

package demo

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/profiles/leaks"
	"spanflame/workload/faults"
)

// leakRow makes a fault that is a leak, and returns its row.
func leakRow(t *testing.T, f faults.Fault) string {
	w, saved := startPair(t, binary)
	faulty, _ := drive(t, w, f, leakTime, truthTime)
	stopPair(t, w) // saves the last profiles

	leaking := faulty.ended.Add(-truthWindow)
	grown, err := leaks.Find(t.Context(), read(t, saved, f, faulty.begun, leaking, record.Memory, record.Goroutine), leaks.Options{})
	if err != nil {
		t.Fatal(err)
	}
	report, held, left, found := "nothing", "", "", nothing
	if len(grown.Suspects) > 0 {
		first := grown.Suspects[0]
		rate := amount(first.Kind, first.BytesPerMinute, first.PerMinute)
		report = fmt.Sprintf("%s of %s, %s a minute", first.Kind, wallprofile.Short(first.Site), rate)
		if first.Site == f.Function {
			found = function
		}
		before, after := holds(t, saved, f, first, faulty.begun, leaking), holds(t, saved, f, first, faulty.ended, time.Time{})
		if after > before/4 {
			t.Errorf("%s holds %v before the repair and %v after it", first.Site, before, after)
		}
		held, left = amount(first.Kind, before, before), amount(first.Kind, after, after)
	}
	return fmt.Sprintf("| %s/%s | `%s` | %s | %s | %s | %s |\n", f.Service, f.Name, wallprofile.Short(f.Function), report,
		judge(t, f, found, report), held, left)
}

// holds returns what the stacks with the function of a suspect hold in the last profile of a time range: bytes, or goroutines.
func holds(t *testing.T, saved string, f faults.Fault, of leaks.Suspect, from, to time.Time) float64 {
	t.Helper()
	kind, sample := record.Memory, "inuse_space"
	if of.Kind == leaks.Goroutines {
		kind, sample = record.Goroutine, "goroutine"
	}
	var last *profiles.Window
	for w, err := range read(t, saved, f, from, to, kind) {
		if err != nil {
			t.Fatal(err)
		}
		last = &w
	}
	p := last.Profile
	return float64(profiles.Total(p, profiles.SampleIndex(p, sample), func(s *profile.Sample) bool { return profiles.Calls(s, of.Site) }))
}

// amount describes bytes, or a number of goroutines.
func amount(kind leaks.Kind, bytes, goroutines float64) string {
	if kind == leaks.Goroutines {
		return fmt.Sprintf("%.0f", goroutines)
	}
	return mebibytes(int64(bytes))
}
