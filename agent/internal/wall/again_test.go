package wall

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"golang.org/x/exp/trace"

	"spanflame/internal/wallprofile"
)

// script is a history that is made up.
type script struct {
	*historian
	now trace.Time
}

func newScript() *script {
	s := &script{historian: newHistorian(newConverter(0, func(uint64) string { return "" }), nil)}
	s.waiting = 1
	return s
}

func at(functions ...string) *stack {
	s := &stack{}
	for _, f := range functions {
		s.frames = append(s.frames, frame{function: f})
	}
	return s
}

// block has a goroutine wait from now on.
func (s *script) block(h *history, state wallprofile.State, where *stack) {
	s.cut(h, s.now, where)
	h.state, h.stack, h.from = state, where, s.now
}

// wake has a goroutine end the wait of another one now.
func (s *script) wake(waker, h *history, by *stack) (ended slice) {
	s.cut(waker, s.now, by)
	w := slice{from: h.from, to: s.now, of: h, state: h.state, stack: h.stack, who: h.who(), waker: waker.last, by: by}
	s.keep(h, &w)
	h.state, h.from = wallprofile.Running, s.now
	s.c.events += 4
	return w
}

// parts follows a wait from a time on, and returns its parts by their frames.
func (s *script) parts(w slice, from trace.Time) map[string]int64 {
	parts := make(map[string]int64)
	for _, p := range s.follow(w.state, w.stack, &ending{waker: w.waker, by: w.by}, from, w.to) {
		key := ""
		for c := p.below; c != nil; c = c.above {
			key += fmt.Sprintf("%v %v %q", c.not, c.link, c.by)
			if c.who != nil {
				key += fmt.Sprintf(" %d %s %v %s", c.who.number, c.who.name, c.state, c.stack.place().function)
			}
			key += "; "
		}
		parts[key] += p.ns
	}
	return parts
}

// TestFollowedAgain has a history of goroutines that wait for one another. What was found for one wait is used for others: the
// parts are the same as if nothing was found before.
func TestFollowedAgain(t *testing.T) {
	repeated := 0
	for seed := range uint64(20) {
		var scripts [2]*script
		var all [2][]*history
		for i := range scripts {
			scripts[i] = newScript()
			for n := range 12 {
				all[i] = append(all[i], &history{id: trace.GoID(n + 1), base: &party{number: uint64(n + 1)}, stack: noStack})
			}
		}
		states := []wallprofile.State{wallprofile.WaitMutex, wallprofile.WaitMutex, wallprofile.WaitReceive}
		places := []*stack{at("sync.(*Mutex).Lock", "main.hold"), at("sync.(*Mutex).Lock", "main.other"), at("main.receive")}
		wakers := []*stack{at("sync.(*Mutex).Unlock", "main.hold"), at("sync.(*Mutex).Unlock", "main.free"), at("main.send")}
		r := rand.New(rand.NewPCG(seed, seed))
		for range 2000 {
			i, j, kind, pause := r.IntN(12), r.IntN(12), r.IntN(3), trace.Time(r.IntN(20))
			ended, late := r.IntN(40) == 0, r.IntN(3) == 0
			var parts [2]map[string]int64
			for n, s := range scripts {
				s.now += pause
				one, other := all[n][i], all[n][j]
				if ended && one.base.ended == 0 {
					one.base.ended = s.now
				}
				switch {
				case one.state != wallprofile.Running:
				case other.state != wallprofile.Running:
					if n == 1 {
						for number := range s.kept {
							s.slice(number + 1).followed = nil
						}
					}
					from := other.from
					if late {
						from += (s.now - from) / 2
					}
					parts[n] = s.parts(s.wake(one, other, wakers[kind]), from)
				default:
					s.block(one, states[kind], places[kind])
				}
			}
			if !maps.Equal(parts[0], parts[1]) {
				t.Fatalf("seed %d: the parts of a wait are\n%v, and\n%v if nothing was followed before", seed, parts[0], parts[1])
			}
		}
		for number := range scripts[0].following.count {
			if scripts[0].following.found(number+1).below == nil {
				repeated++
			}
		}
		if n := scripts[0].reasons[wallprofile.TooMuch]; n != 0 {
			t.Errorf("seed %d: %d waits are not followed", seed, n)
		}
	}
	if repeated < 1000 {
		t.Errorf("nothing was used again but %d times", repeated)
	}
}

// TestBroadcast has hundreds wait for one goroutine with a long history: all are followed. A history that is longer still is
// bounded.
func TestBroadcast(t *testing.T) {
	for _, tt := range []struct {
		steps    int
		followed bool
	}{{20_000, true}, {100_000, false}} {
		s := newScript()
		waker := &history{id: 1, base: &party{number: 1}, stack: noStack}
		waiters := make([]*history, 400)
		step := []*stack{at("main.a"), at("main.b")}
		for i := range tt.steps {
			if i%(tt.steps/len(waiters)) == 0 && i/(tt.steps/len(waiters)) < len(waiters) {
				n := i / (tt.steps / len(waiters))
				waiters[n] = &history{id: trace.GoID(n + 2), stack: noStack, from: s.now}
				s.block(waiters[n], wallprofile.WaitCond, at("sync.(*Cond).Wait", "main.await"))
			}
			s.now += 10
			s.cut(waker, s.now, step[i%2])
		}
		for _, w := range waiters {
			s.now++
			from := w.from
			parts := s.parts(s.wake(waker, w, at("sync.(*Cond).Broadcast", "main.b")), from)
			if tt.followed && len(parts) != 2 {
				t.Fatalf("of a history of %d slices: %v", tt.steps, parts)
			}
		}
		if n := s.reasons[wallprofile.TooMuch]; n == 0 != tt.followed {
			t.Errorf("of a history of %d slices, %d waits are not followed", tt.steps, n)
		}
	}
}

// TestLongConvoy has thousands wait for a lock, each for the one before: the last one names them all.
func TestLongConvoy(t *testing.T) {
	s := newScript()
	lock, unlock := at("sync.(*Mutex).Lock", "main.hold"), at("sync.(*Mutex).Unlock", "main.hold")
	holder := &history{id: 1, base: &party{number: 1}, stack: noStack}
	queue := make([]*history, 8000)
	for i := range queue {
		queue[i] = &history{id: trace.GoID(i + 2), base: &party{number: uint64(i + 2)}, stack: noStack}
		s.block(queue[i], wallprofile.WaitMutex, lock)
	}
	var last slice
	for _, next := range queue {
		s.now += 10
		last = s.wake(holder, next, unlock)
		holder = next
	}
	if parts := s.parts(last, 0); len(parts) != len(queue) || s.reasons[wallprofile.TooMuch] != 0 {
		t.Errorf("the last one waited for %d others, and %d times it is not known for whom", len(parts), s.reasons[wallprofile.TooMuch])
	}
}

// TestForgotten has a goroutine whose first slices are not known any more: who started it is not taken for what it did then.
func TestForgotten(t *testing.T) {
	for _, tt := range []struct {
		born trace.Time // the first slice that is known begins at 100
		want wallprofile.NotFollowed
	}{{100, wallprofile.Followed}, {90, wallprofile.Forgotten}, {0, wallprofile.Forgotten}} {
		s := newScript()
		starter, h := &history{id: 1, stack: noStack}, &history{id: 2, stack: noStack}
		s.block(h, wallprofile.WaitReceive, at("main.receive"))
		s.now = 100
		s.cut(starter, s.now, at("main.start"))
		waker := &history{id: 3, stack: noStack, from: 100, born: tt.born, starter: starter.last}
		s.now = 200
		w := s.wake(waker, h, at("main.send"))
		parts := s.follow(w.state, w.stack, &ending{waker: w.waker, by: w.by}, w.from, w.to)
		if len(parts) != 2 || parts[0].ns != 100 || parts[1].ns != 100 || parts[1].below.not != tt.want {
			t.Errorf("born at %v: the parts are %+v", tt.born, parts)
		}
	}
}
