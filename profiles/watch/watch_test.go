package watch

import (
	"context"
	"errors"
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
	"spanflame/profiles"
)

// window is the length of the windows of a simulated service.
const window = 15 * time.Second

// simulated is a service with forty functions on a busy core, at 100 samples a second with Poisson noise, and a load that
// follows the time of day and varies from window to window, each like the one before it.
type simulated struct {
	seed     uint64
	slowFrom time.Time // from when work takes a fifth more time; zero for never
	version  func(time.Time) string
	broken   error
	reads    int
}

var began = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)

const slowed = "shop.(*Cart).price"

// shares are those of the functions: a tenth is the one that may become slow, the others follow a power law.
func shares() map[string]float64 {
	all := map[string]float64{slowed: 0.1}
	sum := 0.0
	for i := range 39 {
		sum += 1 / float64(i+1)
	}
	for i := range 39 {
		all[fmt.Sprintf("shop.f%d", i)] = 0.9 / float64(i+1) / sum
	}
	return all
}

var share = shares()

func (s *simulated) random(at time.Time) *rand.Rand {
	return rand.New(rand.NewPCG(s.seed, uint64(at.Unix())))
}

// load is the load of a window: half as much at night, and correlated from window to window.
func (s *simulated) load(at time.Time) float64 {
	noise, weight := 0.0, 1.0
	for range 12 {
		noise += weight * s.random(at).NormFloat64()
		at, weight = at.Add(-window), weight*0.7
	}
	hour := float64(at.Sub(began)%day) / float64(day)
	return (0.75 - 0.25*math.Cos(2*math.Pi*hour)) * math.Exp(0.05*noise)
}

func (s *simulated) at(start time.Time, t record.Type) profiles.Window {
	random := s.random(start.Add(time.Second))
	name := map[record.Type]string{record.CPU: "cpu", record.Memory: "alloc_space"}[t]
	p := &profile.Profile{SampleType: []*profile.ValueType{{Type: name, Unit: "nanoseconds"}}, Period: 1e7}
	load := s.load(start)
	for _, f := range slices.Sorted(mapKeys(share)) {
		expected := share[f] * load * window.Seconds() * 100
		if f == slowed && t == record.CPU && !s.slowFrom.IsZero() && !start.Before(s.slowFrom) {
			expected *= 1.2
		}
		if n := poisson(random, expected); n > 0 {
			p.Sample = append(p.Sample, &profile.Sample{
				Location: []*profile.Location{{Line: []profile.Line{{Function: &profile.Function{Name: f}}}},
					{Line: []profile.Line{{Function: &profile.Function{Name: "main.main"}}}}},
				Value: []int64{int64(n) * 1e7},
			})
		}
	}
	m := record.Meta{Service: "shop", Type: t, Start: start, End: start.Add(window), Labels: map[string]string{}}
	if s.version != nil {
		m.Labels[record.VersionLabel] = s.version(start)
	}
	return profiles.Window{Meta: m, Profile: p}
}

func mapKeys(m map[string]float64) iter.Seq[string] {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// poisson returns a number with a Poisson distribution.
func poisson(random *rand.Rand, mean float64) (n int) {
	if mean > 50 {
		return max(0, int(math.Round(mean+math.Sqrt(mean)*random.NormFloat64())))
	}
	for p := random.Float64(); p > math.Exp(-mean); p *= random.Float64() {
		n++
	}
	return n
}

func (s *simulated) Services(context.Context, time.Time, time.Time) ([]string, error) {
	return []string{"shop"}, nil
}

func (s *simulated) Versions(_ context.Context, _ string, from, to time.Time) (all []Version, _ error) {
	for at := from.Truncate(window); s.version != nil && at.Before(to); at = at.Add(window) {
		v := s.version(at)
		i := slices.IndexFunc(all, func(of Version) bool { return of.Name == v })
		if i < 0 {
			all, i = append(all, Version{Name: v, First: at}), len(all)
		}
		all[i].Last = at.Add(window)
	}
	return all, nil
}

func (s *simulated) Series(_ context.Context, of Side, t record.Type, most int) iter.Seq2[profiles.Window, error] {
	return func(yield func(profiles.Window, error) bool) {
		s.reads++
		if s.broken != nil {
			yield(profiles.Window{}, s.broken)
			return
		}
		var starts []time.Time
		for at := of.From.Truncate(window); at.Before(of.To); at = at.Add(window) {
			if !at.Before(began) && (of.Version == "" || s.version(at) == of.Version) {
				starts = append(starts, at)
			}
		}
		step := max(1, (len(starts)+most-1)/most)
		for i := 0; i < len(starts); i += step {
			if !yield(s.at(starts[i], t), nil) {
				return
			}
		}
	}
}

func watcher(t *testing.T, s Source, o Options) *Watcher {
	t.Helper()
	w, err := New(s, o)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// round is a round in which nothing fails.
func round(t *testing.T, w *Watcher, now time.Time) []Regression {
	t.Helper()
	fresh, err := w.Round(t.Context(), now)
	if err != nil {
		t.Fatal(err)
	}
	return fresh
}

// A regression remains for some rounds without it, and is then forgotten; found again, it is new.
func TestARegressionEnds(t *testing.T) {
	change := began.Add(day)
	s := &simulated{slowFrom: change}
	w := watcher(t, s, Options{})
	now := change.Add(20 * time.Minute)
	if fresh := round(t, w, now); len(fresh) != 1 || fresh[0].Since != now {
		t.Fatalf("found %+v", fresh)
	}
	if fresh := round(t, w, now.Add(time.Minute)); len(fresh) != 0 || len(w.Found()) != 1 || w.Found()[0].Since != now {
		t.Errorf("in the next round %+v is new, of %+v", fresh, w.Found())
	}
	s.broken = errors.New("the disk is gone")
	for range 2 * keep {
		if _, err := w.Round(t.Context(), now); !errors.Is(err, s.broken) || !strings.Contains(err.Error(), "shop: cpu, a day ago: ") {
			t.Errorf("error %v", err)
		}
	}
	if len(w.Found()) != 1 {
		t.Error("what cannot be compared is forgotten")
	}
	s.broken, s.slowFrom = nil, time.Time{}
	for range keep {
		if len(w.Found()) != 1 {
			t.Error("it is forgotten too early")
		}
		round(t, w, now)
	}
	if len(w.Found()) != 0 {
		t.Errorf("it is still there: %+v", w.Found())
	}
	s.slowFrom = change
	if fresh := round(t, w, now.Add(time.Hour)); len(fresh) != 1 {
		t.Errorf("found again, it is not new: %+v", fresh)
	}
}

// In a deployment, the version that began last is compared with the one before it, whichever window ended last.
func TestBothVersionsRun(t *testing.T) {
	w := watcher(t, &simulated{version: func(at time.Time) string {
		switch {
		case at.Before(began.Add(time.Hour)) || at.Unix()/int64(window.Seconds())%2 == 0:
			return "v9"
		default:
			return "v10"
		}
	}}, Options{})
	for i := range 4 {
		round(t, w, began.Add(time.Hour+10*time.Minute+time.Duration(i)*window))
		if got := w.Compared(); !slices.Equal(got, []string{"shop: cpu with the version before", "shop: alloc_space with the version before"}) {
			t.Errorf("compared %q", got)
		}
	}
}

// Where a baseline has no windows, or too few, there is nothing to compare, which is no error.
func TestTooFewWindows(t *testing.T) {
	w := watcher(t, &simulated{}, Options{})
	for _, now := range []time.Time{began.Add(-day), began.Add(time.Minute), began.Add(time.Hour), began.Add(day)} {
		if fresh := round(t, w, now); len(fresh) != 0 {
			t.Errorf("%v: found %+v", now, fresh)
		}
	}
}

func TestABoundOfRegressions(t *testing.T) {
	w := watcher(t, &simulated{}, Options{})
	seen := make(map[Key]Regression)
	for i := range 3 * Most {
		key := Key{Service: "shop", Function: fmt.Sprint("f", i)}
		seen[key] = Regression{Key: key, Before: 0.01, After: 0.02 + float64(i)/1000}
	}
	if fresh := w.merge(seen, began); len(fresh) != Most || fresh[0].Function != fmt.Sprint("f", 3*Most-1) || len(w.Found()) != Most {
		t.Errorf("%d are new, %d are found, the first is %+v", len(fresh), len(w.Found()), fresh[0])
	}
	key := Key{Service: "shop", Function: "larger"}
	fresh := w.merge(map[Key]Regression{key: {Key: key, Before: 0.1, After: 0.7}}, began.Add(time.Minute))
	if len(fresh) != 1 || fresh[0].Key != key || len(w.Found()) != Most || w.Found()[0].Key != key {
		t.Errorf("a larger one: %+v is new, %d are found", fresh, len(w.Found()))
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, o := range []Options{{Every: -1}, {Recent: -1}, {Q: 1}, {Q: -1}, {Least: -1}} {
		if _, err := New(&simulated{}, o); err == nil {
			t.Errorf("no error for %+v", o)
		}
	}
}
