package wall

import (
	"slices"

	"golang.org/x/exp/trace"

	"spanflame/internal/wallprofile"
)

// The history is what the goroutines of the process did lately, for a wait is followed only when it has ended: see
// follow.go. It is kept from one conversion to the next. Slices are kept while some goroutine that is followed waits for
// another one, in a ring of all goroutines, and those in which they ran while one waits for a CPU.

const (
	maxHistories = 1 << 16 // goroutines; a quarter of them, if nothing is known of more than their status
	maxSlices    = 1 << 17 // in the ring, of 80 bytes each
	chunkSize    = 1 << 12
	maxParties   = 1 << 16 // requests that run
	maxStops     = 64      // of the world
)

// history is what a goroutine does, and did.
type history struct {
	id   trace.GoID
	last uint64 // number of its latest slice that was kept, 0 if there is none

	// The slice that has not ended; none after the goroutine's exit.
	from     trace.Time
	state    wallprofile.State
	stack    *stack
	sample   *stack // the latest CPU sample in it
	sampleAt trace.Time
	assist   bool
	switched bool // it waits for the coroutine to which it switched
	exited   bool
	proc     int // where it ran last, an index of the historian's procs

	born    trace.Time // zero if it is not known who started it, or nobody waited then
	starter uint64     // number of the slice of the goroutine that started it; 0 if it was a timer

	base *party // the request in which it was started
	open []mark // spans that began on it and have not ended, in order
}

// slice is a time in which a goroutine was in one state.
type slice struct {
	from, to trace.Time
	of       *history
	before   uint64 // number of the goroutine's slice before that was kept, 0 if there is none
	stack    *stack
	who      *party
	waker    uint64 // of a wait: number of the slice of the goroutine that ended it, 0 if it was none
	by       *stack // … and where
	followed *followed
	state    wallprofile.State
	switched bool
}

// mark is a span that is open on a goroutine.
type mark struct {
	number uint64
	of     *party
}

// party is for whom a goroutine works: a local root span, or none.
type party struct {
	number uint64 // of the root; 0 for none
	root   *root  // nil if it is not followed
	name   string // of a root that ended and is not followed; of the function that works for none
	served bool   // it works for a request without a span
	ended  trace.Time

	anyones bool // it runs nothing but what any service may run
}

// worldStop is a stop of the world that is over.
type worldStop struct {
	from, to trace.Time
	by       wallprofile.State
}

type historian struct {
	c         *converter
	on        bool // some root is followed
	all       map[trace.GoID]*history
	recent    [256]*history // of these, those that were looked up, by the remainder of their numbers
	start     trace.Time    // the trace has no gap since
	ring      [maxSlices / chunkSize]*[chunkSize]slice
	kept      uint64     // number of the newest slice; they are counted from 1 on
	waiting   int        // goroutines that are followed and wait for another one
	queued    int        // … and for a CPU
	procs     []*history // the goroutine that ran last on each of the scheduler's processors
	stops     []worldStop
	parties   map[uint64]*party   // of the roots that run
	begun     map[uint64]*history // where the spans began that run
	alone     map[*stack]*party   // by the stack of a goroutine that works for no span
	functions map[party]*party    // of these: one for each function
	names     func(number uint64) string

	following following
	causes    causes
	credit    credit // for following waits
	forBusy   credit // for dividing the time of those that wait for a CPU
	reasons   [wallprofile.NumNotFollowed]uint64
}

func newHistorian(c *converter, names func(uint64) string) *historian {
	h := &historian{c: c, names: names, causes: make(causes), credit: credit{effort: maxCredit}, forBusy: credit{effort: maxCredit}}
	h.following.hs = h
	h.reset(0)
	return h
}

// reset forgets everything, for what comes next does not continue it.
func (hs *historian) reset(now trace.Time) {
	hs.all, hs.begun = make(map[trace.GoID]*history), make(map[uint64]*history)
	hs.parties, hs.alone, hs.functions = make(map[uint64]*party), make(map[*stack]*party), make(map[party]*party)
	hs.stops, hs.procs, hs.start = nil, nil, now
	clear(hs.recent[:])
}

// run starts or stops the historian: a history that nobody needs is not kept.
func (hs *historian) run(on bool, now trace.Time) {
	if on != hs.on {
		hs.on = on
		hs.reset(now)
	}
}

// of returns a goroutine's history, nil if there is none.
func (hs *historian) of(id trace.GoID) *history {
	if id == trace.NoGoroutine {
		return nil
	}
	at := &hs.recent[uint64(id)%uint64(len(hs.recent))]
	if h := *at; h != nil && h.id == id {
		return h
	}
	h := hs.all[id]
	if h != nil {
		*at = h
	}
	return h
}

// meet begins the history of a goroutine that is in a state, for all that is known, since the trace began.
func (hs *historian) meet(id trace.GoID, state wallprofile.State, at *stack) *history {
	h := &history{id: id, from: hs.start, state: state, stack: at}
	if g := hs.c.goroutines[id]; g != nil && len(g.lanes) > 0 {
		h.base = hs.party(g.lanes[len(g.lanes)-1].root.number)
	}
	hs.all[id] = h
	return h
}

// who returns for whom the goroutine works, nil for no span.
func (h *history) who() *party {
	for _, m := range slices.Backward(h.open) {
		if m.of.ended == 0 {
			return m.of
		}
	}
	if h.base != nil && h.base.ended == 0 {
		return h.base
	}
	return nil
}

// party returns the running request with the number of its root.
func (hs *historian) party(number uint64) *party {
	p := hs.parties[number]
	if p == nil {
		if len(hs.parties) >= maxParties {
			clear(hs.parties)
		}
		p = &party{number: number}
		if s := hs.c.known[number]; s != nil {
			p.follow(s.root)
		}
		hs.parties[number] = p
	}
	return p
}

// follow and leave note the root of a request that is followed.
func (p *party) follow(t *root) { p.root, t.conv.party = t, p }

func (t *root) leave() {
	if p := t.conv.party; p != nil {
		p.name, p.root, t.conv.party = t.currentName(), nil, nil
	}
}

// mark handles the begin and the end of any span, of which only the numbers are known.
func (hs *historian) mark(e trace.Event, begin bool) {
	number, root := spanNumbers(e.Log().Message)
	if number == 0 {
		return
	}
	now, on := e.Time(), e.Goroutine()
	h := hs.of(on)
	if begin {
		if h == nil {
			h = hs.meet(on, wallprofile.Running, noStack)
		}
		hs.cut(h, now, hs.c.stacks.intern(e.Stack()))
		if len(h.open) == maxOpen {
			hs.prune(h)
		}
		if len(h.open) < maxOpen && len(hs.begun) < maxParties {
			h.open = append(h.open, mark{number, hs.party(root)})
			hs.begun[number] = h
		}
		return
	}
	if h != nil {
		hs.cut(h, now, hs.c.stacks.intern(e.Stack()))
	}
	if at := hs.begun[number]; at != nil {
		if at != h {
			hs.cut(at, now, noStack)
		}
		delete(hs.begun, number)
		at.open = slices.DeleteFunc(at.open, func(m mark) bool { return m.number == number })
	}
	if p := hs.parties[number]; p != nil {
		delete(hs.parties, number)
		p.ended = now
		if p.root == nil {
			p.name = hs.names(number)
		}
	}
}

// prune forgets spans that began on a goroutine and outlived their requests: most of them never end.
func (hs *historian) prune(h *history) {
	h.open = slices.DeleteFunc(h.open, func(m mark) bool {
		if m.of.ended == 0 {
			return false
		}
		delete(hs.begun, m.number)
		return true
	})
}

// transition ends the slice of a goroutine, and begins the next one.
func (hs *historian) transition(e trace.Event, st trace.StateTransition, from, to trace.GoState) {
	now, id := e.Time(), st.Resource.Goroutine()
	at := hs.c.stacks.intern(st.Stack)
	h := hs.of(id)
	switch {
	case from == trace.GoNotExist:
		h = &history{id: id, from: now, stack: at}
		if starter := hs.of(e.Goroutine()); starter != nil && !at.shared() {
			h.base = starter.who()
		}
		if e.Goroutine() == trace.NoGoroutine {
			h.born = now
		} else if hs.waiting > 0 {
			if h.starter, _ = hs.wake(e); h.starter != 0 {
				h.born = now
			}
		}
		if len(hs.all) < maxHistories {
			hs.all[id] = h
		}
		h.state = stateIn(to, st.Reason, h.stack)
		return
	case h == nil && (len(hs.all) >= maxHistories || from == trace.GoUndetermined && len(hs.all) >= maxHistories/4):
		return
	case from == trace.GoUndetermined && h == nil:
		hs.meet(id, stateIn(to, st.Reason, at), at)
		return
	case h == nil:
		h = hs.meet(id, wallprofile.Running, noStack)
		h.state = stateIn(from, "", h.stack)
	}
	if from == to || from == trace.GoUndetermined {
		if h.stack == noStack {
			h.stack = at
		}
		return // a status, repeated in each generation
	}
	switch {
	case hs.waiting > 0 && from == trace.GoWaiting:
		hs.woken(h, now, e)
	case hs.waiting > 0, hs.queued > 0 && from == trace.GoRunning && now.Sub(h.from) >= minRan:
		hs.cut(h, now, at)
	}
	h.from, h.sample = now, nil
	if at != noStack {
		h.stack = at
	}
	if to == trace.GoNotExist {
		h.exited = true
		hs.prune(h)
		delete(hs.all, id)
		hs.recent[uint64(id)%uint64(len(hs.recent))] = nil
		return
	}
	h.state = stateIn(to, st.Reason, h.stack)
	if to == trace.GoRunning {
		hs.runs(h, e.Proc())
	}
	h.switched = to == trace.GoWaiting && hs.c.switches(id, st.Reason)
}

// woken ends the wait of a goroutine.
func (hs *historian) woken(h *history, now trace.Time, e trace.Event) {
	s := slice{from: h.from, to: now, of: h, state: h.state, stack: h.stack, who: h.who(), switched: h.switched}
	if s.state.Link() != wallprofile.NoLink {
		s.waker, s.by = hs.wake(e)
	}
	hs.keep(h, &s)
}

// wake ends the slice of the goroutine that wakes another one in an event, and returns its number and the stack there. The
// number is 0 if there is no such goroutine.
func (hs *historian) wake(e trace.Event) (number uint64, by *stack) {
	by = hs.c.stacks.intern(e.Stack())
	if h := hs.of(e.Goroutine()); h != nil {
		hs.cut(h, e.Time(), by)
		return h.last, by
	}
	return 0, by
}

// cut ends a slice at now and continues it in the same state. The stack is that of the event there, if it has one.
func (hs *historian) cut(h *history, now trace.Time, at *stack) {
	if now <= h.from || h.exited {
		return
	}
	s := slice{from: h.from, to: now, of: h, state: h.state, stack: h.stack, who: h.who()}
	if s.state == wallprofile.Running {
		switch {
		case h.sample != nil:
			s.stack = h.sample
		case at != noStack:
			s.stack = at
		}
		if h.assist {
			s.state = wallprofile.Assisting
		}
	}
	hs.keep(h, &s)
	h.from = now
	if h.state == wallprofile.Running && at != noStack {
		h.stack = at // it is nearer to what follows
	}
}

// keep puts a slice into the ring, in the place of the oldest one if that is full. While nobody waits, nobody needs it,
// and nobody waits for the runtime's sweeper, which yields at each step: a collection would fill the ring with that.
func (hs *historian) keep(h *history, s *slice) {
	if s.to <= s.from || hs.waiting == 0 && (hs.queued == 0 || s.state != wallprofile.Running) || s.stack.sweeps() {
		return
	}
	hs.kept++
	at := hs.kept % maxSlices
	chunk := &hs.ring[at/chunkSize]
	if *chunk == nil {
		*chunk = new([chunkSize]slice)
	}
	s.before, h.last = h.last, hs.kept
	(*chunk)[at%chunkSize] = *s
}

// sweeps reports whether the stack is that of the goroutine which sweeps the heap after a garbage collection.
func (s *stack) sweeps() bool {
	return len(s.frames) > 0 && s.frames[len(s.frames)-1].function == "runtime.bgsweep"
}

// slice returns a slice by its number, nil if there is none, or it was overwritten.
func (hs *historian) slice(number uint64) *slice {
	if number == 0 || number > hs.kept || number+maxSlices <= hs.kept {
		return nil
	}
	at := number % maxSlices
	return &hs.ring[at/chunkSize][at%chunkSize]
}

// sampled gives the part of a running slice around each CPU sample to its stack.
func (hs *historian) sampled(e trace.Event) {
	h := hs.of(e.Goroutine())
	if h == nil || h.state != wallprofile.Running || e.Time() < h.from {
		return
	}
	at := hs.c.stacks.intern(e.Stack())
	if !at.ofGoroutine() {
		return
	}
	if h.sample != nil {
		hs.cut(h, h.sampleAt+(e.Time()-h.sampleAt)/2, noStack)
	}
	h.sample, h.sampleAt = at, e.Time()
}

// assisted notes that a goroutine helps the garbage collector from now on, or no more.
func (hs *historian) assisted(id trace.GoID, e trace.Event, assist bool) {
	if h := hs.of(id); h != nil && h.assist != assist {
		hs.cut(h, e.Time(), hs.c.stacks.intern(e.Stack()))
		h.assist = assist
	}
}

// stopped notes a stop of the world.
func (hs *historian) stopped(s worldStop) {
	if len(hs.stops) == maxStops {
		hs.stops = slices.Delete(hs.stops, 0, maxStops/2)
	}
	hs.stops = append(hs.stops, s)
}
