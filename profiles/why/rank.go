package why

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/google/pprof/profile"

	"spanflame/internal/format"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

const shownBlamed = 12

// Ranking tells who made other requests wait.
type Ranking struct {
	Blamed []Blamed `json:"blamed"` // largest first
	found  map[blamed]*Blamed
}

// Blamed is a route, or a goroutine of none, that made other requests wait.
type Blamed struct {
	Service  string `json:"service"`
	Request  string `json:"request,omitempty"`  // the name of its local root span; empty if it is not known
	Alone    string `json:"alone,omitempty"`    // the function of a goroutine that worked for no request with a span, instead
	Function string `json:"function,omitempty"` // in which it spent the time, or which it called
	State    string `json:"state"`
	Waited   string `json:"waited_in"` // the function in which the others waited
	Requests int    `json:"requests"`  // how many waited; 0 if the source does not have the IDs of spans
	Took     Millis `json:"ms"`        // how long, in sum

	cause wallprofile.Place
	spans map[string]bool
}

type blamed struct {
	service, request, alone, waited string
	cause                           wallprofile.Place
}

// Add adds the wall-clock profile of a service's requests.
func (r *Ranking) Add(service string, p *profile.Profile) {
	if r.found == nil {
		r.found = make(map[blamed]*Blamed)
	}
	for _, s := range p.Sample {
		at, own := profiles.WhereOf(s)
		who, whose, ok := wallprofile.Culprit(at.Who)
		if !own || !ok || len(s.Value) == 0 || wallprofile.IsAnswer(at.At.For) { // which the goroutine of a connection read
			continue
		}
		request, alone := who, ""
		if whose != wallprofile.OtherRequest {
			request, alone = "", who
		}
		k := blamed{service, request, alone, at.At.Function, at.Cause}
		b := r.found[k]
		if b == nil {
			b = &Blamed{Service: service, Request: request, Alone: alone, Function: at.Cause.Function, State: stateOf(at.Cause.Leaf), Waited: at.At.Function,
				cause: at.Cause, spans: make(map[string]bool)}
			r.found[k] = b
		}
		b.Took += Millis(s.Value[0])
		for _, id := range s.Label[wallprofile.SpanID] {
			b.spans[id] = true
		}
		b.Requests = len(b.spans)
	}
	r.Blamed = make([]Blamed, 0, len(r.found))
	for _, b := range r.found {
		r.Blamed = append(r.Blamed, *b)
	}
	slices.SortFunc(r.Blamed, func(a, b Blamed) int {
		return cmp.Or(cmp.Compare(b.Took, a.Took), strings.Compare(a.Request, b.Request), strings.Compare(a.Alone, b.Alone), strings.Compare(a.Function, b.Function),
			strings.Compare(a.Waited, b.Waited), strings.Compare(a.State, b.State), strings.Compare(a.Service, b.Service))
	})
}

// WriteJSON writes the ranking as JSON.
func (r *Ranking) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// WriteText writes the ranking as text.
func (r *Ranking) WriteText(w io.Writer) error {
	var b strings.Builder
	if len(r.Blamed) == 0 {
		b.WriteString("No slow request waited for another one, or for a goroutine of none.\n")
	}
	for i, of := range r.Blamed {
		if i == shownBlamed {
			fmt.Fprintf(&b, "and %s\n", format.Count(len(r.Blamed)-i, "smaller one"))
			break
		}
		made := "others"
		if of.Requests > 0 {
			made = format.Count(of.Requests, "request")
		}
		fmt.Fprintf(&b, "%9s  %s, %s made %s wait in %s: %s\n", millis(of.Took), format.Clean(of.Service, 100),
			format.Clean(cmp.Or(of.Request, wallprofile.Short(of.Alone), "a request without a name"), 100), made,
			format.Clean(wallprofile.Short(of.Waited), 200), describe(of.cause, of.State))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
