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
	Holder   string // who held the lock it waited for, empty unless it is certain
}

// certain is the share of a wait for a lock in which one function must have been the one to release it
// to be named as its holder.
const certain = 0.9

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
	type place struct {
		function string
		state    wallprofile.State
	}
	states := make(map[wallprofile.State]time.Duration)
	places := make(map[place]time.Duration)
	for _, s := range a.samples {
		if s.other {
			continue
		}
		states[s.state] += time.Duration(s.ns)
		places[place{s.stack.blamed(), s.state}] += time.Duration(s.ns)
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
	if top.state == wallprofile.WaitMutex || top.state == wallprofile.WaitRWMutex {
		held := make(map[string]int64)
		for _, s := range a.samples {
			if !s.other && s.state == top.state && s.stack.blamed() == top.function {
				for who, ns := range t.conv.holders[s.stack] {
					held[who] += ns
				}
			}
		}
		for who, ns := range held {
			if float64(ns) >= certain*float64(d.Top.Time) {
				d.Top.Holder = who
			}
		}
	}
	most := wallprofile.Place{Function: top.function, Leaf: top.state.Leaf()}
	d.Text = wallprofile.Diagnosis(d.Name, d.Duration, most, d.Top.Time, d.Top.Holder)
	return d
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
	)
}

// ratio is a share of whole, to three digits.
func ratio(part, whole time.Duration) float64 {
	if whole <= 0 {
		return 0
	}
	return float64(int(1000*float64(part)/float64(whole)+0.5)) / 1000
}
