package leaks_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"math"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/profiles"
	"spanflame/profiles/leaks"
)

// TestTheHeaderSaysWhoAndHowMuch: labels are in a fixed order, and a limit was exceeded.
func TestTheHeaderSaysWhoAndHowMuch(t *testing.T) {
	labelled := func(yield func(profiles.Window, error) bool) {
		for w, err := range steps(20, func(minute int) int64 { return int64(minute+1) << 20 }) {
			w.Labels = map[string]string{"service_version": "1.2", "deployment_environment_name": "demo"}
			if !yield(w, err) {
				return
			}
		}
	}
	r, err := leaks.Find(t.Context(), labelled, leaks.Options{Limit: 10 << 20})
	if err != nil || len(r.Suspects) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if p := r.Processes[0]; !p.OverLimit || !p.LimitAt.IsZero() {
		t.Errorf("%d bytes of %d in use: %+v, want it to be over the limit", p.InUse, r.Limit, p)
	}
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		` {deployment_environment_name="demo", service_version="1.2"}: 20 memory and 0 goroutine profiles`, "the limit of 10 MiB is already exceeded\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
}

// TestWhatMayBeChanceIsNeitherASuspectNorDismissed: a stack grew in 12 of 15 steps, which happens by chance once in 57
// cases.
func TestWhatMayBeChanceIsNeitherASuspectNorDismissed(t *testing.T) {
	dips := map[int]bool{4: true, 8: true, 12: true}
	value, held := int64(10<<20), []int64{}
	for i := range 16 {
		if value += 1 << 20; dips[i] {
			value -= 3 << 19
		}
		held = append(held, value)
	}
	r, err := leaks.Find(t.Context(), steps(len(held), func(i int) int64 { return held[i] }), leaks.Options{})
	if err != nil || len(r.Suspects)+len(r.Dismissed) > 0 || len(r.Undecided) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	want := "more profiles would tell\n  1. main.hold: memory, 6"
	got := text.String()
	if !strings.Contains(got, want) || !strings.Contains(got, ", q=0.018 (a suspect has at most 0.01)\n") ||
		strings.Contains(got, "no leak found") || strings.Contains(got, "grew, but") {
		t.Errorf("want %q and no contradiction in\n%s", want, got)
	}
	if r, err = leaks.Find(t.Context(), steps(len(held), func(i int) int64 { return held[i] }), leaks.Options{Alpha: 0.05}); err != nil ||
		len(r.Suspects) != 1 {
		t.Errorf("one in twenty by chance is allowed: %+v, %v", r, err)
	}
}

// TestWorkTellsTheLoad: the goroutines are proportional to the requests, which their profiles do not show. A profile of
// another tool has no length, so its work is that since the end of the previous profile.
func TestWorkTellsTheLoad(t *testing.T) {
	requests := func(at time.Time) float64 { return 100 + at.Sub(epoch).Minutes()*20 }
	for _, service := range []string{"shop", ""} {
		windows := func(yield func(profiles.Window, error) bool) {
			for i := range 30 {
				g := newGoroutines()
				end := epoch.Add(time.Duration(i+1) * time.Minute)
				m := record.Meta{Service: service, Type: record.Goroutine, Start: end.Add(-time.Minute), End: end}
				if service == "" {
					m.Start = end
				}
				g.add([]string{"main.main", "main.handle"}, int64(requests(end)))
				if !yield(profiles.Window{Profile: g.Profile, Meta: m}, nil) {
					return
				}
			}
		}
		r, err := leaks.Find(t.Context(), windows, leaks.Options{})
		if err != nil || len(r.Suspects) != 1 || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "do not show the load") {
			t.Errorf("service %q, without the work: %+v, %v", service, r, err)
		}
		work := func(m record.Meta) (float64, error) {
			if m.End.Sub(m.Start) != time.Minute {
				t.Errorf("service %q: asked for the work from %v to %v", service, m.Start, m.End)
			}
			return requests(m.End), nil
		}
		r, err = leaks.Find(t.Context(), windows, leaks.Options{Work: work})
		if err != nil || len(r.Suspects)+len(r.Notes) > 0 || len(r.Dismissed) != 1 || r.Dismissed[0].Reason != "follows the load" {
			t.Errorf("service %q, by the work: %+v, %v", service, r, err)
		}
		fails := errors.New("no such metric")
		if _, err := leaks.Find(t.Context(), windows, leaks.Options{Work: func(record.Meta) (float64, error) { return 0, fails }}); !errors.Is(err, fails) {
			t.Errorf("service %q: %v, want %v", service, err, fails)
		}
	}
}

func TestALeakIsDescribed(t *testing.T) {
	s := planted("map", 50e3, 240, 15*time.Second)
	quiet := 20 * time.Minute
	s.holders[len(s.holders)-1].live = func(d time.Duration, _ float64) float64 { return 50e3 * max(0, (d-quiet).Seconds()) }
	r, err := leaks.Find(t.Context(), s.run(rand.New(rand.NewPCG(5, 6))), leaks.Options{Limit: 2 << 30})
	if err != nil || len(r.Suspects) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	got, p := r.Suspects[0], r.Processes[0]
	if got.Site != "main.remember" || got.Kind != leaks.Memory || len(got.Stack) != 4 {
		t.Errorf("suspect %+v", got)
	}
	if got.Low > 3e6 || got.High < 3e6 || math.Abs(got.BytesPerMinute/3e6-1) > 0.1 {
		t.Errorf("rate %.0f [%.0f, %.0f] bytes a minute, want 3,000,000", got.BytesPerMinute, got.Low, got.High)
	}
	if off := got.Began.Sub(epoch.Add(quiet)); off.Abs() > 5*time.Minute {
		t.Errorf("it began at %v, %v off", got.Began, off)
	}
	left := float64(2<<30-p.InUse) / p.BytesPerMinute
	if want := p.End.Add(time.Duration(left * float64(time.Minute))); p.LimitAt.Sub(want).Abs() > time.Second {
		t.Errorf("the limit is reached at %v, want %v", p.LimitAt, want)
	}
	var text, js bytes.Buffer
	if err := errors.Join(r.WriteText(&text), r.WriteJSON(&js)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1. main.remember: memory, 3.", "the limit of 2 GiB is reached by", "main.(*Cache).fill: stopped growing", "2026-01-02 15:2"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
	if !json.Valid(js.Bytes()) {
		t.Error("no JSON")
	}
}

// TestALeakUnderALoadThatDoubles: such a leak must not be mistaken for memory that follows the load.
func TestALeakUnderALoadThatDoubles(t *testing.T) {
	double := func(d time.Duration) float64 { return 1 + min(1, float64(d/(30*time.Minute))) }
	s := planted("slice", 100e3, 240, 15*time.Second)
	s.load = double
	s.holders[len(s.holders)-1].live = func(d time.Duration, _ float64) float64 {
		return 100e3 * (d.Seconds() + max(0, (d-30*time.Minute).Seconds())) // it leaks a part of each request
	}
	for seed := range uint64(10) {
		if r := find(t, s, seed); len(r.Suspects) != 1 || r.Suspects[0].Site != "main.collect" {
			t.Errorf("run %d: %+v; dismissed %+v", seed, r.Suspects, r.Dismissed)
		}
	}
}

func TestRestarts(t *testing.T) {
	first, second := steady(), planted("map", 100e3, 200, 15*time.Second)
	first.windows = 100
	join := func(label string) iter.Seq2[profiles.Window, error] {
		return func(yield func(profiles.Window, error) bool) {
			var last time.Time
			for w, err := range first.run(rand.New(rand.NewPCG(1, 1))) {
				last = w.End
				if !yield(w, err) {
					return
				}
			}
			shift := last.Sub(epoch)
			for w, err := range second.run(rand.New(rand.NewPCG(2, 2))) {
				w.Start, w.End = w.Start.Add(shift), w.End.Add(shift)
				if label != "" {
					w.Labels = map[string]string{"instance": label}
				}
				if !yield(w, err) {
					return
				}
			}
		}
	}
	r, err := leaks.Find(t.Context(), join("b"), leaks.Options{})
	if err != nil || len(r.Processes) != 2 || len(r.Suspects) != 1 || r.Suspects[0].Process != 1 {
		t.Errorf("another instance: %v, %+v", err, r)
	}
	// Without labels of the process, a restart is recognised by a fall of nearly all stacks.
	grown := func(yield func(profiles.Window, error) bool) {
		n := 0
		for w, err := range join("") {
			if n++; n > 200 && n <= 280 { // just after the restart: almost nothing is in use yet
				for _, s := range w.Profile.Sample {
					s.Value[len(s.Value)-1] /= int64(1 + (281-n)/8)
				}
			}
			if !yield(w, err) {
				return
			}
		}
	}
	r, err = leaks.Find(t.Context(), grown, leaks.Options{})
	if err != nil || len(r.Processes) != 1 || len(r.Processes[0].Restarts) != 1 {
		t.Errorf("the same instance: %v, %+v", err, r.Processes)
	}
}

// TestTheMorningAfter: the load stopped in the evening. What grew until then and is still held is no longer growing, and
// may be a leak; what had stopped before, or was released, is not.
func TestTheMorningAfter(t *testing.T) {
	const busy, all = 30, 60
	for name, tt := range map[string]struct {
		held func(i int) int64 // MiB
		want bool
	}{
		"a leak":                         {func(i int) int64 { return 1 + int64(min(i, busy-1)) }, true},
		"a cache that was full at noon":  {func(i int) int64 { return 1 + int64(min(i, busy/3)) }, false},
		"released when the load stopped": {func(i int) int64 { return map[bool]int64{true: 1 + int64(i), false: 2}[i < busy] }, false},
	} {
		windows := func(yield func(profiles.Window, error) bool) {
			for i := range all {
				b := newHeap()
				allocated := map[bool]int64{true: 50 << 20, false: 1 << 19}[i < busy] // the agent's own, at night
				b.add([]string{"main.main", "main.hold"}, allocated, tt.held(i)<<20)
				end := epoch.Add(time.Duration(i+1) * time.Minute)
				m := record.Meta{Service: "shop", Type: record.Memory, Start: end.Add(-time.Minute), End: end}
				if !yield(profiles.Window{Profile: b.Profile, Meta: m}, nil) {
					return
				}
			}
		}
		r, err := leaks.Find(t.Context(), windows, leaks.Options{})
		if err != nil || len(r.Suspects)+len(r.Undecided) > 0 || len(r.Held) == 1 != tt.want {
			t.Errorf("%s: %v, %+v", name, err, r)
			continue
		}
		var text bytes.Buffer
		if err := r.WriteText(&text); err != nil {
			t.Fatal(err)
		}
		if got := text.String(); strings.Contains(got, "grew until the load stopped, and stayed") != tt.want || strings.Contains(got, "no leak found") == tt.want {
			t.Errorf("%s: the report says\n%s", name, got)
		}
	}
}

// steps are n windows of one stack.
func steps(n int, value func(i int) int64) iter.Seq2[profiles.Window, error] {
	return func(yield func(profiles.Window, error) bool) {
		for i := range n {
			b := newHeap()
			b.add([]string{"main.main", "main.hold"}, 1<<20, value(i))
			end := epoch.Add(time.Duration(i+1) * time.Minute)
			if !yield(
				profiles.Window{Profile: b.Profile, Meta: record.Meta{Service: "shop", Type: record.Memory, Start: end.Add(-time.Minute), End: end}},
				nil,
			) {
				return
			}
		}
	}
}

func TestBadWindows(t *testing.T) {
	grow := func(i int) int64 { return int64(i+1) << 20 }
	spoil := func(f func(w *profiles.Window, i int)) iter.Seq2[profiles.Window, error] {
		return func(yield func(profiles.Window, error) bool) {
			i := 0
			for w, err := range steps(20, grow) {
				f(&w, i)
				i++
				if !yield(w, err) {
					return
				}
			}
		}
	}
	for want, windows := range map[string]iter.Seq2[profiles.Window, error]{
		"no profile matches":  steps(0, grow),
		"which needs 12":      steps(leaks.MinWindows-1, grow),
		"it is a difference":  steps(20, func(i int) int64 { return -1 }),
		"does not come after": spoil(func(w *profiles.Window, _ int) { w.Start, w.End = epoch, epoch }),
		`the profile of 2026-01-02T15:01:00Z: inuse_space is in "kilobytes": want bytes`: spoil(func(w *profiles.Window,
			_ int) {
			w.Profile.SampleType[1].Unit = "kilobytes"
		}),
		"has 1 values":     spoil(func(w *profiles.Window, _ int) { w.Profile.Sample[0].Value = []int64{1} }),
		"record memory or": spoil(func(w *profiles.Window, _ int) { w.Profile.SampleType[1].Type = "cpu" }),
		"input/output error": func(yield func(profiles.Window, error) bool) {
			yield(profiles.Window{}, errors.New("input/output error"))
		},
	} {
		if r, err := leaks.Find(t.Context(), windows, leaks.Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v, %v, want an error with %q", r, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := leaks.Find(ctx, steps(20, grow), leaks.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	for want, o := range map[string]leaks.Options{"alpha 2": {Alpha: 2}, "minimum growth -1": {MinGrowth: -1}, "limit -1": {Limit: -1}} {
		if _, err := leaks.Find(t.Context(), steps(20, grow), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error with %q", err, want)
		}
	}
	if r, err := leaks.Find(t.Context(), steps(20, grow), leaks.Options{}); err != nil || len(r.Suspects) != 1 {
		t.Errorf("what is not spoilt: %+v, %v", r, err)
	}
}

// leaked has the memory that the leak below keeps.
var leaked [][]byte

//go:noinline
func leakBuffer() { leaked = append(leaked, make([]byte, 64<<10)) }

//go:noinline
func useBuffer() []byte { return make([]byte, 64<<10) }

// TestTheRuntimesOwnProfiles leaks in this process and reads the runtime's profiles of it. Each window has the length in
// its profile, regardless of the time that it took.
func TestTheRuntimesOwnProfiles(t *testing.T) {
	old := runtime.MemProfileRate
	runtime.MemProfileRate = 1
	defer func() { runtime.MemProfileRate, leaked = old, nil }()
	stop := make(chan struct{})
	defer close(stop)
	windows := func(yield func(profiles.Window, error) bool) {
		var kept [8][]byte
		for i := range 20 {
			for j := range 2 {
				leakBuffer()
				kept[(2*i+j)%len(kept)] = useBuffer()
			}
			go waitForever(stop)
			runtime.GC()
			runtime.GC() // the heap profile is as of the previous collection
			for _, name := range []string{"heap", "goroutine"} {
				var b bytes.Buffer
				if err := pprof.Lookup(name).WriteTo(&b, 0); err != nil {
					t.Error(err)
					return
				}
				p, err := profiles.Parse(&b)
				end := epoch.Add(time.Duration(i+1) * time.Minute)
				if !yield(profiles.Window{Profile: p, Meta: record.Meta{Start: end, End: end}}, err) {
					return
				}
			}
		}
	}
	r, err := leaks.Find(t.Context(), windows, leaks.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Suspects) < 2 || !strings.HasSuffix(r.Suspects[0].Site, "leaks_test.leakBuffer") || math.Abs(r.Suspects[0].BytesPerMinute/(128<<10)-1) > 0.01 {
		t.Errorf("suspects %+v", r.Suspects)
	}
	found := false
	for _, s := range r.Suspects {
		found = found || s.Kind == leaks.Goroutines && strings.HasSuffix(s.Site, "leaks_test.waitForever") && s.PerMinute == 1
		if strings.Contains(s.Site, "useBuffer") {
			t.Errorf("what is dropped again is suspected: %+v", s)
		}
	}
	if !found {
		t.Errorf("the goroutines are not among the suspects %+v", r.Suspects)
	}
	if len(r.Processes[0].Restarts) > 0 {
		t.Errorf("restarts %v", r.Processes[0].Restarts)
	}
}

func waitForever(stop chan struct{}) { <-stop }

func TestTheStandardLibraryIsKnown(t *testing.T) {
	out, err := exec.Command("go", "list", "std").Output()
	if err != nil {
		t.Fatal(err)
	}
	if s := siteOf(t, []string{"main.main", "go.example.org/store.(*cache).fill"}); !strings.HasPrefix(s, "go.example.org/") {
		t.Errorf("a module whose address begins like a package is taken for one of the standard library: the site is %s", s)
	}
	if s := siteOf(t, []string{"main.main", "shop.Do", "golang.org/x/sync/errgroup.(*Group).Go"}); s != "shop.Do" {
		t.Errorf("the site of a stack that ends in a dependency is %s", s)
	}
	for pkg := range strings.FieldsSeq(string(out)) {
		if s := siteOf(t, []string{"main.main", "shop.Do", pkg + ".F"}); s != "shop.Do" {
			t.Errorf("the site of a stack that ends in %s is %s", pkg, s)
		}
	}
}

// siteOf returns the site at which a leak with this stack is reported.
func siteOf(t *testing.T, stack []string) string {
	t.Helper()
	r, err := leaks.Find(t.Context(), func(yield func(profiles.Window, error) bool) {
		for w, err := range steps(leaks.MinWindows, func(i int) int64 { return int64(i+1) << 20 }) {
			for i := range w.Profile.Sample {
				w.Profile.Sample[i].Location = nil
				for j := len(stack) - 1; j >= 0; j-- {
					f := &profile.Function{Name: stack[j]}
					if strings.HasPrefix(f.Name, "golang.org/") {
						f.Filename = "golang.org/x/sync@v0.24.0/a.go"
					}
					w.Profile.Sample[i].Location = append(w.Profile.Sample[i].Location, &profile.Location{Line: []profile.Line{{Function: f}}})
				}
			}
			if !yield(w, err) {
				return
			}
		}
	}, leaks.Options{})
	if err != nil || len(r.Suspects) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	return r.Suspects[0].Site
}

func FuzzFind(f *testing.F) {
	for w := range steps(1, func(int) int64 { return 5 }) {
		var b bytes.Buffer
		if err := w.Profile.WriteUncompressed(&b); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := profiles.Parse(bytes.NewReader(data))
		if err != nil {
			return
		}
		r, err := leaks.Find(t.Context(), func(yield func(profiles.Window, error) bool) {
			for w := range steps(leaks.MinWindows, func(int) int64 { return 1 }) {
				w.Profile = p
				if !yield(w, nil) {
					return
				}
			}
		}, leaks.Options{})
		if err != nil {
			return
		}
		if len(r.Suspects) > 0 {
			t.Fatalf("what stays the same is suspected: %+v", r.Suspects)
		}
		if err := errors.Join(r.WriteText(io.Discard), r.WriteJSON(io.Discard)); err != nil {
			t.Fatal(err)
		}
	})
}
