//go:build !race

// These tests simulate thousands of windows, which takes minutes with the race detector.

package leaks_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestSteadyServicesAreNotSuspected has a cache that fills up, a warm-up, sawteeth of 7 and 23 minutes, objects
// that live from a minute to five hours, and memory that follows a load that stays, doubles, rises or wanders.
func TestSteadyServicesAreNotSuspected(t *testing.T) {
	loads := map[string]func(time.Duration) float64{
		"stays":   func(time.Duration) float64 { return 1 },
		"doubles": func(d time.Duration) float64 { return 1 + min(1, float64(d/(30*time.Minute))) },
		"rises":   func(d time.Duration) float64 { return 1 + d.Hours() },
		"wanders": func(d time.Duration) float64 { return 1 + 0.5*d.Hours()*(1-d.Hours())*4 },
	}
	for name, load := range loads {
		t.Run("a load that "+name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(100) {
				s := steady()
				s.load = load
				for _, suspect := range find(t, s, seed).Suspects {
					t.Errorf("run %d: %s is suspected: %.0f bytes a minute, p %.2g, q %.2g", seed, suspect.Site, suspect.BytesPerMinute, suspect.P, suspect.Q)
				}
			}
		})
	}
}

// TestWhatFollowsAnEvenLoadIsNotSuspected: the load rises with almost no noise, so the memory that it holds rises as
// steadily as a leak. Only the load distinguishes the two.
func TestWhatFollowsAnEvenLoadIsNotSuspected(t *testing.T) {
	const runs = 20
	explained := 0
	for seed := range uint64(runs) {
		s := steady()
		s.noise = 0.002
		s.load = func(d time.Duration) float64 { return 1 + 2*d.Hours() }
		r := find(t, s, seed)
		for _, suspect := range r.Suspects {
			t.Errorf("run %d: %s is suspected: %.0f bytes a minute, p %.2g, q %.2g", seed, suspect.Site, suspect.BytesPerMinute, suspect.P, suspect.Q)
		}
		for _, d := range r.Dismissed {
			if d.Site == "main.inFlight" && d.Reason == "follows the load" {
				explained++
			}
		}
	}
	if explained < runs {
		t.Errorf("main.inFlight follows the load in %d of %d runs, want all", explained, runs)
	}
}

func TestPlantedLeaksAreTheFirstSuspect(t *testing.T) {
	var table strings.Builder
	fmt.Fprintln(&table, "\n| leak | in | found first | rate found |\n|---|---|--:|--:|")
	for _, tt := range []struct {
		kilobytes float64
		windows   int
		length    time.Duration
	}{{1, 480, time.Minute}, {10, 240, 15 * time.Second}, {100, 240, 15 * time.Second}} {
		for n, plant := range []string{"map", "slice", "closure", "timer", "goroutine"} {
			const trials = 10
			found, sum := 0, 0.0
			for seed := range uint64(trials) {
				r := find(t, planted(plant, 1000*tt.kilobytes, tt.windows, tt.length), 10*seed+uint64(n))
				if len(r.Suspects) > 0 && r.Suspects[0].Site == sites[plant] {
					found++
					sum += r.Suspects[0].BytesPerMinute / 60e3
				} else {
					t.Errorf("%s of %g KB/s, run %d: the suspects are %+v; dismissed %+v", plant, tt.kilobytes, seed, r.Suspects, r.Dismissed)
				}
			}
			fmt.Fprintf(
				&table,
				"| %s, %g KB/s | %v | %d of %d | %.3g KB/s |\n",
				plant,
				tt.kilobytes,
				time.Duration(tt.windows)*tt.length,
				found,
				trials,
				sum/float64(found),
			)
		}
	}
	t.Log(table.String())
}
