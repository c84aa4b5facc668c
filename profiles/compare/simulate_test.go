package compare_test

import (
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"time"

	"github.com/google/pprof/profile"
	"gonum.org/v1/gonum/stat/distuv"

	"spanflame/internal/record"
	"spanflame/profiles"
)

// service is a simulated service: functions with known shares of its CPU time, profiled as Go profiles it,
// 100 times a second in windows of 15 s. The number of samples of a function in a window is Poisson, around
// a mean that follows the load. The load varies from window to window by a few per cent and may depend on
// that of the window before.
type service struct {
	shares  []float64 // of each function
	cores   float64   // that are busy on average
	noise   float64   // standard deviation of the load, as a share of it
	memory  float64   // correlation of the load with that of the window before
	slower  int       // the function that was slowed
	slowed  float64   // by which share of its own time
	loadUp  float64   // how much more load there is, as a share
	windows int
}

const (
	windowLength = 15 * time.Second
	hertz        = 100
)

// typicalService has a function with 10 % of the CPU, and 60 others from 20 % down to less than 0.1 %.
func typicalService() service {
	s := service{cores: 1, noise: 0.03, windows: 20, shares: []float64{0.10}, slower: 0}
	rest, sum := make([]float64, 60), 0.0
	for i := range rest {
		rest[i] = 1 / float64(i+1)
		sum += rest[i]
	}
	for _, r := range rest {
		s.shares = append(s.shares, 0.9*r/sum)
	}
	return s
}

// name returns the name of function i; every seventh function calls the next six.
func (s service) name(i int) string { return fmt.Sprintf("example.com/shop.work%02d", i) }

// run returns the windows of one simulated run.
func (s service) run(rng *rand.Rand) iter.Seq2[profiles.Window, error] {
	return func(yield func(profiles.Window, error) bool) {
		functions, locations := s.code()
		start, load := begin, s.drift(rng)
		for range s.windows {
			if !yield(s.window(start, load(), functions, locations, rng), nil) {
				return
			}
			start = start.Add(windowLength)
		}
	}
}

// takeTurns returns the windows of two services that run in turns and have their load in common.
func takeTurns(before, after service, rng *rand.Rand) (windows [2][]profiles.Window) {
	functions, locations := before.code()
	start, load := begin, before.drift(rng)
	for range before.windows {
		for side, s := range []service{before, after} {
			windows[side] = append(windows[side], s.window(start, load(), functions, locations, rng))
			start = start.Add(windowLength)
		}
	}
	return windows
}

// begin is the start of the first window.
var begin = time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)

// drift returns a function that gives the load of each window in turn.
func (s service) drift(rng *rand.Rand) func() float64 {
	drift := rng.NormFloat64()
	return func() float64 {
		drift = s.memory*drift + math.Sqrt(1-s.memory*s.memory)*rng.NormFloat64()
		return (1 + s.loadUp) * max(0.1, 1+s.noise*drift)
	}
}

func (s service) window(start time.Time, load float64, functions []*profile.Function, locations []*profile.Location, rng *rand.Rand) profiles.Window {
	p := cpuProfile(functions, locations)
	p.TimeNanos, p.DurationNanos = start.UnixNano(), int64(windowLength)
	for i, share := range s.shares {
		if i == s.slower {
			share *= 1 + s.slowed
		}
		mean := share * s.cores * load * windowLength.Seconds() * hertz
		samples := int64(distuv.Poisson{Lambda: mean, Src: rng}.Rand())
		if samples > 0 {
			p.Sample = append(p.Sample, &profile.Sample{Location: s.stack(i, locations), Value: []int64{samples, samples * 1e9 / hertz}})
		}
	}
	return profiles.Window{Profile: p, Meta: record.Meta{Service: "shop", Type: record.CPU, Start: start, End: start.Add(windowLength)}}
}

func (s service) code() ([]*profile.Function, []*profile.Location) {
	functions := []*profile.Function{{ID: 1, Name: "main.main", Filename: "main.go"}}
	for i := range s.shares {
		functions = append(functions, &profile.Function{ID: uint64(i + 2), Name: s.name(i), Filename: "shop.go"})
	}
	locations := make([]*profile.Location, len(functions))
	for i, f := range functions {
		locations[i] = &profile.Location{ID: uint64(i + 1), Line: []profile.Line{{Function: f, Line: 1}}}
	}
	return functions, locations
}

func (s service) stack(i int, locations []*profile.Location) []*profile.Location {
	stack := []*profile.Location{locations[i+1]}
	if caller := i - i%7; caller != i {
		stack = append(stack, locations[caller+1])
	}
	return append(stack, locations[0])
}

func cpuProfile(functions []*profile.Function, locations []*profile.Location) *profile.Profile {
	cpu := &profile.ValueType{Type: "cpu", Unit: "nanoseconds"}
	return &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "samples", Unit: "count"}, cpu}, PeriodType: cpu, Period: 1e9 / hertz,
		Function: functions, Location: locations,
	}
}
