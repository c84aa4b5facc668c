package why

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/format"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

// Limits of stitching.
const (
	maxDepth    = 8   // of calls, until those of spans without a profile are not followed
	maxProfiles = 100 // read for one trace
	maxAlike    = 16  // calls whose own profiles are read to tell them apart
)

// Trace is a trace as one piece: each wait for the answer of another service is replaced by what the span did that answered.
type Trace struct {
	of        *traces.Span // whose time the pieces divide
	spans     int
	pieces    []piece
	missing   []string
	main      string // ID of the span that has the diagnosis
	diagnosis string
	asked     map[asked]int
}

// piece is a part of the time that decided how long a trace took, with its stack across services.
type piece struct {
	stack []*profile.Location // innermost first
	took  int64               // nanoseconds
	of    *traces.Span        // the request
	where profiles.Where
	in    string // the function that waited for it, if another goroutine of the request did it
	bound *bound // nil for none
}

// bound limits what a trace would gain without some pieces: then others, which ran in parallel, would decide.
type bound struct{ ns int64 }

// Reader reads the wall-clock profile of a span, which is not changed. The error wraps [profiles.ErrNone] if there is none.
type Reader func(traces.Span) (*profile.Profile, error)

// Stitch makes one piece of a trace, from a span that has a profile. It begins with the span that began the trace, unless
// that did not wait for this one.
func Stitch(spans []traces.Span, of traces.Span, read Reader) (*Trace, error) {
	p, err := read(of)
	if err != nil {
		return nil, err
	}
	again := func(s traces.Span) (*profile.Profile, error) {
		if s.ID == of.ID {
			return p, nil
		}
		return read(s)
	}
	s := newStitcher(spans, again)
	began, _ := s.beginning(&of)
	pieces, err := s.span(began, 0)
	if err == nil && !slices.ContainsFunc(pieces, func(p piece) bool { return p.of.ID == of.ID }) {
		s, began = newStitcher(spans, again), &of
		pieces, err = s.span(began, 0)
	}
	if err != nil {
		return nil, err
	}
	return &Trace{
		of: began, spans: len(spans), pieces: pieces, missing: s.sentences(), main: of.ID, asked: s.asked,
		diagnosis: profiles.DiagnosisOf(p, of.ID, of.Name, of.Duration()),
	}, nil
}

type stitcher struct {
	byID     map[string]*traces.Span
	children map[string][]*traces.Span
	read     Reader
	reads    int
	missing  []lack
	asked    map[asked]int
}

// lack is what is not known of the spans that have a service and a name.
type lack struct {
	service, name, what string
	count               int
	took                time.Duration
}

func newStitcher(spans []traces.Span, read Reader) *stitcher {
	s := &stitcher{byID: make(map[string]*traces.Span), children: make(map[string][]*traces.Span), read: read, asked: make(map[asked]int)}
	for i := range spans {
		s.byID[spans[i].ID] = &spans[i]
		s.children[spans[i].ParentID] = append(s.children[spans[i].ParentID], &spans[i])
	}
	return s
}

// beginning returns the span that began what a request belongs to: the first request that waited for it, or for one that did,
// and how many are between them.
func (s *stitcher) beginning(of *traces.Span) (first *traces.Span, depth int) {
	of = s.entry(of)
	for ; depth < len(s.byID); depth++ { // the parents of spans can form a circle
		caller := s.byID[of.ParentID]
		if caller == nil || of.Kind == "consumer" {
			break
		}
		entry := s.entry(caller)
		if caller.End.After(entry.End) { // so that it did not wait
			break
		}
		of = entry
	}
	return of, depth
}

// entry returns the span by which the request of a span entered its service.
func (s *stitcher) entry(of *traces.Span) *traces.Span {
	for range len(s.byID) {
		parent := s.byID[of.ParentID]
		if parent == nil || !inside(of, parent) {
			break
		}
		of = parent
	}
	return of
}

// span divides a span's duration exactly.
func (s *stitcher) span(of *traces.Span, depth int) ([]piece, error) {
	p, why, err := s.profile(of)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return s.unprofiled(of, why, depth)
	}
	calls := s.calls(of)
	pieces, known := s.own(of, p, calls)
	slices.SortStableFunc(calls, func(a, b *call) int { return cmp.Compare(b.waited, a.waited) }) // the profiles that are read are limited
	for _, c := range calls {
		known += c.waited
		answered, err := s.answers(c, depth)
		if err != nil {
			return nil, err
		}
		pieces = append(pieces, answered...)
	}
	whole := int64(of.Duration())
	if known < whole {
		pieces = append(pieces, leafOf(of, wallprofile.NotRecorded.Leaf(), whole-known, serviceOf(of)))
	}
	scale(pieces, whole)
	return pieces, nil
}

// profile reads a span's profile, or returns why there is none.
func (s *stitcher) profile(of *traces.Span) (p *profile.Profile, why string, err error) {
	switch {
	case !wallprofile.Marked(of.Attributes, of.ID):
		return nil, "another tracer or language, or no agent", nil
	case s.reads >= maxProfiles:
		return nil, "too many spans", nil
	}
	s.reads++
	p, err = s.read(*of)
	if errors.Is(err, profiles.ErrNone) {
		return nil, "too fast to be recorded, or not kept", nil
	}
	return p, "", err
}

// own returns the pieces of a span's profile that are no waits for answers, which it adds to the calls.
func (s *stitcher) own(of *traces.Span, p *profile.Profile, calls []*call) (pieces []piece, known int64) {
	for _, sample := range p.Sample {
		at, own := profiles.WhereOf(sample)
		if !own || len(sample.Value) == 0 || sample.Value[0] <= 0 {
			continue
		}
		inner, in := sameRequest(sample, at)
		where := at
		if in != "" {
			where, _ = profiles.WhereOf(inner)
		}
		if wallprofile.IsAnswer(where.At.For) {
			w := wait{spans: spansOf(sample), stack: waiting(sample, inner), key: stackKey(inner), other: in != "", took: sample.Value[0]}
			if s.attribute(w, of, calls) {
				continue
			}
		}
		s.count(of, where.Call)
		pieces = append(pieces, piece{stack: within(sample.Location, of), took: sample.Value[0], of: of, where: where, in: in})
		known += sample.Value[0]
	}
	return pieces, known
}

// sameRequest returns a sample without what is above the innermost goroutine that worked for the same request, and the
// function that waited for it, which is empty if the goroutine of the span itself is that one.
func sameRequest(sample *profile.Sample, at profiles.Where) (inner *profile.Sample, in string) {
	inner = sample
	for i := len(sample.Location) - 1; i >= 0; i-- {
		frame := profiles.Outermost(sample.Location[i])
		if !wallprofile.IsCause(frame) {
			continue
		}
		if !wallprofile.IsSameRequest(frame) || i == 0 {
			break
		}
		cut := *sample
		cut.Location = sample.Location[:i]
		inner, in = &cut, cmp.Or(at.At.Function, "the request")
	}
	return inner, in
}

// causes returns how many of the innermost frames of a sample say who caused its wait, or what it was for.
func causes(sample *profile.Sample) int {
	return wallprofile.Causes(len(sample.Location), func(i int) string { return profiles.Outermost(sample.Location[i]) })
}

// waiting returns the stack of a sample up to the function in which its inner goroutine waited, without the state.
func waiting(sample, inner *profile.Sample) []*profile.Location {
	n := causes(inner)
	if n < len(inner.Location) && wallprofile.IsBracketed(profiles.Outermost(inner.Location[n])) {
		n++
	}
	return sample.Location[n:]
}

// stackKey identifies the functions of the goroutine that waited.
func stackKey(inner *profile.Sample) string {
	var b strings.Builder
	for _, l := range inner.Location[causes(inner):] {
		if name := profiles.Outermost(l); !wallprofile.IsMarker(name) {
			b.WriteString(name)
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// spansOf returns the names of the spans that the goroutine of the request was in, innermost first.
func spansOf(sample *profile.Sample) (names []string) {
	for _, l := range sample.Location {
		if name, ok := strings.CutPrefix(profiles.Outermost(l), wallprofile.SpanPrefix); ok {
			names = append(names, name)
		}
	}
	return names
}

// within returns a stack of a span whose outermost frame says the service.
func within(stack []*profile.Location, of *traces.Span) []*profile.Location {
	if n := len(stack); n > 0 && profiles.Outermost(stack[n-1]) == wallprofile.SpanPrefix+of.Name {
		stack = stack[:n-1]
	}
	return join(stack, serviceOf(of))
}

// join returns the frames of one stack below those of another one.
func join(inner, outer []*profile.Location) []*profile.Location {
	return append(append(make([]*profile.Location, 0, len(inner)+len(outer)), inner...), outer...)
}

func marker(name string) *profile.Location {
	return &profile.Location{Line: []profile.Line{{Function: &profile.Function{Name: name, SystemName: name}}}}
}

func serviceOf(of *traces.Span) []*profile.Location {
	return []*profile.Location{marker(wallprofile.ServiceFrame(of.Name, of.Service))}
}

// leafOf returns a piece of a span that has only a frame below a stack.
func leafOf(of *traces.Span, frame string, took int64, below []*profile.Location) piece {
	return piece{
		stack: join([]*profile.Location{marker(frame)}, below), took: took, of: of,
		where: profiles.Where{At: wallprofile.Place{Leaf: frame}},
	}
}

// answers divides the time that was waited for the answer to a call: what the spans did that answered, in proportion where
// they took longer, and the network. Only durations are compared, as the clocks of two machines differ.
func (s *stitcher) answers(c *call, depth int) (pieces []piece, err error) {
	if c.waited == 0 {
		return nil, nil
	}
	var whole int64
	for _, server := range c.servers {
		whole += int64(server.Duration())
	}
	if whole > c.waited+c.waited/20 {
		s.lacks(c.servers[0], "longer than "+c.span.Service+" waited for it, so its parts are in proportion", time.Duration(whole))
	}
	var before, given int64
	for _, server := range c.servers {
		before += int64(server.Duration())
		took := before - given
		if whole > c.waited {
			took = share(before, c.waited, whole) - given
		}
		given += took
		answered, err := s.span(server, depth+1)
		if err != nil {
			return nil, err
		}
		scale(answered, took)
		pieces = append(pieces, answered...)
	}
	for i := range pieces {
		pieces[i].stack = join(pieces[i].stack, c.stack)
	}
	if rest := c.waited - given; rest > 0 {
		server := c.servers[0]
		pieces = append(pieces, leafOf(server, wallprofile.NetworkFrame(server.Name), rest, c.stack))
	}
	for i := range pieces {
		if p := &pieces[i]; c.bound != nil && (p.bound == nil || p.bound.ns > c.bound.ns) {
			p.bound = c.bound
		}
	}
	return pieces, nil
}

// unprofiled divides the duration of a span without a profile, as far as the times of the spans in its service tell.
func (s *stitcher) unprofiled(of *traces.Span, why string, depth int) (pieces []piece, err error) {
	s.lacks(of, "no wall-clock profile: "+why, of.Duration())
	rest := int64(of.Duration())
	for _, c := range s.calls(of) {
		if depth >= maxDepth || c.decided == 0 {
			continue
		}
		c.waited, c.bound = int64(c.decided), nil
		rest -= c.waited
		if c.stack = serviceOf(of); c.span != of {
			c.stack = join([]*profile.Location{marker(wallprofile.SpanPrefix + c.span.Name)}, c.stack)
		}
		answered, err := s.answers(c, depth)
		if err != nil {
			return nil, err
		}
		pieces = append(pieces, answered...)
	}
	if rest > 0 {
		pieces = append(pieces, leafOf(of, wallprofile.NoProfileFrame(why), rest, serviceOf(of)))
	}
	return pieces, nil
}

// lacks notes what is not known of a span.
func (s *stitcher) lacks(of *traces.Span, what string, took time.Duration) {
	i := slices.IndexFunc(s.missing, func(l lack) bool { return l.service == of.Service && l.name == of.Name && l.what == what })
	if i < 0 {
		i = len(s.missing)
		s.missing = append(s.missing, lack{service: of.Service, name: of.Name, what: what})
	}
	s.missing[i].count++
	s.missing[i].took += took
}

// sentences returns what is not known.
func (s *stitcher) sentences() (all []string) {
	for _, l := range s.missing {
		spans := format.Duration(l.took)
		if l.count > 1 {
			spans = fmt.Sprintf("%d spans, %s in sum", l.count, spans)
		}
		all = append(all, fmt.Sprintf("%s of %s (%s): %s.", l.name, l.service, spans, l.what))
	}
	return all
}

// scale changes pieces so that they sum to a time exactly.
func scale(pieces []piece, to int64) {
	var whole int64
	for _, p := range pieces {
		whole += p.took
	}
	if whole == to || whole == 0 {
		return
	}
	bounds := make(map[*bound]*bound)
	var before, scaled int64
	for i := range pieces {
		p := &pieces[i]
		before += p.took
		p.took = share(before, to, whole) - scaled
		scaled += p.took
		if p.bound == nil {
			continue
		}
		if bounds[p.bound] == nil {
			bounds[p.bound] = &bound{share(min(p.bound.ns, whole), to, whole)}
		}
		p.bound = bounds[p.bound]
	}
}

// share returns part/whole of a time. The part is at most the whole, which is above 0.
func share(part, of, whole int64) int64 {
	hi, lo := bits.Mul64(uint64(part), uint64(of))
	q, _ := bits.Div64(hi, lo, uint64(whole))
	return int64(q)
}
