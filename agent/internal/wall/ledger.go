package wall

import (
	"time"

	"golang.org/x/exp/trace"

	"spanflame/internal/wallprofile"
)

// entry identifies one sample of the profile: all time with the same entry is added up.
type entry struct {
	seg   *segment
	at    *path // spans below the one whose ledger this is
	stack *stack
	state wallprofile.State
	below *cause // of a wait: who made it longer, and what that goroutine did; nil if nobody
}

// ledger is time in nanoseconds by entry.
type ledger map[entry]int64

// put adds time to one of the ledgers of a root's spans. Goroutines that the root has started, of which there may be
// thousands, take nothing away from the others.
func (t *rootLedger) put(to ledger, k entry, ns int64) {
	full, own := t.entries, k.seg.lane != nil && k.seg.lane.creator == nil
	if own {
		full = t.own
	}
	if full >= maxEntries/2 {
		if _, ok := to[k]; !ok && k.below != nil {
			k.below = tooMany
		}
		if _, ok := to[k]; !ok && full >= maxEntries {
			k.at, k.stack = nil, noStack
		}
	}
	before := len(to)
	to[k] += ns
	t.entries += len(to) - before
	if own {
		t.own += len(to) - before
	}
}

// empty discards what is in ledgers of a root's spans.
func (t *rootLedger) empty(ledgers ...ledger) {
	for _, l := range ledgers {
		t.entries -= len(l)
		clear(l)
	}
	t.own = min(t.own, t.entries)
}

// spanLedger is the converter's data about a span whose begin it saw. Most spans are fast and never have one.
type spanLedger struct {
	done     bool
	lost     bool // the end mark was not seen
	clipped  bool // it is among the clipped spans of the converter, or was
	from, to trace.Time
	before   time.Duration     // from the span's begin to from, if its begin was not in the trace
	unknown  wallprofile.State // … and what that time is
	lane     *lane
	seg      *segment // the lane's at the begin
	endLane  *lane    // where it ended, if on another goroutine that is known
	moved    bool     // it ended on another goroutine

	up     *span   // the nearest ancestor that still runs: it gets this span's time, too
	prefix *path   // the ended spans between up and this one
	open   []*span // running spans whose up is this one
	based  []*lane // goroutines whose base is this one

	now  ledger // not yet added to up's
	kept ledger // already added, or not up's: a span that overlaps this one has it there
}

// rootLedger is the converter's data about a root in addition to that about its span.
type rootLedger struct {
	members  map[*span]struct{} // spans in known
	lanes    map[*lane]struct{}
	entries  int     // in the ledgers of all its spans
	own      int     // … that are not of goroutines which it has started, at most
	party    *party  // the root as a request, for which others may wait
	children []*span // ended, at least childMin long, not yet emitted
	queued   bool    // in finished
	missed   bool    // asked for a capture that did not see its end
	emitted  bool
	counted  bool           // why it is not emitted is counted
	calls    map[string]int // of the spans that ended on its own goroutine, by their frames
	over     bool           // nothing more will come of it
}

const maxCalls = 1000 // that differ, of a root

// called counts the calls of the root's own goroutine.
func (t *rootLedger) called(s *span, at step) {
	if root := s.root.span.conv; at.call == "" || root == nil || s.conv.lane != root.lane {
		return
	}
	if t.calls == nil {
		t.calls = make(map[string]int)
	}
	if t.calls[at.call] > 0 || len(t.calls) < maxCalls {
		t.calls[at.call]++
	}
}

// done reports whether the root itself has been handed over or is about to be.
func (t *rootLedger) done() bool { return t.queued || t.emitted }

// settle adds a running span's time so far to its ancestor's account.
func (c *converter) settle(s *span) {
	l := s.conv
	for _, child := range l.open {
		c.settle(child)
	}
	if l.up == nil {
		return
	}
	c.add(l.up, c.paths.join(l.prefix, s.step()), l.now)
	for k, ns := range l.now {
		s.root.conv.put(l.kept, k, ns)
	}
	s.root.conv.empty(l.now)
}

// add adds time in a descendant, which is at a path below to, to its account.
func (c *converter) add(to *span, at *path, what ledger) {
	for k, ns := range what {
		k.at = c.paths.concat(at, k.at)
		to.root.conv.put(to.conv.now, k, ns)
	}
}

// cutBelow closes the slices of all goroutines whose time goes to the span or to one below it.
func (c *converter) cutBelow(s *span, now trace.Time) {
	c.cut(s.conv.lane.g, now, nil)
	for _, l := range s.conv.based {
		c.cut(l.g, now, nil)
	}
	for _, child := range s.conv.open {
		c.cutBelow(child, now)
	}
}

// cut closes a goroutine's slice at now. The stack is that of the event which ends it, if it has one: a
// running slice without CPU samples takes it, but for the first half after a preemption, which is nearer
// to where that was.
func (c *converter) cut(g *goroutine, now trace.Time, at *stack) {
	if g.carrier != nil {
		g = g.carrier
	}
	d := now.Sub(g.since)
	if !g.known || d <= 0 {
		return
	}
	s, where := g.state, g.stack
	if s == wallprofile.Running {
		switch {
		case g.sample != nil:
			where = g.sample
		case at != nil && at != noStack:
			where = at
		}
		if g.assist {
			s = wallprofile.Assisting
		}
	}
	if s == wallprofile.Running || s == wallprofile.Assisting || s == wallprofile.Runnable {
		stopped := g.stopped
		if c.world.since != 0 {
			stopped[c.world.by-wallprofile.StoppedGC] += now.Sub(max(c.world.since, g.since))
		}
		for i, ns := range stopped {
			ns = min(ns, d)
			c.charge(g, where, wallprofile.StoppedGC+wallprofile.State(i), nil, ns)
			d -= ns
		}
	}
	if s == wallprofile.Running {
		far := min(d, g.unsampled(now))
		c.charge(g, where, wallprofile.Unsampled, nil, far)
		d -= far
	}
	if s == wallprofile.Running && g.resumed && where != g.stack && g.sample == nil {
		c.charge(g, g.stack, s, nil, d/2)
		d -= d / 2
	}
	switch {
	case s.Link() != wallprofile.NoLink && c.history.on:
		c.waited(g, where, s, now)
	case s == wallprofile.Runnable:
		c.queued(g, where, now, d)
	default:
		c.charge(g, where, s, nil, d)
	}
	g.since = now
	g.resumed = false
	g.stopped = [2]time.Duration{}
}

// nearSample is how far running time may be from the CPU sample or the event whose stack it has. A thread that runs has a
// sample every 10 ms, unless the CPU profile is being exchanged for the next one or another profiler has it, or the
// operating system lets another thread run.
const nearSample = 20 * time.Millisecond

// unsampled returns how much of a running slice that ends at now is further from its stack's sample or event than that.
func (g *goroutine) unsampled(now trace.Time) time.Duration {
	near := min(now, g.since+trace.Time(nearSample)) // without a sample, the event is at one end
	from := g.since
	if g.sample != nil {
		from, near = max(from, g.sampleAt-trace.Time(nearSample)), min(now, g.sampleAt+trace.Time(nearSample))
	}
	return now.Sub(g.since) - max(0, near.Sub(from))
}

// waited charges a wait that another goroutine ends.
func (c *converter) waited(g *goroutine, where *stack, s wallprofile.State, now trace.Time) {
	if len(g.work()) == 0 {
		return
	}
	for _, p := range c.history.follow(s, where, g.ending, g.since, now) {
		c.charge(g, where, s, p.below, time.Duration(p.ns))
	}
}

func (c *converter) charge(g *goroutine, where *stack, s wallprofile.State, below *cause, d time.Duration) {
	if d <= 0 {
		return
	}
	for _, l := range g.work() {
		to := l.current()
		if to == nil {
			continue
		}
		k := entry{seg: l.seg, stack: where, state: s, below: below}
		l.root.conv.put(to.conv.now, k, int64(d))
		for _, overlapped := range l.under {
			l.root.conv.put(overlapped.conv.kept, k, int64(d))
		}
	}
}
