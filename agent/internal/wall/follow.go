package wall

import (
	"slices"
	"strings"

	"golang.org/x/exp/trace"

	"spanflame/internal/wallprofile"
)

// A wait that another goroutine ended is followed when it ends: it is divided by what that goroutine, the waker, did
// meanwhile. Where the waker itself waited and another goroutine ended that, the waker's waker is followed up to there,
// and so on; a wait is never followed to before its own begin. Of a time before the waker existed, the goroutine that
// started it is followed. The parts sum to the wait.
//
// In a convoy, each holder of a lock was woken by the holder before. Such a chain is not a stack: each holder stands
// directly below the wait, with what it did while it held the lock.

const (
	maxFollowed = 8       // waits below one another
	maxSteps    = 1 << 14 // slices looked at for one wait
	maxCredit   = 1 << 19 // slices looked at for all waits, when nothing was for a while; each event adds one
)

// cause is a part of a stack below a wait: a goroutine, and where it was. The innermost one is the cause of a slice.
type cause struct {
	above *cause
	link  wallprofile.Link
	who   *party // nil for a timer
	stack *stack
	state wallprofile.State
	not   wallprofile.NotFollowed // if it is not a goroutine: why that is not known
	label string                  // of an account: the frame that says who it was
}

// causes has one pointer for each cause.
type causes map[cause]*cause

func (cs causes) of(k cause) *cause {
	p, ok := cs[k]
	if !ok {
		p = &k
		cs[k] = p
	}
	return p
}

// part is a part of a wait.
type part struct {
	below *cause
	ns    int64
}

// ending is how a wait ended.
type ending struct {
	waker uint64 // number of the slice of the goroutine that ended it, 0 if it is not known
	by    *stack // where that one ended it
	alone bool   // no goroutine did
}

// following is one wait that is being followed.
type following struct {
	hs      *historian
	parts   []part
	steps   int
	holders map[culprit]int64 // whose work stands directly below the wait

	by  *stack // the latest at which somebody ended it
	own string // of that, the service's own function
}

// culprit is who made a wait longer, and the function by which that one ended it, empty if that is not known.
type culprit struct {
	who *party
	by  string
}

// follow divides the wait of a goroutine in a state at a stack from a to b.
func (hs *historian) follow(state wallprofile.State, at *stack, end *ending, a, b trace.Time) *following {
	hs.limit()
	f := &following{hs: hs, holders: make(map[culprit]int64)}
	f.steps = hs.credit.take(hs.c.events)
	defer func() { hs.credit.give(f.steps) }()
	switch {
	case end == nil:
		f.leave(nil, wallprofile.NotEnded, a, b)
	case end.alone && (state.Link() == wallprofile.SentBy || state.Link() == wallprofile.WokenBy || state.Link() == wallprofile.ReceivedBy):
		f.add(nil, a, b) // by a timer or the network
	case end.waker == 0:
		f.leave(nil, wallprofile.NotNamed, a, b)
	default:
		f.divide(end.waker, a, b, below{wait: slice{state: state, stack: at, by: end.by}, link: state.Link()})
	}
	return f
}

// limit forgets the causes if there are too many: a span that runs for minutes waits for many requests.
func (hs *historian) limit() {
	if len(hs.causes) > maxPaths {
		clear(hs.causes)
	}
}

// credit is how many slices may be looked at.
type credit struct {
	steps  int
	events uint64 // that were turned into steps
}

// take takes as many as are looked at for one wait, at most. What is left of them is to be given back.
func (c *credit) take(events uint64) (steps int) {
	c.steps = min(maxCredit, c.steps+int(events-c.events))
	c.events = events
	steps = min(maxSteps, c.steps)
	c.steps -= steps
	return steps
}

func (c *credit) give(steps int) { c.steps += steps }

// below is where in the stack the work of a goroutine stands.
type below struct {
	above *cause
	link  wallprofile.Link
	wait  slice // the wait that the work made longer
	depth int
}

func (f *following) add(c *cause, a, b trace.Time) {
	if b > a {
		f.parts = append(f.parts, part{c, int64(b.Sub(a))})
	}
}

// leave adds a part that is not followed.
func (f *following) leave(above *cause, why wallprofile.NotFollowed, a, b trace.Time) {
	if b > a {
		f.hs.reasons[why]++
		f.add(f.hs.causes.of(cause{above: above, not: why}), a, b)
	}
}

// divide adds what a goroutine did from a to b, from the end backwards. It begins with a slice that does not end before b.
func (f *following) divide(number uint64, a, b trace.Time, in below) {
	t := b
	var h *history
	for t > a {
		s := f.hs.slice(number)
		if s == nil || s.to < t {
			break
		}
		if f.steps == 0 {
			f.leave(in.above, wallprofile.TooMuch, a, t)
			return
		}
		f.steps--
		h, number = s.of, s.before
		if from := max(a, s.from); from < t {
			f.part(*s, from, t, in)
			t = from
		}
	}
	switch {
	case t <= a:
	case h == nil || h.born != t:
		f.leave(in.above, wallprofile.Forgotten, a, t)
	case in.depth >= maxFollowed:
		f.leave(in.above, wallprofile.TooDeep, a, t)
	case h.starter == 0:
		f.add(f.hs.causes.of(cause{above: in.above, link: wallprofile.StartedBy}), a, t)
	default:
		in.link, in.wait.by = wallprofile.StartedBy, noStack
		in.depth++
		f.divide(h.starter, a, t, in)
	}
}

// part adds what a goroutine did in a part of a slice.
func (f *following) part(s slice, a, b trace.Time, in below) {
	if s.who != nil && s.who.ended > a && s.who.ended < b {
		f.part(s, a, s.who.ended, in)
		a = s.who.ended
	}
	if s.who == nil || s.who.ended != 0 && s.who.ended <= a {
		s.who = f.hs.nobody(s.stack)
	}
	k := cause{above: in.above, link: in.link, who: s.who, stack: s.stack, state: s.state}
	link := s.state.Link()
	followed := link != wallprofile.NoLink && s.waker != 0
	switch {
	case followed && s.switched:
		f.divide(s.waker, a, b, in)
		return
	case followed && link == in.link && in.wait.convoy(s):
		in.wait = s
		f.divide(s.waker, a, b, in)
		return
	case !followed:
		f.spend(k, a, b)
	case in.depth >= maxFollowed:
		f.leave(f.hs.causes.of(k), wallprofile.TooDeep, a, b)
	default:
		f.divide(s.waker, a, b, below{above: f.hs.causes.of(k), link: link, wait: s, depth: in.depth + 1})
	}
	if in.depth == 0 && in.link != wallprofile.StartedBy {
		f.holders[culprit{s.who, f.endedBy(in)}] += int64(b.Sub(a))
	}
}

// endedBy returns the function by which somebody ended a wait: for a lock, the one that released it, or else the service's
// own, which for example gave a connection back or sent an answer. It is empty if there is none.
func (f *following) endedBy(in below) string {
	if in.link == wallprofile.HeldBy {
		return releaser(in.wait.by)
	}
	if in.wait.by != f.by {
		f.by, f.own = in.wait.by, wallprofile.Own(in.wait.by.functions())
	}
	return f.own
}

// spend adds a part that is the end of a stack, without the stops of the world in it.
func (f *following) spend(k cause, a, b trace.Time) {
	if k.state == wallprofile.Running || k.state == wallprofile.Assisting || k.state == wallprofile.Runnable {
		stopped := k
		for _, s := range slices.Backward(f.hs.stops) {
			if s.to <= a {
				break
			}
			if s.from >= b {
				continue
			}
			stopped.state = s.by
			f.add(f.hs.causes.of(k), s.to, b)
			f.add(f.hs.causes.of(stopped), max(a, s.from), min(b, s.to))
			b = max(a, s.from)
		}
	}
	f.add(f.hs.causes.of(k), a, b)
}

// convoy reports whether the waker of a wait had itself waited for the same before: at the same place, or, for a lock,
// in the function that then released it.
func (w slice) convoy(s slice) bool {
	if w.state != s.state {
		return false
	}
	at, own := s.stack.place(), w.stack.place()
	if at == own && at != (frame{}) {
		return true
	}
	return w.state.Link() == wallprofile.HeldBy && at.function != "" && at.function == releaser(w.by)
}

// place returns the innermost frame that is not of the runtime or of package sync: it called what waits.
func (s *stack) place() frame {
	for _, f := range s.frames {
		if !inSync(f.function) {
			return f
		}
	}
	return frame{}
}

// shared reports whether a goroutine that was started with the stack works for whoever needs it next, and not for the
// request that happened to start it.
func (s *stack) shared() bool {
	if len(s.frames) == 0 {
		return false
	}
	entry := s.frames[len(s.frames)-1].function
	return entry != "runtime.corostart" && slices.ContainsFunc(sharedGoroutines, func(prefix string) bool { return strings.HasPrefix(entry, prefix) })
}

// sharedGoroutines are the functions of goroutines that serve a connection or a pool.
var sharedGoroutines = []string{
	"net/http.(*persistConn).", "net/http.(*Transport).", "net/http.(*http2", "golang.org/x/net/http2.", "database/sql.",
	"google.golang.org/grpc/internal/", "google.golang.org/grpc.", "runtime.",
}

// served are the functions below which a server handles requests.
var served = []string{"net/http.(*conn).serve", "net/http.(*http2serverConn).runHandler", "golang.org/x/net/http2.(*serverConn).runHandler",
	"google.golang.org/grpc.(*Server).handleStream"}

// nobody returns the party of a goroutine that works for no span: the function that it is known by.
func (hs *historian) nobody(at *stack) *party {
	if p := hs.alone[at]; p != nil {
		return p
	}
	p := party{name: "unknown goroutine", anyones: true}
	if n := len(at.frames); n > 0 {
		p.name = at.frames[n-1].function
	}
	for _, f := range slices.Backward(at.frames) {
		p.served = p.served || slices.ContainsFunc(served, func(prefix string) bool { return strings.HasPrefix(f.function, prefix) })
		if !wallprofile.OnBehalf(f.function, f.file) {
			p.name, p.anyones = f.function, false
			break
		}
		if p.anyones && !wallprofile.Anyones(f.function, f.file) { // of a dependency, unless there is better
			p.name, p.anyones = f.function, false
		}
	}
	one := hs.functions[p]
	if one == nil {
		one = &p
		hs.functions[p] = one
	}
	if len(hs.alone) >= maxStacks {
		clear(hs.alone)
	}
	hs.alone[at] = one
	return one
}

// outermost returns the cause directly below the wait.
func (c *cause) outermost() *cause {
	for c.above != nil {
		c = c.above
	}
	return c
}

// frame returns the frame that says who a cause was, in the profile of a root.
func (c *cause) frame(t *root) string {
	switch who := c.who; {
	case c.not != wallprofile.Followed:
		return c.not.Leaf()
	case who == nil:
		return wallprofile.CauseFrame(c.link, wallprofile.Timer, "")
	case who.number == t.number:
		return wallprofile.CauseFrame(c.link, wallprofile.SameRequest, "")
	case who.number != 0:
		return wallprofile.CauseFrame(c.link, wallprofile.OtherRequest, who.called())
	case who.served:
		return wallprofile.CauseFrame(c.link, wallprofile.NoSpan, who.name)
	default:
		return wallprofile.CauseFrame(c.link, wallprofile.NoRequest, who.name)
	}
}

// called returns the name of a request, empty if it is not known.
func (p *party) called() string {
	if p.root != nil {
		return p.root.currentName()
	}
	return p.name
}

// tooMany stands for the causes of a root that has too many of them.
var tooMany = &cause{not: wallprofile.TooMuch}
