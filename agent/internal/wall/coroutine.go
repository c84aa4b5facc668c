package wall

import (
	"time"

	"golang.org/x/exp/trace"
)

// A coroutine, such as that of iter.Pull, is a goroutine that runs in the place of the one which calls next: of the two
// one runs at a time. It is the same line of descent, so what it does is the caller's own time, and a span that begins
// in it begins on the caller.
//
// The trace has a switch to a coroutine, and the one back, as three events in a row: the other goroutine is woken,
// without a stack, the running one blocks or exits, without a reason, and the other one runs.

// wake is the latest event in which a goroutine woke another one as a switch does.
type wake struct {
	by, id trace.GoID
	event  uint64 // its number
}

// switches reports whether a goroutine that stops running switches to another one: it woke that one just before, and
// blocks or exits at once, without a reason.
func (c *converter) switches(id trace.GoID, reason string) bool {
	return c.woken.by == id && c.woken.event == c.events-1 && reason == ""
}

// handover is called when the running goroutine g has switched to another one.
func (c *converter) handover(g *goroutine, to trace.GoID, now trace.Time) {
	caller := g
	if g.stands != nil {
		caller = g.stands
	}
	c.relieve(caller)
	caller.since, caller.stopped = now, [2]time.Duration{}
	if caller.id == to {
		return // back
	}
	next := c.goroutines[to]
	switch {
	case len(caller.lanes) == 0:
		return
	case next != nil && (next.carrier != nil || next.stands != nil):
		c.relieve(next) // back to a caller of which the switch was not seen
		return
	case next == nil && caller.pulled != nil && caller.pulled.id == to:
		next = caller.pulled
	case next == nil:
		next = &goroutine{id: to, known: true, stack: caller.stack}
	}
	c.waits(next, nil)
	next.since, next.known, next.state, next.sample = now, true, caller.state, nil
	next.preempted, next.resumed, next.assist, next.stopped = false, false, false, [2]time.Duration{}
	next.stands, caller.carrier, caller.pulled = caller, next, next
	c.goroutines[to] = next
}

// relieve has a goroutine run itself again, if another one runs in its place.
func (c *converter) relieve(g *goroutine) {
	b := g.carrier
	if b == nil {
		return
	}
	g.carrier, b.stands = nil, nil
	if len(b.lanes) == 0 {
		c.waits(b, nil)
		delete(c.goroutines, b.id)
	}
}

// on returns the goroutine to which the work on a goroutine belongs, nil if it is not followed.
func (c *converter) on(id trace.GoID) *goroutine {
	g := c.goroutines[id]
	if g != nil && g.stands != nil {
		return g.stands
	}
	return g
}

// work returns the lanes that have the goroutine's time.
func (g *goroutine) work() []*lane {
	if g.stands == nil {
		return g.lanes
	}
	if len(g.lanes) == 0 {
		return g.stands.lanes
	}
	return append(g.lanes[:len(g.lanes):len(g.lanes)], g.stands.lanes...)
}
