//go:build !race

// These tests simulate thousands of windows, which takes minutes with the race detector.

package compare_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"spanflame/profiles/compare"
)

func compareRuns(t testing.TB, before, after service, rng *rand.Rand) *compare.Report {
	t.Helper()
	r, err := compare.Compare(t.Context(), before.run(rng), after.run(rng), compare.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// flagged reports whether anything changed significantly.
func flagged(r *compare.Report) bool {
	for _, m := range r.Metrics {
		if m.Total.Significant() || len(m.Changed()) > 0 {
			return true
		}
		for _, c := range m.Stacks {
			if c.Significant() {
				return true
			}
		}
	}
	return false
}

// TestEqualSidesAreSeldomFlagged is the promise of Options.Alpha: of pairs without any change, at most one in
// twenty is reported to have one, in any of its functions, stacks or totals.
func TestEqualSidesAreSeldomFlagged(t *testing.T) {
	const pairs = 200
	for _, tt := range []struct {
		windows int
		memory  float64
		cores   float64
		most    int
	}{
		{5, 0, 1, pairs / 20},
		{10, 0, 1, pairs / 20},
		{20, 0, 1, pairs / 20},
		{5, 0, 0.02, pairs / 20}, // 30 samples a window: of most functions many windows have none
		{20, 0, 0.02, pairs / 20},
		{20, 0.3, 1, pairs / 20},
		{20, 0.5, 1, pairs / 20},
		{20, 0.8, 1, pairs / 10}, // so slow a drift is more than 20 windows can tell
	} {
		t.Run(fmt.Sprintf("%d windows, memory %.1f, %g cores", tt.windows, tt.memory, tt.cores), func(t *testing.T) {
			t.Parallel()
			s := typicalService()
			s.memory, s.windows, s.cores = tt.memory, tt.windows, tt.cores
			rng := rand.New(rand.NewPCG(1, 2))
			wrong := 0
			for range pairs {
				if flagged(compareRuns(t, s, s, rng)) {
					wrong++
				}
			}
			t.Logf("%d of %d pairs flagged", wrong, pairs)
			if wrong > tt.most {
				t.Errorf("%d of %d pairs of equal sides are flagged, want at most %d", wrong, pairs, tt.most)
			}
		})
	}
}

// TestSidesThatTakeTurns has a load that drifts slowly, which both sides have in common when they take turns.
func TestSidesThatTakeTurns(t *testing.T) {
	const pairs = 200
	before := typicalService()
	before.memory, before.windows = 0.9, 12
	after := before
	after.slowed = 0.2
	slowed := func(r *compare.Report) int {
		if function(t, r.Metrics[0], before.name(before.slower)).Flat.Significant {
			return 1
		}
		return 0
	}
	rng := rand.New(rand.NewPCG(11, 12))
	wrong, inTurns, separate := 0, 0, 0
	for range pairs {
		if sides := takeTurns(before, before, rng); flagged(mustCompare(t, sequence(sides[0]...), sequence(sides[1]...), compare.Options{})) {
			wrong++
		}
		sides := takeTurns(before, after, rng)
		inTurns += slowed(mustCompare(t, sequence(sides[0]...), sequence(sides[1]...), compare.Options{}))
		separate += slowed(compareRuns(t, before, after, rng))
	}
	t.Logf(
		"%d of %d equal pairs in turns are flagged; a function slowed by 20 %% is found in %d in turns, and in %d one after the other",
		wrong,
		pairs,
		inTurns,
		separate,
	)
	if wrong > pairs/20 {
		t.Errorf("%d of %d pairs of equal sides are flagged, want at most %d", wrong, pairs, pairs/20)
	}
	if inTurns <= separate {
		t.Errorf("taking turns finds %d slower functions of %d, and one side after the other %d: want more", inTurns, pairs, separate)
	}
}

// TestADoubledFunctionIsFound has as few windows as its change needs: the floor of the ranks bounds a corrected p.
func TestADoubledFunctionIsFound(t *testing.T) {
	for _, tt := range []struct{ windows, percent int }{{8, 50}, {8, 100}, {10, 50}, {10, 100}, {12, 50}, {12, 100}} {
		s := measure(t, tt.percent, tt.windows, 100, 13)
		t.Logf("%d windows a side, slowed by %d %%: found in %d of %d trials, with q below 0.01 in %d", tt.windows, tt.percent, s.found, s.trials, s.sure)
		if s.found < 90 || tt.windows >= 10 && s.sure < 90 {
			t.Errorf(
				"%d windows a side: a function slowed by %d %% is found in %d of %d trials, with q below 0.01 in %d: want 90",
				tt.windows,
				tt.percent,
				s.found,
				s.trials,
				s.sure,
			)
		}
	}
}

// slowdown has the results of comparisons of one function that was slowed by a known share.
type slowdown struct {
	percent, found, covered, trials int
	sure                            int     // found with a q below 0.01
	first                           int     // found, and the first of the table
	sizes                           float64 // sum of the estimates
}

// measure compares runs of a service whose function of 10 % of the CPU was slowed.
func measure(t testing.TB, percent, windows, trials int, seed uint64) slowdown {
	before := typicalService()
	before.windows = windows
	after := before
	after.slowed = float64(percent) / 100
	rng := rand.New(rand.NewPCG(seed, uint64(percent)))
	s := slowdown{percent: percent, trials: trials}
	for range trials {
		m := compareRuns(t, before, after, rng).Metrics[0]
		for i, c := range m.Top(len(m.Functions)) {
			if c.Name != before.name(before.slower) {
				continue
			}
			if c.Flat.Significant {
				s.found++
				if i == 0 {
					s.first++
				}
			}
			if c.Flat.Q < 0.01 {
				s.sure++
			}
			r := c.Flat.Ratio
			s.sizes += float64(r.Value)
			if truth := compare.Number(1 + after.slowed); r.Low <= truth && truth <= r.High {
				s.covered++
			}
		}
	}
	return s
}

// TestASlowerFunctionIsFound prints the table of docs/compare.md.
func TestASlowerFunctionIsFound(t *testing.T) {
	var table strings.Builder
	fmt.Fprintln(&table, "\n| slowed by | found | size found | interval covers the truth |\n|--:|--:|--:|--:|")
	for _, percent := range []int{5, 10, 20, 50} {
		s := measure(t, percent, 20, 100, 7)
		fmt.Fprintf(&table, "| %d %% | %d of %d | %+.1f %% | %d of %d |\n",
			percent, s.found, s.trials, 100*(s.sizes/float64(s.trials)-1), s.covered, s.trials)
		if percent >= 20 && s.found < 95 {
			t.Errorf("a function of 10 %% of the CPU that was slowed by %d %% is found in %d of %d trials, want 95", percent, s.found, s.trials)
		}
		if percent >= 20 && s.first < 90 {
			t.Errorf("it is the first of the table in %d of %d trials, want 90", s.first, s.trials)
		}
		if s.covered < 90 {
			t.Errorf("the interval has the truth of %d %% in %d of %d trials, want 90 or more of an interval of 95 %%", percent, s.covered, s.trials)
		}
	}
	t.Log(table.String())
}
