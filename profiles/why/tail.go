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
	minTail = 4 // slow requests, and fast ones
	// MaxTail is the maximum number of slow requests, and of fast ones, that are compared: each is a point of the tests.
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
	id    string
	start time.Time // of its window
	fast  bool      // it is of the sample of fast requests
	took  time.Duration
	spent map[spot]time.Duration
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
			q = &request{id: ids[0], start: w.Start, fast: scope == wallprofile.ScopeFast, spent: make(map[spot]time.Duration)}
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

// Tail tells what the slowest requests of a name spend their time on that faster ones do not.
type Tail struct {
	Name    string     `json:"request"`
	Slow    TailSide   `json:"slow"`
	Faster  TailSide   `json:"faster"`
	Sampled bool       `json:"sampled"` // the faster ones are a sample of fast requests, and the parts are significant
	Parts   []TailPart `json:"parts"`   // what the slow ones spend more time in, largest first
	Notes   []string   `json:"notes,omitempty"`
}

// TailSide describes one of the two sets of requests.
type TailSide struct {
	Requests int    `json:"requests"`
	Mean     Millis `json:"mean_ms"`
	Least    Millis `json:"least_ms"`
	Most     Millis `json:"most_ms"`
}

// TailPart is a function in one state.
type TailPart struct {
	Function string  `json:"function"`
	State    string  `json:"state"`
	Slow     Millis  `json:"slow_ms"` // mean of a request
	Faster   Millis  `json:"faster_ms"`
	More     Millis  `json:"more_ms"`       // the difference
	Have     int     `json:"slow_requests"` // how many of the slow ones have it
	Q        float64 `json:"q,omitempty"`   // the rate of false discoveries at which it is significant, 0 if it is not tested
}

// Tail compares the slowest n recorded requests with the sample of fast requests that agents take, by the mean time that a
// request spends in each function and state. Parts are those with significantly more time, by the tests of package compare,
// with a request as a window. Without a sample, the slowest are compared with the faster half of the other recorded ones, which
// is no test of anything: of requests that differ by chance, the slowest have more of something, too. Parts below a hundredth
// of the difference are left out.
func (r *Requests) Tail(ctx context.Context, n int) (*Tail, error) {
	if n < minTail || n > MaxTail {
		return nil, fmt.Errorf("the slowest %d requests: want at least %d and at most %d", n, minTail, MaxTail)
	}
	bySpeed := func(a, b *request) int { return cmp.Or(cmp.Compare(b.took, a.took), cmp.Compare(a.id, b.id)) }
	slow, faster := []*request(nil), []*request(nil)
	for _, q := range slices.SortedFunc(maps.Values(r.found), bySpeed) {
		if q.fast {
			faster = append(faster, q)
		} else {
			slow = append(slow, q)
		}
	}
	t := &Tail{Name: r.name, Sampled: len(faster) >= minTail, Parts: []TailPart{}}
	if r.more > 0 {
		t.note("there are more than %d requests: choose a shorter time", maxRequests)
	}
	if t.Sampled {
		slow, faster = slow[:min(n, len(slow))], spread(faster)
	} else {
		n = min(n, len(slow)/3) // so that about as many others are left
		others := slow[n:]
		slow, faster = slow[:n], others[len(others)/2:]
	}
	if len(slow) < minTail {
		return nil, fmt.Errorf("%w: %q has %s and %d fast ones with a wall-clock profile: want at least %d slow and %d fast ones, or %d slow ones; "+
			"other names are %q", profiles.ErrNone, r.name, format.Count(r.slow(), "slow request"), len(r.found)-r.slow(),
			minTail, minTail, 3*minTail, slices.Sorted(maps.Keys(r.names)))
	}
	t.Slow, t.Faster = sideOf(slow), sideOf(faster)
	significant := make(map[spot]float64)
	if t.Sampled {
		var err error
		if significant, err = test(ctx, faster, slow); err != nil {
			return nil, err
		}
	}
	for at, p := range differences(slow, faster) {
		var real bool
		if p.Q, real = significant[at]; t.Sampled && !real {
			continue
		}
		if p.More > 0 && p.More >= (t.Slow.Mean-t.Faster.Mean)/100 {
			t.Parts = append(t.Parts, *p)
		}
	}
	slices.SortFunc(t.Parts, func(a, b TailPart) int {
		return cmp.Or(cmp.Compare(b.More, a.More), cmp.Compare(a.Function, b.Function), cmp.Compare(a.State, b.State))
	})
	return t, nil
}

func (t *Tail) note(text string, args ...any) { t.Notes = append(t.Notes, fmt.Sprintf(text, args...)) }

// slow returns how many requests are not of the sample of fast ones.
func (r *Requests) slow() (n int) {
	for _, q := range r.found {
		if !q.fast {
			n++
		}
	}
	return n
}

// spread returns at most MaxTail of all, evenly.
func spread(all []*request) []*request {
	if len(all) <= MaxTail {
		return all
	}
	some := make([]*request, MaxTail)
	for i := range some {
		some[i] = all[i*(len(all)-1)/(MaxTail-1)]
	}
	return some
}

// differences returns the parts of the slow requests.
func differences(slow, faster []*request) map[spot]*TailPart {
	parts := make(map[spot]*TailPart)
	for _, q := range slow {
		for at, took := range q.spent {
			p := parts[at]
			if p == nil {
				p = &TailPart{Function: at.function, State: at.state}
				parts[at] = p
			}
			p.Slow += Millis(took)
			p.Have++
		}
	}
	for _, q := range faster {
		for at, took := range q.spent {
			if p := parts[at]; p != nil {
				p.Faster += Millis(took)
			}
		}
	}
	for _, p := range parts {
		p.Slow, p.Faster = p.Slow/Millis(len(slow)), p.Faster/Millis(len(faster))
		p.More = p.Slow - p.Faster
	}
	return parts
}

// test returns the q of the functions and states in which the requests of one set spend significantly more or less time than
// those of the other.
func test(ctx context.Context, before, after []*request) (map[spot]float64, error) {
	names := make(map[spot]string) // in the profiles that are compared, where each is a function
	var spots []spot
	for _, q := range slices.Concat(before, after) {
		for at := range q.spent {
			if names[at] == "" {
				names[at] = fmt.Sprintf("spot %d", len(spots))
				spots = append(spots, at)
			}
		}
	}
	report, err := compare.Compare(ctx, windowsOf(before, names), windowsOf(after, names), compare.Options{Normalization: compare.ByNothing})
	if err != nil {
		return nil, err
	}
	significant := make(map[spot]float64)
	for _, c := range report.Metrics[0].Functions {
		if !c.Flat.Significant {
			continue
		}
		var i int
		if _, err := fmt.Sscanf(c.Name, "spot %d", &i); err != nil {
			return nil, fmt.Errorf("the spot %q: %w", c.Name, err)
		}
		significant[spots[i]] = c.Flat.Q
	}
	return significant, nil
}

// windowsOf returns a window for each request by time, with the spots by name.
func windowsOf(of []*request, names map[spot]string) iter.Seq2[profiles.Window, error] {
	byTime := func(a, b *request) int { return cmp.Or(a.start.Compare(b.start), cmp.Compare(a.id, b.id)) }
	return func(yield func(profiles.Window, error) bool) {
		for _, q := range slices.SortedFunc(slices.Values(of), byTime) {
			p := &profile.Profile{SampleType: []*profile.ValueType{{Type: "time", Unit: "nanoseconds"}}}
			for at, took := range q.spent {
				l := &profile.Location{Line: []profile.Line{{Function: &profile.Function{Name: names[at]}}}}
				p.Sample = append(p.Sample, &profile.Sample{Location: []*profile.Location{l}, Value: []int64{int64(took)}})
			}
			if !yield(profiles.Window{Profile: p}, nil) {
				return
			}
		}
	}
}

// sideOf describes requests, the slowest of which is the first.
func sideOf(of []*request) TailSide {
	var sum time.Duration
	for _, q := range of {
		sum += q.took
	}
	return TailSide{len(of), Millis(sum / time.Duration(len(of))), Millis(of[len(of)-1].took), Millis(of[0].took)}
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
	faster := "the faster half of the other recorded ones (%d) %s to %s\n"
	if t.Sampled {
		faster = "%d fast ones %s to %s\n"
	}
	fmt.Fprintf(&b, "%s: the slowest %d took %s to %s, "+faster, format.Clean(t.Name, 200),
		t.Slow.Requests, ms(t.Slow.Least), ms(t.Slow.Most), t.Faster.Requests, ms(t.Faster.Least), ms(t.Faster.Most))
	for _, p := range t.Parts[:min(len(t.Parts), shownTail)] {
		q := ""
		if t.Sampled {
			q = ", q " + format.Probability(p.Q)
		}
		fmt.Fprintf(&b, "%9s more  in %d of %d%s: %s in %s (%s instead of %s)\n", ms(p.More), p.Have, t.Slow.Requests, q, p.State,
			format.Clean(p.Function, 200), ms(p.Slow), ms(p.Faster))
	}
	if t.Sampled && len(t.Parts) == 0 {
		b.WriteString("The slow ones have no function and state significantly more than the fast ones.\n")
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
