//go:build long

package e2e

import (
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"gonum.org/v1/gonum/stat/distuv"

	"spanflame/internal/record"
	"spanflame/profiles"
	"spanflame/profiles/compare"
	"spanflame/workload/load"
	"spanflame/workload/processes"
)

const (
	// comparedFor is how long windows are recorded, unless the variable SPANFLAME_COMPARE says otherwise.
	comparedFor = 2 * time.Minute
	// comparedWindows are on each side of a comparison.
	comparedWindows = 8
	// comparedFrom is how many windows a service gets to warm up.
	comparedFrom = 10
	// doubt is the probability with which the test may fail for a method that keeps its promise.
	doubt = 0.001
)

// TestEqualWindowsAreSeldomFlagged records the shop under a load that stays the same, and compares windows of its
// storefront with the ones that follow, and every second one with those between: at most one comparison in twenty
// may find a change, of each metric. How many of so few pairs that allows, the binomial distribution says.
func TestEqualWindowsAreSeldomFlagged(t *testing.T) {
	saved := recordShop(t, durationFromEnv(t, "SPANFLAME_COMPARE", comparedFor))
	for _, tt := range []struct {
		profile record.Type
		metrics []string
	}{
		{record.CPU, []string{"cpu"}},
		{record.Memory, []string{"alloc_space", "inuse_space"}},
		{record.Mutex, []string{"mutex_delay"}},
		{record.Block, []string{"block_delay"}},
		{record.Goroutine, []string{"goroutine"}},
		{record.Wall, []string{"wall"}},
	} {
		query := profiles.Query{Service: "storefront", Types: []record.Type{tt.profile}}
		if tt.profile == record.Wall {
			query.Labels = map[string]string{"span_scope": "root"} // a window each, children have their own
		}
		entries, damaged, err := profiles.Find(t.Context(), query, saved)
		if err != nil || len(damaged) > 0 {
			t.Fatalf("%s: %v, %d damaged", tt.profile, err, len(damaged))
		}
		if len(entries) < comparedFrom+2*comparedWindows {
			t.Fatalf("%s: %d windows, too few to compare any", tt.profile, len(entries))
		}
		for _, metric := range tt.metrics {
			pairs, following, inTurns := 0, 0, 0
			for block := range slices.Chunk(entries[comparedFrom:], 2*comparedWindows) {
				if len(block) < 2*comparedWindows {
					break
				}
				pairs++
				if differ(t, metric, block[:comparedWindows], block[comparedWindows:]) {
					following++
				}
				var turns [2][]profiles.Entry
				for i, e := range block {
					turns[i%2] = append(turns[i%2], e)
				}
				if differ(t, metric, turns[0], turns[1]) {
					inTurns++
				}
			}
			allowed := mostOf(pairs, 0.05)
			t.Logf("%s: of %d pairs of equal sides, %d that follow each other are flagged and %d that take turns; %d may be", metric, pairs, following, inTurns, allowed)
			if max(following, inTurns) > allowed {
				t.Errorf("%s: %d and %d of %d pairs of equal sides are flagged, more than the %d that a promise of one in twenty allows", metric, following, inTurns, pairs, allowed)
			}
		}
	}
}

// mostOf is how many of n events of a probability there may be, but for doubt.
func mostOf(n int, probability float64) int {
	b := distuv.Binomial{N: float64(n), P: probability}
	most := 0
	for most < n && b.CDF(float64(most)) < 1-doubt {
		most++
	}
	return most
}

// recordShop returns the directory of what the shop's agents saved in that time.
func recordShop(t *testing.T, length time.Duration) (saved string) {
	t.Helper()
	dir := t.TempDir()
	saved = filepath.Join(dir, "saved")
	// The race detector's profiles are not those of a service, and its shop is too slow for this load.
	binary := filepath.Join(dir, "spanflame")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "spanflame/cmd/spanflame").CombinedOutput(); err != nil {
		t.Fatalf("build spanflame: %v\n%s", err, out)
	}
	s, err := processes.Start(t.Context(), processes.Options{Binary: binary, Dir: dir, Env: []string{
		"SPANFLAME_DIR=" + saved,
		"PYROSCOPE_UPLOAD_INTERVAL=1s",
		"SPANFLAME_MUTEX_PROFILE_FRACTION=1",
		"SPANFLAME_SLOW_SPAN=50ms",
		"SPANFLAME_WALL_CPU_SHARE=0.05",
		"OTEL_METRICS_EXPORTER=none", "OTEL_LOGS_EXPORTER=none",
	}})
	if err != nil {
		t.Fatal(err)
	}
	mix, err := load.ParseMix("checkout=60,cpu=5,alloc=10,lock=10,block=10,sleep=5")
	if err != nil {
		t.Fatal(err)
	}
	report, err := load.Run(t.Context(), load.Config{Target: s.Storefront.URL, Rate: 8, Duration: length, Mix: mix})
	if err != nil || report.Failed > 0 {
		t.Errorf("load: %v; %d of %d requests failed: %+v", err, report.Failed, report.Sent, report.Endpoints)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	return saved
}

// differ tells whether a comparison finds a change of anything.
func differ(t *testing.T, metric string, before, after []profiles.Entry) bool {
	t.Helper()
	ctx := t.Context()
	r, err := compare.Compare(ctx, profiles.Read(ctx, before), profiles.Read(ctx, after), compare.Options{Metrics: []string{metric}})
	if err != nil {
		t.Fatal(err)
	}
	m := r.Metrics[0]
	return m.Total.Significant() || len(m.Changed()) > 0 || slices.ContainsFunc(m.Stacks, compare.Change.Significant)
}
