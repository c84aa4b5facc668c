package wall

import (
	"math/rand/v2"
	"sync/atomic"
	"time"
)

const (
	sampleEvery = 15 * time.Second // between rounds, on average
	roundLength = 2 * time.Second  // of a round, less where the ring reaches less far back
	fastATick   = 2                // roots that are chosen in a round after each tick
)

// sampler chooses a few roots when they begin, whatever they will take: the next ones after each tick of a round. Those that
// turn out to be fast are captured, too, all of a round in one snapshot, so that slow ones can be compared with them.
type sampler struct {
	every time.Duration
	left  atomic.Int32 // roots to choose yet
	open  atomic.Int32 // roots that were chosen and have not ended

	// The fields below belong to the recorder's goroutine.
	began time.Time // of the round, zero between rounds
	next  time.Time // when the next one begins
}

// choose reports whether a root that begins is chosen.
func (s *sampler) choose() bool {
	if s.left.Load() <= 0 || s.left.Add(-1) < 0 {
		return false
	}
	s.open.Add(1)
	return true
}

// rest ends the round, and sets when the next one may begin: not always after the same time, for a service may do something
// at regular times.
func (s *sampler) rest(now time.Time) {
	s.left.Store(0)
	s.began, s.next = time.Time{}, now.Add(s.every/2+rand.N(s.every))
}

// sample begins and ends the rounds, at every tick. It reports whether one ended, whose roots are to be captured: when all of
// them have ended, or are slow, or the ring is about to forget the first. There are no rounds unless the recorder runs all the
// time and at most a quarter of the budget is spent when one begins.
func (r *Recorder) sample(now time.Time) (ended bool) {
	s := &r.sampler
	in := now.Sub(s.began)
	switch running := !r.paused && r.mode() == AlwaysOn; {
	case s.began.IsZero() && running && !now.Before(s.next) && r.budget.left(now) >= r.budget.capacity()*3/4:
		s.began = now
		s.left.Store(fastATick)
	case s.began.IsZero():
	case !running:
		s.rest(now)
	case in < min(roundLength, r.reach()/4):
		s.left.Store(fastATick)
	case s.open.Load() > 0 && in < min(roundLength+r.o.SlowSpan, r.reach()/2):
		s.left.Store(0)
	default:
		s.rest(now)
		return true
	}
	return false
}

// fast reports whether a root has ended and was not slow. One that was chosen is captured nevertheless.
func (t *root) fast() bool { return t.ended.Load() != 0 && t.took < t.r.o.SlowSpan }
