//go:build long

package e2e

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"gonum.org/v1/gonum/stat/distuv"

	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/profiles"
	"spanflame/profiles/compare"
	"spanflame/viewer/source"
	"spanflame/workload/load"
	"spanflame/workload/processes"
)

const (
	// comparedFor is how long windows are recorded, unless the variable SPANFLAME_COMPARE is set.
	comparedFor = 2 * time.Minute
	// comparedWindows is the number of windows on each side of a comparison.
	comparedWindows = 8
	// comparedRequests is the time of the requests on each side of a comparison of slow ones.
	comparedRequests = 10 * time.Second
	// comparedFrom is the number of windows that a service gets to warm up.
	comparedFrom = 10
	// falseAlarm is the probability that the test fails for a method that keeps its promise.
	falseAlarm = 0.001
)

// TestEqualWindowsAreSeldomFlagged records the workload under a constant load. It compares windows of its
// storefront with the windows that follow, and every second window with those between. For each metric, at most one
// comparison in twenty may find a change. The binomial distribution gives how many of so few pairs that allows.
func TestEqualWindowsAreSeldomFlagged(t *testing.T) {
	saved := recordWorkload(t, durationFromEnv(t, "SPANFLAME_COMPARE", comparedFor))
	for _, tt := range []struct {
		profile record.Type
		metrics []string
	}{
		{record.CPU, []string{"cpu"}},
		{record.Memory, []string{"alloc_space", "inuse_space"}},
		{record.Mutex, []string{"mutex_delay"}},
		{record.Block, []string{"block_delay"}},
		{record.Goroutine, []string{"goroutine"}},
	} {
		query := profiles.Query{Service: "storefront", Types: []record.Type{tt.profile}}
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
				o := compare.Options{Metrics: []string{metric}}
				if differ(compared(t, block[:comparedWindows], block[comparedWindows:], o)) {
					following++
				}
				var turns [2][]profiles.Entry
				for i, e := range block {
					turns[i%2] = append(turns[i%2], e)
				}
				if differ(compared(t, turns[0], turns[1], o)) {
					inTurns++
				}
			}
			allowed := mostOf(pairs, 0.05)
			t.Logf("%s: of %d pairs of equal sides, %d consecutive and %d alternating pairs are flagged; %d may be", metric, pairs, following, inTurns, allowed)
			if max(following, inTurns) > allowed {
				t.Errorf("%s: %d and %d of %d pairs of equal sides are flagged, more than the %d that a promise of one in twenty allows",
					metric, following, inTurns, pairs, allowed)
			}
		}
	}
}

// Slow requests are divided by all requests, which the saved traces count.
func TestEqualRequestsAreSeldomFlagged(t *testing.T) {
	saved := recordWorkload(t, durationFromEnv(t, "SPANFLAME_COMPARE", comparedFor))
	entries, damaged, err := profiles.Find(t.Context(), profiles.Query{
		Service: "storefront", Types: []record.Type{record.Wall}, Labels: map[string]string{"span_scope": "root"},
	}, saved)
	if err != nil || len(damaged) > 0 || len(entries) == 0 {
		t.Fatalf("%d wall-clock profiles, %v, %d damaged", len(entries), err, len(damaged))
	}
	d, err := source.OpenDirectory(saved)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.ReadTraces(t.Context()); err != nil {
		t.Fatal(err)
	}
	at := func(from time.Time) (some []profiles.Entry, requests []traces.Span) {
		to := from.Add(comparedRequests)
		for _, e := range entries {
			if !e.Start.Before(from) && e.Start.Before(to) {
				some = append(some, e)
			}
		}
		requests, err := d.Requests(t.Context(), source.Filter{Service: "storefront", From: from, To: to})
		if err != nil {
			t.Fatal(err)
		}
		return some, requests
	}
	pairs, flagged := 0, 0
	first, last := entries[0].Start.Add(comparedRequests/4), entries[len(entries)-1].Start
	for from := first; from.Add(2 * comparedRequests).Before(last); from = from.Add(2 * comparedRequests) {
		o := compare.Options{Metrics: []string{"wall"}}
		var before, after []profiles.Entry
		before, o.RequestsBefore = at(from)
		after, o.RequestsAfter = at(from.Add(comparedRequests))
		if len(o.RequestsBefore) == 0 || len(o.RequestsAfter) == 0 {
			t.Fatalf("%d requests before %v, and %d after it", len(o.RequestsBefore), from.Add(comparedRequests), len(o.RequestsAfter))
		}
		m := compared(t, before, after, o)
		if m.Per != "request" || !m.Tested {
			t.Errorf("%d and %d profiles are divided per %s, tested: %t; want a test per request", len(before), len(after), m.Per, m.Tested)
		}
		if pairs++; differ(m) {
			flagged++
		}
	}
	allowed := mostOf(pairs, 0.05)
	t.Logf("wall: of %d pairs of equal sides, %d are flagged; %d may be", pairs, flagged, allowed)
	if flagged > allowed || pairs == 0 {
		t.Errorf("%d of %d pairs of equal sides are flagged, at most %d may be", flagged, pairs, allowed)
	}
}

// mostOf returns how many of n events of the given probability may happen, with falseAlarm as the chance that more
// do.
func mostOf(n int, probability float64) int {
	b := distuv.Binomial{N: float64(n), P: probability}
	most := 0
	for most < n && b.CDF(float64(most)) < 1-falseAlarm {
		most++
	}
	return most
}

// recordWorkload returns the directory of what the workload's agents saved in that time.
func recordWorkload(t *testing.T, length time.Duration) (saved string) {
	t.Helper()
	dir := t.TempDir()
	saved = filepath.Join(dir, "saved")
	// The race detector changes the profiles, and with it the workload is too slow for this load.
	binary := filepath.Join(dir, "spanflame")
	if err := processes.Build(t.Context(), binary); err != nil {
		t.Fatal(err)
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

// compared compares windows by the metric of the options.
func compared(t *testing.T, before, after []profiles.Entry, o compare.Options) compare.Metric {
	t.Helper()
	ctx := t.Context()
	r, err := compare.Compare(ctx, profiles.Read(ctx, before), profiles.Read(ctx, after), o)
	if err != nil {
		t.Fatal(err)
	}
	return r.Metrics[0]
}

// differ reports whether a comparison found any change.
func differ(m compare.Metric) bool {
	return m.Total.Significant() || len(m.Changed()) > 0 || slices.ContainsFunc(m.Stacks, compare.Change.Significant)
}
