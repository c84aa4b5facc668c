package why

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/format"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

const (
	minTail = 4 // slow requests
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
	if w.Labels[wallprofile.SpanScope] == wallprofile.ScopeChild {
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
			q = &request{id: ids[0], spent: make(map[spot]time.Duration)}
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

// Tail describes what the slowest requests of a name spend their time on that faster ones do not. The requests are chosen by
// how long they took, so it is no test of anything: of requests that differ by chance, the slowest have more of something, too.
type Tail struct {
	Name   string     `json:"request"`
	Slow   TailSide   `json:"slow"`
	Faster TailSide   `json:"faster"`
	Parts  []TailPart `json:"parts"` // what the slow ones spend more time in, largest first
	Notes  []string   `json:"notes,omitempty"`
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
	Function string `json:"function"`
	State    string `json:"state"`
	Slow     Millis `json:"slow_ms"` // mean of a request
	Faster   Millis `json:"faster_ms"`
	More     Millis `json:"more_ms"`       // the difference
	Have     int    `json:"slow_requests"` // how many of the slow ones have it
}

// Tail compares the slowest n recorded requests with the faster half of the others, by the mean time that a request spends in
// each function and state. The differences of all parts add up to that of the requests; parts below a hundredth of it are
// left out.
func (r *Requests) Tail(n int) (*Tail, error) {
	if n < minTail {
		return nil, fmt.Errorf("the slowest %d requests: want at least %d", n, minTail)
	}
	all := slices.SortedFunc(maps.Values(r.found), func(a, b *request) int { return cmp.Or(cmp.Compare(b.took, a.took), cmp.Compare(a.id, b.id)) })
	n = min(n, len(all)/3) // so that about as many others are left
	if n < minTail {
		return nil, fmt.Errorf("%w: %q has %s with a wall-clock profile: want at least %d; other names are %q",
			profiles.ErrNone, r.name, format.Count(len(all), "request"), 3*minTail, slices.Sorted(maps.Keys(r.names)))
	}
	slow, others := all[:n], all[n:]
	faster := others[len(others)/2:]
	t := &Tail{Name: r.name, Slow: sideOf(slow), Faster: sideOf(faster), Parts: []TailPart{}}
	if r.more > 0 {
		t.Notes = append(t.Notes, fmt.Sprintf("there are more than %d requests: choose a shorter time", maxRequests))
	}
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
		if p.More = p.Slow - p.Faster; p.More > 0 && p.More >= (t.Slow.Mean-t.Faster.Mean)/100 {
			t.Parts = append(t.Parts, *p)
		}
	}
	slices.SortFunc(t.Parts, func(a, b TailPart) int {
		return cmp.Or(cmp.Compare(b.More, a.More), cmp.Compare(a.Function, b.Function), cmp.Compare(a.State, b.State))
	})
	return t, nil
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
	fmt.Fprintf(&b, "%s: the slowest %d took %s to %s, the faster half of the other recorded ones (%d) %s to %s\n", format.Clean(t.Name, 200),
		t.Slow.Requests, ms(t.Slow.Least), ms(t.Slow.Most), t.Faster.Requests, ms(t.Faster.Least), ms(t.Faster.Most))
	for _, p := range t.Parts[:min(len(t.Parts), shownTail)] {
		fmt.Fprintf(&b, "%9s more  in %d of %d: %s in %s (%s instead of %s)\n", ms(p.More), p.Have, t.Slow.Requests, p.State,
			format.Clean(p.Function, 200), ms(p.Slow), ms(p.Faster))
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
