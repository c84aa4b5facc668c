package compare_test

import (
	"iter"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"spanflame/profiles"
	"spanflame/profiles/compare"
)

// noisy returns windows whose total varies by a share, around a mean that moves from the first to the last.
func noisy(random *rand.Rand, windows int, mean, share, moves float64) []profiles.Window {
	var all []profiles.Window
	for i := range windows {
		all = append(all, cpu(map[string]float64{"main;work": mean * (1 + share*random.NormFloat64() + moves*float64(i)/float64(windows))}))
	}
	return all
}

func verdict(t *testing.T, before, after []profiles.Window, rule string) compare.Verdict {
	t.Helper()
	r, err := compare.ParseRule(rule)
	if err != nil {
		t.Fatal(err)
	}
	return mustCompare(t, sequence(before...), sequence(after...), compare.Options{}).Check([]compare.Rule{r})
}

// TestTheNoiseComesFirst: a rule about less than the windows can show is not judged, and one about more is.
func TestTheNoiseComesFirst(t *testing.T) {
	random := rand.New(rand.NewPCG(11, 12))
	const trials = 100
	counts := map[string]int{}
	for range trials {
		quiet := func(mean float64) []profiles.Window { return noisy(random, 12, mean, 0.05, 0) }
		for name, v := range map[string]compare.Verdict{
			"equal, finer":     verdict(t, quiet(5), quiet(5), "cpu:+1%@p<0.01"),
			"equal, coarser":   verdict(t, quiet(5), quiet(5), "cpu:+40%@p<0.01"),
			"doubled, finer":   verdict(t, quiet(5), quiet(10), "cpu:+1%@p<0.01"),
			"halved, finer":    verdict(t, quiet(10), quiet(5), "cpu:+1%@p<0.01"),
			"doubled, coarser": verdict(t, quiet(5), quiet(10), "cpu(work):+40%@p<0.01"),
			"without p, finer": verdict(t, quiet(5), quiet(5), "cpu:+1%"),
			"moving":           verdict(t, noisy(random, 12, 5, 0.01, 0.5), noisy(random, 12, 5, 0.01, 0.5), "cpu:+10%@p<0.01"),
		} {
			counts[name+": broken"] += len(v.Broken)
			counts[name+": undecided"] += len(v.Undecided)
		}
	}
	for _, tt := range []struct {
		what        string
		least, most int
	}{
		{"equal, finer: undecided", 95, 100}, {"equal, finer: broken", 0, 0},
		{"equal, coarser: undecided", 0, 1}, {"equal, coarser: broken", 0, 0},
		{"doubled, finer: broken", 95, 100}, {"halved, finer: broken", 0, 0}, {"halved, finer: undecided", 0, 0},
		{"doubled, coarser: broken", 95, 100},
		{"without p, finer: undecided", 95, 100}, {"without p, finer: broken", 0, 0},
		{"moving: undecided", 100, 100}, {"moving: broken", 0, 0},
	} {
		if n := counts[tt.what]; n < tt.least || n > tt.most {
			t.Errorf("%s in %d of %d, want %d to %d", tt.what, n, trials, tt.least, tt.most)
		}
	}
}

// TestTheSmallestChangeIsFound: a change as large as the smallest that the windows can show is found in about four of five
// trials.
func TestTheSmallestChangeIsFound(t *testing.T) {
	random := rand.New(rand.NewPCG(13, 14))
	const trials = 200
	found := 0
	for range trials {
		before := noisy(random, 20, 5, 0.05, 0)
		equal := mustCompare(t, sequence(before...), sequence(noisy(random, 20, 5, 0.05, 0)...), compare.Options{})
		smallest := float64(equal.Metrics[0].Total.Cum.Smallest)
		changed := mustCompare(t, sequence(before...), sequence(noisy(random, 20, 5*(1+smallest), 0.05, 0)...), compare.Options{})
		if changed.Metrics[0].Total.Cum.P < 0.05 {
			found++
		}
	}
	t.Logf("found in %d of %d", found, trials)
	if found < trials*7/10 || found > trials*9/10 {
		t.Errorf("found in %d of %d, want about %d", found, trials, trials*4/5)
	}
}

// TestWhatToRecord: an undecided rule says how much to record, and with so much it is decided.
func TestWhatToRecord(t *testing.T) {
	random := rand.New(rand.NewPCG(15, 16))
	few := verdict(t, noisy(random, 8, 5, 0.2, 0), noisy(random, 8, 5, 0.2, 0), "cpu:+8%@p<0.05")
	if len(few.Undecided) != 1 || !strings.Contains(few.Undecided[0].Error(), "record about ") {
		t.Fatalf("%+v", few)
	}
	if many := verdict(t, noisy(random, 600, 5, 0.2, 0), noisy(random, 600, 5, 0.2, 0), "cpu:+8%@p<0.05"); len(many.Undecided) > 0 || len(many.Broken) > 0 {
		t.Errorf("%+v", many)
	}
	all := verdict(t, noisy(random, 8, 5, 0.2, 0), noisy(random, 8, 5, 0.2, 0), "cpu(*):+8%@p<0.05")
	if len(all.Undecided) != 1 || !strings.Contains(all.Undecided[0].Error(), "all functions vary too much") {
		t.Errorf("%+v", all)
	}
}

// TestWhatToRecordOfSlowRequests: what decides about slow requests is the time, also if there are as many of them as parts
// that the time is divided into.
func TestWhatToRecordOfSlowRequests(t *testing.T) {
	random := rand.New(rand.NewPCG(17, 18))
	slow := func() iter.Seq2[profiles.Window, error] {
		return slowSide(random, slices.Repeat([]float64{0.3, 0.4}, 10)...)
	}
	r, err := compare.ParseRule("wall:+20%@p<0.05")
	if err != nil {
		t.Fatal(err)
	}
	v := mustCompare(t, slow(), slow(), compare.Options{Normalization: compare.ByDuration}).Check([]compare.Rule{r})
	if len(v.Undecided) != 1 || !strings.Contains(v.Undecided[0].Error(), " times as long") {
		t.Errorf("%+v", v)
	}
}

// TestASideThatChangesByItself: what the halves of a side differ by is no change between the sides, which are further apart.
func TestASideThatChangesByItself(t *testing.T) {
	side := func() (windows []profiles.Window) {
		for _, seconds := range []float64{5, 5.01, 4.99, 5, 6, 6.01, 5.99, 6} {
			windows = append(windows, cpu(map[string]float64{"main;work": seconds}))
		}
		return windows
	}
	for _, n := range []int{6, 8} {
		windows := side()[(8-n)/2 : 8-(8-n)/2]
		total := mustCompare(t, sequence(windows...), sequence(windows...), compare.Options{}).Metrics[0].Total.Cum
		if want := math.Pow(6.0/5, math.Sqrt2) - 1; float64(total.Smallest) < 0.999*want {
			t.Errorf("%d windows that change by 20 %% by themselves can show a change of %v, want at least %v", n, total.Smallest, want)
		}
	}
}
