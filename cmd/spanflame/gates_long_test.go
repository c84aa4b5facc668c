//go:build long

package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/perf/benchmath"

	"spanflame/profiles/compare"
	"spanflame/profiles/input"
)

// TestEqualGates runs a benchmark many times on a machine that others use as well, and compares each ten runs with the next ten:
// of 200 gates, at most one fails. Benchstat's test of the same data is counted next to it.
func TestEqualGates(t *testing.T) {
	const gates, runs = 200, 10
	done := make(chan struct{})
	var others sync.WaitGroup
	for i := range 2 {
		others.Go(func() {
			random := rand.New(rand.NewPCG(17, uint64(i)))
			for {
				select {
				case <-done:
					return
				case <-time.After(time.Duration(random.ExpFloat64() * 2e7)):
				}
				for until := time.Now().Add(time.Duration(random.ExpFloat64() * 5e6)); time.Now().Before(until); {
				}
			}
		})
	}
	defer others.Wait()
	defer close(done)

	random := rand.New(rand.NewPCG(18, 19))
	numbers := make([]int, 20_000)
	for i := range numbers {
		numbers[i] = random.Int()
	}
	work := make([]int, len(numbers))
	once := func() float64 {
		const repeat = 3
		start := time.Now()
		for range repeat {
			copy(work, numbers)
			slices.Sort(work)
		}
		return float64(time.Since(start).Nanoseconds()) / repeat
	}
	dir := t.TempDir()
	side := func(name string) (path string, values []float64) {
		var b strings.Builder
		for range runs {
			v := once()
			values = append(values, v)
			fmt.Fprintf(&b, "BenchmarkSort-2 3 %.1f ns/op\n", v)
		}
		path = filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return path, values
	}
	rules := make(map[string]compare.Rule)
	failed, undecided := make(map[string]int), make(map[string]int)
	for _, text := range []string{"sec/op:+2%@p<0.01", "sec/op:+5%@p<0.01", "sec/op(*):+5%@p<0.01", "sec/op:+5%@p<0.05", "sec/op:+5%"} {
		rule, err := compare.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		rules[text] = rule
	}
	benchstat := 0
	for range gates {
		before, old := side("before.txt")
		after, now := side("after.txt")
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
		for text, rule := range rules {
			v := r.Check([]compare.Rule{rule})
			failed[text] += len(v.Broken)
			undecided[text] += len(v.Undecided)
		}
		of := benchmath.AssumeNothing.Compare(benchmath.NewSample(old, &benchmath.DefaultThresholds), benchmath.NewSample(now, &benchmath.DefaultThresholds))
		if of.P < of.Alpha {
			benchstat++
		}
	}
	for text := range rules {
		t.Logf("%s: of %d gates between equal sides, %d failed and %d could not be decided", text, gates, failed[text], undecided[text])
		if failed[text] > 1 {
			t.Errorf("%s: %d of %d gates between equal sides failed, want at most 1", text, failed[text], gates)
		}
	}
	t.Logf("benchstat finds a change in %d of %d", benchstat, gates)
}
