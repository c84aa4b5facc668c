package wall

import (
	"time"

	"golang.org/x/exp/trace"

	"spanflame/internal/wallprofile"
)

// The time in which a goroutine could run and no CPU was free is divided among those that ran meanwhile, in proportion. They
// stand below it as causes do.

const (
	minQueued = 100 * time.Microsecond // shorter times are not divided
	minRan    = 10 * time.Microsecond  // shorter times on the CPU are not kept for this
	minBusy   = 50                     // whoever had less than this part of the time is not told apart
)

// queued charges the time d of a goroutine that waited for a CPU from its since to now.
func (c *converter) queued(g *goroutine, where *stack, now trace.Time, d time.Duration) {
	rest := d
	if d >= minQueued && len(g.work()) > 0 {
		c.history.limit()
		busy, whole := c.history.busy(g.id, g.since, now)
		if whole < int64(d)/2 {
			whole = 0 // too little is known
		}
		for k, ns := range busy {
			if whole == 0 || ns < whole/minBusy {
				continue
			}
			took := time.Duration(float64(d) * float64(ns) / float64(whole))
			took = min(took, rest)
			rest -= took
			c.charge(g, where, wallprofile.Runnable, c.history.causes.of(k), took)
		}
	}
	c.charge(g, where, wallprofile.Runnable, nil, rest)
}

// busy returns who ran from a to b, with the exception of one goroutine, and for how long in all.
func (hs *historian) busy(except trace.GoID, a, b trace.Time) (busy map[causeKey]int64, whole int64) {
	busy = make(map[causeKey]int64)
	add := func(h *history, s wallprofile.State, who *party, at *stack, from, to trace.Time) {
		from, to = max(a, from), min(b, to)
		if to <= from || h.id == except || s != wallprofile.Running && s != wallprofile.Assisting {
			return
		}
		if who == nil || who.ended != 0 && who.ended <= from {
			who = hs.nobody(at)
		}
		busy[causeKey{link: wallprofile.BusyWith, who: who, stack: at, state: s}] += int64(to.Sub(from))
		whole += int64(to.Sub(from))
	}
	for p, h := range hs.procs {
		if h == nil || h.proc != p || h.exited || h.state != wallprofile.Running {
			continue
		}
		state, at := h.state, h.stack
		if h.sample != nil {
			at = h.sample
		}
		if h.assist {
			state = wallprofile.Assisting
		}
		add(h, state, h.who(), at, h.from, b)
	}
	effort := hs.forBusy.take(hs.c.events)
	for number := hs.kept; effort >= lookAt; number, effort = number-1, effort-lookAt {
		s := hs.slice(number)
		if s == nil || s.to <= a {
			break
		}
		add(s.of, s.state, s.who, s.stack, s.from, s.to)
	}
	hs.forBusy.give(effort)
	return busy, whole
}

// runs notes on which of the scheduler's processors a goroutine runs.
func (hs *historian) runs(h *history, on trace.ProcID) {
	if on < 0 || on >= maxProcs {
		return
	}
	for int(on) >= len(hs.procs) {
		hs.procs = append(hs.procs, nil)
	}
	hs.procs[on], h.proc = h, int(on)
}

const maxProcs = 1 << 12
