package why

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/format"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/profiles/compare"
)

const (
	// MaxTail is the maximum number of slow requests, and of ordinary ones, that are compared: each is a point of the test.
	MaxTail = 64
	// maxRequests limits the requests whose profiles are kept.
	maxRequests = 50_000
	maxNames    = 20 // in an error
	shownTail   = 12
)

// Requests are requests of one name with their wall-clock profiles, from which a Tail is made.
type Requests struct {
	name  string
	found map[string]*request
	more  int             // samples of requests beyond maxRequests
	names map[string]bool // other names; at most maxNames
}

// request is one request.
type request struct {
	id       string
	start    time.Time // of its window
	ordinary bool      // it is of the sample of requests that need not be slow
	took     time.Duration
	spent    map[spot]time.Duration
}

// spot is a function and its state.
type spot struct{ function, state string }

// NewRequests returns the requests of a name.
func NewRequests(name string) *Requests {
	return &Requests{name: name, found: make(map[string]*request), names: make(map[string]bool)}
}

// Add adds the requests of a window that have the name. Windows of child spans are left out, as their time is in that of
// their requests.
func (r *Requests) Add(w profiles.Window) {
	scope := w.Labels[wallprofile.SpanScope]
	if scope == wallprofile.ScopeChild {
		return
	}
	for _, s := range w.Profile.Sample {
		at, own := profiles.WhereOf(s)
		ids := s.Label[wallprofile.SpanID]
		if !own || len(s.Value) == 0 || len(ids) != 1 {
			continue
		}
		if name := rootOf(s); name != r.name {
			if len(r.names) < maxNames {
				r.names[name] = true
			}
			continue
		}
		q := r.found[ids[0]]
		if q == nil {
			if len(r.found) >= maxRequests {
				r.more++
				continue
			}
			q = &request{id: ids[0], start: w.Start, ordinary: scope == wallprofile.ScopeOrdinary, spent: make(map[spot]time.Duration)}
			r.found[ids[0]] = q
		}
		q.took += time.Duration(s.Value[0])
		q.spent[spot{at.At.Function, stateOf(at.At.Leaf)}] += time.Duration(s.Value[0])
	}
}

// rootOf returns the name of the outermost span of a sample.
func rootOf(s *profile.Sample) string {
	for _, l := range slices.Backward(s.Location) {
		for _, line := range slices.Backward(l.Line) {
			if line.Function != nil {
				if name, ok := strings.CutPrefix(line.Function.Name, wallprofile.SpanPrefix); ok {
					return name
				}
			}
		}
	}
	return ""
}

// Tail tells what the slowest requests of a name have that ordinary ones have not.
type Tail struct {
	Name     string     `json:"request"`
	Slow     TailSide   `json:"slow"`
	Ordinary TailSide   `json:"ordinary"`
	Parts    []TailPart `json:"parts"` // what the slow ones spend significantly more time in, largest first
	Notes    []string   `json:"notes,omitempty"`
}

// TailSide describes one of the two sets of requests.
type TailSide struct {
	Requests int    `json:"requests"`
	Median   Millis `json:"median_ms"`
	Least    Millis `json:"least_ms"`
	Most     Millis `json:"most_ms"`
}

// TailPart is a function in one state.
type TailPart struct {
	Function string  `json:"function"`
	State    string  `json:"state"`
	Slow     Millis  `json:"slow_ms"` // mean of a request
	Ordinary Millis  `json:"ordinary_ms"`
	Have     int     `json:"slow_requests"` // how many of the slow ones have it
	Q        float64 `json:"q"`
}

// Tail compares the slowest n requests with ordinary ones by the time that they spend in each function and state, with the
// tests and the correction of package compare. Ordinary requests are those of the sample that agents take regardless of
// how long a request takes; without it, they are the faster half of the others.
func (r *Requests) Tail(ctx context.Context, n int) (*Tail, error) {
	if n < 4 || n > MaxTail {
		return nil, fmt.Errorf("the slowest %d requests: want 4 to %d", n, MaxTail)
	}
	var recorded, ordinary []*request
	for _, q := range r.found {
		if q.ordinary {
			ordinary = append(ordinary, q)
		} else {
			recorded = append(recorded, q)
		}
	}
	slices.SortFunc(recorded, func(a, b *request) int { return cmp.Or(cmp.Compare(b.took, a.took), cmp.Compare(a.id, b.id)) })
	t := &Tail{Name: r.name, Parts: []TailPart{}}
	if r.more > 0 {
		t.note("there are more than %d requests: choose a shorter time", maxRequests)
	}
	sampled := len(ordinary) >= n/2
	if !sampled {
		n = min(n, len(recorded)/3) // so that about as many others are left
	}
	slow := recorded[:min(n, len(recorded))]
	if !sampled {
		others := recorded[len(slow):]
		ordinary = append(ordinary, others[len(others)/2:]...)
		t.note("there are too few profiles of fast requests: the slowest are compared with the faster half of the recorded ones, all of which are slow")
	}
	if len(slow) < 4 || len(ordinary) < 4 {
		return nil, fmt.Errorf("%w: %q has %s and %d ordinary ones with a wall-clock profile: want at least 4 of each; other names are %q",
			profiles.ErrNone, r.name, format.Count(len(slow), "slow request"), len(ordinary), slices.Sorted(maps.Keys(r.names)))
	}
	byTime := func(a, b *request) int { return cmp.Or(a.start.Compare(b.start), cmp.Compare(a.id, b.id)) }
	slow = slices.SortedFunc(slices.Values(slow), byTime)
	slices.SortFunc(ordinary, byTime)
	ordinary = spread(ordinary, MaxTail)
	t.Slow, t.Ordinary = sideOf(slow), sideOf(ordinary)
	report, err := compare.Compare(ctx, windowsOf(ordinary), windowsOf(slow), compare.Options{Normalization: compare.ByNothing})
	if err != nil {
		return nil, err
	}
	for _, c := range report.Metrics[0].Stacks {
		if len(c.Stack) != 2 || !c.Cum.Significant || c.Cum.After <= c.Cum.Before {
			continue
		}
		p := TailPart{
			Function: c.Stack[0], State: strings.Trim(c.Stack[1], "[]"),
			Slow: Millis(c.Cum.After), Ordinary: Millis(c.Cum.Before), Q: c.Cum.Q,
		}
		for _, q := range slow {
			if q.spent[spot{p.Function, p.State}] > 0 {
				p.Have++
			}
		}
		t.Parts = append(t.Parts, p)
	}
	slices.SortStableFunc(t.Parts, func(a, b TailPart) int { return cmp.Compare(b.Slow-b.Ordinary, a.Slow-a.Ordinary) })
	return t, nil
}

func (t *Tail) note(text string, args ...any) { t.Notes = append(t.Notes, fmt.Sprintf(text, args...)) }

// spread returns at most n of all, evenly.
func spread(all []*request, n int) []*request {
	if len(all) <= n {
		return all
	}
	some := make([]*request, n)
	for i := range some {
		some[i] = all[i*(len(all)-1)/(n-1)]
	}
	return some
}

func sideOf(of []*request) TailSide {
	var took []time.Duration
	for _, q := range of {
		took = append(took, q.took)
	}
	slices.Sort(took)
	n := len(took)
	return TailSide{Requests: n, Median: Millis((took[(n-1)/2] + took[n/2]) / 2), Least: Millis(took[0]), Most: Millis(took[n-1])}
}

// windowsOf returns a window for each request, with the stack of each function and state.
func windowsOf(of []*request) iter.Seq2[profiles.Window, error] {
	return func(yield func(profiles.Window, error) bool) {
		for _, q := range of {
			p := &profile.Profile{SampleType: []*profile.ValueType{{Type: "time", Unit: "nanoseconds"}}}
			frames := make(map[string]*profile.Location)
			frame := func(name string) *profile.Location {
				l := frames[name]
				if l == nil {
					l = &profile.Location{Line: []profile.Line{{Function: &profile.Function{Name: name}}}}
					frames[name] = l
				}
				return l
			}
			for at, took := range q.spent {
				p.Sample = append(p.Sample, &profile.Sample{
					Location: []*profile.Location{frame("[" + at.state + "]"), frame(at.function)}, Value: []int64{int64(took)},
				})
			}
			if !yield(profiles.Window{Profile: p}, nil) {
				return
			}
		}
	}
}

// WriteJSON writes the tail as JSON.
func (t *Tail) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(t)
}

// WriteText writes the tail for a terminal.
func (t *Tail) WriteText(w io.Writer) error {
	var b strings.Builder
	ms := func(m Millis) string { return format.Amount(float64(m), "nanoseconds") }
	fmt.Fprintf(&b, "%s: the slowest %d took %s to %s, %s %s to %s\n", format.Clean(t.Name, 200), t.Slow.Requests, ms(t.Slow.Least), ms(t.Slow.Most),
		format.Count(t.Ordinary.Requests, "ordinary request"), ms(t.Ordinary.Least), ms(t.Ordinary.Most))
	for _, p := range t.Parts[:min(len(t.Parts), shownTail)] {
		fmt.Fprintf(&b, "%9s more  in %d of %d, q %s: %s in %s (%s instead of %s)\n", ms(p.Slow-p.Ordinary), p.Have, t.Slow.Requests,
			format.Probability(p.Q), p.State, format.Clean(p.Function, 200), ms(p.Slow), ms(p.Ordinary))
	}
	if len(t.Parts) == 0 {
		b.WriteString("No function and state of the slow requests is significantly more than in ordinary ones.\n")
	}
	if left := len(t.Parts) - shownTail; left > 0 {
		fmt.Fprintf(&b, "and %d more\n", left)
	}
	for _, n := range t.Notes {
		fmt.Fprintf(&b, "%s\n", n)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
