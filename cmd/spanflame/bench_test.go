package main

import (
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/perf/benchfmt"
	"golang.org/x/perf/benchmath"

	"spanflame/profiles/compare"
	"spanflame/profiles/input"
)

// benchstatFile returns a file that the tests of benchstat read.
func benchstatFile(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/perf").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "cmd", "benchstat", "testdata", name)
}

// compared compares two files.
func compared(t *testing.T, before, after string) *compare.Report {
	t.Helper()
	b, err := input.Open(t.Context(), before, input.Options{})
	if err != nil {
		t.Fatal(err)
	}
	a, err := input.Open(t.Context(), after, input.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := compare.Compare(t.Context(), b, a, compare.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// samples returns what benchstat reads of a unit, by benchmark.
func samples(t *testing.T, path, unit string) map[string][]float64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // it was only read
	all := make(map[string][]float64)
	for r := benchfmt.NewReader(f, path); r.Scan(); {
		if result, ok := r.Result().(*benchfmt.Result); ok {
			v, _ := result.Value(unit)
			all[result.Name.String()] = append(all[result.Name.String()], v)
		}
	}
	return all
}

// TestBenchmarksAreComparedAsByBenchstat: of the output of benchmarks, the values are those of benchstat, each p is at least that of its
// test, since consecutive runs depend on each other, and equal with too few to tell, and the change of its medians is in the interval.
func TestBenchmarksAreComparedAsByBenchstat(t *testing.T) {
	before, after := benchstatFile(t, "crc-old.txt"), benchstatFile(t, "crc-new.txt")
	for runs, equal := range map[int]bool{10: false, 7: true} {
		cut := func(path string) string {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			seen, kept := make(map[string]int), filepath.Join(t.TempDir(), "runs.txt")
			var b strings.Builder
			for line := range strings.Lines(string(text)) {
				name, _, _ := strings.Cut(line, " ")
				if seen[name]++; !strings.HasPrefix(name, "Benchmark") || seen[name] <= runs {
					b.WriteString(line)
				}
			}
			if err := os.WriteFile(kept, []byte(b.String()), 0o600); err != nil {
				t.Fatal(err)
			}
			return kept
		}
		before, after := cut(before), cut(after)
		m := compared(t, before, after).Metrics[0]
		olds, news := samples(t, before, "sec/op"), samples(t, after, "sec/op")
		if m.Name != "sec/op" || m.WindowsBefore != runs || len(m.Functions) != len(olds) || len(olds) != 36 {
			t.Fatalf("%s with %d windows and %d functions", m.Name, m.WindowsBefore, len(m.Functions))
		}
		found := [2]int{} // by benchstat, and by this
		for _, c := range m.Functions {
			old := benchmath.NewSample(slices.Clone(olds[c.Name]), &benchmath.DefaultThresholds)
			now := benchmath.NewSample(slices.Clone(news[c.Name]), &benchmath.DefaultThresholds)
			of := benchmath.AssumeNothing.Compare(old, now)
			change := benchmath.AssumeNothing.Summary(now, 0.95).Center / benchmath.AssumeNothing.Summary(old, 0.95).Center
			if of.P < of.Alpha {
				found[0]++
			}
			if c.Cum.Significant {
				found[1]++
			}
			sum := 0.0
			for _, v := range olds[c.Name] {
				sum += v
			}
			if mean := sum / float64(runs) * 1e9; math.Abs(float64(c.Cum.Before)-mean) > 1e-5*mean {
				t.Errorf("%s: %v ns before, want %v", c.Name, c.Cum.Before, mean)
			}
			ties := len(slices.Compact(slices.Sorted(slices.Values(slices.Concat(olds[c.Name], news[c.Name]))))) < 2*runs
			if c.Cum.P < of.P-1e-9 && !ties || equal && !ties && math.Abs(c.Cum.P-of.P) > 1e-9 {
				t.Errorf("%s: p is %v, that of benchstat %v", c.Name, c.Cum.P, of.P)
			}
			if change < float64(c.Cum.Ratio.Low) || change > float64(c.Cum.Ratio.High) {
				t.Errorf("%s: the change of the medians is %v, the interval %+v", c.Name, change, c.Cum.Ratio)
			}
		}
		if !equal && found[1] == 0 {
			t.Errorf("%d runs: of %d benchmarks, compare finds none changed, and benchstat %d", runs, len(olds), found[0])
		}
		t.Logf("%d runs: of %d benchmarks, benchstat finds %d changed, each with p < 0.05, and compare %d, all with q < 0.05", runs, len(olds), found[0], found[1])
	}
}

// TestBenchmarks: fractions and all units are kept, and benchmarks with fewer runs shorten the others.
func TestBenchmarks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bench.txt")
	text := "goos: linux\npkg: shop\nBenchmarkPrice-2   1000   1.25 ns/op   16 B/op   1 allocs/op   2.5 items/op\n" +
		"BenchmarkPrice-2   1000   1.75 ns/op   16 B/op   1 allocs/op   3.5 items/op\n" +
		"BenchmarkSlow-2   1   5000000000 ns/op   1 B/op   0 allocs/op   0 items/op\nPASS\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, m := range compared(t, path, path).Metrics {
		if m.WindowsBefore != 1 {
			t.Errorf("%s has %d windows, want 1", m.Name, m.WindowsBefore)
		}
		for _, c := range m.Functions {
			got[m.Name+" of "+c.Name] = float64(c.Cum.Before)
		}
	}
	for name, want := range map[string]float64{
		"sec/op of Price-2": 1.25, "B/op of Price-2": 16, "allocs/op of Price-2": 1, "items/op of Price-2": 2.5, "sec/op of Slow-2": 5e9,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	if err := os.WriteFile(path, []byte("BenchmarkHuge-2   1   1e300 ns/op\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := input.Open(t.Context(), path, input.Options{}); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("a value that is too large: %v", err)
	}
}
