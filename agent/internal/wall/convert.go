package wall

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strings"
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

	last       trace.Time // of the newest event
	world      stop
	finished   []*root // roots that have something to emit, each once
	events     uint64
	lanes      int
	hurried    func() bool // asked now and then: whether to leave off
	unfollowed uint64      // goroutines not followed because there were too many
	crowded    uint64      // roots given up because too many were open on one goroutine
}

// stop is a stop-the-world in progress, if since is not zero.
type stop struct {
	since trace.Time
	by    wallprofile.State
}

const (
	maxLanes    = 20_000 // goroutines followed at once, over all spans
	maxSegments = 256    // of one lane
	maxEntries  = 50_000 // of one root, beyond which stacks and paths are not told apart, and no goroutines followed
	maxPaths    = 1 << 15
	maxOpen     = 64 // roots, or overlapping spans of one root, on one goroutine: each costs at each event
)

// goroutine is a goroutine that works for at least one tracked span.
type goroutine struct {
	id    trace.GoID
	lanes []*lane

	state wallprofile.State
	known bool // false after a gap in the trace, until the next event
	since trace.Time
	stack *stack // of the transition that began the state, for running the one before it

	sample             *stack // latest CPU sample in this running slice
	sampleAt           trace.Time
	preempted, resumed bool             // it was taken off the CPU at stack; it has been running since it was
	assist             bool             // helping the garbage collector
	stopped            [2]time.Duration // by a stop of the world that ended within this slice: for GC, for others
}

// lane is one goroutine's work for one root.
type lane struct {
	root  *root
	g     *goroutine
	open  []*span // begun on this goroutine and not ended, in order of their begin
	under []*span // of these, the ones which the last one does not descend from
	base  *span   // the span in which the goroutine was started, nil if in none
	seg   *segment

	creator *lane    // the lane of the goroutine that started this one
	until   *segment // the creator's segment that ended with that, nil if unknown
	lefts   []int    // indexes of the segments at whose end an unrelated span began
}

// segment is a part of a lane between two moments at which a span may turn out to have left the
// goroutine: it started another goroutine, or an unrelated span.
type segment struct {
	lane  *lane
	index int
}

// current is the span that has the goroutine's time now.
func (l *lane) current() *span {
	if n := len(l.open); n > 0 {
		return l.open[n-1]
	}
	return l.base
}

// push and pop change which spans are open.
func (l *lane) push(s *span) { l.arrange(append(l.open, s)) }
func (l *lane) pop(s *span)  { l.arrange(without(l.open, s)) }

func (l *lane) arrange(open []*span) {
	l.open, l.under = open, l.under[:0]
	if len(open) == 0 {
		return
	}
	last := open[len(open)-1]
	for _, s := range open[max(0, len(open)-maxOpen) : len(open)-1] {
		if !s.above(last) {
			l.under = append(l.under, s)
		}
	}
}

// above reports whether s is an ancestor of other.
func (s *span) above(other *span) bool {
	for p := other.parent; p != nil; p = p.parent {
		if p == s {
			return true
		}
	}
	return false
}

// divide starts a new segment and returns the one that ended, nil when there are too many.
func (l *lane) divide() *segment {
	if l.seg.index >= maxSegments {
		return nil
	}
	ended := l.seg
	l.seg = &segment{lane: l, index: ended.index + 1}
	return ended
}

// entry is what the time of one sample of the profile has in common.
type entry struct {
	seg   *segment
	at    *path // spans below the one whose ledger this is
	stack *stack
	state wallprofile.State
}

// ledger is time in nanoseconds by entry.
type ledger map[entry]int64

// put adds time to one of the ledgers of a root's spans.
func (t *rootLedger) put(to ledger, k entry, ns int64) {
	if _, ok := to[k]; !ok {
		if t.entries >= maxEntries {
			k.at, k.stack = nil, noStack
		}
		if _, ok := to[k]; !ok {
			t.entries++
		}
	}
	to[k] += ns
}

// empty discards what is in ledgers of a root's spans.
func (t *rootLedger) empty(ledgers ...ledger) {
	for _, l := range ledgers {
		t.entries -= len(l)
		clear(l)
	}
}

// spanLedger is what the converter knows of a span whose begin it saw. Most spans are fast and never have one.
type spanLedger struct {
	done     bool
	lost     bool // the end mark was not seen
	from, to trace.Time
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

// rootLedger is what the converter knows of a root beside its span.
type rootLedger struct {
	members  map[*span]struct{} // spans in known
	lanes    map[*lane]struct{}
	entries  int                         // in the ledgers of all its spans
	holders  map[*stack]map[string]int64 // time waiting for a lock at a stack, by who released it
	children []*span                     // ended, at least childMin long, not yet emitted
	queued   bool                        // in finished
	missed   bool                        // asked for a capture that did not see its end
	emitted  bool
	counted  bool // why it is not emitted is counted
	over     bool // nothing more will come of it
}

func newConverter(childMin time.Duration, hurried func() bool) *converter {
	return &converter{
		childMin:   childMin,
		hurried:    hurried,
		tracked:    make(map[*root]struct{}),
		known:      make(map[uint64]*span),
		goroutines: make(map[trace.GoID]*goroutine),
		stacks:     newInterner(),
		paths:      make(paths),
	}
}

// track makes the converter follow a root, or learn of the spans it got since.
func (c *converter) track(t *root) {
	if _, ok := c.tracked[t]; !ok {
		c.tracked[t] = struct{}{}
		t.conv.members = make(map[*span]struct{})
		t.conv.lanes = make(map[*lane]struct{})
		c.learn(t, &t.span)
	}
	t.mu.Lock()
	fresh := t.fresh
	t.fresh = nil
	t.mu.Unlock()
	for _, s := range fresh {
		c.learn(t, s)
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
	delete(c.tracked, t)
	if len(c.tracked) == 0 || len(c.paths) > maxPaths {
		clear(c.paths) // as with stacks, that equal ones have two pointers costs space and nothing else
	}
}

// errPanic is a defect of the trace reader, which may panic on a damaged trace.
var errPanic = errors.New("trace reader panicked")

// errHurried ends a conversion that nobody waits for any more.
var errHurried = errors.New("left off because the recorder is being stopped")

// convert replays a snapshot that continues the one before it, or after a gap.
func (c *converter) convert(r io.Reader, gap bool) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%w: %v\n%s", errPanic, v, debug.Stack())
		}
	}()
	reader, err := trace.NewReader(r)
	if err != nil {
		return fmt.Errorf("opening trace: %w", err)
	}
	for {
		e, err := reader.ReadEvent()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading trace after %d events: %w", c.events, err)
		}
		c.events++
		if c.events%(1<<14) == 0 && c.hurried() {
			return errHurried
		}
		if gap && e.Kind() == trace.EventSync {
			c.lose(e)
			gap = false
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
		resumed = clocks.Wall
	}
	c.world = stop{}
	for _, g := range c.goroutines {
		c.cut(g, c.last, nil)
		g.known, g.since, g.sample, g.assist, g.stopped = false, e.Time(), nil, false, [2]time.Duration{}
	}
	for t := range c.tracked {
		for s := range t.conv.members {
			if s.ended.Load() != 0 && s.endTime().Before(resumed) {
				c.abandon(s)
			}
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
	switch log.Category {
	case beginCategory:
		s := c.known[spanNumber(log.Message)]
		if s == nil {
			// A span that is not followed. Whoever is open on this goroutine may have left it.
			if g := c.goroutines[e.Goroutine()]; g != nil {
				c.cut(g, e.Time(), c.stacks.intern(e.Stack()))
				leave(g, nil)
			}
			return
		}
		if s.conv == nil {
			c.begin(s, e)
		}
	case endCategory:
		if s := c.known[spanNumber(log.Message)]; s != nil {
			if s.conv == nil {
				c.forget(s) // its begin was before the first generation that was converted
				return
			}
			if g := c.goroutines[e.Goroutine()]; g != nil {
				c.cut(g, e.Time(), c.stacks.intern(e.Stack()))
			}
			c.end(s, e.Time(), e.Goroutine())
		}
	}
}

// leave notes that an unrelated span begins on the goroutine, for all its lanes but that of its root.
func leave(g *goroutine, except *root) {
	for _, l := range g.lanes {
		if l.root != except && len(l.open) > 0 {
			if ended := l.divide(); ended != nil {
				l.lefts = append(l.lefts, ended.index)
			}
		}
	}
}

func (c *converter) begin(s *span, e trace.Event) {
	now := e.Time()
	g := c.goroutines[e.Goroutine()]
	if g == nil {
		g = &goroutine{id: e.Goroutine(), state: wallprofile.Running, known: true, since: now, stack: noStack}
		c.goroutines[g.id] = g
	}
	c.cut(g, now, c.stacks.intern(e.Stack()))
	leave(g, s.root)
	var on *lane
	for _, l := range g.lanes {
		if l.root == s.root {
			on = l
		}
	}
	if on == nil {
		on = c.newLane(g, s.root)
		if len(g.lanes) > maxOpen {
			// Most likely the oldest was never ended.
			oldest := g.lanes[0].root
			c.crowded++
			oldest.conv.counted = true
			c.drop(oldest)
		}
	}
	on.push(s)

	s.conv = &spanLedger{from: now, lane: on, seg: on.seg, now: make(ledger), kept: make(ledger)}
	for p := s.parent; p != nil; p = p.parent {
		if p.conv == nil {
			continue // its begin was not seen
		}
		if !p.conv.done {
			s.conv.up = p
			p.conv.open = append(p.conv.open, s)
			break
		}
		s.conv.prefix = c.paths.concat(c.paths.join(nil, p.currentName()), s.conv.prefix)
	}
}

func (c *converter) newLane(g *goroutine, t *root) *lane {
	l := &lane{root: t, g: g}
	l.seg = &segment{lane: l}
	g.lanes = append(g.lanes, l)
	t.conv.lanes[l] = struct{}{}
	c.lanes++
	return l
}

// close removes a lane; a goroutine without one is no longer followed.
func (c *converter) close(l *lane) {
	if _, ok := l.root.conv.lanes[l]; !ok {
		return
	}
	delete(l.root.conv.lanes, l)
	c.lanes--
	l.g.lanes = without(l.g.lanes, l)
	if len(l.g.lanes) == 0 {
		delete(c.goroutines, l.g.id)
	}
	if l.base != nil {
		l.base.conv.based = without(l.base.conv.based, l)
		l.base = nil
	}
}

func without[T comparable](list []T, x T) []T {
	for i, y := range list {
		if x == y {
			return append(list[:i], list[i+1:]...)
		}
	}
	return list
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
	name := s.currentName()
	for _, child := range l.open {
		c.settle(child)
		child.conv.up = l.up
		if l.up != nil {
			child.conv.prefix = c.paths.concat(c.paths.join(l.prefix, name), child.conv.prefix)
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
		c.add(l.up, c.paths.join(l.prefix, name), l.now)
		l.up.conv.open = without(l.up.conv.open, s)
	}
	c.forget(s)
	t := s.root
	switch {
	case s.parent == nil:
		c.finish(t)
	case s.duration() >= c.childMin:
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

// done reports whether the root itself has been handed over or is about to be.
func (t *rootLedger) done() bool { return t.queued || t.emitted }

func (c *converter) finish(t *root) {
	if !t.conv.queued {
		t.conv.queued = true
		c.finished = append(c.finished, t)
	}
}

// settle adds a running span's time so far to its ancestor's account.
func (c *converter) settle(s *span) {
	l := s.conv
	for _, child := range l.open {
		c.settle(child)
	}
	if l.up == nil {
		return
	}
	c.add(l.up, c.paths.join(l.prefix, s.currentName()), l.now)
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
			c.charge(g, where, wallprofile.StoppedGC+wallprofile.State(i), ns)
			d -= ns
		}
	}
	if s == wallprofile.Running && g.resumed && where != g.stack && g.sample == nil {
		c.charge(g, g.stack, s, d/2)
		d -= d / 2
	}
	c.charge(g, where, s, d)
	g.since = now
	g.resumed = false
	g.stopped = [2]time.Duration{}
}

func (c *converter) charge(g *goroutine, where *stack, s wallprofile.State, d time.Duration) {
	if d <= 0 {
		return
	}
	for _, l := range g.lanes {
		to := l.current()
		if to == nil {
			continue
		}
		k := entry{seg: l.seg, stack: where, state: s}
		l.root.conv.put(to.conv.now, k, int64(d))
		for _, overlapped := range l.under {
			l.root.conv.put(overlapped.conv.kept, k, int64(d))
		}
	}
}

func (c *converter) transition(e trace.Event) {
	st := e.StateTransition()
	if st.Resource.Kind != trace.ResourceGoroutine {
		return
	}
	from, to := st.Goroutine()
	id := st.Resource.Goroutine()
	if from == trace.GoNotExist {
		if creator := c.goroutines[e.Goroutine()]; creator != nil {
			c.spawn(creator, id, to, e)
		}
		return
	}
	g := c.goroutines[id]
	if g == nil {
		return
	}
	now := e.Time()
	if !g.known {
		// The first event after a gap tells what the goroutine was doing all along.
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
	if from == trace.GoWaiting && (g.state == wallprofile.WaitMutex || g.state == wallprofile.WaitRWMutex) && e.Goroutine() != trace.NoGoroutine {
		c.released(g, now, c.stacks.intern(e.Stack()))
	}
	c.cut(g, now, at)
	g.since = now
	g.sample = nil
	g.resumed = to == trace.GoRunning && g.preempted
	g.preempted = st.Reason == "preempted"
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
	switch to {
	case trace.GoRunnable:
		g.state = wallprofile.Runnable
	case trace.GoWaiting:
		g.state = blocked(st.Reason, g.stack)
	case trace.GoSyscall:
		g.state = wallprofile.Syscall
	default:
		g.state = wallprofile.Running
	}
}

// released notes who released the lock that the goroutine was waiting for.
func (c *converter) released(g *goroutine, now trace.Time, by *stack) {
	holder := releaser(by)
	if holder == "" {
		return
	}
	for _, l := range g.lanes {
		t := &l.root.conv
		if t.holders == nil {
			t.holders = make(map[*stack]map[string]int64)
		}
		if t.holders[g.stack] == nil {
			t.holders[g.stack] = make(map[string]int64)
		}
		t.holders[g.stack][holder] += int64(now.Sub(g.since))
	}
}

// exit closes a lane whose goroutine has ended. Spans that are open on it may end elsewhere.
func (c *converter) exit(l *lane) {
	l.arrange(nil)
	c.close(l)
}

// spawn follows a goroutine that was started inside a tracked span. The runtime's own, such as the
// garbage collector's workers, are started by whoever happens to need them first, and are not the span's.
func (c *converter) spawn(creator *goroutine, id trace.GoID, to trace.GoState, e trace.Event) {
	st := e.StateTransition()
	start := c.stacks.intern(st.Stack)
	if len(start.frames) > 0 && strings.HasPrefix(start.frames[len(start.frames)-1].function, "runtime.") {
		return
	}
	if c.lanes+len(creator.lanes) > maxLanes {
		c.unfollowed++
		return
	}
	now := e.Time()
	c.cut(creator, now, c.stacks.intern(e.Stack()))
	g := &goroutine{id: id, known: true, since: now, stack: noStack}
	c.enter(g, to, st, start)
	for _, from := range creator.lanes {
		if from.root.conv.entries >= maxEntries {
			c.unfollowed++
			continue
		}
		c.goroutines[id] = g
		l := c.newLane(g, from.root)
		l.creator, l.base = from, from.current()
		l.until = from.divide()
		l.base.conv.based = append(l.base.conv.based, l)
	}
}

// sampled gives the part of a running slice around each CPU sample to its stack.
func (c *converter) sampled(g *goroutine, e trace.Event) {
	if g.state != wallprofile.Running || !g.known || e.Time() < g.since {
		return
	}
	at := c.stacks.intern(e.Stack())
	if !at.ofGoroutine() {
		return // the nearest event knows more
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
		c.world = stop{}
	}
}

const stopPrefix = "stop-the-world ("

// owned returns which segments are the span's own goroutine, as the package's documentation defines it.
func (s *span) owned() func(*segment) bool {
	l := s.conv
	if l.moved && l.endLane != nil {
		// The last segment that is owned on each lane of the line of descent.
		last := map[*lane]*segment{l.endLane: nil}
		for at := l.endLane; at != l.lane; at = at.creator {
			if at.creator == nil || at.until == nil {
				last = nil
				break
			}
			last[at.creator] = at.until
		}
		if last != nil {
			return func(seg *segment) bool {
				end, ok := last[seg.lane]
				return ok && (end == nil || seg.index <= end.index)
			}
		}
	}
	stayed := maxSegments
	if l.moved {
		for _, index := range l.lane.lefts {
			if index >= l.seg.index {
				stayed = index
				break
			}
		}
	}
	return func(seg *segment) bool { return seg.lane == l.lane && seg.index <= stayed }
}
