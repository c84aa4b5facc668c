package wall

import (
	"cmp"
	"log/slog"
	"slices"
	"time"

	"spanflame/internal/wallprofile"
)

// Diagnosis is a summary of where the time of a slow root span went.
type Diagnosis struct {
	TraceID, SpanID, Name string
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

// certain is the share of a wait for a lock in which one function must have been the one to release it
// to be named as its holder.
const certain = 0.9

// place is a function to blame, and a state.
type place struct {
	function string
	state    wallprofile.State
	what     string // it waited for
}

// place returns where a sample was.
func (s sample) place() place {
	return place{s.stack.blamed(), s.state, wallprofile.WaitedFor(s.state.Leaf(), s.stack.functions())}
}

// diagnose sums up the account of a root.
func diagnose(a account) Diagnosis {
	t := a.span.root
	d := Diagnosis{
		TraceID:  t.traceID.String(),
		SpanID:   t.id.String(),
		Name:     t.currentName(),
		Duration: a.duration,
		Covered:  a.covered,
	}
	states := make(map[wallprofile.State]time.Duration)
	places := make(map[place]time.Duration)
	for _, s := range a.samples {
		if s.other {
			continue
		}
		states[s.state] += time.Duration(s.ns)
		places[s.place()] += time.Duration(s.ns)
	}
	for s, took := range states {
		d.States = append(d.States, Share{s.String(), took})
	}
	slices.SortFunc(d.States, func(x, y Share) int {
		return cmp.Or(cmp.Compare(y.Time, x.Time), cmp.Compare(x.State, y.State))
	})
	var top place
	for p, took := range places {
		if took > d.Top.Time || took == d.Top.Time && p.function < top.function {
			top = p
			d.Top = Top{Function: p.function, State: p.state.String(), Time: took}
		}
	}
	cause := d.blame(a, top)
	d.Text = wallprofile.Diagnosis(d.Name, d.Duration, wallprofile.Place{Function: top.function, Leaf: top.state.Leaf(), For: top.what}, d.Top.Time, cause)
	d.Top.Cause = cause.Most
	return d
}

// blame returns who made the waits at a place longer, and what most of them was spent with. It also notes the holder of the
// lock.
func (d *Diagnosis) blame(a account, top place) (cause wallprofile.Cause) {
	root := a.span.root
	held, parties, holders, seen := make(map[string]int64), make(map[*party]int64), make(waits), make(map[*stack]bool)
	for _, s := range a.samples {
		if s.other || seen[s.stack] || s.place() != top {
			continue
		}
		seen[s.stack] = true
		for h, ns := range root.conv.waits[s.stack] {
			if h.by != "" {
				held[h.by] += ns
			}
			parties[h.who] += ns
			holders[h] += ns
		}
	}
	enough := certain * float64(d.Top.Time)
	for by, ns := range held {
		if float64(ns) >= enough {
			d.Top.Holder = by
		}
	}

	var one *party
	requests, theirs, total := 0, int64(0), int64(0) // other requests
	for p, ns := range parties {
		total += ns
		if p.number != 0 && p.number != root.number {
			requests++
			theirs += ns
		}
		if float64(ns) >= enough {
			one = p
		}
	}
	mostly := float64(theirs) >= certain*float64(total)
	switch link := top.state.Link(); {
	case link == wallprofile.NoLink:
		return cause
	case one != nil && one.anyones:
		// It serves a connection, or the like: what the wait was for says more.
	case one != nil:
		cause.Who = wallprofile.Caused(link, one.named(root, holders.releaser(one), top.function), 1, false)
	case mostly && requests > 1:
		cause.Who = wallprofile.Caused(link, "", requests, true)
	case len(parties) > 1:
		cause.Who = wallprofile.Caused(link, "", len(parties), false)
	}

	spent, all := make(map[wallprofile.Place]time.Duration), time.Duration(0)
	for _, s := range a.samples {
		if s.other || s.below == nil || s.place() != top || s.below.outermost().link == wallprofile.StartedBy {
			continue // or nobody was waited for yet
		}
		var at wallprofile.Place
		for c := s.below; c != nil && at == (wallprofile.Place{}); c = c.above {
			switch {
			case c.not != wallprofile.Followed:
				at.Leaf = c.not.Leaf()
			case c.stack != nil:
				at = wallprofile.CausePlace(c.state.Leaf(), c.stack.functions(), top.function, d.Top.Holder)
			}
		}
		spent[at] += time.Duration(s.ns)
		all += time.Duration(s.ns)
	}
	if all < d.Top.Time/2 {
		return cause
	}
	for at, took := range spent {
		if took > cause.Took || took == cause.Took && at.Function < cause.Most.Function {
			cause.Most, cause.Took = at, took
		}
	}
	return cause
}

// releaser returns the function by which a party released the lock after most of the time that it made others wait.
func (w waits) releaser(p *party) (by string) {
	most := int64(0)
	for h, ns := range w {
		if h.who == p && (ns > most || ns == most && h.by < by) {
			by, most = h.by, ns
		}
	}
	return by
}

// named is what a diagnosis of a root calls a party, which released the lock in the function by, if it did. The root waited in
// the function at.
func (p *party) named(t *root, by, at string) string {
	own := p.number == 0 || p.number == t.number
	name := p.called()
	switch {
	case own && by != "":
		return wallprofile.Short(by)
	case p.number == t.number:
		return "the same request"
	case p.number == 0:
		return wallprofile.Short(p.name)
	case name == "":
		name = "another request"
	}
	if by != "" && by != at {
		name += " in " + wallprofile.Short(by)
	}
	return name
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
