package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/perf/benchmath"

	"spanflame/profiles/compare"
)

// TestGates compares each ten runs of a benchmark with the next ten, equal or slower by 60 %, on a simulated machine that also
// does other work: a run takes a few per cent more or less, near the one before it as far as memory says, and one in ten meets a burst of
// that work. Benchstat's test of the same data is counted as well.
func TestGates(t *testing.T) {
	const runs, spread = 10, 0.05
	rules := []string{"sec/op:+2%@p<0.01", "sec/op:+5%@p<0.01", "sec/op(*):+5%@p<0.01", "sec/op:+5%@p<0.05", "sec/op:+5%"}
	dir := t.TempDir()
	for _, memory := range []float64{0, 0.3, 0.6} {
		random := rand.New(rand.NewPCG(18, 19))
		drift := random.NormFloat64()
		side := func(name string, slower float64) (path string, values []float64) {
			var b strings.Builder
			for range runs {
				drift = memory*drift + math.Sqrt(1-memory*memory)*random.NormFloat64()
				v := slower * 1e6 * math.Exp(spread*drift)
				if random.IntN(10) == 0 {
					v *= 1 + 0.2*random.ExpFloat64()
				}
				values = append(values, v)
				fmt.Fprintf(&b, "BenchmarkSort-2 3 %.1f ns/op\n", v)
			}
			path = filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
				t.Fatal(err)
			}
			return path, values
		}
		for _, tt := range []struct {
			slower float64
			gates  int
		}{{1, 500}, {1.6, 100}} {
			failed, undecided := make([]int, len(rules)), make([]int, len(rules))
			benchstat := 0
			for range tt.gates {
				before, old := side("before.txt", 1)
				after, now := side("after.txt", tt.slower)
				r := compared(t, before, after)
				for i, text := range rules {
					rule, err := compare.ParseRule(text)
					if err != nil {
						t.Fatal(err)
					}
					v := r.Check([]compare.Rule{rule})
					failed[i] += len(v.Broken)
					undecided[i] += len(v.Undecided)
				}
				of := benchmath.AssumeNothing.Compare(
					benchmath.NewSample(old, &benchmath.DefaultThresholds), benchmath.NewSample(now, &benchmath.DefaultThresholds))
				if of.P < of.Alpha {
					benchstat++
				}
			}
			for i, text := range rules {
				t.Logf("memory %g, %s: of %d gates with %g times the time, %d failed and %d could not be decided",
					memory, text, tt.gates, tt.slower, failed[i], undecided[i])
				if tt.slower == 1 && strings.HasSuffix(text, "@p<0.01") && failed[i] > tt.gates/100 {
					t.Errorf("memory %g, %s: %d of %d gates between equal sides failed, want at most %d", memory, text, failed[i], tt.gates, tt.gates/100)
				}
				if tt.slower > 1 && failed[i] <= tt.gates/2 {
					t.Errorf("memory %g, %s: %d of %d gates with a slower side failed, want most", memory, text, failed[i], tt.gates)
				}
			}
			t.Logf("memory %g: benchstat finds a change in %d of %d with %g times the time", memory, benchstat, tt.gates, tt.slower)
		}
	}
}
