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
//
// Many waits are for the same: in a convoy for the same holders, and hundreds may be woken by one goroutine. What was found for
// one wait is used for the others.

const (
	maxFollowed = 8       // waits below one another
	maxParts    = 1 << 17 // in the ring of parts, of 16 bytes each

	// What following costs, in parts of a wait that was followed before. Looking at a slice is as much as lookAt of them.
	lookAt    = 16
	maxEffort = lookAt << 16 // for one wait
	maxCredit = lookAt << 19 // for all waits, when nothing was followed for a while; each event adds lookAt
)

// cause is a part of a stack below a wait: a goroutine, and where it was. The innermost one is the cause of a slice.
type cause struct {
	causeKey
	label string // of an account: the frame that says who it was

	wait uint64 // the latest wait that has a part with this cause, and the index of that
	part int
}

type causeKey struct {
	above *cause
	link  wallprofile.Link
	who   *party // nil for a timer
	by    string // directly below the wait: the function by which that one ended it, empty if it is not known
	stack *stack
	state wallprofile.State
	not   wallprofile.NotFollowed // if it is not a goroutine: why that is not known
}

// causes has one pointer for each cause.
type causes map[causeKey]*cause

func (cs causes) of(k causeKey) *cause {
	p, ok := cs[k]
	if !ok {
		p = &cause{causeKey: k}
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

// following divides one wait after the other.
type following struct {
	hs     *historian
	wait   uint64 // number of the one that is being followed
	parts  []part // of it, one for each cause
	effort int    // that may still be made
	todo   []stretch
	begun  []*followed
	within []within

	// All waits' parts in the order in which they were found, in a ring: those of one wait are from its end backwards.
	ring  [maxParts / chunkSize]*[chunkSize]found
	count uint64 // number of the newest; they are counted from 1 on
}

// found is a part of a wait that ends where the part found before it begins. Two without a cause stand for parts that were found
// for another wait: the number of the first of them, and where the last of them begins or is cut off.
type found struct {
	below *cause
	begin trace.Time
}

// followed is what was found about the time before the end of a slice: the same was often waited for by others. It stands
// directly below a wait.
type followed struct {
	in       below
	from, to trace.Time
	first    uint64 // number of its first part
	wait     uint64 // in which it was found
}

// within is where parts go on after those that were found for another wait.
type within struct {
	until  trace.Time
	number uint64
}

// stretch is a time of a goroutine that is still to be divided.
type stretch struct {
	number   uint64   // of the slice that does not end before to
	of       *history // whose slices are over, if there is no such slice
	from, to trace.Time
	in       below
}

// limit forgets the causes if there are too many: a span that runs for minutes waits for many requests.
func (hs *historian) limit() {
	if len(hs.causes) > maxPaths {
		clear(hs.causes)
	}
}

// credit is the effort that may be made.
type credit struct {
	effort int
	events uint64 // that were turned into effort
}

// take takes as much as is made for one wait, at most. What is left of it is to be given back.
func (c *credit) take(events uint64) (effort int) {
	c.effort = min(maxCredit, c.effort+lookAt*int(events-c.events))
	c.events = events
	effort = min(maxEffort, c.effort)
	c.effort -= effort
	return effort
}

func (c *credit) give(effort int) { c.effort += effort }

// below is where in the stack the work of a goroutine stands.
type below struct {
	above *cause
	link  wallprofile.Link
	depth int

	// The wait that the work made longer, where it was, and where somebody ended it.
	state  wallprofile.State
	at, by *stack
}

// follow divides the wait of a goroutine in a state at a stack from a to b. The parts are valid until the next wait is followed.
func (hs *historian) follow(state wallprofile.State, at *stack, end *ending, a, b trace.Time) []part {
	hs.limit()
	f := &hs.following
	f.wait++
	f.parts = f.parts[:0]
	f.effort = hs.credit.take(hs.c.events)
	defer func() { hs.credit.give(f.effort) }()
	switch {
	case end == nil:
		f.leave(nil, wallprofile.NotEnded, a, b)
	case end.alone && (state.Link() == wallprofile.SentBy || state.Link() == wallprofile.WokenBy || state.Link() == wallprofile.ReceivedBy):
		f.parts = append(f.parts, part{nil, int64(b.Sub(a))}) // by a timer or the network
	case end.waker == 0:
		f.leave(nil, wallprofile.NotNamed, a, b)
	default:
		f.divide(stretch{number: end.waker, from: a, to: b, in: below{link: state.Link(), state: state, at: at, by: end.by}})
	}
	return f.parts
}

// add adds a part that ends where the part before it begins.
func (f *following) add(c *cause, a, b trace.Time) {
	if b > a {
		f.note(found{c, a})
		f.sum(c, a, b)
	}
}

func (f *following) sum(c *cause, a, b trace.Time) {
	if c.wait != f.wait {
		c.wait, c.part = f.wait, len(f.parts)
		f.parts = append(f.parts, part{below: c})
	}
	f.parts[c.part].ns += int64(b.Sub(a))
}

// note puts a part into the ring.
func (f *following) note(p found) {
	f.count++
	at := f.count % maxParts
	chunk := &f.ring[at/chunkSize]
	if *chunk == nil {
		*chunk = new([chunkSize]found)
	}
	(*chunk)[at%chunkSize] = p
}

// leave adds a part that is not followed.
func (f *following) leave(above *cause, why wallprofile.NotFollowed, a, b trace.Time) {
	if b > a {
		f.hs.reasons[why]++
		f.add(f.hs.causes.of(causeKey{above: above, not: why}), a, b)
	}
}

// divide adds what a goroutine did, from the end backwards.
func (f *following) divide(all stretch) {
	f.begun, f.todo = f.begun[:0], f.todo[:0]
	f.begin(all)
	for n := len(f.todo); n > 0; n = len(f.todo) {
		t := f.todo[n-1]
		f.todo = f.todo[:n-1]
		f.stretch(t)
	}
}

// begin has a stretch divided next.
func (f *following) begin(t stretch) {
	f.todo = append(f.todo, t)
	if s := f.hs.slice(t.number); t.in.depth == 0 && s != nil && !s.followed.has(&t) {
		s.followed = &followed{in: t.in, from: t.from, to: t.to, first: f.count + 1, wait: f.wait}
		f.begun = append(f.begun, s.followed)
	}
}

// stretch divides a time up to where another goroutine has to be followed first.
func (f *following) stretch(t stretch) {
	for t.to > t.from {
		s := f.hs.slice(t.number)
		if s == nil || s.to < t.to {
			break
		}
		if t.in.depth == 0 && s.followed.has(&t) && s.followed.wait != f.wait {
			f.repeat(s.followed.first, t)
			return
		}
		if f.effort < lookAt {
			f.stop(t)
			return
		}
		f.effort -= lookAt
		a, b, who := max(t.from, s.from), t.to, s.who
		if who != nil && who.ended != 0 && who.ended < b { // and it did something else then
			a, who = max(a, who.ended), nil
		}
		if who == nil {
			who = f.hs.nobody(s.stack)
		}
		t.of, t.to = s.of, a
		if a == s.from {
			t.number = s.before
		}
		if next, ok := f.slice(s, who, a, b, t.in); ok {
			if t.to > t.from {
				f.todo = append(f.todo, t)
			}
			f.begin(next)
			return
		}
	}
	in := t.in
	switch {
	case t.to <= t.from:
	case t.of == nil || t.of.born != t.to:
		f.leave(in.above, wallprofile.Forgotten, t.from, t.to)
	case in.depth >= maxFollowed:
		f.leave(in.above, wallprofile.TooDeep, t.from, t.to)
	case t.of.starter == 0:
		f.add(f.hs.causes.of(causeKey{above: in.above, link: wallprofile.StartedBy}), t.from, t.to)
	default:
		in.link, in.by = wallprofile.StartedBy, noStack
		in.depth++
		f.begin(stretch{number: t.of.starter, from: t.from, to: t.to, in: in})
	}
}

// stop leaves the rest. What was found is of no use for other waits.
func (f *following) stop(t stretch) {
	f.leave(t.in.above, wallprofile.TooMuch, t.from, t.to)
	for _, s := range f.begun {
		s.to = s.from
	}
}

// has reports whether what was found is that of a stretch, or includes it.
func (s *followed) has(t *stretch) bool {
	return s != nil && s.from <= t.from && s.to >= t.to && s.in.same(&t.in)
}

// same reports whether work has the same causes below another wait.
func (in *below) same(other *below) bool {
	return in.link == other.link && in.state == other.state && (in.at == other.at || in.at.place() == other.at.place()) &&
		(in.by == other.by || in.endedBy() == other.endedBy())
}

// repeat adds parts that were found before, from the one with a number on.
func (f *following) repeat(number uint64, t stretch) {
	f.note(found{begin: trace.Time(number)})
	f.note(found{begin: t.from})
	f.within = append(f.within[:0], within{until: t.from})
	for {
		in := f.within[len(f.within)-1]
		switch {
		case t.to <= t.from:
			return
		case t.to <= in.until:
			f.within, number = f.within[:len(f.within)-1], in.number
			continue
		case number+maxParts <= f.count:
			f.leave(nil, wallprofile.Forgotten, t.from, t.to)
			return
		case f.effort == 0:
			f.stop(t)
			return
		}
		f.effort--
		p := f.found(number)
		number++
		if p.below == nil {
			if until := f.found(number).begin; until > in.until {
				f.within = append(f.within, within{until, number + 1})
			}
			number = uint64(p.begin)
		} else if a := max(in.until, p.begin); a < t.to {
			f.sum(p.below, a, t.to)
			t.to = a
		}
	}
}

func (f *following) found(number uint64) found {
	at := number % maxParts
	return f.ring[at/chunkSize][at%chunkSize]
}

// slice adds what a goroutine did in a part of a slice. If it waited for another one then, that one is to be followed next.
func (f *following) slice(s *slice, who *party, a, b trace.Time, in below) (next stretch, ok bool) {
	k := causeKey{above: in.above, link: in.link, who: who, stack: s.stack, state: s.state}
	if in.depth == 0 {
		k.by = in.endedBy()
	}
	link := s.state.Link()
	next = stretch{number: s.waker, from: a, to: b, in: in}
	switch {
	case link == wallprofile.NoLink || s.waker == 0:
		f.spend(k, a, b)
		return next, false
	case s.switched:
		return next, true
	case link == in.link && in.convoy(s):
		next.in.state, next.in.at, next.in.by = s.state, s.stack, s.by
		return next, true
	case in.depth >= maxFollowed:
		f.leave(f.hs.causes.of(k), wallprofile.TooDeep, a, b)
		return next, false
	default:
		next.in = below{above: f.hs.causes.of(k), link: link, depth: in.depth + 1, state: s.state, at: s.stack, by: s.by}
		return next, true
	}
}

// endedBy returns the function by which somebody ended a wait: for a lock, the one that released it, or else the service's
// own, which for example gave a connection back or sent an answer. It is empty if there is none.
func (in *below) endedBy() string {
	if in.link == wallprofile.HeldBy {
		return in.by.releaser()
	}
	return in.by.own()
}

// spend adds a part that is the end of a stack, without the stops of the world in it.
func (f *following) spend(k causeKey, a, b trace.Time) {
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
func (in *below) convoy(s *slice) bool {
	if in.state != s.state {
		return false
	}
	at := s.stack.place()
	if at == in.at.place() && at != (frame{}) {
		return true
	}
	return in.state.Link() == wallprofile.HeldBy && at.function != "" && at.function == in.by.releaser()
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
		name := who.called()
		if c.stack != nil {
			name = wallprofile.RequestName(name, c.stack.entry)
		}
		return wallprofile.CauseFrame(c.link, wallprofile.OtherRequest, name)
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
var tooMany = &cause{causeKey: causeKey{not: wallprofile.TooMuch}}
