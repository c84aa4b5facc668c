package compare_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"gonum.org/v1/gonum/stat/distuv"

	"spanflame/internal/record"
	"spanflame/profiles"
	"spanflame/profiles/compare"
)

// sequence yields windows that are there.
func sequence(windows ...profiles.Window) iter.Seq2[profiles.Window, error] {
	return func(yield func(profiles.Window, error) bool) {
		for _, w := range windows {
			if !yield(w, nil) {
				return
			}
		}
	}
}

// cpu is a window of 10 s with the CPU seconds of stacks such as "main;f;g".
func cpu(seconds map[string]float64) profiles.Window {
	t := &profile.ValueType{Type: "cpu", Unit: "nanoseconds"}
	p := &profile.Profile{SampleType: []*profile.ValueType{t}, PeriodType: t, Period: 1e7, DurationNanos: 10e9}
	known := map[string]*profile.Location{}
	for stack, v := range seconds {
		s := &profile.Sample{Value: []int64{int64(v * 1e9)}}
		names := strings.Split(stack, ";")
		for i := len(names) - 1; i >= 0; i-- {
			l := known[names[i]]
			if l == nil {
				f := &profile.Function{ID: uint64(len(p.Function) + 1), Name: names[i], Filename: "f.go"}
				l = &profile.Location{ID: f.ID, Line: []profile.Line{{Function: f, Line: int64(len(p.Function))}}}
				p.Function, p.Location, known[names[i]] = append(p.Function, f), append(p.Location, l), l
			}
			s.Location = append(s.Location, l)
		}
		p.Sample = append(p.Sample, s)
	}
	start := time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)
	return profiles.Window{Profile: p, Meta: record.Meta{Service: "shop", Type: record.CPU, Start: start, End: start.Add(10 * time.Second)}}
}

func mustCompare(t testing.TB, before, after iter.Seq2[profiles.Window, error], o compare.Options) *compare.Report {
	t.Helper()
	r, err := compare.Compare(context.Background(), before, after, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func function(t testing.TB, m compare.Metric, name string) compare.Change {
	t.Helper()
	for _, c := range m.Functions {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("%s is not among the functions %v", name, names(m.Functions))
	return compare.Change{}
}

func names(changes []compare.Change) (names []string) {
	for _, c := range changes {
		names = append(names, c.Name)
	}
	return names
}

// TestGoneIsWhatNoWindowHas: that most windows after have nothing does not make a function gone.
func TestGoneIsWhatNoWindowHas(t *testing.T) {
	var before, after []profiles.Window
	for i := range 12 {
		b := map[string]float64{"main;rare": 3 + 0.1*float64(i%4), "main;gone": 1, "main;same": 2}
		a := map[string]float64{"main;same;came": 1, "main;same": 1}
		if i%4 == 0 {
			a["main;rare"] = 1
		}
		before, after = append(before, cpu(b)), append(after, cpu(a))
	}
	r := mustCompare(t, sequence(before...), sequence(after...), compare.Options{})
	m := r.Metrics[0]
	for name, want := range map[string]string{
		"rare": `^-92\.1 % \[-100\.0 %, -8\d\.\d %\]$`, // from 3.15 s to 0.25 s
		"gone": `^gone$`,
		"came": `^new$`,
		"same": `^~$`,
	} {
		if got := m.Change(function(t, m, name).Cum); !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("the change of %s is %q, want %s", name, got, want)
		}
	}
	rule, err := compare.ParseRule("cpu(*):+10%")
	if err != nil {
		t.Fatal(err)
	}
	v := r.Check([]compare.Rule{rule})
	if len(v.Undecided) > 0 || len(v.Broken) != 1 || !strings.Contains(v.Broken[0].String(), ": came is new (p=") {
		t.Errorf("the gate says %+v, want that came is new", v)
	}
	var text bytes.Buffer
	if err := r.WriteText(&text, 20); err != nil || strings.Contains(text.String(), "[gone") {
		t.Errorf("the table (%v) has an interval from gone:\n%s", err, &text)
	}
}

func TestFlatAndCumulative(t *testing.T) {
	before := cpu(map[string]float64{"main;f": 1, "main;f;f;g": 2, "main;h": 3})
	after := cpu(map[string]float64{"main;f": 1, "main;f;f;g": 4, "main;h": 3})
	m := mustCompare(t, sequence(before), sequence(after), compare.Options{}).Metrics[0]
	for _, tt := range []struct {
		name            string
		flat, cum, late compare.Number
	}{
		{"main", 0, 0.6e9, 0.8e9},
		{"f", 0.1e9, 0.3e9, 0.5e9}, // recursion counts once
		{"g", 0.2e9, 0.2e9, 0.4e9},
		{"h", 0.3e9, 0.3e9, 0.3e9},
	} {
		c := function(t, m, tt.name)
		if c.Flat.Before != tt.flat || c.Cum.Before != tt.cum || c.Cum.After != tt.late {
			t.Errorf(
				"%s: flat %v, cumulative %v and then %v a second; want %v, %v, %v",
				tt.name,
				c.Flat.Before,
				c.Cum.Before,
				c.Cum.After,
				tt.flat,
				tt.cum,
				tt.late,
			)
		}
	}
	if m.RawBefore != 6e9 || m.RawAfter != 8e9 {
		t.Errorf("totals %d and %d, want those of the profiles", m.RawBefore, m.RawAfter)
	}
	var stack compare.Change
	for _, c := range m.Stacks {
		if strings.Join(c.Stack, ";") == "main;f;f;g" {
			stack = c
		}
	}
	if stack.Flat.Difference.Value != 0.2e9 {
		t.Errorf("the stack of g: %+v", stack)
	}
	if f := m.Flame; f.Width != 0.8e9 || len(f.Children) != 1 || f.Children[0].Name != "main" || f.Children[0].Width != 0.8e9 {
		t.Errorf("flame graph %+v", f)
	}
}

func TestWithFewWindowsNothingIsSignificant(t *testing.T) {
	r := mustCompare(t, sequence(cpu(map[string]float64{"f": 1})), sequence(cpu(map[string]float64{"f": 2})), compare.Options{})
	m := r.Metrics[0]
	if m.Tested || m.Total.Significant() || m.Total.Cum.Ratio.Value != 2 || !strings.Contains(strings.Join(r.Notes, "\n"), "too few for a significance test") {
		t.Errorf("tested %v, total %+v, notes %q", m.Tested, m.Total, r.Notes)
	}
	four := func(v float64) iter.Seq2[profiles.Window, error] {
		w := func(d float64) profiles.Window {
			return cpu(map[string]float64{"f": v + d, "g": 30 - 100*d, "h": 20 + d})
		}
		return sequence(w(0), w(0.01), w(0.03), w(0.02))
	}
	r = mustCompare(t, four(1), four(2), compare.Options{})
	if m := r.Metrics[0]; !m.Tested || len(m.Changed()) > 0 || !strings.Contains(strings.Join(r.Notes, "\n"), "0.029") {
		t.Errorf("four a side: tested %v, total %+v, notes %q", m.Tested, m.Total, r.Notes)
	}
}

func TestNormalization(t *testing.T) {
	s := typicalService()
	busier := s
	busier.loadUp = 0.5
	run := func(o compare.Options) compare.Metric {
		rng := rand.New(rand.NewPCG(3, 4))
		return mustCompare(t, s.run(rng), busier.run(rng), o).Metrics[0]
	}
	if m := run(compare.Options{}); !m.Total.Significant() || m.Per != "second" {
		t.Errorf("by duration, half more load is no change: %+v per %s", m.Total.Cum, m.Per)
	}
	if m := run(compare.Options{WorkBefore: 1000, WorkAfter: 1500}); m.Total.Significant() || len(m.Changed()) > 0 || m.Per != "unit of work" {
		t.Errorf("by work, half more load is a change: %+v per %s, %v", m.Total.Cum, m.Per, names(m.Changed()))
	}
	work := func(m record.Meta) (float64, error) { return m.End.Sub(m.Start).Seconds(), nil }
	if m := run(compare.Options{Work: work}); !m.Total.Significant() || m.Per != "unit of work" {
		t.Errorf("by the work of each window: %+v per %s", m.Total.Cum, m.Per)
	}
	long := cpu(map[string]float64{"f": 4})
	long.Profile.DurationNanos *= 2
	m := mustCompare(t, sequence(cpu(map[string]float64{"f": 2})), sequence(long), compare.Options{}).Metrics[0]
	if m.Total.Cum.Before != m.Total.Cum.After {
		t.Errorf("a window twice as long with twice the CPU time differs: %+v", m.Total.Cum)
	}
	m = mustCompare(t, sequence(cpu(map[string]float64{"f": 2})), sequence(long), compare.Options{Normalization: compare.ByNothing}).Metrics[0]
	if m.Total.Cum.After != 4e9 || m.Per != "window" {
		t.Errorf("by nothing: %+v per %s", m.Total.Cum, m.Per)
	}
}

func TestWallIsComparedBySpan(t *testing.T) {
	wall := func(spans int, seconds float64) profiles.Window {
		w := cpu(nil)
		w.Type, w.Profile.SampleType[0].Type = record.Wall, "wall"
		for i := range spans {
			one := cpu(map[string]float64{"handler": seconds}).Profile
			w.Profile.Function, w.Profile.Location = one.Function, one.Location
			one.Sample[0].Label = map[string][]string{"span_id": {fmt.Sprint(i)}}
			w.Profile.Sample = append(w.Profile.Sample, one.Sample[0])
		}
		return w
	}
	m := mustCompare(t, sequence(wall(2, 1)), sequence(wall(6, 1)), compare.Options{}).Metrics[0]
	if m.Per != "span" || m.Total.Cum.Before != 1e9 || m.Total.Cum.After != 1e9 {
		t.Errorf("three times the spans of 1 s each: %+v per %s", m.Total.Cum, m.Per)
	}
}

// slowSide is a service of 200 s, with a wall-clock profile for each of its slow requests.
func slowSide(random *rand.Rand, slow ...float64) iter.Seq2[profiles.Window, error] {
	var windows []profiles.Window
	at := time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)
	for i := range 20 {
		w := cpu(map[string]float64{"handler": 1 + 0.01*float64(i*7%20)})
		w.Start = at.Add(time.Duration(i) * 10 * time.Second)
		w.End = w.Start.Add(10 * time.Second)
		windows = append(windows, w)
	}
	for i, seconds := range slow {
		w := cpu(map[string]float64{"handler": seconds})
		w.Type, w.Profile.SampleType[0].Type = record.Wall, "wall"
		w.Labels = map[string]string{"span_scope": "root"}
		w.Profile.Sample[0].Label = map[string][]string{"span_id": {fmt.Sprint(i)}}
		w.Profile.DurationNanos = int64(seconds * 1e9)
		w.Start = at.Add(time.Duration(random.Int64N(200e9)))
		w.End = w.Start.Add(time.Duration(w.Profile.DurationNanos))
		windows = append(windows, w)
	}
	slices.SortStableFunc(windows, func(a, b profiles.Window) int { return a.Start.Compare(b.Start) })
	return sequence(windows...)
}

// Most requests of before are a little slow, none of after is but the slowest, which stay: the mean of a slow span
// increases, and the time of slow requests decreases. Equal sides with so few requests do not show that a change of 10 %
// would be seen.
func TestAnImprovementOfSlowRequestsIsNoRegression(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	before := func() iter.Seq2[profiles.Window, error] {
		return slowSide(random, append(slices.Repeat([]float64{0.12, 0.13, 0.11}, 20), 0.3, 0.3)...)
	}
	after := func() iter.Seq2[profiles.Window, error] { return slowSide(random, 0.3, 0.31) }
	none := func() iter.Seq2[profiles.Window, error] { return slowSide(random) }
	rule := func(text string) []compare.Rule {
		r, err := compare.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		return []compare.Rule{r}
	}
	up, down := rule("wall:+10%@p<0.01"), rule("wall:-10%@p<0.01")
	if v := mustCompare(t, before(), after(), compare.Options{}).Check(up); len(v.Undecided) != 1 || len(v.Broken) > 0 {
		t.Errorf("by the mean of a slow span the rule is decided: %+v", v)
	}
	for name, o := range map[string]compare.Options{
		"by work":     {WorkBefore: 1000, WorkAfter: 1000},
		"by duration": {Normalization: compare.ByDuration},
	} {
		for what, tt := range map[string]struct {
			before, after iter.Seq2[profiles.Window, error]
			up, down      int
		}{
			"improved":   {before(), after(), 0, 1},
			"worsened":   {after(), before(), 1, 0},
			"equal":      {before(), before(), 0, 0},
			"none is so": {before(), none(), 0, 1},
			"some are":   {none(), before(), 1, 0},
		} {
			r := mustCompare(t, tt.before, tt.after, o)
			upper, lower := r.Check(up), r.Check(down)
			if few := what == "equal"; len(upper.Undecided) > 0 != few || len(upper.Broken) != tt.up || len(lower.Broken) != tt.down {
				t.Errorf("%s, %s: rules %+v and %+v are broken, want %d and %d", name, what, upper, lower, tt.up, tt.down)
			}
		}
	}
	// Twice the requests on a side are not twice the time.
	r := mustCompare(t, before(), before(), compare.Options{WorkBefore: 1000, WorkAfter: 2000})
	i := slices.IndexFunc(r.Metrics, func(m compare.Metric) bool { return m.Name == "wall" })
	if total := r.Metrics[i].Total.Cum; total.After != total.Before/2 {
		t.Errorf("with twice the requests: %+v", total)
	}
}

// Of equal services chance decides how many requests are slow: a rule with p < 0.01 fails for about one pair in 200, as
// that needs an increase.
func TestEqualNumbersOfSlowRequestsPassTheGate(t *testing.T) {
	rule, err := compare.ParseRule("wall:+10%@p<0.01")
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	side := func() iter.Seq2[profiles.Window, error] {
		slow := make([]float64, int(distuv.Poisson{Lambda: 25, Src: random}.Rand()))
		for i := range slow {
			slow[i] = 0.1 + random.ExpFloat64()/10
		}
		return slowSide(random, slow...)
	}
	failed := 0
	for range 200 {
		r := mustCompare(t, side(), side(), compare.Options{WorkBefore: 1000, WorkAfter: 1000, Metrics: []string{"wall"}})
		failed += len(r.Check([]compare.Rule{rule}).Broken)
	}
	t.Logf("%d of 200 failed", failed)
	if failed > 4 {
		t.Errorf("%d of 200 equal pairs failed, want at most 4", failed)
	}
}

// Wall-clock profiles of other tools are of a time, not of spans.
func TestWallOfOtherToolsIsComparedByTime(t *testing.T) {
	wall := func(seconds float64, length time.Duration) iter.Seq2[profiles.Window, error] {
		w := cpu(map[string]float64{"handler": seconds})
		w.Service, w.Type, w.Profile.SampleType[0].Type, w.Profile.DurationNanos = "", record.Wall, "wall", int64(length)
		return sequence(w)
	}
	m := mustCompare(t, wall(1, 10*time.Second), wall(4, 40*time.Second), compare.Options{}).Metrics[0]
	if m.Per != "second" || m.Total.Cum.Before != m.Total.Cum.After {
		t.Errorf("four times the length: %+v per %s, want no difference", m.Total.Cum, m.Per)
	}
}

func TestLevelsAreNotDivided(t *testing.T) {
	heap := func(bytes int64) profiles.Window {
		w := cpu(map[string]float64{"f": 1})
		w.Type = record.Memory
		w.Profile.SampleType = []*profile.ValueType{
			{Type: "alloc_space", Unit: "bytes"},
			{Type: "inuse_space", Unit: "bytes"},
			{Type: "inuse_objects", Unit: "count"},
		}
		w.Profile.Sample[0].Value = []int64{bytes, bytes, 1}
		return w
	}
	r := mustCompare(t, sequence(heap(1000), heap(1000)), sequence(heap(1000)), compare.Options{})
	if len(r.Metrics) != 2 {
		t.Fatalf("metrics %+v, want the two that are no counts", r.Metrics)
	}
	for _, m := range r.Metrics {
		want := compare.Number(1000)
		if m.Name == "alloc_space" {
			want = 100
		}
		if m.Total.Cum.Before != want || m.Total.Cum.After != want {
			t.Errorf("%s: %+v, want %v on both sides", m.Name, m.Total.Cum, want)
		}
	}
}

// TestALevelIsAsCoarseAsItsThings: an object that is sampled once stays in use in window after window, and is no more
// certain for that.
func TestALevelIsAsCoarseAsItsThings(t *testing.T) {
	const sample = 512 << 10
	heap := func(samples int64) iter.Seq2[profiles.Window, error] {
		var windows []profiles.Window
		for i := range 20 {
			w := cpu(map[string]float64{"main;cache": 1, "main;rest": 1})
			w.Type = record.Memory
			w.Profile.SampleType = []*profile.ValueType{{Type: "inuse_space", Unit: "bytes"}}
			w.Profile.PeriodType, w.Profile.Period = &profile.ValueType{Type: "space", Unit: "bytes"}, sample
			for _, s := range w.Profile.Sample {
				s.Value[0] = sample * (40 + int64(i)%3)
				if s.Location[0].Line[0].Function.Name == "cache" {
					s.Value[0] = sample * samples
				}
			}
			windows = append(windows, w)
		}
		return sequence(windows...)
	}
	for _, tt := range []struct {
		before, after int64
		want          bool
	}{
		{0, 1, false}, {1, 0, false}, {3, 4, false}, {20, 25, false}, {20, 80, true}, {0, 40, true}, {40, 0, true},
	} {
		m := mustCompare(t, heap(tt.before), heap(tt.after), compare.Options{}).Metrics[0]
		if c := function(t, m, "cache"); c.Significant() != tt.want {
			t.Errorf("from %d samples to %d: %+v, want that this is more than chance: %v", tt.before, tt.after, c.Cum, tt.want)
		}
	}
}

func TestChildSpansAreLeftOut(t *testing.T) {
	span := func(scope string, seconds float64) profiles.Window {
		w := cpu(map[string]float64{"span": seconds})
		w.Type, w.Profile.SampleType[0].Type = record.Wall, "wall"
		if scope != "" {
			w.Labels = map[string]string{"span_scope": scope}
		}
		return w
	}
	both := func() iter.Seq2[profiles.Window, error] {
		return sequence(span("child", 1), span("root", 3), span("child", 1))
	}
	r := mustCompare(t, both(), both(), compare.Options{Diff: true})
	m := r.Metrics[0]
	if m.WindowsBefore != 1 || m.Total.Cum.Before != 3e9 || len(r.Notes) == 0 ||
		!strings.Contains(r.Notes[0], "4 profiles of child spans left out") {
		t.Errorf("%d windows with %v, and the notes %q; want the roots alone and a note", m.WindowsBefore, m.Total.Cum.Before, r.Notes)
	}
	r = mustCompare(t, both(), both(), compare.Options{ChildSpans: true})
	if m := r.Metrics[0]; m.WindowsBefore != 3 || m.RawBefore != 5e9 {
		t.Errorf("%d windows with %v, want children too", m.WindowsBefore, m.RawBefore)
	}
	_, err := compare.Compare(t.Context(), sequence(span("child", 1)), both(), compare.Options{})
	if !errors.Is(err, profiles.ErrNone) || !strings.Contains(err.Error(), "but 1 of child spans") {
		t.Errorf("of child spans alone: %v", err)
	}
	r = mustCompare(t, sequence(span("", 1)), sequence(span("", 1)), compare.Options{})
	if !strings.Contains(strings.Join(r.Notes, " "), "time counts twice") {
		t.Errorf("the notes %q say nothing of spans that are not known", r.Notes)
	}
}

// TestWhatExplainsAChangeComesFirst has a function that is slower, its callers, of which two call each other, and one
// that changed less.
func TestWhatExplainsAChangeComesFirst(t *testing.T) {
	run := func(slow, other float64) iter.Seq2[profiles.Window, error] {
		var windows []profiles.Window
		for i := range 12 {
			noise := 0.01 * float64(i*5%12)
			windows = append(windows, cpu(map[string]float64{
				"main;serve;wrap;serve;handle;slow": slow + noise, "main;serve;wrap;serve;handle": 1 + noise, "main;other": other + noise, "main": 2 - noise,
			}))
		}
		return sequence(windows...)
	}
	m := mustCompare(t, run(1, 1), run(3, 1.3), compare.Options{}).Metrics[0]
	got := names(m.Top(6))
	if want := []string{"slow", "handle", "serve", "wrap", "main", "other"}; !slices.Equal(got, want) {
		t.Errorf("the functions are in the order %v, want %v", got, want)
	}
	if got := m.Stacks[0].Stack; got[len(got)-1] != "slow" {
		t.Errorf("the first stack is %v, want that of slow", got)
	}
}

// built is a window of a build.
func built(w profiles.Window, build string) iter.Seq2[profiles.Window, error] {
	w.Profile.Mapping = []*profile.Mapping{{ID: 1, BuildID: build}}
	return sequence(w)
}

func TestFunctionsAreMatchedAcrossBuilds(t *testing.T) {
	before := cpu(map[string]float64{
		"main.main;example.com/old/cart.(*Cart).Price": 2, "main.main;main.sort[go.shape.[]int,go.shape.string]": 2,
		"main.main;main.compute;main.leaf": 3, "main.main;main.both": 1,
	})
	after := cpu(map[string]float64{
		"main.main;example.com/new/basket.(*Cart).Price": 2, "main.main;main.sort[...]": 2,
		"main.main;main.calculate;main.leaf": 3, "main.main;main.both": 1,
	})
	r := mustCompare(t, built(before, "1"), built(after, "2"), compare.Options{})
	want := []compare.Rename{
		{Before: "example.com/old/cart.(*Cart).Price", After: "example.com/new/basket.(*Cart).Price"},
		{Before: "main.compute", After: "main.calculate"},
	}
	if fmt.Sprint(r.Renamed) != fmt.Sprint(want) {
		t.Errorf("matched %v, want %v", r.Renamed, want)
	}
	m := r.Metrics[0]
	for _, c := range append(m.Functions, m.Stacks...) {
		if c.Cum.Difference.Value != 0 {
			t.Errorf("%s %v changed by %v, want by nothing", c.Name, c.Stack, c.Cum.Difference.Value)
		}
	}
	// Two that are gone and two that came in one file: which is which is not known.
	before = cpu(map[string]float64{"main;a": 1, "main;b": 1})
	after = cpu(map[string]float64{"main;c": 1, "main;d": 1})
	if r := mustCompare(t, built(before, "1"), built(after, "2"), compare.Options{}); len(r.Renamed) > 0 {
		t.Errorf("matched %v, want none", r.Renamed)
	}
}

// TestClosuresAreMatchedAcrossToolchains: closures that another version of Go names differently are the same if they start
// at the same line.
func TestClosuresAreMatchedAcrossToolchains(t *testing.T) {
	closures := func(lines map[string]int64) profiles.Window {
		stacks := map[string]float64{"main.main": 1}
		for name := range lines {
			stacks["main.main;"+name] = float64(lines[name])
		}
		w := cpu(stacks)
		for _, f := range w.Profile.Function {
			f.StartLine = lines[f.Name]
		}
		return w
	}
	before := closures(map[string]int64{"main.main.func1": 10, "main.main.func2": 20, "main.main.func2.1": 30})
	after := closures(map[string]int64{"main.main.1": 10, "main.main.2": 20, "main.main.3": 30})
	want := []compare.Rename{
		{Before: "main.main.func1", After: "main.main.1"}, {Before: "main.main.func2", After: "main.main.2"}, {Before: "main.main.func2.1", After: "main.main.3"},
	}
	if r := mustCompare(t, built(before, "1"), built(after, "2"), compare.Options{}); !slices.Equal(r.Renamed, want) {
		t.Errorf("matched %v, want %v", r.Renamed, want)
	}
}

// Of one build, of builds that are not known, or with few samples, chance decides which of two functions a window has.
func TestARenamingNeedsEvidence(t *testing.T) {
	for name, tt := range map[string]struct {
		before, after string
		seconds       float64
		want          int
	}{
		"two builds":     {"1", "2", 0.2, 1},
		"one build":      {"1", "1", 0.2, 0},
		"unknown builds": {"", "", 0.2, 0},
		"one is unknown": {"1", "", 0.2, 0},
		"few samples":    {"1", "2", 0.19, 0},
	} {
		before := cpu(map[string]float64{"main": 1, "main;(*Int32).CompareAndSwap": tt.seconds})
		after := cpu(map[string]float64{"main": 1, "main;(*Int32).Add": tt.seconds})
		if r := mustCompare(t, built(before, tt.before), built(after, tt.after), compare.Options{}); len(r.Renamed) != tt.want {
			t.Errorf("%s: matched %v, want %d", name, r.Renamed, tt.want)
		}
	}
}

func TestAddressesAreComparedByTheirPlaceInTheFile(t *testing.T) {
	load := func(base uint64) profiles.Window {
		w := cpu(map[string]float64{"x": 1})
		p := w.Profile
		p.Mapping = []*profile.Mapping{{ID: 1, Start: base, Limit: base + 0x1000, Offset: 0x400, File: "/usr/lib/libc.so.6"}}
		p.Location[0].Line, p.Location[0].Mapping, p.Location[0].Address = nil, p.Mapping[0], base+0x10
		p.Function = nil
		return w
	}
	m := mustCompare(t, sequence(load(0x7f0000000000)), sequence(load(0x7fab00000000)), compare.Options{}).Metrics[0]
	if c := function(t, m, "libc.so.6+0x410"); c.Cum.Before != c.Cum.After {
		t.Errorf("%+v", c)
	}
}

func TestBadWindows(t *testing.T) {
	good := func() profiles.Window { return cpu(map[string]float64{"f": 1}) }
	spoil := func(f func(*profile.Profile)) profiles.Window {
		w := good()
		f(w.Profile)
		return w
	}
	broken := errors.New("input/output error")
	for _, tt := range []struct {
		want          string
		before, after iter.Seq2[profiles.Window, error]
	}{
		{"before: no profile", sequence(), sequence(good())},
		{"after: no profile", sequence(good()), sequence()},
		{"no metric in common: before has cpu, after has inuse_space", sequence(good()),
			sequence(spoil(func(p *profile.Profile) { p.SampleType[0] = &profile.ValueType{Type: "inuse_space", Unit: "bytes"} }))},
		{`"nanoseconds" before and in "cycles" after`, sequence(good()), sequence(spoil(func(p *profile.Profile) { p.SampleType[0].Unit = "cycles" }))},
		{`"nanoseconds" in one window and in "cycles"`, sequence(good(), spoil(func(p *profile.Profile) { p.SampleType[0].Unit = "cycles" })),
			sequence(good())},
		{"no sample type", sequence(spoil(func(p *profile.Profile) { p.SampleType = nil })), sequence(good())},
		{"2 values", sequence(spoil(func(p *profile.Profile) { p.Sample[0].Value = []int64{1, 2} })), sequence(good())},
		{"63 bits", sequence(spoil(func(p *profile.Profile) { p.Sample[0].Value[0] = 1<<63 - 1; p.Sample = append(p.Sample, p.Sample[0]) })), sequence(good())},
		{"input/output error", sequence(good()), func(yield func(profiles.Window, error) bool) { yield(profiles.Window{}, broken) }},
	} {
		_, err := compare.Compare(t.Context(), tt.before, tt.after, compare.Options{})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want an error with %q", err, tt.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := compare.Compare(ctx, sequence(good()), sequence(good()), compare.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestWrongOptions(t *testing.T) {
	for want, o := range map[string]compare.Options{
		`normalization "miles"`: {Normalization: "miles"},
		"how much was done":     {Normalization: compare.ByWork},
		"work -1":               {WorkBefore: -1},
		"say both":              {WorkBefore: 1},
		"alpha 1":               {Alpha: 1},
		"smallest share -1":     {MinShare: -1},
		`metric "wings" is not on both sides: before has cpu, after has cpu`: {Metrics: []string{"wings"}},
		"the work of the window":    {Work: func(record.Meta) (float64, error) { return 0, nil }},
		"no work was measured then": {Work: func(record.Meta) (float64, error) { return 0, errors.New("no work was measured then") }},
	} {
		w := cpu(map[string]float64{"f": 1})
		if _, err := compare.Compare(t.Context(), sequence(w), sequence(w), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error with %q", err, want)
		}
	}
}

func TestFunctionsWithoutEndAreBounded(t *testing.T) {
	many := func() profiles.Window {
		w := cpu(nil)
		p := w.Profile
		const n = 200_000
		functions, locations, samples := make([]profile.Function, n), make([]profile.Location, n), make([]profile.Sample, n)
		for i := range n {
			functions[i] = profile.Function{ID: uint64(i + 1), Name: fmt.Sprint("f", i)}
			locations[i] = profile.Location{ID: uint64(i + 1), Line: []profile.Line{{Function: &functions[i]}}}
			samples[i] = profile.Sample{Location: []*profile.Location{&locations[i]}, Value: []int64{1}}
			p.Sample = append(p.Sample, &samples[i])
		}
		return w
	}
	w := many()
	m := mustCompare(t, sequence(w), sequence(w), compare.Options{}).Metrics[0]
	if len(m.Functions) != 0 || m.Small != 200_000 || m.RawAfter != 200_000 {
		t.Errorf("%d functions reported, %d small, total %d", len(m.Functions), m.Small, m.RawAfter)
	}
}

// TestADeepStackIsBounded has a recursion of a hundred thousand calls, every one of which is a stack.
func TestADeepStackIsBounded(t *testing.T) {
	w := cpu(map[string]float64{"main;f": 1})
	s := w.Profile.Sample[0]
	s.Location = append(slices.Repeat(s.Location[:1], 100_000), s.Location[1])
	m := mustCompare(t, sequence(w), sequence(w), compare.Options{}).Metrics[0]
	if len(m.Stacks) != 1000 || len(m.Stacks[999].Stack) > 513 {
		t.Errorf("%d stacks, the last of %d functions", len(m.Stacks), len(m.Stacks[len(m.Stacks)-1].Stack))
	}
	if c := function(t, m, "f"); c.Cum.Before != 1e8 {
		t.Errorf("the function that calls itself: %+v", c)
	}
}

// saved are profiles of this process of every type, twice: with more work the second time.
func saved(t *testing.T) map[string][2]string {
	dir := t.TempDir()
	files := map[string][2]string{}
	runtime.SetMutexProfileFraction(1)
	runtime.SetBlockProfileRate(1)
	defer runtime.SetMutexProfileFraction(0)
	defer runtime.SetBlockProfileRate(0)
	var kept [][]byte
	for i := range 2 {
		write := func(name string, f func(io.Writer) error) {
			path := filepath.Join(dir, fmt.Sprintf("%s%d.pb.gz", name, i))
			var b bytes.Buffer
			if err := f(&b); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			pair := files[name]
			pair[i] = path
			files[name] = pair
		}
		write("cpu", func(w io.Writer) error {
			if err := pprof.StartCPUProfile(w); err != nil {
				return err
			}
			defer pprof.StopCPUProfile()
			for until := time.Now().Add(time.Duration(i+1) * 150 * time.Millisecond); time.Now().Before(until); {
				kept = append(kept[:0], make([]byte, 1<<20))
			}
			return nil
		})
		contend(i + 1)
		for range 10 * (i + 1) {
			kept = append(kept, make([]byte, 1<<20))
		}
		runtime.GC()
		for _, name := range []string{"heap", "mutex", "block", "goroutine"} {
			write(name, func(w io.Writer) error { return pprof.Lookup(name).WriteTo(w, 0) })
		}
		write("wall", func(w io.Writer) error {
			wall := cpu(map[string]float64{"handler;sleep": 0.1 * float64(i+1), "handler;lock": 0.3}).Profile
			wall.SampleType[0].Type = "wall"
			for n, s := range wall.Sample {
				s.Label = map[string][]string{"span_id": {fmt.Sprint(n)}}
			}
			return wall.Write(w)
		})
	}
	runtime.KeepAlive(kept)
	return files
}

// contend makes goroutines wait for a mutex.
func contend(rounds int) {
	var mu sync.Mutex
	for range rounds {
		mu.Lock()
		var wg sync.WaitGroup
		started := make(chan struct{})
		wg.Go(func() {
			close(started)
			mu.Lock()
			defer mu.Unlock()
		})
		<-started
		time.Sleep(2 * time.Millisecond)
		mu.Unlock()
		wg.Wait()
	}
}

// goToolPprof runs go tool pprof.
func goToolPprof(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"tool", "pprof", "-symbolize=none"}, args...)...)
	cmd.Env = append(os.Environ(), "PPROF_TMPDIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("go tool pprof %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// sums adds up every sample type by the function that a sample ends in, and in all.
func sums(p *profile.Profile) map[string]int64 {
	sums := map[string]int64{}
	for _, s := range p.Sample {
		for i, v := range s.Value {
			name := p.SampleType[i].Type
			sums[name] += v
			if len(s.Location) > 0 && len(s.Location[0].Line) > 0 {
				sums[name+" "+s.Location[0].Line[0].Function.Name] += v
			}
		}
	}
	for k, v := range sums {
		if v == 0 {
			delete(sums, k)
		}
	}
	return sums
}

func TestTotalsAreThoseOfGoToolPprof(t *testing.T) {
	for name, pair := range saved(t) {
		t.Run(name, func(t *testing.T) {
			var windows [2]profiles.Window
			var metrics []string
			for i, path := range pair {
				var err error
				if windows[i], err = profiles.ReadFile(path); err != nil {
					t.Fatal(err)
				}
			}
			for _, st := range windows[0].Profile.SampleType {
				metrics = append(metrics, st.Type)
			}
			diffed := filepath.Join(t.TempDir(), "pprof.pb.gz")
			goToolPprof(t, "-proto", "-output="+diffed, "-diff_base="+pair[0], pair[1])
			w, err := profiles.ReadFile(diffed)
			if err != nil {
				t.Fatal(err)
			}
			want := sums(w.Profile)
			r := mustCompare(t, sequence(windows[0]), sequence(windows[1]), compare.Options{
				Metrics: metrics, Normalization: compare.ByNothing, Diff: true, MinShare: 1e-12,
			})
			for _, m := range r.Metrics {
				if got := m.RawAfter - m.RawBefore; got != want[m.Name] {
					t.Errorf("%s changed by %d, by go tool pprof -diff_base by %d", m.Name, got, want[m.Name])
				}
				for _, c := range m.Functions {
					if got := int64(c.Flat.After - c.Flat.Before); got != want[m.Name+" "+c.Name] && !strings.Contains(c.Name, "[...]") {
						t.Errorf("%s of %s changed by %d, by go tool pprof -diff_base by %d", m.Name, c.Name, got, want[m.Name+" "+c.Name])
					}
				}
			}
			if got := sums(r.Diff); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("the written difference has %v\nthat of go tool pprof -diff_base %v", got, want)
			}
		})
	}
}

func TestGoToolPprofOpensTheDifference(t *testing.T) {
	before, after := cpu(map[string]float64{"main;fell": 3, "main;stayed": 2}), cpu(map[string]float64{"main;rose": 2, "main;stayed": 2})
	after.Profile.DurationNanos *= 2 // so that 1 s of before is 2 s of after
	path := filepath.Join(t.TempDir(), "diff.pb.gz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	r := mustCompare(t, sequence(before), sequence(after), compare.Options{Diff: true})
	if err := errors.Join(r.WriteDiff(f), f.Close()); err != nil {
		t.Fatal(err)
	}
	out := goToolPprof(t, "-top", "-unit=s", path)
	for _, want := range []string{`-6s.*60\.0.*fell`, `2s.*20\.0.*rose`, `-2s.*20\.0.*stayed`, "of 10s total"} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	if err := mustCompare(t, sequence(before), sequence(after), compare.Options{}).WriteDiff(io.Discard); err == nil {
		t.Error("a difference that was not asked for is written")
	}
}

// slower is a report with a function that was slowed by a half, under a name that is hostile to every format.
func slower(t testing.TB) *compare.Report {
	side := func(v float64) iter.Seq2[profiles.Window, error] {
		var windows []profiles.Window
		for i := range 20 {
			windows = append(
				windows,
				cpu(
					map[string]float64{
						"main;</title><script>alert(1)</script>|`x`": v + float64(i*7%10)/100,
						"main;steady":    5 + float64(i*3%10)/100,
						"main;new\nline": 1,
					},
				),
			)
		}
		return sequence(windows...)
	}
	return mustCompare(t, side(2), side(3), compare.Options{})
}

func TestFormats(t *testing.T) {
	r := slower(t)
	var text, markdown, html, js bytes.Buffer
	if err := errors.Join(r.WriteText(&text, 10), r.WriteMarkdown(&markdown, 10), r.WriteHTML(&html, 10), r.WriteJSON(&js)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"+48.9 %", "204 ms/s", "~", "20 windows before"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
	for line := range strings.Lines(markdown.String()) {
		if strings.HasPrefix(line, "|") && strings.Count(line, "|")-strings.Count(line, `\|`) != 9 {
			t.Errorf("a table's line with other than eight cells: %s", line)
		}
	}
	if strings.Contains(markdown.String(), "<script") {
		t.Error("a function's name is markup in Markdown")
	}
	page := html.String()
	if strings.Contains(page, "<script") || strings.Contains(page, "://") || !strings.Contains(page, "&lt;script&gt;") || !strings.Contains(page, "<svg") {
		t.Errorf("the page has a script, asks others, or lacks its graph:\n%.2000s", page)
	}
	var back struct {
		Metrics []struct {
			Total struct {
				Cum struct{ Significant bool }
			}
		}
	}
	if err := json.Unmarshal(js.Bytes(), &back); err != nil || len(back.Metrics) != 1 || !back.Metrics[0].Total.Cum.Significant {
		t.Errorf("JSON: %v\n%.500s", err, js.String())
	}
	js.Reset()
	vanish := mustCompare(t, sequence(cpu(map[string]float64{"a": 1})), sequence(cpu(map[string]float64{"b": 1})), compare.Options{})
	if err := vanish.WriteJSON(&js); err != nil || !json.Valid(js.Bytes()) {
		t.Errorf("a ratio that is infinite: %v", err)
	}
}

func TestRules(t *testing.T) {
	r := slower(t)
	for _, tt := range []struct {
		rule   string
		broken int
	}{
		{"cpu:+5%@p<0.01", 1},
		{"cpu:+50%@p<0.01", 0}, // it rose by less
		{"cpu:-5%", 0},         // it rose
		{"cpu(steady):+0%@p<0.05", 0},
		{"cpu(main):+5%@p<0.01", 1},
		{"cpu(*):+20%@p<0.05", 1},
	} {
		rule, err := compare.ParseRule(tt.rule)
		if err != nil {
			t.Fatal(err)
		}
		if v := r.Check([]compare.Rule{rule}); len(v.Undecided) > 0 || len(v.Broken) != tt.broken {
			t.Errorf("%s: %+v; want %d", tt.rule, v, tt.broken)
		}
	}
	few := mustCompare(t, sequence(cpu(map[string]float64{"f": 1})), sequence(cpu(map[string]float64{"f": 2})), compare.Options{})
	for _, tt := range []struct {
		report     *compare.Report
		rule, want string
	}{
		{r, "heap:+5%", `metric "heap" was not compared: found cpu`},
		{r, "cpu(main.mistyped):+5%", "no window on either side has a function of that name"},
		{few, "cpu:+5%@p<0.01", "1 window before and 1 after are too few for a p"},
		{r, "cpu:+5%@p<1e-12", "record more"},
	} {
		rule, err := compare.ParseRule(tt.rule)
		if err != nil {
			t.Fatal(err)
		}
		sure, err := compare.ParseRule("cpu:+5%")
		if err != nil {
			t.Fatal(err)
		}
		// A rule that cannot be decided hides none that is broken.
		v := tt.report.Check([]compare.Rule{rule, sure})
		if len(v.Undecided) != 1 || !strings.Contains(v.Undecided[0].Error(), tt.want) || len(v.Broken) != 1 {
			t.Errorf("%s: %+v, want that it is undecided with %q, and one that is broken", tt.rule, v, tt.want)
		}
	}
	for _, bad := range []string{"", "cpu", "cpu:10%", "cpu:+10", "cpu:+%", "cpu:+x%", "cpu:+10%@", "cpu:+10%@p<0", "cpu:+10%@p<1", "cpu:-0%",
		"cpu:-101%", "cpu():+1%", "c p:+1%", "cpu:+10%@p>0.1", "cpu:+1e400%"} {
		if rule, err := compare.ParseRule(bad); err == nil {
			t.Errorf("%q is read as %+v", bad, rule)
		}
	}
}

// A fall breaks a rule that is about a fall.
func TestAFallBreaksItsRule(t *testing.T) {
	few := mustCompare(t, sequence(cpu(map[string]float64{"f": 2})), sequence(cpu(map[string]float64{"f": 1})), compare.Options{})
	for text, broken := range map[string]int{"cpu:-10%": 1, "cpu:-60%": 0, "cpu:+10%": 0} {
		rule, err := compare.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		if v := few.Check([]compare.Rule{rule}); len(v.Broken) != broken {
			t.Errorf("%s: %+v, want %d broken", text, v, broken)
		}
	}
	if _, err := compare.ParseRule("cpu:10%"); err == nil || !strings.Contains(err.Error(), "-N%") {
		t.Errorf("%v does not tell how a fall is written", err)
	}
}

// A rule about a function that is too small to be tested does not fail, and is reported as not tested.
func TestASmallFunctionIsNotTested(t *testing.T) {
	before, after := cpu(map[string]float64{"f": 1000, "small": 0.1}), cpu(map[string]float64{"f": 1000, "small": 0.9})
	rule, err := compare.ParseRule("cpu(small):+10%")
	if err != nil {
		t.Fatal(err)
	}
	v := mustCompare(t, sequence(before), sequence(after), compare.Options{}).Check([]compare.Rule{rule})
	want := "rule cpu(small):+10%: the function's share of cpu is too small"
	if len(v.Broken)+len(v.Undecided) > 0 || len(v.Small) != 1 || v.Small[0] != want {
		t.Errorf("%+v, want %q", v, want)
	}
	v = mustCompare(t, sequence(before), sequence(after), compare.Options{MinShare: math.SmallestNonzeroFloat64}).Check([]compare.Rule{rule})
	if len(v.Broken) != 1 || len(v.Small) > 0 {
		t.Errorf("of all functions: %+v", v)
	}
}

func TestSharedWindowsAreCounted(t *testing.T) {
	var windows []profiles.Window
	for i := range 5 {
		windows = append(windows, cpu(map[string]float64{"f": 1 + float64(i)/10}))
	}
	for _, tt := range []struct {
		before, after []profiles.Window
		want          int
	}{
		{windows, windows, 5},
		{windows[:3], windows[2:], 1},
		{windows[:2], windows[2:], 0},
		{[]profiles.Window{windows[0], windows[0]}, windows[:1], 1},
	} {
		if r := mustCompare(t, sequence(tt.before...), sequence(tt.after...), compare.Options{}); r.Shared != tt.want {
			t.Errorf("%d windows before and %d after: %d are shared, want %d", len(tt.before), len(tt.after), r.Shared, tt.want)
		}
	}
	other := cpu(map[string]float64{"f": 1})
	other.Labels = map[string]string{"service_instance_id": "2"}
	if r := mustCompare(t, sequence(windows[0]), sequence(other), compare.Options{}); r.Shared != 0 {
		t.Error("windows of two instances are taken for one")
	}
}

// Metrics that most users look for come first, regardless of the order of the files.
func TestMetricsHaveAnOrder(t *testing.T) {
	var windows []profiles.Window
	for _, m := range []struct {
		typ    record.Type
		sample string
	}{
		{record.Block, "delay"}, {record.Goroutine, "goroutine"}, {record.Mutex, "delay"}, {record.Memory, "inuse_space"},
		{"tea", "tea"}, {record.Memory, "alloc_space"}, {record.Wall, "wall"}, {record.CPU, "cpu"},
	} {
		w := cpu(map[string]float64{"f": 1})
		w.Type, w.Labels = m.typ, map[string]string{"span_scope": "root"}
		w.Profile.SampleType[0].Type = m.sample
		windows = append(windows, w)
	}
	var got []string
	for _, m := range mustCompare(t, sequence(windows...), sequence(windows...), compare.Options{}).Metrics {
		got = append(got, m.Name)
	}
	if want := "cpu wall alloc_space inuse_space mutex_delay block_delay goroutine tea"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
}

// Text on frames of every colour must be readable in both of the page's colour schemes.
func TestFramesHaveContrast(t *testing.T) {
	colours := map[string]bool{}
	for _, f := range []float64{0, 0.5, 0.7, 0.9, 1, 1.2, 1.6, 3} {
		before, after := cpu(map[string]float64{"f": 1}), cpu(map[string]float64{"f": f})
		var page strings.Builder
		if err := mustCompare(t, sequence(before), sequence(after), compare.Options{}).WriteHTML(&page, 1); err != nil {
			t.Fatal(err)
		}
		text := regexp.MustCompile(`svg text \{[^}]*fill: (#[0-9a-f]+)`).FindAllStringSubmatch(page.String(), -1)
		if len(text) != 1 {
			t.Fatalf("text on frames has the colours %q, want one for both schemes", text)
		}
		for _, m := range regexp.MustCompile(`<rect [^>]*fill="(#[0-9a-f]{6})"`).FindAllStringSubmatch(page.String(), -1) {
			colours[m[1]] = true
			if c := contrast(t, m[1], text[0][1]); c < 4.5 {
				t.Errorf("after is %g times before: %s under %s has a contrast of %.1f:1, want 4.5:1", f, m[1], text[0][1], c)
			}
		}
	}
	if len(colours) < 5 {
		t.Errorf("frames have the colours %v alone", colours)
	}
}

// contrast returns the contrast of two colours as defined by WCAG.
func contrast(t *testing.T, a, b string) float64 {
	luminance := func(colour string) float64 {
		if len(colour) == 4 {
			colour = "#" + strings.Repeat(colour[1:2], 2) + strings.Repeat(colour[2:3], 2) + strings.Repeat(colour[3:], 2)
		}
		n, err := strconv.ParseUint(colour[1:], 16, 24)
		if err != nil {
			t.Fatal(err)
		}
		sum := 0.0
		for i, weight := range []float64{0.0722, 0.7152, 0.2126} {
			c := float64(n>>(8*i)&255) / 255
			if c <= 0.04045 {
				c /= 12.92
			} else {
				c = math.Pow((c+0.055)/1.055, 2.4)
			}
			sum += weight * c
		}
		return sum
	}
	x, y := luminance(a), luminance(b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

func FuzzParseRule(f *testing.F) {
	for _, rule := range []string{"cpu:+10%@p<0.01", "cpu(main.(*T).f[...]):+5%", "inuse_space:-3.5%", "cpu(*):+0%@p<1e-5", "cpu:+%"} {
		f.Add(rule)
	}
	f.Fuzz(func(t *testing.T, text string) {
		rule, err := compare.ParseRule(text)
		if err != nil {
			return
		}
		if again, err := compare.ParseRule(rule.String()); err != nil || again != rule {
			t.Fatalf("%q is %+v, which is written %q and read as %+v, %v", text, rule, rule, again, err)
		}
	})
}

// FuzzCompare reads any profile that pprof's own parser takes.
func FuzzCompare(f *testing.F) {
	var b bytes.Buffer
	if err := cpu(map[string]float64{"main;f[go.shape.int]": 1, "main": 2}).Profile.WriteUncompressed(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := profiles.Parse(bytes.NewReader(data))
		if err != nil {
			return
		}
		w := profiles.Window{Profile: p}
		r, err := compare.Compare(t.Context(), sequence(w), sequence(w), compare.Options{})
		if err != nil {
			return
		}
		if err := errors.Join(r.WriteText(io.Discard, 5), r.WriteHTML(io.Discard, 5), r.WriteJSON(io.Discard)); err != nil {
			t.Fatal(err)
		}
		for _, m := range r.Metrics {
			if m.RawBefore != m.RawAfter {
				t.Fatalf("a profile differs from itself: %+v", m.Total)
			}
		}
	})
}

func TestListsInJSONAreNeverNull(t *testing.T) {
	var js bytes.Buffer
	if err := mustCompare(t, sequence(cpu(nil)), sequence(cpu(nil)), compare.Options{}).WriteJSON(&js); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"functions": []`, `"stacks": []`} {
		if !strings.Contains(js.String(), want) {
			t.Errorf("no %s in\n%s", want, js.String())
		}
	}
}

// TestDifferencesAreCompared: profiles that are differences themselves, with values below 0, are compared by what was added
// and removed, and no rule about a percentage can be decided.
func TestDifferencesAreCompared(t *testing.T) {
	side := func(shrinks float64) (windows []profiles.Window) {
		for i := range 8 {
			windows = append(windows, cpu(map[string]float64{"main;shrinks": shrinks + 0.1*float64(i%3), "main;grows": 5 - 0.1*float64(i%2)}))
		}
		return windows
	}
	r := mustCompare(t, sequence(side(-10)...), sequence(side(-30)...), compare.Options{Normalization: compare.ByNothing})
	m := r.Metrics[0]
	if !m.Signed || m.RawBefore != -39.7e9 || m.RawAfter != -199.7e9 {
		t.Errorf("totals %d and %d, signed %v", m.RawBefore, m.RawAfter, m.Signed)
	}
	c := function(t, m, "shrinks").Cum
	if !c.Significant || c.Difference.Low < -20.3e9 || c.Difference.High > -19.7e9 || !math.IsNaN(float64(c.Ratio.Value)) {
		t.Errorf("%+v", c)
	}
	if got := m.Change(c); !strings.HasPrefix(got, "-20 s [-20") {
		t.Errorf("the change is %s", got)
	}
	var text, page strings.Builder
	if err := errors.Join(r.WriteText(&text, 10), r.WriteHTML(&page, 10), r.WriteJSON(io.Discard)); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text.String()+page.String(), "NaN") || !strings.Contains(page.String(), "shrinks: -9.91 s before, -29.9 s after, -20 s") {
		t.Errorf("%s\n%s", &text, &page)
	}
	rule, err := compare.ParseRule("cpu:+10%")
	if err != nil {
		t.Fatal(err)
	}
	if v := r.Check([]compare.Rule{rule}); len(v.Undecided) != 1 || len(v.Broken) != 0 {
		t.Errorf("%+v", v)
	}
}

// TestUnitsAreConverted: windows in different units of time are compared.
func TestUnitsAreConverted(t *testing.T) {
	in := func(unit string, value int64) iter.Seq2[profiles.Window, error] {
		w := cpu(map[string]float64{"main": 1})
		w.Profile.SampleType = []*profile.ValueType{{Type: "cpu", Unit: unit}}
		w.Profile.Sample[0].Value[0] = value
		return sequence(w)
	}
	r := mustCompare(t, in("microseconds", 2000), in("ms", 3), compare.Options{Normalization: compare.ByNothing})
	if m := r.Metrics[0]; m.RawBefore != 2e6 || m.RawAfter != 3e6 || m.Unit != "nanoseconds" || m.Total.Cum.Ratio.Value != 1.5 {
		t.Errorf("%+v", m)
	}
	_, err := compare.Compare(t.Context(), in("hours", 1<<40), in("ms", 3), compare.Options{})
	if err == nil || !strings.Contains(err.Error(), "more than 63 bits") {
		t.Errorf("error %v for a value that is too large in nanoseconds", err)
	}
}

// TestTheSampleOfFastRequestsIsLeftOut: it has not all of their time.
func TestTheSampleOfFastRequestsIsLeftOut(t *testing.T) {
	wall := func(scope string, seconds float64) profiles.Window {
		w := cpu(map[string]float64{"main;wait": seconds})
		w.Type, w.Profile.SampleType = record.Wall, []*profile.ValueType{{Type: "wall", Unit: "nanoseconds"}}
		w.Labels = map[string]string{"span_scope": scope}
		w.Profile.Sample[0].Label = map[string][]string{"span_id": {scope}}
		return w
	}
	side := func() iter.Seq2[profiles.Window, error] { return sequence(wall("root", 3), wall("fast", 0.1)) }
	if r := mustCompare(t, side(), side(), compare.Options{}); r.Before.Windows != 1 || r.Metrics[0].RawBefore != 3e9 {
		t.Errorf("%d windows with %d ns, want the one of 3 s", r.Before.Windows, r.Metrics[0].RawBefore)
	}
}
