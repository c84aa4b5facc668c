package spanlink

import (
	"sync/atomic"
	"unsafe"
)

// labels is a goroutine's set of pprof labels, as the runtime holds it. The set is immutable and each
// span makes one of its own, so equal pointers mean the same span.
type labels unsafe.Pointer

// goroutineLabels and setGoroutineLabels are the runtime's own accessors. Package runtime/pprof can set
// labels from a context only and cannot read them at all, so without these the labels that an
// application set by itself could not be restored, and End could not know whether it runs on the starter. The
// runtime keeps both, with these signatures, for packages that link to them (go.dev/issue/67401).
//
//go:linkname goroutineLabels runtime/pprof.runtime_getProfLabel
func goroutineLabels() labels

//go:linkname setGoroutineLabels runtime/pprof.runtime_setProfLabel
func setGoroutineLabels(labels)

// labelled records the change of a span to the labels of the goroutine that started it.
type labelled struct {
	own    labels // in the span
	before labels // before it
	ended  atomic.Bool
}

// recent finds the span that a set of labels belongs to, among the last ones: a goroutine may still have
// the labels of a span that has ended elsewhere. It is lossy, so that it costs a span two memory accesses
// and no lock: where it has lost a span, a goroutine keeps that span's labels for longer.
type recent [1024]atomic.Pointer[labelled]

func (r *recent) slot(l labels) *atomic.Pointer[labelled] {
	const golden = 0x9e3779b97f4a7c15 // spreads addresses, which are multiples of 16
	return &r[uint64(uintptr(l))*golden>>54]
}

func (r *recent) add(own, before labels) *labelled {
	l := &labelled{own: own, before: before}
	r.slot(own).Store(l)
	return l
}

// settle returns the labels that a goroutine would have if every span that has ended had ended on it.
func (r *recent) settle(at labels) labels {
	for range len(r) { // the spans on a goroutine form a chain, but do not rely on it to end
		l := r.slot(at).Load()
		if l == nil || l.own != at || !l.ended.Load() {
			break
		}
		at = l.before
	}
	return at
}
