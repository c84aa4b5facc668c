package wall

import (
	"cmp"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/exp/trace"

	"spanflame/internal/wallprofile"
)

// Diagnosis is a summary of where the time of a slow root span went.
type Diagnosis struct {
	TraceID, SpanID, Name string
	Start                 time.Time
	Duration              time.Duration
	Covered               time.Duration // own time that was recorded; less than Duration after a gap
	States                []Share       // own time by state, largest first
	Top                   Top
	Text                  string // one line
}

// Share is a part of a span's own time.
type Share struct {
	State string
	Time  time.Duration
}

// Top is the function and state that took most of a span's own time.
type Top struct {
	Function string // the one to blame, see [wallprofile.Blamed]
	State    string
	Time     time.Duration
	Holder   string            // who held the lock it waited for, empty unless it is certain
	Cause    wallprofile.Place // where most of a wait was spent by whoever was waited for; empty if that is not known
}

// place returns where a sample was.
func (s sample) place() wallprofile.Place {
	leaf, functions := s.state.Leaf(), s.stack.functions()
	return wallprofile.Place{Function: wallprofile.Blamed(functions), Leaf: leaf, For: wallprofile.WaitedFor(leaf, functions)}
}

// call returns the frame of the innermost call in which a sample of a span was.
func (s sample) call(of *span) string {
	for p := s.at; p != nil; p = p.above {
		if p.call != "" {
			return p.call
		}
	}
	return of.step().call
}

// diagnose sums up the account of a root. Maker returns the function that made most of the garbage from one time to another.
func diagnose(a account, maker func(from, to trace.Time) string) Diagnosis {
	t := a.span.root
	d := Diagnosis{
		TraceID:  t.traceID.String(),
		SpanID:   t.id.String(),
		Name:     t.currentName(),
		Start:    t.start,
		Duration: a.duration,
		Covered:  a.covered,
	}
	states := make(map[wallprofile.State]time.Duration)
	spent, places := make(wallprofile.Spent), make([]wallprofile.Place, len(a.samples))
	for i, s := range a.samples {
		if s.other {
			continue
		}
		places[i] = s.place()
		states[s.state] += time.Duration(s.ns)
		spent.Add(places[i], s.stack.line(places[i].Function), s.stack.functions(), time.Duration(s.ns))
	}
	for s, took := range states {
		d.States = append(d.States, Share{s.String(), took})
	}
	slices.SortFunc(d.States, func(x, y Share) int {
		return cmp.Or(cmp.Compare(y.Time, x.Time), cmp.Compare(x.State, y.State))
	})
	most, took := spent.Most()
	top := most
	top.Line = ""
	var there []sample
	for i, s := range a.samples {
		if !s.other && places[i] == top {
			there = append(there, s)
			d.Top.State = s.state.String()
		}
	}
	d.Top.Function, d.Top.Time = top.Function, took
	var cause wallprofile.Cause
	if !wallprofile.IsAnswer(top.For) { // which a client's goroutine of its own receives
		cause = d.blame(t, there)
	}
	calls, memory := make(map[string]time.Duration), wallprofile.Memory{}
	for i, s := range a.samples {
		if s.other {
			continue
		}
		memory.Add(top, places[i], s.stack.functions(), time.Duration(s.ns))
		if places[i] == top {
			calls[s.call(a.span)] += time.Duration(s.ns)
		}
	}
	call := top.Call(calls, t.conv.calls)
	caller := spent.Caller(most, t.conv.calls[call] > 1) // the nearest, which may have called in a loop
	garbage := func() string { return maker(a.span.conv.from, a.span.conv.to) }
	d.Text = wallprofile.Diagnosis(d.Name, d.Duration, most, took, caller, cause) + memory.In(most, took, garbage) +
		wallprofile.InCalls(call, t.conv.calls[call])
	d.Top.Cause = cause.Most
	return d
}

// blame returns who made the waits of a root at its top longer, and what most of them was spent with. It also notes the
// holder of the lock.
func (d *Diagnosis) blame(t *root, there []sample) (cause wallprofile.Cause) {
	switch {
	case len(there) == 0:
		return cause
	case there[0].state == wallprofile.Runnable:
		return busy(there, d.Top.Time)
	case there[0].state.Link() == wallprofile.NoLink:
		return cause
	}
	link := there[0].state.Link()
	released, parties, holders, at := make(map[string]time.Duration), make(map[*party]time.Duration), make(culprits), make(map[*stack]bool)
	for _, s := range there {
		at[s.stack] = true
	}
	owned := t.owned()
	for k, ns := range t.span.conv.now {
		if k.below == nil || k.state != there[0].state || !at[k.stack] || !owned(k.seg) {
			continue
		}
		if c := k.below.outermost(); c.who != nil && c.link != wallprofile.StartedBy {
			holders[culprit{c.who, c.by}] += ns
		}
	}
	for h, ns := range holders {
		released[h.by] += time.Duration(ns)
		parties[h.who] += time.Duration(ns)
	}
	by, _ := wallprofile.NearlyAll(released, d.Top.Time)
	if link == wallprofile.HeldBy {
		d.Top.Holder = by
	}

	one, _ := wallprofile.NearlyAll(parties, d.Top.Time)
	requests, theirs, total := 0, time.Duration(0), time.Duration(0) // other requests
	for p, took := range parties {
		total += took
		if p.number != 0 && p.number != t.number {
			requests++
			theirs += took
		}
	}
	mostly := wallprofile.Nearly(theirs, total)
	elsewhere := by
	if by == d.Top.Function {
		elsewhere = ""
	}
	switch {
	case one != nil && one.anyones:
		// It serves a connection, or the like: what the wait was for says more.
	case one != nil:
		cause.Who = one.caused(link, t, holders.releaser(one), d.Top.Function)
	case mostly && requests > 1:
		cause.Who = wallprofile.Caused(link, "", requests, true, elsewhere)
	case len(parties) > 1:
		cause.Who = wallprofile.Caused(link, "", len(parties), false, elsewhere)
	}

	spent, all := make(wallprofile.Spent), time.Duration(0)
	for _, s := range there {
		if s.below == nil || s.below.outermost().link == wallprofile.StartedBy {
			continue // or nobody was waited for yet
		}
		at, _, stack := s.below.place(d.Top.Function, by)
		spent.Add(at, stack.line(at.Function), stack.functions(), time.Duration(s.ns))
		all += time.Duration(s.ns)
	}
	if 2*all >= d.Top.Time {
		cause.Most, cause.Took = spent.Most()
		cause.Caller = spent.Caller(cause.Most, false)
	}
	return cause
}

// busy returns who had the CPUs meanwhile.
func busy(there []sample, whole time.Duration) (c wallprofile.Cause) {
	spent, ran := make(wallprofile.Spent), make(map[wallprofile.Ran]time.Duration)
	for _, s := range there {
		if s.below == nil {
			continue
		}
		one := wallprofile.Ran{Frame: s.below.label}
		if s.below.stack != nil {
			one.Entry = s.below.stack.entry()
		}
		ran[one] += time.Duration(s.ns)
		if at, _, stack := s.below.place(); at.Function != "" {
			spent.Add(at, stack.line(at.Function), stack.functions(), time.Duration(s.ns))
		}
	}
	if c.Who = wallprofile.Busy(ran, whole); c.Who != "" {
		c.Most, c.Took = spent.Most()
		c.Caller = spent.Caller(c.Most, false)
	}
	return c
}

// place returns where whoever was waited for spent time, of those that waited for one another the one that the others
// waited for, and its state and stack there. The callers are as those of [wallprofile.CausePlace].
func (c *cause) place(callers ...string) (at wallprofile.Place, state wallprofile.State, there *stack) {
	for ; c != nil; c = c.above {
		if c.not != wallprofile.Followed {
			return wallprofile.Place{Leaf: c.not.Leaf()}, wallprofile.Running, noStack
		}
		if c.stack == nil {
			continue
		}
		if at = wallprofile.CausePlace(c.state.Leaf(), c.stack.functions(), callers...); at != (wallprofile.Place{}) {
			return at, c.state, c.stack
		}
	}
	return at, wallprofile.Running, noStack
}

// culprit is who made a wait longer, and the function by which that one ended it, empty if that is not known.
type culprit struct {
	who *party
	by  string
}

// culprits have the time for which each made others wait.
type culprits map[culprit]int64

// releaser returns the function by which a party released the lock after most of the time that it made others wait.
func (w culprits) releaser(p *party) (by string) {
	most := int64(0)
	for h, ns := range w {
		if h.who == p && (ns > most || ns == most && h.by < by) {
			by, most = h.by, ns
		}
	}
	return by
}

// caused says that a party made a root wait in the function at, and ended that wait in the function by, which is empty if that
// is not known.
func (p *party) caused(link wallprofile.Link, t *root, by, at string) string {
	own := p.number == 0 || p.number == t.number
	name := p.called()
	switch {
	case own && by != "":
		name, by = wallprofile.Short(by), ""
	case p.number == t.number:
		name = "the same request"
	case p.number == 0:
		name = wallprofile.Short(p.name)
	case name == "":
		name = "another request"
	}
	if by == at {
		by = ""
	}
	return wallprofile.Caused(link, name, 1, false, by)
}

// log writes the diagnosis as one line.
func (d *Diagnosis) log(to *slog.Logger) {
	shares := make([]any, 0, len(d.States))
	for _, s := range d.States {
		shares = append(shares, slog.Float64(s.State, ratio(s.Time, d.Duration)))
	}
	to.Info(d.Text,
		slog.String(wallprofile.TraceID, d.TraceID),
		slog.String(wallprofile.SpanID, d.SpanID),
		slog.String(wallprofile.SpanName, d.Name),
		slog.Int64("duration_ms", d.Duration.Round(time.Millisecond).Milliseconds()),
		slog.Float64("covered", ratio(d.Covered, d.Duration)),
		slog.Group("states", shares...),
		slog.String("top_function", d.Top.Function),
		slog.String("top_state", d.Top.State),
		slog.String("holder", d.Top.Holder),
		slog.String("cause_function", d.Top.Cause.Function),
	)
}

// ratio is a share of whole, to three digits.
func ratio(part, whole time.Duration) float64 {
	if whole <= 0 {
		return 0
	}
	return float64(int(1000*float64(part)/float64(whole)+0.5)) / 1000
}
