// Package why explains how long a trace took. It makes one piece of the profiles of its spans: where a request waited for the
// answer of another service, stands what the span did that answered. Of that it makes a profile of the whole trace, and a
// report with the parts of the time, each with the service, the function, the state and, for a wait, who caused it. The command
// why and the pages show them. It reads no files and no servers: it is given spans and their profiles.
package why

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"spanflame/internal/format"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
)

// Limits of a report.
const (
	shownParts  = 10 // the rest are one line
	shownCauses = 3  // of one part
)

// Report explains a trace. Its parts sum to the duration of the span that the trace began with.
type Report struct {
	TraceID   string   `json:"trace_id"`
	SpanID    string   `json:"span"`
	Service   string   `json:"service"`
	Name      string   `json:"name"`
	Took      Millis   `json:"duration_ms"`
	Spans     int      `json:"spans"` // of the trace
	Diagnosis string   `json:"diagnosis"`
	Parts     []Part   `json:"parts"`             // largest first: profiles do not have the order of time
	Missing   []string `json:"missing,omitempty"` // what is not known, in sentences
}

// Millis is a duration that JSON has as a number of milliseconds.
type Millis time.Duration

// MarshalJSON implements [json.Marshaler].
func (m Millis) MarshalJSON() ([]byte, error) {
	return json.Marshal(float64(m) / float64(time.Millisecond))
}

// Part is a part of the time, on the way that decided how long the trace took.
type Part struct {
	Service  string  `json:"service"`
	Request  string  `json:"request"`             // the name of the span that answered in this service
	Function string  `json:"function,omitempty"`  // the one to blame
	State    string  `json:"state"`               // such as "waiting: mutex"
	For      string  `json:"for,omitempty"`       // what it waited for, if that has a name
	Call     string  `json:"call,omitempty"`      // what it asked of a database or another service, such as "query: SELECT 1"
	Calls    int     `json:"calls,omitempty"`     // how often, one after the other; 0 if that is not known
	WaitedIn string  `json:"waited_in,omitempty"` // the function that waited for it, if another goroutine of the request did it
	Took     Millis  `json:"ms"`
	Without  Millis  `json:"without_ms"`       // how long the trace would have taken without it
	Causes   []Cause `json:"causes,omitempty"` // of a wait, largest first

	at      wallprofile.Place
	bounded map[*bound]int64
	calls   map[string]time.Duration
	asked   map[asked]int
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

// Explain explains the trace of a span that has a profile: see [Stitch].
func Explain(spans []traces.Span, of traces.Span, read Reader) (*Report, error) {
	t, err := Stitch(spans, of, read)
	if err != nil {
		return nil, err
	}
	return t.Report(), nil
}

// Report returns the parts of the trace.
func (t *Trace) Report() *Report {
	r := &Report{
		TraceID: t.of.TraceID, SpanID: t.of.ID, Service: t.of.Service, Name: t.of.Name, Took: Millis(t.of.Duration()), Spans: t.spans,
		Diagnosis: t.diagnosis, Missing: t.missing,
	}
	type key struct {
		service, request, in string
		at                   wallprofile.Place
	}
	found := make(map[key]int)
	for _, p := range t.pieces {
		k := key{p.of.Service, p.of.Name, p.in, p.where.At}
		i, ok := found[k]
		if !ok {
			i = len(r.Parts)
			found[k] = i
			r.Parts = append(r.Parts, Part{
				Service: p.of.Service, Request: p.of.Name, Function: k.at.Function, State: stateOf(k.at.Leaf), For: k.at.For, WaitedIn: p.in,
				at: k.at, bounded: make(map[*bound]int64), calls: make(map[string]time.Duration), asked: make(map[asked]int),
			})
		}
		r.Parts[i].add(p)
		r.Parts[i].ask(p.of, p.where.Call, p.took, t.asked)
	}
	r.Parts = slices.DeleteFunc(r.Parts, func(p Part) bool { return p.Took == 0 })
	for i := range r.Parts {
		p := &r.Parts[i]
		p.sum()
		p.Without = r.Took - p.gain()
		slices.SortStableFunc(p.Causes, func(a, b Cause) int { return cmp.Compare(b.Took, a.Took) })
	}
	slices.SortStableFunc(r.Parts, func(a, b Part) int { return cmp.Compare(b.Took, a.Took) })
	return r
}

// add adds a piece, and what whoever was waited for did.
func (p *Part) add(more piece) {
	p.Took += Millis(more.took)
	p.bounded[more.bound] += more.took
	at := more.where
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
	p.Causes[i].Took += Millis(more.took)
}

// gain returns how much shorter the trace would have been without the part.
func (p *Part) gain() (ns Millis) {
	for b, took := range p.bounded {
		if b != nil {
			took = min(took, b.ns)
		}
		ns += Millis(took)
	}
	return ns
}

func stateOf(leaf string) string {
	if leaf == "" {
		return wallprofile.Running.String()
	}
	return strings.Trim(leaf, "[]")
}

// Large returns the parts that are worth a line each, but no more than most: the first, and others that have at least one in
// 200 of the time.
func (r *Report) Large(most int) []Part {
	n := 0
	for n < min(most, len(r.Parts)) && (n == 0 || 200*r.Parts[n].Took >= r.Took) {
		n++
	}
	return r.Parts[:n]
}

// LargeCauses is Large for the causes of a part.
func (r *Report) LargeCauses(p Part, most int) []Cause {
	n := 0
	for n < min(most, len(p.Causes)) && (n == 0 && 200*p.Took >= r.Took || 200*p.Causes[n].Took >= r.Took) {
		n++
	}
	return p.Causes[:n]
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
	fmt.Fprintf(&b, "trace %s of %s, %s\n\n", r.TraceID, format.Clean(r.Service, 100), format.Count(r.Spans, "span"))
	rest, large := r.Took, r.Large(shownParts)
	for _, p := range large {
		rest -= p.Took
		fmt.Fprintf(&b, "%9s  %6s  %s, %s: %s\n", millis(p.Took), r.Share(p.Took),
			format.Clean(p.Service, 100), format.Clean(p.Request, 100), p.Words())
		for _, c := range r.LargeCauses(p, shownCauses) {
			fmt.Fprintf(&b, "%19s%9s  %s\n", "", millis(c.Took), c.Words())
		}
	}
	if more := len(r.Parts) - len(large); more > 0 {
		fmt.Fprintf(&b, "%9s  %6s  in %s\n", millis(rest), r.Share(rest), format.Count(more, "smaller part"))
	}
	for _, m := range r.Missing {
		fmt.Fprintf(&b, "\n%s", format.Clean(m, 300))
	}
	for i, without := range [...]string{"\nWithout the first part it would have taken", ", without the second", ", without the third"} {
		if i < len(large) {
			fmt.Fprintf(&b, "%s %s", without, millis(r.Parts[i].Without))
		}
	}
	b.WriteString(".\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// Words returns what the part did or waited for, and where.
func (p *Part) Words() string {
	words := describe(p.at, p.State) + format.Clean(wallprofile.InCalls(p.Call, p.Calls), 200)
	if p.WaitedIn != "" {
		words += ", for which " + format.Clean(wallprofile.Short(p.WaitedIn), 200) + " waited"
	}
	return words
}

// Words returns who it was, and what that one did or waited for.
func (c *Cause) Words() string {
	words := format.Clean(c.Who, 200)
	if c.at.Function != "" {
		words += ": " + describe(c.at, c.State)
	}
	return words
}

func describe(at wallprofile.Place, state string) string {
	words := state
	if at != (wallprofile.Place{}) {
		words = at.Phrase()
	}
	words = format.Clean(words, 300)
	if at.Function != "" {
		words += " in " + format.Clean(wallprofile.Short(at.Function), 200)
	}
	return words
}

func millis(m Millis) string {
	return fmt.Sprintf("%d ms", time.Duration(m).Round(time.Millisecond).Milliseconds())
}

// Share returns a part of the trace's duration, in words.
func (r *Report) Share(m Millis) string {
	return fmt.Sprintf("%.0f %%", 100*float64(m)/float64(max(1, r.Took)))
}

// Main returns the span of a trace to explain: of those that have a profile and by which a request entered a service, the one
// nearest to the beginning of what took longest, or else the longest of all.
func Main(spans []traces.Span, profiled func(traces.Span) bool) (best traces.Span, ok bool) {
	type rank struct {
		entered bool
		whole   time.Duration
		depth   int
	}
	s := newStitcher(spans, nil)
	var most rank
	for i := range spans {
		of := &spans[i]
		if !profiled(*of) {
			continue
		}
		r := rank{whole: of.Duration()}
		if r.entered = s.entry(of) == of; r.entered {
			first, depth := s.beginning(of)
			r.whole, r.depth = first.Duration(), depth
		}
		better := r.entered && !most.entered || r.entered == most.entered && cmp.Or(
			cmp.Compare(r.whole, most.whole), cmp.Compare(most.depth, r.depth), cmp.Compare(of.Duration(), best.Duration())) > 0
		if !ok || better {
			best, ok, most = *of, true, r
		}
	}
	return best, ok
}
