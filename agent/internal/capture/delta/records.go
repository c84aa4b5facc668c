//go:build gc && !go1.28 && !spanflame_nolinkname

package delta

import (
	"errors"
	"math"
	"runtime"
	"time"
	"unsafe"
)

// maxCached is the number of locations of stacks that are kept from window to window: 16 MiB.
const maxCached = 1 << 22

var errOrder = errors.New("the runtime has its stacks in another order than before; counting starts over with the next window")

// Delta has two readings of the runtime's records: 112 bytes for each stack, of which the runtime itself has some 400.
type Delta struct {
	heading heading
	source  source
	symbols *symbols

	// By the number of a stack, where its locations begin in cache, which has their number there; 0 if it does not
	// have them.
	cached []uint32
	cache  []uint32
	full   bool // the cache was too small in this window

	maxCached int // maxCached, but in tests

	MaxSamples int // as New sets it, MaxSamples

	// LeaveOut reports whether the stacks of a goroutine that begins in a function are left out; nil for none.
	LeaveOut func(function string) bool
}

// heading is what all profiles of a kind have in common.
type heading struct {
	types         []valueType
	period        valueType
	hideRuntime   bool // above the first function that is not the runtime's
	expandInlined bool // the records may have one program counter for each physical frame
}

type valueType struct{ name, unit string }

// source is a cumulative profile at two times. The runtime keeps every stack for the life of the process and puts new
// ones in front, so that the stacks have numbers: 0 is the oldest.
type source interface {
	// read reads the profile of now.
	read()
	// keep makes it the one before.
	keep()
	// stacks returns how many stacks there are now, and how many there were before.
	stacks() (now, before int)
	// moved reports whether a stack that was there before is another one now.
	moved(i int) bool
	// stack returns the return addresses, leaf first, in the runtime's own memory.
	stack(i int) []uintptr
	// values sets the difference for each sample type, and returns the size of an object, 0 for none.
	values(i int, to []int64) (size int64)
	// period returns the period of the profile of now.
	period() int64
}

// New returns a Delta of a profile, for use by one goroutine.
func New(name Name) *Delta {
	d := &Delta{symbols: newSymbols(), MaxSamples: MaxSamples, maxCached: maxCached, cache: make([]uint32, 1)}
	if name == Heap {
		d.heading = heading{
			types:       []valueType{{"alloc_objects", "count"}, {"alloc_space", "bytes"}, {"inuse_objects", "count"}, {"inuse_space", "bytes"}},
			period:      valueType{"space", "bytes"},
			hideRuntime: true,
		}
		d.source = &heap{}
		return d
	}
	d.heading = heading{
		types:         []valueType{{"contentions", "count"}, {"delay", "nanoseconds"}},
		period:        valueType{"contentions", "count"},
		expandInlined: true,
	}
	w := &waits{records: mutexProfile}
	if name == Block {
		w.records = blockProfile
	}
	d.source = w
	return d
}

func (d *Delta) read() error {
	d.source.read()
	now, before := d.source.stacks()
	ordered := now >= before
	for i := 0; ordered && i < before; i++ {
		ordered = !d.source.moved(i)
	}
	if !ordered {
		d.keep()
		d.forget()
		return errOrder
	}
	return nil
}

func (d *Delta) keep() { d.source.keep() }

// forget empties the cache.
func (d *Delta) forget() {
	d.symbols, d.full = newSymbols(), false
	d.cache = d.cache[:1]
	clear(d.cached)
}

func (d *Delta) difference(begun, end time.Time) (Profile, error) {
	if d.full {
		d.forget()
	}
	n, _ := d.source.stacks()
	d.cached = append(d.cached, make([]uint32, max(0, n-len(d.cached)))...)
	if err := d.symbols.begin(); err != nil {
		return Profile{}, err
	}
	w := writer{symbols: d.symbols}
	values, rest, summed := make([]int64, len(d.heading.types)), make([]int64, len(d.heading.types)), 0
	for i := range n {
		size := d.source.values(i, values)
		changed := false
		for j, v := range values {
			values[j] = max(0, v)
			changed = changed || v > 0
		}
		switch {
		case !changed || d.LeaveOut != nil && d.LeaveOut(d.symbols.outermost(d.locations(i))):
		case w.samples == d.MaxSamples:
			for j, v := range values {
				rest[j] += v
			}
			summed++
		default:
			w.sample(d.locations(i), values, size)
		}
	}
	if summed > 0 {
		w.sample([]uint32{d.symbols.named(otherStacks)}, rest, 0)
	}
	return Profile{w.finish(d.heading, d.source.period(), begun, end), summed}, nil
}

// locations returns the locations of a stack, until the next call.
func (d *Delta) locations(i int) []uint32 {
	if at := d.cached[i]; at > 0 {
		return d.cache[at+1:][:d.cache[at]]
	}
	found := d.symbols.locate(d.source.stack(i), d.heading)
	if len(d.cache)+1+len(found) > d.maxCached {
		d.full = true
		return found
	}
	at := len(d.cache)
	d.cache = append(append(d.cache, uint32(len(found))), found...)
	d.cached[i] = uint32(at)
	return found
}

// readings are the records of two times, the newest stack first.
type readings[R any] struct {
	now, before []R
	none        R
}

// fetch reads the records of now into the memory of those before the last.
func (r *readings[R]) fetch(records func([]R) (int, bool)) {
	for {
		n, ok := records(r.now[:cap(r.now)])
		if ok {
			r.now = r.now[:n]
			return
		}
		r.now = make([]R, n+n/8+64)
	}
}

func (r *readings[R]) keep() { r.now, r.before = r.before, r.now }

func (r *readings[R]) stacks() (now, before int) { return len(r.now), len(r.before) }

// at returns the records of a stack now and before; that of a new stack is zero before.
func (r *readings[R]) at(i int) (now, before *R) {
	if i >= len(r.before) {
		return &r.now[len(r.now)-1-i], &r.none
	}
	return &r.now[len(r.now)-1-i], &r.before[len(r.before)-1-i]
}

// same reports whether two stacks are one of the runtime, which never changes or frees it.
func same(a, b []uintptr) bool { return unsafe.SliceData(a) == unsafe.SliceData(b) && len(a) == len(b) }

// heap is the profile of allocations. Its values are scaled by the chance that an object of its size is sampled.
type heap struct {
	readings[heapRecord]
	rate, rateBefore int64
}

func (h *heap) read() {
	h.fetch(func(p []heapRecord) (int, bool) { return heapProfile(p, true) })
	h.rate = int64(runtime.MemProfileRate)
}

func (h *heap) keep() {
	h.readings.keep()
	h.rateBefore = h.rate
}

func (h *heap) moved(i int) bool {
	now, before := h.at(i)
	return !same(now.Stack, before.Stack)
}

func (h *heap) stack(i int) []uintptr { return h.now[len(h.now)-1-i].Stack }

func (h *heap) period() int64 { return h.rate }

func (h *heap) values(i int, to []int64) (size int64) {
	now, before := h.at(i)
	objects, bytes := now.allocated()
	objectsBefore, bytesBefore := before.allocated()
	to[0], to[1] = 0, 0
	if objects != objectsBefore || bytes != bytesBefore || h.rate != h.rateBefore {
		to[0], to[1] = scale(objects, bytes, h.rate)
		was, wasBytes := scale(objectsBefore, bytesBefore, h.rateBefore)
		to[0], to[1] = to[0]-was, to[1]-wasBytes
	}
	inUse, inUseBytes := now.inUse()
	to[2], to[3] = scale(inUse, inUseBytes, h.rate)
	if objects > 0 {
		size = bytes / objects
	}
	return size
}

// scale estimates how many objects there are if as many were sampled, of which each had the chance 1-exp(-size/rate).
func scale(objects, bytes, rate int64) (int64, int64) {
	if objects == 0 || bytes == 0 {
		return 0, 0
	}
	if rate <= 1 {
		return objects, bytes
	}
	size := float64(bytes) / float64(objects)
	factor := 1 / (1 - math.Exp(-size/float64(rate)))
	return int64(float64(objects) * factor), int64(float64(bytes) * factor)
}

// waits is the profile of mutexes or of blocking.
type waits struct {
	readings[waitRecord]
	records func([]waitRecord) (int, bool)
}

func (w *waits) read() { w.fetch(w.records) }

func (w *waits) moved(i int) bool {
	now, before := w.at(i)
	return !same(now.Stack, before.Stack)
}

func (w *waits) stack(i int) []uintptr { return w.now[len(w.now)-1-i].Stack }

func (w *waits) period() int64 { return 1 }

func (w *waits) values(i int, to []int64) (size int64) {
	now, before := w.at(i)
	to[0], to[1] = now.Count-before.Count, 0
	if now.Cycles != before.Cycles {
		perNano := float64(cyclesPerSecond()) / 1e9
		to[1] = int64(float64(now.Cycles)/perNano) - int64(float64(before.Cycles)/perNano)
	}
	return 0
}
