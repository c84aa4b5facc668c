package why

import (
	"slices"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

// call is a span in which a request called other services.
type call struct {
	span    *traces.Span
	servers []*traces.Span // that answered
	// decided is how long it was on the way that decided how long the request took, by the times of the spans of its own
	// service, which have one clock.
	decided time.Duration
	bound   *bound           // by what ran in parallel to it, if the request's own goroutine did not make the call
	alone   map[string]int64 // how long it waited for answers, by the key of the stack, in its own profile; nil if that was not read

	waited int64               // for its answers, in the profile of the request
	stack  []*profile.Location // in which most of that was waited
	most   int64               // there
}

// wait is a wait for an answer.
type wait struct {
	spans []string // the names of those that the goroutine of the request was in, innermost first
	stack []*profile.Location
	key   string
	other bool // another goroutine of the request waited
	took  int64
}

// calls returns the calls of a request by the start of their spans. What receives a message from a queue does not answer.
func (s *stitcher) calls(of *traces.Span) []*call {
	byID := make(map[string]*call)
	var all []*call
	own := []*traces.Span{of}
	for seen := map[string]bool{of.ID: true}; len(own) > 0; own = own[1:] {
		for _, child := range s.children[own[0].ID] {
			switch {
			case seen[child.ID] || child.Kind == "consumer":
			case inside(child, of):
				own = append(own, child)
			default:
				c := byID[own[0].ID]
				if c == nil {
					c = &call{span: own[0]}
					byID[own[0].ID] = c
					all = append(all, c)
				}
				c.servers = append(c.servers, child)
			}
			seen[child.ID] = true
		}
	}
	s.decide(of, byID, of, nil, make(map[string]bool))
	if c := byID[of.ID]; c != nil {
		c.decided = direct(c, all)
	}
	slices.SortStableFunc(all, func(a, b *call) int { return a.span.Start.Compare(b.span.Start) })
	return all
}

// inside reports whether a span below another one belongs to the same request in the same service.
func inside(child, of *traces.Span) bool {
	return child.Service == of.Service && child.Kind != "server" && child.Kind != "consumer"
}

// decide finds the calls on the way that decided how long a span took, from its end backwards: the child that ended last, of
// those that ended before that one began the one that ended last, and so on. What ended after the span was not waited for.
func (s *stitcher) decide(at *traces.Span, calls map[string]*call, of *traces.Span, outer *bound, seen map[string]bool) {
	if seen[at.ID] {
		return
	}
	seen[at.ID] = true
	var children []*traces.Span
	for _, c := range s.children[at.ID] {
		if inside(c, of) && !c.End.After(at.End) {
			children = append(children, c)
		}
	}
	slices.SortStableFunc(children, func(a, b *traces.Span) int { return b.End.Compare(a.End) })
	end := at.End
	for i, c := range children {
		if c.End.After(end) {
			continue
		}
		in := outer
		if i+1 < len(children) && children[i+1].End.After(c.Start) {
			if b := int64(c.End.Sub(children[i+1].End)); in == nil || b < in.ns {
				in = &bound{b}
			}
		}
		if calls[c.ID] != nil {
			calls[c.ID].decided, calls[c.ID].bound = c.Duration(), in
		}
		s.decide(c, calls, of, in, seen)
		end = c.Start
	}
}

// direct returns for how long a span waited for those that it called itself, without a span for the call: for as long as
// they took, in the time that its other calls leave.
func direct(c *call, all []*call) time.Duration {
	rest, took := c.span.Duration(), time.Duration(0)
	for _, other := range all {
		rest -= other.decided
	}
	for _, server := range c.servers {
		took += server.Duration()
	}
	return max(0, min(rest, took))
}

// attribute adds a wait to the calls that it was for, in proportion if they cannot be told apart, and reports whether there
// is any.
func (s *stitcher) attribute(w wait, of *traces.Span, calls []*call) bool {
	possible := w.possible(of, calls)
	weights := s.weights(w, possible)
	var whole, before, given int64
	for _, ns := range weights {
		whole += ns
	}
	if whole == 0 {
		return false
	}
	for i, c := range possible {
		if weights[i] == 0 {
			continue
		}
		before += weights[i]
		took := share(before, w.took, whole) - given
		given += took
		if c.waited += took; took > c.most {
			c.most, c.stack = took, within(w.stack, of)
		}
		if !w.other {
			c.bound = nil
		}
	}
	return true
}

// possible returns the calls that a wait can be for. The goroutine of the request was in the span of the call; others have no
// frames of spans.
func (w wait) possible(of *traces.Span, calls []*call) (some []*call) {
	ended := func(c *call) bool { return !c.span.End.After(of.End) }
	if w.other {
		return slices.DeleteFunc(slices.Clone(calls), func(c *call) bool { return !ended(c) })
	}
	for _, name := range w.spans {
		for _, c := range calls {
			if c.span.Name == name && ended(c) {
				some = append(some, c)
			}
		}
		if len(some) > 0 {
			break
		}
	}
	return some
}

// weights returns how much of a wait each call has. Calls that are alike are told apart by the stack in which each waited, in
// its own profile. Of those that other goroutines made, only the ones that decided have any.
func (s *stitcher) weights(w wait, calls []*call) []int64 {
	weights := make([]int64, len(calls))
	found := false
	for i, c := range calls {
		if len(calls) > 1 && len(calls) <= maxAlike {
			weights[i] = s.waitedAt(c, w.key)
			found = found || weights[i] > 0
		}
	}
	if !found {
		for i, c := range calls {
			weights[i] = int64(max(c.span.Duration(), 1))
		}
	}
	decided := func(i int) bool { return weights[i] > 0 && calls[i].decided > 0 }
	for i := range calls {
		if (w.other || !found) && decided(i) {
			for j := range calls {
				if !decided(j) {
					weights[j] = 0
				}
			}
			break
		}
	}
	return weights
}

// waitedAt returns how long a call waited for answers at a stack, by its own profile.
func (s *stitcher) waitedAt(c *call, key string) int64 {
	if c.alone == nil {
		c.alone = make(map[string]int64)
		p, _, err := s.profile(c.span)
		if err != nil || p == nil {
			return 0 // it is not told apart
		}
		for _, sample := range p.Sample {
			if at, own := profiles.WhereOf(sample); own && len(sample.Value) > 0 && wallprofile.IsAnswer(at.At.For) {
				c.alone[stackKey(sample)] += sample.Value[0]
			}
		}
	}
	return c.alone[key]
}
