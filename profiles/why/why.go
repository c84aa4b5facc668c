// Package why explains how long a trace took: the parts of its root's time, each with the service, the function, the state
// and, for a wait, who caused it. Where the root waited for the answer of another service, the parts are those of the span
// that answered. The command why prints it. It reads no files and no servers: it is given spans and their profiles.
package why

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/format"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

// Limits of a report.
const (
	maxDepth    = 8  // services that call one another
	shownParts  = 10 // the rest are one line
	shownCauses = 3  // of one part
)

// Report explains a span. Its parts sum to the time that its profile has.
type Report struct {
	TraceID   string   `json:"trace_id"`
	SpanID    string   `json:"span"`
	Service   string   `json:"service"`
	Name      string   `json:"name"`
	Took      Millis   `json:"duration_ms"`
	Spans     int      `json:"spans"` // of the trace
	Diagnosis string   `json:"diagnosis"`
	Parts     []Part   `json:"parts"`             // largest first
	Missing   []string `json:"missing,omitempty"` // what is not known, in sentences
}

// Millis is a duration that JSON has as a number of milliseconds.
type Millis time.Duration

// MarshalJSON implements [json.Marshaler].
func (m Millis) MarshalJSON() ([]byte, error) {
	return json.Marshal(float64(m) / float64(time.Millisecond))
}

// Part is a part of the time, on the way that decided how long the span took: without it, the span would have taken as
// much less.
type Part struct {
	Service  string  `json:"service"`
	Request  string  `json:"request"`            // the name of the span that answered in this service
	Function string  `json:"function,omitempty"` // the one to blame
	State    string  `json:"state"`              // such as "waiting: mutex"
	For      string  `json:"for,omitempty"`      // what it waited for, if that has a name
	Took     Millis  `json:"ms"`
	Causes   []Cause `json:"causes,omitempty"` // of a wait, largest first

	at wallprofile.Place
}

// Cause is where time was spent by whoever a part waited for.
type Cause struct {
	Who      string `json:"who"` // such as "held by: POST /audit, another request"
	Function string `json:"function,omitempty"`
	State    string `json:"state"`
	For      string `json:"for,omitempty"`
	Took     Millis `json:"ms"`

	at wallprofile.Place
}

// Explain explains a span of a trace. The wall-clock profile of a span is read by read, whose error wraps
// [profiles.ErrNone] if there is none.
func Explain(spans []traces.Span, of traces.Span, read func(traces.Span) (*profile.Profile, error)) (*Report, error) {
	p, err := read(of)
	if err != nil {
		return nil, err
	}
	e := explainer{spans: spans, read: read}
	r := &Report{
		TraceID: of.TraceID, SpanID: of.ID, Service: of.Service, Name: of.Name, Took: Millis(of.Duration()), Spans: len(spans),
		Diagnosis: cmp.Or(profiles.SavedDiagnosis(p, of.ID), profiles.Diagnose(p, of.Name, of.Duration())),
	}
	if r.Parts, err = e.explain(of, p, 0); err != nil {
		return nil, err
	}
	r.Missing = e.missing
	slices.SortStableFunc(r.Parts, func(a, b Part) int { return cmp.Compare(b.Took, a.Took) })
	return r, nil
}

type explainer struct {
	spans   []traces.Span
	read    func(traces.Span) (*profile.Profile, error)
	missing []string
}

// calls returns the spans of other services by the name of the span that called them, which is the span or one below it in
// its service.
func (e *explainer) calls(of traces.Span) map[string][]traces.Span {
	all := make(map[string][]traces.Span)
	callers := map[string]string{of.ID: of.Name}
	for more := true; more; {
		more = false
		for _, s := range e.spans {
			caller, ok := callers[s.ParentID]
			if !ok {
				continue
			}
			if s.Service != of.Service || s.Kind == "server" || s.Kind == "consumer" {
				if !slices.ContainsFunc(all[caller], func(other traces.Span) bool { return other.ID == s.ID }) {
					all[caller] = append(all[caller], s)
				}
			} else if _, known := callers[s.ID]; !known {
				callers[s.ID], more = s.Name, true
			}
		}
	}
	return all
}

// explain divides the time that a profile has of its span.
func (e *explainer) explain(of traces.Span, p *profile.Profile, depth int) (parts []Part, err error) {
	calls := e.calls(of)
	waited := make(map[string]time.Duration) // for answers, by the name of the span that called
	for _, s := range p.Sample {
		at, own := profiles.WhereOf(s)
		if !own || len(s.Value) == 0 {
			continue
		}
		took := time.Duration(s.Value[0])
		if len(calls[at.Span]) > 0 && wallprofile.IsAnswer(at.At.For) && depth < maxDepth {
			waited[at.Span] += took
			continue
		}
		i := slices.IndexFunc(parts, func(p Part) bool { return p.at == at.At })
		if i < 0 {
			i = len(parts)
			parts = append(parts, Part{
				Service: of.Service, Request: of.Name, Function: at.At.Function, State: stateOf(at.At.Leaf), For: at.At.For, at: at.At,
			})
		}
		parts[i].Took += Millis(took)
		parts[i].caused(at, took)
	}
	for i := range parts {
		slices.SortFunc(parts[i].Causes, func(a, b Cause) int { return cmp.Compare(b.Took, a.Took) })
	}
	for _, s := range e.spans { // in the order of the spans, so that the report is the same each time
		took, ok := waited[s.Name]
		if !ok {
			continue
		}
		delete(waited, s.Name)
		answers, err := e.answers(calls[s.Name], took, depth+1)
		if err != nil {
			return nil, err
		}
		parts = append(parts, answers...)
	}
	return parts, nil
}

// caused adds what whoever was waited for did.
func (p *Part) caused(at profiles.Where, took time.Duration) {
	if at.Who == "" {
		return
	}
	i := slices.IndexFunc(p.Causes, func(c Cause) bool { return c.Who == wallprofile.CauseName(at.Who) && c.at == at.Cause })
	if i < 0 {
		i = len(p.Causes)
		p.Causes = append(p.Causes, Cause{
			Who: wallprofile.CauseName(at.Who), Function: at.Cause.Function, State: stateOf(at.Cause.Leaf), For: at.Cause.For, at: at.Cause,
		})
	}
	p.Causes[i].Took += Millis(took)
}

func stateOf(leaf string) string {
	if leaf == "" {
		return wallprofile.Running.String()
	}
	return strings.Trim(leaf, "[]")
}

// answers divides the time that was waited for the answers of spans: their own parts, in proportion where they overlap, and
// the network. Only durations are compared, as the clocks of two machines differ.
func (e *explainer) answers(servers []traces.Span, waited time.Duration, depth int) (parts []Part, err error) {
	var whole time.Duration
	for _, s := range servers {
		whole += s.Duration()
	}
	rest := waited
	for _, s := range servers {
		share := s.Duration()
		if whole > waited {
			share = time.Duration(float64(share) * float64(waited) / float64(whole))
		}
		rest -= share
		p, err := e.read(s)
		if errors.Is(err, profiles.ErrNone) {
			e.missing = append(e.missing, fmt.Sprintf("%s of %s, %v, has no wall-clock profile.", s.Name, s.Service, s.Duration().Round(time.Microsecond)))
			parts = append(parts, Part{Service: s.Service, Request: s.Name, State: "no profile", Took: Millis(share)})
			continue
		}
		if err != nil {
			return nil, err
		}
		below, err := e.explain(s, p, depth)
		if err != nil {
			return nil, err
		}
		parts = append(parts, scale(below, share)...)
	}
	if rest > 0 {
		last := servers[0]
		parts = append(parts, Part{Service: last.Service, Request: last.Name, State: "the network, or the queue before " + last.Name, Took: Millis(rest)})
	}
	return parts, nil
}

// scale changes parts so that they sum to a time exactly.
func scale(parts []Part, to time.Duration) []Part {
	var sum Millis
	for _, p := range parts {
		sum += p.Took
	}
	if sum == 0 {
		return nil
	}
	by, rest := float64(to)/float64(sum), Millis(to)
	for i := range parts {
		parts[i].Took = Millis(float64(parts[i].Took) * by)
		rest -= parts[i].Took
		for j := range parts[i].Causes {
			parts[i].Causes[j].Took = Millis(float64(parts[i].Causes[j].Took) * by)
		}
	}
	parts[0].Took += rest
	return parts
}

// WriteJSON writes the report as JSON.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// WriteText writes the report as text.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", format.Clean(cmp.Or(r.Diagnosis, r.Name), 1000))
	fmt.Fprintf(&b, "trace %s, %s of %s\n\n", r.TraceID, format.Count(r.Spans, "span"), format.Clean(r.Service, 100))
	for i, p := range r.Parts {
		if i == shownParts {
			var rest Millis
			for _, p := range r.Parts[i:] {
				rest += p.Took
			}
			fmt.Fprintf(&b, "%9s  %6s  in %s\n", millis(rest), r.share(rest), format.Count(len(r.Parts)-i, "smaller part"))
			break
		}
		fmt.Fprintf(&b, "%9s  %6s  %s, %s: %s\n", millis(p.Took), r.share(p.Took),
			format.Clean(p.Service, 100), format.Clean(p.Request, 100), describe(p.at, p.State))
		for j, c := range p.Causes {
			if j == shownCauses {
				break
			}
			fmt.Fprintf(&b, "%19s%9s  %s", "", millis(c.Took), format.Clean(c.Who, 200))
			if c.at.Function != "" {
				fmt.Fprintf(&b, ": %s", describe(c.at, c.State))
			}
			b.WriteByte('\n')
		}
	}
	for _, m := range r.Missing {
		fmt.Fprintf(&b, "\n%s", format.Clean(m, 300))
	}
	if len(r.Parts) > 0 {
		fmt.Fprintf(&b, "\nWithout the first part it would have taken %s.\n", millis(r.Took-r.Parts[0].Took))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func describe(at wallprofile.Place, state string) string {
	switch {
	case at == (wallprofile.Place{}):
		return state
	case at.Function == "":
		return at.Phrase()
	}
	return at.Phrase() + " in " + format.Clean(wallprofile.Short(at.Function), 200)
}

func millis(m Millis) string {
	return fmt.Sprintf("%d ms", time.Duration(m).Round(time.Millisecond).Milliseconds())
}

func (r *Report) share(m Millis) string {
	return fmt.Sprintf("%.0f %%", 100*float64(m)/float64(max(1, r.Took)))
}

// Main returns the span of a trace to explain: of those that have a profile, the longest by which a request entered a
// service, or else the longest.
func Main(spans []traces.Span, profiled func(traces.Span) bool) (best traces.Span, ok bool) {
	services := make(map[string]string, len(spans))
	for _, s := range spans {
		services[s.ID] = s.Service
	}
	entered := false
	for _, s := range spans {
		if !profiled(s) {
			continue
		}
		if e := services[s.ParentID] != s.Service; !ok || e && !entered || e == entered && s.Duration() > best.Duration() {
			best, ok, entered = s, true, e
		}
	}
	return best, ok
}
