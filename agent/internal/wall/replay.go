package wall

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/exp/trace"

	"spanflame/internal/wallprofile"
)

// converter replays generations of the trace, in order and each once, and keeps the accounts of the
// spans that it was told to track. Between two calls of convert it holds what goroutines were doing at
// the cut. It belongs to one goroutine.
type converter struct {
	childMin time.Duration

	tracked    map[*root]struct{}
	known      map[uint64]*span // spans of tracked roots whose end was not seen yet
	goroutines map[trace.GoID]*goroutine
	stacks     *interner
	paths      paths
	history    *historian
	garbage    garbage

	started    time.Time  // when the recording was, if not with the recorder
	last       trace.Time // of the newest event
	woken      wake
	world      stop
	finished   []*root // roots that have something to emit, each once
	clipped    []*span // spans whose chosen end lies before their mark, which was not replayed yet
	events     uint64
	lanes      int
	unfollowed uint64 // goroutines not followed because there were too many
	crowded    uint64 // roots given up because too many were open on one goroutine
}

// stop is a stop-the-world in progress, if since is not zero.
type stop struct {
	since trace.Time
	by    wallprofile.State
}

func newConverter(childMin time.Duration, names func(number uint64) string) *converter {
	c := &converter{
		childMin:   childMin,
		tracked:    make(map[*root]struct{}),
		known:      make(map[uint64]*span),
		goroutines: make(map[trace.GoID]*goroutine),
		stacks:     newInterner(),
		paths:      make(paths),
	}
	c.history = newHistorian(c, names)
	return c
}

// track makes the converter follow a root, or learn of the spans it got since.
func (c *converter) track(t *root) {
	if _, ok := c.tracked[t]; !ok {
		c.tracked[t] = struct{}{}
		t.conv.members = make(map[*span]struct{})
		t.conv.lanes = make(map[*lane]struct{})
		if p := c.history.parties[t.number]; p != nil {
			p.follow(t)
		}
		c.learn(t, &t.span)
	}
	t.mu.Lock()
	for s := t.news; s != nil; s = t.news {
		s.known()
		c.learn(t, s)
	}
	t.mu.Unlock()
	for s := range t.conv.members {
		if s.conv != nil {
			c.clip(s)
		}
	}
}

// clip has a span whose begin was seen end at the time that was chosen for it, if that is before its mark.
func (c *converter) clip(s *span) {
	if s.duration() != 0 && s.clip != 0 && !s.conv.clipped {
		s.conv.clipped = true
		c.clipped = append(c.clipped, s)
	}
}

// endClipped ends the spans whose chosen end is not after now. What was replayed already of the time after that end is
// in the account, which is shortened later (see account.fit).
func (c *converter) endClipped(now trace.Time) {
	for i := 0; i < len(c.clipped); {
		s := c.clipped[i]
		at := s.conv.from + trace.Time(s.clip)
		if c.known[s.number] == s && at > now {
			i++
			continue
		}
		c.clipped = slices.Delete(c.clipped, i, i+1)
		if c.known[s.number] == s {
			c.end(s, max(at, c.last), s.conv.lane.g.id)
		}
	}
}

func (c *converter) learn(t *root, s *span) {
	c.known[s.number] = s
	t.conv.members[s] = struct{}{}
}

func (c *converter) forget(s *span) {
	delete(c.known, s.number)
	delete(s.root.conv.members, s)
	s.root.mu.Lock()
	s.root.count--
	s.root.mu.Unlock()
}

// drop stops following a root.
func (c *converter) drop(t *root) {
	for s := range t.conv.members {
		c.forget(s)
	}
	for l := range t.conv.lanes {
		c.close(l)
	}
	t.conv.over = true
	t.leave()
	delete(c.tracked, t)
	if len(c.tracked) == 0 || len(c.paths) > maxPaths {
		clear(c.paths) // as with stacks, equal ones with two pointers only cost space
	}
	if len(c.tracked) == 0 {
		clear(c.history.causes)
	}
}

// errPanic is a defect of the trace reader, which may panic on a damaged trace.
var errPanic = errors.New("trace reader panicked")

// pollEvents is after how many events a conversion asks whether to stop.
const pollEvents = 1 << 12

// convert replays a snapshot that continues the one before it, or after a gap. The function stop is polled: an error ends
// the conversion.
func (c *converter) convert(r io.Reader, gap bool, stop func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%w: %v\n%s", errPanic, v, debug.Stack())
		}
	}()
	reader, err := trace.NewReader(r)
	if err != nil {
		return fmt.Errorf("opening trace: %w", err)
	}
	c.history.run(len(c.tracked) > 0, c.last)
	for {
		e, err := reader.ReadEvent()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading trace after %d events: %w", c.events, err)
		}
		c.events++
		if c.events%pollEvents == 0 {
			if err := stop(); err != nil {
				return err
			}
		}
		if gap && e.Kind() == trace.EventSync {
			c.lose(e)
			gap = false
		}
		if len(c.clipped) > 0 {
			c.endClipped(e.Time())
		}
		c.event(e)
		c.last = e.Time()
	}
}

// lose closes the accounts at the newest event and resumes them at a generation after a gap, in which
// marks and transitions went unseen.
func (c *converter) lose(e trace.Event) {
	var resumed time.Time
	if clocks := e.Sync().ClockSnapshot; clocks != nil {
		resumed = timeOf(clocks.Mono, clocks.Wall).Add(e.Time().Sub(clocks.Trace))
	}
	c.world = stop{}
	c.history.reset(e.Time())
	for _, g := range c.goroutines {
		c.cut(g, c.last, nil)
		c.waits(g, nil)
		c.relieve(g)
		g.known, g.since, g.sample, g.assist, g.stopped = false, e.Time(), nil, false, [2]time.Duration{}
	}
	for t := range c.tracked {
		for s := range t.conv.members {
			if s.ended.Load() != 0 && s.endTime().Before(resumed) {
				c.abandon(s)
			}
		}
	}
	c.adopt(e.Time(), resumed)
}

// adopt begins the spans that run when the trace resumes and whose begin is not in it, on the goroutines on which they began.
func (c *converter) adopt(now trace.Time, resumed time.Time) {
	var running []*span
	for t := range c.tracked {
		for s := range t.conv.members {
			if s.conv == nil && s.on != 0 && s.began.Before(resumed) {
				running = append(running, s)
			}
		}
	}
	slices.SortFunc(running, func(a, b *span) int { return cmp.Compare(a.number, b.number) })
	for _, s := range running {
		on := trace.GoID(s.on)
		if c.goroutines[on] == nil {
			c.goroutines[on] = &goroutine{id: on, since: now, stack: noStack}
		}
		c.begin(s, now, on, noStack)
		s.conv.before, s.conv.unknown = resumed.Sub(s.began), wallprofile.NotRecorded
		if s.began.Before(c.started) {
			s.conv.unknown = wallprofile.BeforeRecording
		}
	}
}

// abandon ends a span whose end mark will not be seen.
func (c *converter) abandon(s *span) {
	if s.conv == nil {
		c.forget(s)
		return
	}
	s.conv.lost = true
	c.end(s, c.last, s.conv.lane.g.id)
}

func (c *converter) event(e trace.Event) {
	switch e.Kind() {
	case trace.EventSync:
		c.stacks.generation()
	case trace.EventStateTransition:
		c.transition(e)
	case trace.EventStackSample:
		c.history.sampled(e)
		c.garbage.sampled(e.Time(), c.stacks.intern(e.Stack()))
		if g := c.goroutines[e.Goroutine()]; g != nil {
			c.sampled(g, e)
		}
	case trace.EventLog:
		c.mark(e)
	case trace.EventRangeBegin, trace.EventRangeActive, trace.EventRangeEnd:
		c.ranged(e)
	}
}

// mark handles the begin and the end of spans.
func (c *converter) mark(e trace.Event) {
	log := e.Log()
	number, _ := spanNumbers(log.Message)
	switch log.Category {
	case beginCategory:
		if c.history.on {
			c.history.mark(e, true)
		}
		s := c.known[number]
		if s == nil {
			// A span that is not followed. The spans that are open on this goroutine may have left it.
			if g := c.on(e.Goroutine()); g != nil {
				c.cut(g, e.Time(), c.stacks.intern(e.Stack()))
				leave(g, nil)
			}
			return
		}
		if s.conv == nil {
			c.begin(s, e.Time(), e.Goroutine(), c.stacks.intern(e.Stack()))
		}
	case endCategory:
		if c.history.on {
			c.history.mark(e, false)
		}
		if s := c.known[number]; s != nil {
			if s.conv == nil {
				c.forget(s) // its begin was before the first generation that was converted
				return
			}
			on := e.Goroutine()
			if g := c.on(on); g != nil {
				c.cut(g, e.Time(), c.stacks.intern(e.Stack()))
				on = g.id
			}
			c.end(s, e.Time(), on)
		}
	}
}

func (c *converter) begin(s *span, now trace.Time, on trace.GoID, at *stack) {
	g := c.on(on)
	if g == nil {
		g = &goroutine{id: on, state: wallprofile.Running, known: true, since: now, stack: noStack}
		c.goroutines[g.id] = g
	}
	c.cut(g, now, at)
	leave(g, s.root)
	var to *lane
	for _, l := range g.lanes {
		if l.root == s.root {
			to = l
		}
	}
	if to == nil {
		to = c.newLane(g, s.root)
		if len(g.lanes) > maxOpen {
			// Most likely the oldest was never ended.
			oldest := g.lanes[0].root
			c.crowded++
			oldest.conv.counted = true
			c.drop(oldest)
		}
	}
	to.push(s)

	s.conv = &spanLedger{from: now, lane: to, seg: to.seg, now: make(ledger), kept: make(ledger)}
	for p := s.parent; p != nil; p = p.parent {
		if p.conv == nil {
			continue // its begin was not seen
		}
		if !p.conv.done {
			s.conv.up = p
			p.conv.open = append(p.conv.open, s)
			break
		}
		s.conv.prefix = c.paths.concat(c.paths.join(nil, p.step()), s.conv.prefix)
	}
	c.clip(s)
}

// end closes a span's account at now. Its time goes to the nearest ancestor that still runs as well;
// spans and goroutines that outlive it belong to that one from here on.
func (c *converter) end(s *span, now trace.Time, on trace.GoID) {
	l := s.conv
	c.cutBelow(s, now)
	l.done, l.to = true, now
	if l.lane.g.id != on {
		l.moved = true
		if g := c.goroutines[on]; g != nil {
			for _, other := range g.lanes {
				if other.root == s.root {
					l.endLane = other
				}
			}
		}
	}
	at := s.step()
	s.root.conv.called(s, at)
	for _, child := range l.open {
		c.settle(child)
		child.conv.up = l.up
		if l.up != nil {
			child.conv.prefix = c.paths.concat(c.paths.join(l.prefix, at), child.conv.prefix)
			l.up.conv.open = append(l.up.conv.open, child)
		}
	}
	l.open = nil
	for _, other := range l.based {
		other.base = l.up
		if l.up != nil {
			l.up.conv.based = append(l.up.conv.based, other)
		} else if len(other.open) == 0 {
			c.close(other)
		}
	}
	l.based = nil
	l.lane.pop(s)
	if l.lane.current() == nil {
		c.close(l.lane)
	}
	if l.up != nil {
		c.add(l.up, c.paths.join(l.prefix, at), l.now)
		l.up.conv.open = without(l.up.conv.open, s)
	}
	c.forget(s)
	t := s.root
	switch {
	case s.parent == nil:
		c.finish(t)
	case s.duration() != 0 && s.took >= c.childMin:
		for k, ns := range l.kept {
			t.conv.put(l.now, k, ns)
		}
		t.conv.empty(l.kept)
		t.conv.children = append(t.conv.children, s)
		if t.conv.done() {
			c.finish(t)
		}
	default:
		t.conv.empty(l.now, l.kept)
	}
}

func (c *converter) finish(t *root) {
	if !t.conv.queued {
		t.conv.queued = true
		c.finished = append(c.finished, t)
	}
}

func (c *converter) transition(e trace.Event) {
	st := e.StateTransition()
	if st.Resource.Kind != trace.ResourceGoroutine {
		return
	}
	from, to := st.Goroutine()
	id := st.Resource.Goroutine()
	if c.history.on {
		c.history.transition(e, st, from, to)
	}
	if from == trace.GoNotExist {
		if creator := c.on(e.Goroutine()); creator != nil {
			c.spawn(creator, id, to, e)
		}
		return
	}
	now := e.Time()
	if from == trace.GoWaiting && to == trace.GoRunnable && e.Stack() == trace.NoStack {
		c.woken = wake{by: e.Goroutine(), id: id, event: c.events}
	}
	g := c.goroutines[id]
	if g == nil {
		return
	}
	if !g.known {
		// The first event after a gap shows what the goroutine was doing all along.
		g.known = true
		if from == trace.GoUndetermined {
			from = to
		}
		c.enter(g, from, st, noStack)
	}
	if from == to || from == trace.GoUndetermined {
		return // a status, repeated in each generation
	}
	at := c.stacks.intern(st.Stack)
	if from == trace.GoWaiting && g.state.Link() != wallprofile.NoLink {
		end := ending{alone: e.Goroutine() == trace.NoGoroutine}
		end.waker, end.by = c.history.wake(e)
		g.ending = &end
	}
	c.cut(g, now, at)
	g.ending = nil
	g.since = now
	g.sample = nil
	g.resumed = to == trace.GoRunning && g.preempted
	g.preempted = st.Reason == "preempted"
	if from == trace.GoRunning && c.switches(id, st.Reason) && (to == trace.GoWaiting || g.stands != nil) {
		c.handover(g, c.woken.id, now)
	}
	if to == trace.GoNotExist {
		for len(g.lanes) > 0 {
			c.exit(g.lanes[0])
		}
		return
	}
	c.enter(g, to, st, at)
}

// enter sets the state that a slice is in, and the stack that it takes.
func (c *converter) enter(g *goroutine, to trace.GoState, st trace.StateTransition, at *stack) {
	if at == noStack {
		at = c.stacks.intern(st.Stack)
	}
	if at != noStack {
		g.stack = at
	}
	g.state = stateIn(to, st.Reason, g.stack)
	switch {
	case g.state.Link() != wallprofile.NoLink:
		c.waits(g, &c.history.waiting)
	case g.state == wallprofile.Runnable:
		c.waits(g, &c.history.queued)
	default:
		c.waits(g, nil)
	}
}

// waits notes what a goroutine waits for, by where the historian counts it; nil for nothing.
func (c *converter) waits(g *goroutine, counted *int) {
	if g.waits != nil {
		*g.waits--
	}
	if counted != nil {
		*counted++
	}
	g.waits = counted
}

// sampled gives the part of a running slice around each CPU sample to its stack.
func (c *converter) sampled(g *goroutine, e trace.Event) {
	if g.state != wallprofile.Running || !g.known || e.Time() < g.since {
		return
	}
	at := c.stacks.intern(e.Stack())
	if !at.ofGoroutine() {
		return // the stack of the nearest event says more
	}
	if g.sample != nil {
		if middle := g.sampleAt + (e.Time()-g.sampleAt)/2; middle > g.since {
			c.cut(g, middle, nil)
		}
	}
	g.sample, g.sampleAt = at, e.Time()
}

// ranged handles stops of the world and goroutines that help the garbage collector.
func (c *converter) ranged(e trace.Event) {
	r := e.Range()
	begin := e.Kind() != trace.EventRangeEnd
	switch name := r.Name; {
	case name == "GC mark assist" && r.Scope.Kind == trace.ResourceGoroutine:
		c.history.assisted(r.Scope.Goroutine(), e, begin)
		if g := c.goroutines[r.Scope.Goroutine()]; g != nil && g.assist != begin {
			c.cut(g, e.Time(), c.stacks.intern(e.Stack()))
			g.assist = begin
		}
	case len(name) > len(stopPrefix) && name[:len(stopPrefix)] == stopPrefix:
		if begin {
			c.world = stop{since: e.Time(), by: wallprofile.StoppedOther}
			if name[len(stopPrefix):len(stopPrefix)+1] == "G" { // "GC mark termination", "GC sweep termination"
				c.world.by = wallprofile.StoppedGC
			}
			return
		}
		if c.world.since == 0 {
			return
		}
		for _, g := range c.goroutines {
			if from := max(c.world.since, g.since); e.Time() > from {
				g.stopped[c.world.by-wallprofile.StoppedGC] += e.Time().Sub(from)
			}
		}
		c.history.stopped(worldStop{c.world.since, e.Time(), c.world.by})
		c.world = stop{}
	}
}

const stopPrefix = "stop-the-world ("
