//go:build !race

// These tests simulate many thousands of windows, which takes minutes with the race detector.

package watch

import (
	"math"
	"testing"
	"time"
)

// TestASlowerFunctionIsFound: a tenth of the CPU time becomes slower by a fifth, with a new version or without one. It is
// found within 15 minutes, in at least 95 of 100 services, against the baselines that there are.
func TestASlowerFunctionIsFound(t *testing.T) {
	const services = 40
	for baseline, deploys := range map[string]bool{VersionBefore: true, DayAgo: false} {
		found := 0
		for i := range services {
			change := began.Add(day + time.Duration(i)*17*time.Minute).Truncate(window)
			s := &simulated{seed: uint64(i), slowFrom: change}
			if deploys {
				s.version = func(at time.Time) string {
					if at.Before(change) {
						return "v1"
					}
					return "v2"
				}
			}
			w := watcher(t, s, Options{})
			for after := 5 * time.Minute; after <= 15*time.Minute; after += 5 * time.Minute {
				round(t, w, change.Add(after))
			}
			for _, r := range w.Found() {
				if r.Function == slowed && r.Baseline == baseline && r.Metric == "cpu" {
					found++
					if r.Before < 0.08 || r.Before > 0.12 || r.After/r.Before < 1.1 || r.After/r.Before > 1.3 {
						t.Errorf("it has %.3f of the CPU time instead of %.3f", r.After, r.Before)
					}
				}
				if r.Function != slowed {
					t.Errorf("found %+v, which did not change", r)
				}
			}
		}
		t.Logf("%s: found in %d of %d", baseline, found, services)
		if found < services*95/100 {
			t.Errorf("%s: found in %d of %d, want 95 %%", baseline, found, services)
		}
	}
}

// TestNothingIsFoundWhereNothingChanged: looking for a day at a service whose load changes all day finds nothing.
func TestNothingIsFoundWhereNothingChanged(t *testing.T) {
	rounds(t, 1, day)
}

// rounds looks at services for a time, from their second day on, and fails if there is more than one false alarm for each in a
// month.
func rounds(t *testing.T, services int, long time.Duration) {
	t.Helper()
	wrong := 0
	for i := range services {
		w := watcher(t, &simulated{seed: uint64(100 + i)}, Options{})
		for now := began.Add(day + time.Hour); now.Before(began.Add(day + time.Hour + long)); now = now.Add(5 * time.Minute) {
			for _, r := range round(t, w, now) {
				t.Logf("%v: %+v", now, r)
				wrong++
			}
		}
	}
	t.Logf("%d false alarms in %v of %d services", wrong, long, services)
	if most := math.Ceil(float64(services) * float64(long) / float64(month)); float64(wrong) > most {
		t.Errorf("%d false alarms, want at most %v", wrong, most)
	}
}
