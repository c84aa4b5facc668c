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
	own    labels // in the span; nil if it changed none
	before labels // before it
}

// recent finds the span that a set of labels belongs to, among the last ones: a goroutine may still have
// the labels of a span that has ended elsewhere. It is lossy, so that it costs a span a few memory accesses,
// no memory and no wait: where it has lost a span, a goroutine keeps that span's labels for longer.
type recent [1024]struct {
	used atomic.Bool // by a goroutine; another one that wants to goes without
	labelled
	ended bool
}

// use calls f with a slot, unless another goroutine uses it.
func (r *recent) use(l labels, f func(of *labelled, ended *bool)) {
	const golden = 0x9e3779b97f4a7c15 // spreads addresses, which are multiples of 16
	slot := &r[uint64(uintptr(l))*golden>>54]
	if slot.used.CompareAndSwap(false, true) {
		f(&slot.labelled, &slot.ended)
		slot.used.Store(false)
	}
}

func (r *recent) add(l labelled) {
	r.use(l.own, func(of *labelled, ended *bool) { *of, *ended = l, false })
}

// end notes that the span with these labels has ended.
func (r *recent) end(own labels) {
	r.use(own, func(of *labelled, ended *bool) {
		if of.own == own {
			*ended = true
		}
	})
}

// settle returns the labels that a goroutine would have if every span that has ended had ended on it.
func (r *recent) settle(at labels) labels {
	for range len(r) { // the spans on a goroutine form a chain, but do not rely on it to end
		found := false
		r.use(at, func(of *labelled, ended *bool) {
			if of.own == at && *ended {
				at, found = of.before, true
			}
		})
		if !found {
			break
		}
	}
	return at
}
