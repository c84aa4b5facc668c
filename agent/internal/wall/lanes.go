package wall

import (
	"strings"
	"time"

	"golang.org/x/exp/trace"

	"spanflame/internal/wallprofile"
)

const (
	maxLanes    = 20_000 // goroutines followed at once, over all spans
	maxSegments = 256    // of one lane
	maxEntries  = 50_000 // of one root, beyond which stacks and paths are not told apart, and no goroutines followed
	maxPaths    = 1 << 15
	maxOpen     = 256 // roots, or overlapping spans of one root, on one goroutine: each costs at each event
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
	waits              *int             // the historian's count of goroutines that wait as this one does; nil if it does not
	ending             *ending          // of the wait that ends now

	carrier *goroutine // the coroutine that runs in its place, see handover; nil if it runs itself
	stands  *goroutine // of a carrier: the goroutine in whose place it runs
	pulled  *goroutine // its latest carrier, which it is likely to switch to again
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

func (l *lane) pop(s *span) { l.arrange(without(l.open, s)) }

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
		c.relieve(l.g)
		if l.g.stands == nil {
			c.waits(l.g, nil)
			delete(c.goroutines, l.g.id)
		}
	}
	if l.base != nil {
		l.base.conv.based = without(l.base.conv.based, l)
		l.base = nil
	}
}

// exit closes a lane whose goroutine has ended. Spans that are open on it may end elsewhere.
func (c *converter) exit(l *lane) {
	l.arrange(nil)
	c.close(l)
}

// spawn follows a goroutine that was started inside a tracked span. The runtime's own, such as the
// garbage collector's workers, are started by the first goroutine that needs them, and are not the span's.
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

func without[T comparable](list []T, x T) []T {
	for i, y := range list {
		if x == y {
			return append(list[:i], list[i+1:]...)
		}
	}
	return list
}
