package wall

import (
	"sync"
	"sync/atomic"
	"time"
)

// live is the registry of root spans that run, and of slow ones that ended a short time ago and have children that run.
// Each shard has them in the order in which they began by the process's own clock, whatever their start is, so that to find
// those that have been running for some time takes as many steps as there are such roots, and to add or to remove one takes
// the same few for any number of roots.
type live struct {
	shards [64]shard
	old    atomic.Int64 // roots that ripen has found
}

type shard struct {
	mu         sync.Mutex
	young, old list // those that ripen has not found yet, and those that it has
	n          int
	_          [64]byte // no two shards share a cache line
}

// list is a linked list of roots, in the order in which they were added.
type list struct{ first, last *root }

// place is where a root is in the registry, guarded by the shard's lock.
type place struct {
	prev, next *root
	in         *list // nil if it is not in the registry
}

func (l *live) shard(t *root) *shard { return &l.shards[t.number%uint64(len(l.shards))] }

func (l *live) add(t *root) bool {
	s := l.shard(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n >= maxLive {
		return false
	}
	s.n++
	s.young.add(t)
	return true
}

// remove takes a root out of the registry, if it is in there. It reports whether that was the last old one.
func (l *live) remove(t *root) (last bool) {
	s := l.shard(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.place.in == nil {
		return false
	}
	old := t.place.in == &s.old
	s.n--
	t.place.in.remove(t)
	return old && l.old.Add(-1) == 0
}

// older calls f for each root that began at least age ago. F must not use the registry.
func (l *live) older(now time.Time, age time.Duration, f func(*root)) {
	for i := range l.shards {
		l.shards[i].older(now, age, f)
	}
}

func (s *shard) older(now time.Time, age time.Duration, f func(*root)) {
	s.mu.Lock()
	defer s.mu.Unlock() // also if f panics: each span of the service needs the lock
	for _, list := range []*list{&s.old, &s.young} {
		for t := list.first; t != nil && now.Sub(t.began) >= age; t = t.place.next {
			f(t)
		}
	}
}

// ripen calls f for each root that has been running for age since the last call. It returns when it has to be called
// again, the zero time if no other root runs. F must not use the registry.
func (l *live) ripen(now time.Time, age time.Duration, f func(*root)) (next time.Time) {
	for i := range l.shards {
		if due := l.ripenIn(&l.shards[i], now, age, f); next.IsZero() || !due.IsZero() && due.Before(next) {
			next = due
		}
	}
	return next
}

func (l *live) ripenIn(s *shard, now time.Time, age time.Duration, f func(*root)) (next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for t := s.young.first; t != nil; t = s.young.first {
		if due := t.began.Add(age); due.After(now) {
			return due
		}
		s.young.remove(t)
		s.old.add(t)
		l.old.Add(1)
		f(t)
	}
	return time.Time{}
}

func (l *list) add(t *root) {
	t.place = place{prev: l.last, in: l}
	if l.last == nil {
		l.first = t
	} else {
		l.last.place.next = t
	}
	l.last = t
}

func (l *list) remove(t *root) {
	p := t.place
	if p.prev == nil {
		l.first = p.next
	} else {
		p.prev.place.next = p.next
	}
	if p.next == nil {
		l.last = p.prev
	} else {
		p.next.place.prev = p.prev
	}
	t.place = place{}
}
