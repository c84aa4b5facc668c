package leaks_test

import (
	"iter"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"gonum.org/v1/gonum/stat/distuv"

	"spanflame/internal/record"
	"spanflame/profiles"
	"spanflame/profiles/leaks"
)

// sampled is the mean number of bytes between two samples of Go's memory profiler. The value of a stack is a whole number
// of samples, so a leak of 1 KB/s adds one sample in nine minutes.
const sampled = 512 << 10

// holder is a stack that holds memory: live gives the bytes it would hold in the window at t, under a load of
// which 1 is the normal one. Its number of samples is drawn so that samples stay as long as their objects.
type holder struct {
	stack    []string
	live     func(t time.Duration, load float64) float64
	lifetime time.Duration // of its objects, 0 for unlimited
	goes     bool          // counts goroutines, not bytes
}

// simulation is a series of windows of one process.
type simulation struct {
	holders []holder
	windows int
	length  time.Duration
	load    func(t time.Duration) float64
	noise   float64 // standard deviation of the load, as a share of it
}

var epoch = time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)

// run returns the memory and goroutine profiles of one run.
func (s simulation) run(rng *rand.Rand) iter.Seq2[profiles.Window, error] {
	return func(yield func(profiles.Window, error) bool) {
		held := make([]float64, len(s.holders)) // samples, or goroutines
		mean := make([]float64, len(s.holders))
		for n := range s.windows {
			t := time.Duration(n+1) * s.length
			load := s.load(t) * (1 + s.noise*rng.NormFloat64())
			heap, goroutines := newHeap(), newGoroutines()
			for i, h := range s.holders {
				unit := float64(sampled)
				if h.goes {
					unit = 1
				}
				want := h.live(t, load) / unit
				if n == 0 {
					held[i] = poisson(rng, want)
				} else {
					held[i] = hold(rng, held[i], mean[i], want, h.lifetime, s.length)
				}
				mean[i] = want
				if h.goes {
					goroutines.add(h.stack, int64(held[i]))
				} else {
					heap.add(h.stack, 0, int64(held[i])*sampled)
				}
			}
			for i := range 20 { // allocations that are freed again: they show the load
				mean := load * s.length.Seconds() * 2e6 / float64(i+1)
				heap.add(
					[]string{"main.main", "main.handle", "main.step" + string(rune('a'+i))},
					int64(poisson(rng, mean/sampled))*sampled,
					int64(poisson(rng, 2*load))*sampled,
				)
			}
			for _, p := range []*builder{heap, goroutines} {
				w := profiles.Window{Profile: p.Profile, Meta: record.Meta{
					Service: "shop", Type: p.typ, Start: epoch.Add(t - s.length), End: epoch.Add(t),
				}}
				if !yield(w, nil) {
					return
				}
			}
		}
	}
}

// hold computes the number of samples in the next window, when the mean number changes from one value to another. New
// samples are drawn at random, and every existing sample is equally likely to end.
func hold(rng *rand.Rand, held, from, to float64, lifetime, step time.Duration) float64 {
	stay := 1.0
	if lifetime > 0 {
		stay = math.Exp(-step.Seconds() / lifetime.Seconds())
	}
	if to < from*stay { // more ends than reaches the end of its lifetime
		stay = to / from
	}
	return binomial(rng, held, stay) + poisson(rng, to-from*stay)
}

func poisson(rng *rand.Rand, mean float64) float64 {
	if mean <= 0 {
		return 0
	}
	return distuv.Poisson{Lambda: mean, Src: rng}.Rand()
}

func binomial(rng *rand.Rand, n, p float64) float64 {
	if n == 0 || p <= 0 {
		return 0
	}
	if p >= 1 {
		return n
	}
	return distuv.Binomial{N: n, P: p, Src: rng}.Rand()
}

// builder makes a profile of one window.
type builder struct {
	*profile.Profile
	typ   record.Type
	known map[string]*profile.Location
}

func newHeap() *builder {
	return &builder{typ: record.Memory, known: map[string]*profile.Location{}, Profile: &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "alloc_space", Unit: "bytes"}, {Type: "inuse_space", Unit: "bytes"}},
		PeriodType: &profile.ValueType{Type: "space", Unit: "bytes"}, Period: sampled,
	}}
}

func newGoroutines() *builder {
	return &builder{typ: record.Goroutine, known: map[string]*profile.Location{}, Profile: &profile.Profile{SampleType: []*profile.ValueType{
		{Type: "goroutine", Unit: "count"},
	}}}
}

// add adds a sample of a stack, outermost function first.
func (b *builder) add(stack []string, values ...int64) {
	s := &profile.Sample{Value: values}
	for i := len(stack) - 1; i >= 0; i-- {
		l := b.known[stack[i]]
		if l == nil {
			f := &profile.Function{ID: uint64(len(b.Function) + 1), Name: stack[i]}
			l = &profile.Location{ID: f.ID, Line: []profile.Line{{Function: f, Line: 1}}}
			b.Function, b.Location = append(b.Function, f), append(b.Location, l)
			b.known[stack[i]] = l
		}
		s.Location = append(s.Location, l)
	}
	b.Sample = append(b.Sample, s)
}

// steady is a service with every kind of growth that is not a leak.
func steady() simulation {
	constant := func(bytes float64) func(time.Duration, float64) float64 {
		return func(time.Duration, float64) float64 { return bytes }
	}
	s := simulation{noise: 0.05, windows: 240, length: 15 * time.Second, load: func(time.Duration) float64 { return 1 }}
	add := func(name string, lifetime time.Duration, live func(time.Duration, float64) float64) {
		s.holders = append(s.holders, holder{stack: []string{"main.main", "main.serve", name}, lifetime: lifetime, live: live})
	}
	for i := range 10 {
		add("main.table"+string(rune('a'+i)), 0, constant(float64(i+1)*3e6))
	}
	for i, lifetime := range []time.Duration{time.Minute, 5 * time.Minute, 20 * time.Minute, time.Hour, 5 * time.Hour} {
		add("main.session"+string(rune('a'+i)), lifetime, constant(40e6))
		add("main.buffer"+string(rune('a'+i)), lifetime, constant(6e6))
	}
	add("main.(*Cache).fill", 0, func(t time.Duration, _ float64) float64 { return 60e6 * min(1, t.Minutes()/12) })
	add("main.(*Pool).warmUp", 0, func(t time.Duration, _ float64) float64 { return 60e6 * (1 - math.Exp(-t.Minutes()/10)) })
	add("main.(*Log).batch", 0, func(t time.Duration, _ float64) float64 { return 2e6 * math.Mod(t.Minutes(), 7) })
	add("main.(*Log).rotate", 0, func(t time.Duration, _ float64) float64 { return 1e6 * math.Mod(t.Minutes(), 23) })
	add("main.inFlight", 5*time.Minute, func(_ time.Duration, load float64) float64 { return 1e9 * load })
	s.holders = append(s.holders, holder{
		stack: []string{"main.main", "main.worker", "runtime.gopark"}, goes: true, lifetime: 30 * time.Second,
		live: func(_ time.Duration, load float64) float64 { return 200 * load },
	})
	return s
}

// plants are leaks, by the way in which they keep what they leak.
var plants = map[string][]string{
	"map":       {"main.main", "main.serve", "main.remember", "internal/runtime/maps.(*Map).PutSlot"},
	"slice":     {"main.main", "main.serve", "main.collect", "runtime.growslice"},
	"closure":   {"main.main", "main.serve", "main.subscribe"},
	"timer":     {"main.main", "main.serve", "main.expire", "time.AfterFunc"},
	"goroutine": {"main.listen", "runtime.chanrecv1", "runtime.gopark"},
}

var sites = map[string]string{"map": "main.remember", "slice": "main.collect", "closure": "main.subscribe", "timer": "main.expire", "goroutine": "main.listen"}

// planted is a steady service with a leak of so many bytes a second from the beginning on.
func planted(plant string, bytesPerSecond float64, windows int, length time.Duration) simulation {
	s := steady()
	s.windows, s.length = windows, length
	h := holder{stack: plants[plant], goes: plant == "goroutine"}
	per := bytesPerSecond
	if h.goes {
		per /= 2048
	}
	h.live = func(t time.Duration, _ float64) float64 { return per * t.Seconds() }
	s.holders = append(s.holders, h)
	return s
}

func find(t testing.TB, s simulation, seed uint64) *leaks.Report {
	t.Helper()
	r, err := leaks.Find(t.Context(), s.run(rand.New(rand.NewPCG(seed, 1))), leaks.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}
