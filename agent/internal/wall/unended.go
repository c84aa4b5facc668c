package wall

import (
	"maps"
	"runtime"
	"sync"
	"sync/atomic"
)

// Unended names spans that were never ended, which is a defect of the service: such a span is not exported, and it
// keeps its data in memory. A root span counts when it has been running for so long that it is given up. A
// child span counts when it outlived its root and the garbage collector has found that nothing can end it any more.
type Unended struct {
	Span string // the span's name at its start
	Root string // the name of its local root, such as a route
}

// maxUnendedNames limits the pairs of names that are told apart. Names are the application's.
const maxUnendedNames = 50

// OtherNames stands for all names beyond the limit.
const OtherNames = "other"

type unended struct {
	mu  sync.Mutex
	all map[Unended]uint64
}

func (u *unended) count(name Unended) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.all == nil {
		u.all = make(map[Unended]uint64)
	}
	if _, ok := u.all[name]; !ok && len(u.all) >= maxUnendedNames {
		name = Unended{OtherNames, OtherNames}
	}
	u.all[name]++
}

func (u *unended) counts() map[Unended]uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return maps.Clone(u.all)
}

// watchChildren has the children that outlive the root counted unless they end. The caller holds the root's lock.
func (t *root) watchChildren() {
	for s := t.child; s != nil; s = s.next {
		s.outlived = new(atomic.Bool)
		w := watched{ended: s.outlived, name: Unended{Span: s.first, Root: t.currentName()}, by: &t.r.unended}
		runtime.AddCleanup(s, watched.collected, w)
	}
}

// watched is the data kept about a span that outlived its root, for when the garbage collector has freed the span.
type watched struct {
	ended *atomic.Bool
	name  Unended
	by    *unended
}

func (w watched) collected() {
	if !w.ended.Load() {
		w.by.count(w.name)
	}
}
