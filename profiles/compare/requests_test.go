package compare_test

import (
	"bytes"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/profiles/compare"
)

// served is a side with all of its requests, of which those of 100 ms or more have a profile.
type served struct {
	requests []traces.Span
	windows  []profiles.Window
}

// serve adds requests of one name that took the given seconds, at random times of 200 s. Of those that are slow, one of
// each every is profiled.
func (s *served) serve(random *rand.Rand, name string, every int, seconds ...float64) {
	begin := time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)
	slow := 0
	for _, took := range seconds {
		id := fmt.Sprintf("%016x", len(s.requests)+1)
		start := begin.Add(time.Duration(random.Int64N(200e9)))
		end := start.Add(time.Duration(took * 1e9))
		s.requests = append(s.requests, traces.Span{ID: id, Name: name, Start: start, End: end})
		if took < 0.1 {
			continue
		}
		if slow++; slow%every != 0 {
			continue
		}
		w := cpu(map[string]float64{"handler": took})
		w.Type, w.Profile.SampleType[0].Type = record.Wall, "wall"
		w.Labels = map[string]string{"span_scope": "root"}
		w.Profile.Sample[0].Label = map[string][]string{"span_id": {id}}
		w.Start, w.End, w.Profile.DurationNanos = start, end, end.Sub(start).Nanoseconds()
		s.windows = append(s.windows, w)
	}
}

// profiles returns the windows. As agents do, it saves the spans of ten seconds together.
func (s *served) profiles() iter.Seq2[profiles.Window, error] {
	var all []profiles.Window
	at := map[int64]int{} // where the window of ten seconds is
	for _, w := range s.windows {
		i, ok := at[w.Start.Unix()/10]
		switch {
		case w.Type != record.Wall:
			all = append(all, w)
		case !ok:
			at[w.Start.Unix()/10] = len(all)
			all = append(all, w)
		default:
			merged, err := profile.Merge([]*profile.Profile{all[i].Profile, w.Profile})
			if err != nil {
				panic(err) // they have the same types
			}
			all[i].Profile = merged
		}
	}
	return sequence(all...)
}

// wall compares the wall-clock profiles of two sides, and checks a rule.
func wall(t *testing.T, before, after *served, o compare.Options, rule string) (compare.Metric, *compare.Report, compare.Verdict) {
	t.Helper()
	o.RequestsBefore, o.RequestsAfter = before.requests, after.requests
	r := mustCompare(t, before.profiles(), after.profiles(), o)
	parsed, err := compare.ParseRule(rule)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(r.Metrics, func(m compare.Metric) bool { return m.Name == "wall" })
	return r.Metrics[i], r, r.Check([]compare.Rule{parsed})
}

// A lock that made one request in fifty take 303 ms is repaired. The few requests that stay slow take longer than those
// did, so that the mean of a slow request increases, although the requests became faster.
func TestARepairIsAnImprovement(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	side := func(waiting float64) *served {
		s := &served{}
		always := []float64{0.75, 0.76, 0.75, 0.76, 0.75}
		s.serve(random, "GET /item", 1, slices.Concat(slices.Repeat([]float64{0.012}, 2900), slices.Repeat([]float64{waiting}, 95), always)...)
		return s
	}
	before, after := side(0.303), side(0.026)
	m, r, v := wall(t, before, after, compare.Options{}, "wall:+10%@p<0.01")
	if len(v.Broken) > 0 || len(v.Undecided) > 0 {
		t.Errorf("the repair breaks the rule: %+v", v)
	}
	if _, _, v := wall(t, before, after, compare.Options{}, "wall:-50%@p<0.01"); len(v.Broken) != 1 {
		t.Errorf("the repair is no decrease: %+v", v)
	}
	if _, _, v := wall(t, after, before, compare.Options{}, "wall:+100%@p<0.01"); len(v.Broken) != 1 {
		t.Errorf("the fault is no increase: %+v", v)
	}
	// All slow requests, divided by all 3000.
	wantBefore, wantAfter := (95*0.303+3.77)/3000*1e9, 3.77/3000*1e9
	if m.Per != "request" || !near(m.Total.Cum.Before, wantBefore) || !near(m.Total.Cum.After, wantAfter) || !m.Total.Cum.Significant {
		t.Errorf("%+v per %s, want %.0f and %.0f", m.Total.Cum, m.Per, wantBefore, wantAfter)
	}
	want := []compare.Route{{
		Name:   "GET /item",
		Before: compare.Durations{Requests: 3000, Median: 12e6, P99: 303e6}, After: compare.Durations{Requests: 3000, Median: 12e6, P99: 26e6},
	}}
	if !slices.Equal(r.Routes, want) {
		t.Errorf("routes %+v", r.Routes)
	}
	var text bytes.Buffer
	if err := r.WriteText(&text, 5); err != nil {
		t.Fatal(err)
	}
	summary, _, _ := strings.Cut(text.String(), "\n\n")
	if !strings.HasPrefix(summary, "changed: wall 10.9 ms → 1.26 ms (-") || !strings.Contains(summary, "most in handler (-") ||
		!strings.HasSuffix(summary, "\nrequests GET /item: before median 12 ms, 99 % 303 ms of 3000; after median 12 ms, 99 % 26 ms of 3000") {
		t.Errorf("the report begins with\n%s", summary)
	}
	r = mustCompare(t, before.profiles(), after.profiles(), compare.Options{})
	if m := r.Metrics[0]; m.Tested || m.Total.Cum.Significant || m.Per != "span" {
		t.Errorf("without the requests it is judged: %+v", m)
	}
}

func near(got compare.Number, want float64) bool { return math.Abs(float64(got)-want) < 1e-6*want }

// Another load, another mix of requests and another budget for profiles are no change. So few slow requests do not show
// one of 10 %, however.
func TestLoadMixAndBudgetAreNoChange(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	some := func(n int, slow float64) []float64 {
		var d []float64
		for i := range n {
			d = append(d, 0.01)
			if i%10 == 0 {
				d = append(d, slow)
			}
		}
		return d
	}
	side := func(cheap, dear, every int) *served {
		s := &served{}
		s.serve(random, "GET /cheap", every, some(cheap, 0.15)...)
		s.serve(random, "GET /dear", every, some(dear, 0.5)...)
		return s
	}
	one := side(2000, 1000, 1)
	unprofiled := &served{} // the budget was spent before the dear ones came
	unprofiled.serve(random, "GET /cheap", 1, some(2000, 0.15)...)
	unprofiled.serve(random, "GET /dear", math.MaxInt, some(1000, 0.5)...)
	for name, other := range map[string]*served{
		"the same load":     side(2000, 1000, 1),
		"twice the load":    side(4000, 2000, 1),
		"another mix":       side(1000, 2000, 1),
		"a smaller budget":  side(2000, 1000, 4),
		"none of a request": side(2000, 0, 1),
		"no profile of one": unprofiled,
	} {
		for _, rule := range []string{"wall:+10%@p<0.01", "wall:-10%@p<0.01"} {
			m, r, v := wall(t, one, other, compare.Options{}, rule)
			if noted := strings.Contains(strings.Join(r.Notes, "\n"), "slow requests of some names (1) but no profile"); noted != (other == unprofiled) {
				t.Errorf("%s: notes %q", name, r.Notes)
			}
			if len(v.Broken) > 0 || len(v.Undecided) != 1 || math.Abs(float64(m.Total.Cum.After/m.Total.Cum.Before)-1) > 1e-6 {
				t.Errorf("%s: %+v, %+v", name, m.Total.Cum, v)
			}
		}
	}
}

// Of equal services chance decides how many requests are slow, and how slow.
func TestEqualRequestsPassTheGate(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	side := func() *served {
		var d []float64
		for range 1000 {
			d = append(d, random.ExpFloat64()*0.03)
		}
		s := &served{}
		s.serve(random, "GET /item", 1, d...)
		return s
	}
	failed := 0
	for range 200 {
		_, _, v := wall(t, side(), side(), compare.Options{}, "wall:+10%@p<0.01")
		failed += len(v.Broken)
	}
	t.Logf("%d of 200 failed", failed)
	if failed > 4 {
		t.Errorf("%d of 200 equal pairs failed, want at most 4", failed)
	}
}

// One name among several can be compared alone, in wall-clock and CPU profiles.
func TestSpan(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	side := func(slow float64) *served {
		s := &served{}
		s.serve(random, "GET /a", 1, slices.Concat(slices.Repeat([]float64{0.01}, 900), slices.Repeat([]float64{slow}, 600))...)
		s.serve(random, "GET /b", 1, slices.Concat(slices.Repeat([]float64{0.01}, 900), slices.Repeat([]float64{1 / slow}, 600))...)
		for i := range 4 {
			w := cpu(map[string]float64{"a": slow, "b": 7, "background": 5})
			for _, sample := range w.Profile.Sample {
				switch sample.Location[0].Line[0].Function.Name {
				case "a":
					sample.Label = map[string][]string{"span_id": {s.requests[0].ID}}
				case "b":
					sample.Label = map[string][]string{"span_id": {s.requests[1600].ID}}
				}
			}
			w.Start = w.Start.Add(time.Duration(i) * time.Minute)
			s.windows = append(s.windows, w)
		}
		return s
	}
	before, after := side(0.5), side(1)
	m, r, v := wall(t, before, after, compare.Options{Span: "GET /a"}, "wall:+50%")
	if !near(m.Total.Cum.Before, 0.5*60/150*1e9) || !near(m.Total.Cum.After, 60.0/150*1e9) || len(v.Broken) != 1 {
		t.Errorf("wall of GET /a: %+v, %+v", m.Total.Cum, v)
	}
	if r.Metrics[0].Name != "cpu" || r.Metrics[0].RawBefore != 4*0.5e9 || r.Metrics[0].RawAfter != 4*1e9 {
		t.Errorf("cpu of GET /a: %+v", r.Metrics[0])
	}
	if len(r.Routes) != 1 || r.Routes[0].Name != "GET /a" {
		t.Errorf("routes %+v", r.Routes)
	}
	if _, err := compare.Compare(t.Context(), before.profiles(), after.profiles(), compare.Options{Span: "GET /a"}); err == nil {
		t.Error("a span is compared although its requests are not known")
	}
}

// A table without a difference is left out, and named in the summary.
func TestTablesWithoutDifferencesAreLeftOut(t *testing.T) {
	random := rand.New(rand.NewPCG(9, 10))
	s := &served{}
	s.serve(random, "GET /item", 1, slices.Repeat([]float64{0.2}, 100)...)
	o := compare.Options{RequestsBefore: s.requests, RequestsAfter: s.requests}
	r := mustCompare(t, s.profiles(), s.profiles(), o)
	for name, write := range map[string]func(*bytes.Buffer) error{
		"text":     func(b *bytes.Buffer) error { return r.WriteText(b, 5) },
		"markdown": func(b *bytes.Buffer) error { return r.WriteMarkdown(b, 5) },
	} {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			t.Fatal(err)
		}
		if got := b.String(); !strings.Contains(got, "no significant change: wall (100 windows before, 100 after)") || strings.Contains(got, "cum before") {
			t.Errorf("%s:\n%s", name, got)
		}
	}
}

// A profile may have samples of other goroutines alone, which are not compared.
func TestProfileOfOtherGoroutinesAlone(t *testing.T) {
	random := rand.New(rand.NewPCG(11, 12))
	side := func() *served {
		s := &served{}
		s.serve(random, "GET /item", 1, slices.Repeat([]float64{0.2}, 100)...)
		return s
	}
	before, after := side(), side()
	others := &profile.Location{ID: 9, Line: []profile.Line{{Function: &profile.Function{ID: 9, Name: wallprofile.Others}}}}
	sample := after.windows[0].Profile.Sample[0]
	sample.Location = append(sample.Location, others)
	after.windows[0].Profile.Location = append(after.windows[0].Profile.Location, others)
	after.windows[0].Profile.Function = append(after.windows[0].Profile.Function, others.Line[0].Function)
	m, _, _ := wall(t, before, after, compare.Options{}, "wall:+10%")
	if m.Per != "request" || !near(m.Total.Cum.Before, 0.2e9) || !near(m.Total.Cum.After, 0.99*0.2e9) {
		t.Errorf("%+v per %s", m.Total.Cum, m.Per)
	}
}
