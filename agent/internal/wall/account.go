package wall

import (
	"cmp"
	"slices"
	"time"

	"spanflame/internal/wallprofile"
)

// account is a span's finished profile: its samples, and what they sum to.
type account struct {
	span     *span
	duration time.Duration
	covered  time.Duration // own time that is recorded
	samples  []sample
	comment  string // with the diagnosis, empty for a child span
}

type sample struct {
	entry
	other bool // on another goroutine than the span's own
	ns    int64
}

// account sums up a span that has ended.
func (s *span) account() account {
	l := s.conv
	a := account{span: s, duration: l.to.Sub(l.from)}
	if l.lost {
		a.duration = s.duration()
	}
	owned := s.owned()
	type key struct {
		at    *path
		stack *stack
		state wallprofile.State
		below *cause
		other bool
	}
	labels := labelling{t: s.root, done: make(map[*cause]*cause), all: make(map[labelled]*cause)}
	sums := make(map[key]int64)
	for k, ns := range l.now {
		own := owned(k.seg)
		if !own && k.at == nil && k.seg.lane == l.lane {
			continue // the starter, after the span had left it
		}
		sums[key{k.at, k.stack, k.state, labels.of(k.below), !own}] += ns
		if own {
			a.covered += time.Duration(ns)
		}
	}
	for k, ns := range sums {
		a.samples = append(a.samples, sample{entry{at: k.at, stack: k.stack, state: k.state, below: k.below}, k.other, ns})
	}
	slices.SortFunc(a.samples, func(x, y sample) int { return cmp.Compare(y.ns, x.ns) })
	rest := a.duration - a.covered
	if before := min(l.before, rest); l.lost && before > 0 {
		a.samples = append(a.samples, sample{entry{stack: noStack, state: l.unknown}, false, int64(before)})
		rest -= before
	}
	if rest > 0 {
		why := wallprofile.NotRecorded
		if l.moved && !l.lost {
			why = wallprofile.Elsewhere
			a.covered = a.duration
		}
		a.samples = append(a.samples, sample{entry{stack: noStack, state: why}, false, int64(rest)})
	}
	if whole := time.Duration(s.whole.Load()); whole > 0 && a.duration > whole {
		a.fit(whole)
	}
	if a.covered > 0 {
		for why, ns := range s.ends(a.duration) {
			a.samples = append(a.samples, sample{entry{stack: noStack, state: why}, false, int64(ns)})
			a.duration += ns
			if why != wallprofile.BeforeRecording && why != wallprofile.NotRecorded {
				a.covered += ns
			}
		}
	}
	return a
}

// labelling gives the causes in an account their frames: causes that differ in nothing that these show become one.
type labelling struct {
	t    *root
	done map[*cause]*cause
	all  map[labelled]*cause
}

type labelled struct {
	causeKey
	label string
}

func (l *labelling) of(c *cause) *cause {
	if c == nil {
		return nil
	}
	one := l.done[c]
	if one == nil {
		k := labelled{causeKey{above: l.of(c.above), link: c.link, stack: c.stack, state: c.state, not: c.not}, c.frame(l.t)}
		if one = l.all[k]; one == nil {
			one = &cause{causeKey: k.causeKey, label: k.label}
			l.all[k] = one
		}
		l.done[c] = one
	}
	return one
}

// fit shortens an account to the duration of the span. If the operating system preempts a thread while it writes an
// event, the trace's reader moves everything that depends on that event to a later time, including the end of a span.
func (a *account) fit(whole time.Duration) {
	shrink := float64(whole) / float64(a.duration)
	covered := a.covered == a.duration
	var own *sample // the largest, which gets the rounding error
	rest := int64(whole)
	for i := range a.samples {
		if x := &a.samples[i]; !x.other {
			x.ns = int64(float64(x.ns) * shrink)
			rest -= x.ns
			if own == nil {
				own = x
			}
		}
	}
	if own != nil {
		own.ns += rest
	}
	a.duration, a.covered = whole, time.Duration(float64(a.covered)*shrink)
	if covered {
		a.covered = whole
	}
}

// ends returns the time between the span's own start and end and its marks, which are marked apart, and, for a span that
// began before the recording, the time up to that. A goroutine that
// writes a mark is often preempted right after it, so the clock that was read after the first mark may be late; the
// whole is exact.
func (s *span) ends(marked time.Duration) map[wallprofile.State]time.Duration {
	head, before, tail := s.head, time.Duration(0), time.Duration(0)
	if s.conv != nil && !s.conv.lost {
		before = s.conv.before
	}
	if whole := time.Duration(s.whole.Load()); whole > 0 {
		rest := max(0, whole-marked)
		head = min(head, rest)
		before = min(before, rest-head)
		tail = rest - head - before
	}
	ends := make(map[wallprofile.State]time.Duration)
	if head > 0 {
		ends[wallprofile.Starting] = head
	}
	if before > 0 {
		ends[s.conv.unknown] = before
	}
	if tail > 0 {
		ends[wallprofile.Ending] = tail
	}
	return ends
}

// steps is the path of spans from s to the local root.
func (s *span) steps() []step {
	var steps []step
	for p := s; p != nil; p = p.parent {
		steps = append(steps, p.step())
	}
	return steps
}
