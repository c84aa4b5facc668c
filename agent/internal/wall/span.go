package wall

import (
	"context"
	"encoding/binary"
	"runtime/trace"
	"sync"
	"sync/atomic"
	"time"

	"github.com/petermattis/goid"
	oteltrace "go.opentelemetry.io/otel/trace"

	"spanflame/internal/wallprofile"
)

// Mark is a span that has begun. End marks its end on the goroutine that calls it, under the name that
// the span has by then, and at the time that its author chose for its end, which is zero if there is none.
// It returns when the mark was made, which is zero if the span may end at any time since it has no mark and is too short
// for a profile, and whether the span took long enough to get a profile of its own, if its local root turns out to be slow.
// Calls after the first do nothing and report false. Calls notes before the end what a client span called.
type Mark = interface {
	Calls(wallprofile.Call)
	End(name string, chosen time.Time) (at time.Time, profiled bool)
}

// The categories of the marks in the trace. Their message is the span's number as a varint, and that of its root if it
// is another one.
const (
	beginCategory = "spanflame.begin"
	endCategory   = "spanflame.end"
)

const (
	maxSpans = 4096             // of one root: running, or ended and not yet converted
	maxLive  = 1024             // roots in each shard of the registry
	maxAge   = 15 * time.Minute // of a live root; one that is older was never ended
	clipped  = time.Millisecond // from a chosen end to its mark; below that the account is shortened, see account.fit
	grace    = 5 * time.Second  // for the children that outlive a slow root, to get profiles of their own
)

// span is one recorded span between its two marks.
type span struct {
	root   *root
	parent *span // nil for a root
	number uint64
	on     int64  // number of the goroutine on which it began, 0 if not known
	mark   string // the message of both marks, empty until the first is written
	id     oteltrace.SpanID
	name   string           // valid for the converter once ended is set; before that started is
	first  string           // the name at the start
	call   wallprofile.Call // of a client span; valid as name
	start  time.Time        // the span's own
	began  time.Time        // when the recorder knew of it, by the process's own clock, whatever start is
	head   time.Duration    // from start to the mark; to began, if there is none

	closing atomic.Bool
	ended   atomic.Int64  // ns since began, 0 while running
	took    time.Duration // from start to the end, as far as decisions go; valid once ended is set
	clip    time.Duration // from began to an end that was chosen and lies before the mark; 0 if there is none; as took
	whole   atomic.Int64  // ns from start to the span's end, 0 until the clock was read

	prev, next *span        // among the running children of the root; guarded by its lock
	fresh      freshLinks   // among the children that the converter does not know yet; guarded by its lock
	outlived   *atomic.Bool // set when it ends after its root; nil unless it outlived that; guarded by the root's lock

	conv  *spanLedger // the converter's part, nil until it saw the begin
	frame string      // of the call; the converter's, which takes the call for it
}

// freshLinks are those of a child that the converter does not know yet.
type freshLinks struct {
	newer, older *span
	in           bool
}

// root is a local root span with all its descendants in this process.
type root struct {
	span
	r       *Recorder
	traceID oteltrace.TraceID
	sampled bool
	chosen  bool // it is captured also if it is fast

	place place

	mu    sync.Mutex
	news  *span // the newest of the children that the converter does not know yet
	count int   // spans that are running or not yet converted
	open  int   // spans that are running
	child *span // the first of the running children
	gone  bool  // no longer in the registry: it is over, or was given up
	asked bool  // in the recorder's queue; guarded by its lock

	conv rootLedger // the converter's part
}

// Begin marks on the calling goroutine that the recorded span sc started, at the time start by its own
// clock. The parent is the mark of the nearest span above it in this process, nil if there is none.
// The returned mark is nil when the span gets no profile: the recorder has stopped, or a limit is reached.
func (r *Recorder) Begin(parent Mark, sc oteltrace.SpanContext, name string, start time.Time) Mark {
	if r.stopped.Load() {
		return nil
	}
	s := r.newSpan(parent, sc, name, start)
	if s == nil {
		return nil
	}
	if r.writing.Load() {
		s.write(beginCategory)
		s.head = max(0, time.Since(s.start)) // now, as in End
	}
	if r.idle.Load() && r.idle.CompareAndSwap(true, false) {
		notify(r.stir)
	}
	return s
}

// write writes a mark.
func (s *span) write(category string) {
	if s.mark == "" {
		var message [2 * binary.MaxVarintLen64]byte
		n := binary.PutUvarint(message[:], s.number)
		if s.parent != nil {
			n += binary.PutUvarint(message[n:], s.root.number)
		}
		s.mark = string(message[:n])
	}
	trace.Log(context.Background(), category, s.mark)
}

func (r *Recorder) newSpan(above Mark, sc oteltrace.SpanContext, name string, start time.Time) *span {
	if parent, ok := above.(*span); ok && parent.root.r == r && parent.root.traceID == sc.TraceID() {
		if child, ok := parent.newChild(sc, name, start); ok {
			return child
		}
	}
	t := &root{r: r, traceID: sc.TraceID(), sampled: sc.IsSampled(), chosen: r.sampler.choose(), count: 1, open: 1}
	t.root = t
	t.init(sc, name, start)
	if !r.live.add(t) {
		r.stats.rootsDropped.Add(1)
		return nil
	}
	return &t.span
}

// newChild adds a span to its parent's root. The child is nil when the root has too many; ok is false
// when the root is over and the span has to become one itself.
func (s *span) newChild(sc oteltrace.SpanContext, name string, start time.Time) (child *span, ok bool) {
	t := s.root
	child = &span{root: t, parent: s}
	child.init(sc, name, start)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.gone:
		return nil, false
	case t.count >= maxSpans:
		t.r.stats.childrenDropped.Add(1)
		return nil, true
	}
	t.count++
	t.open++
	t.learn(child)
	child.next, t.child = t.child, child
	if child.next != nil {
		child.next.prev = child
	}
	return child, true
}

// unlink takes an ended child out of the list of running children. The caller holds the root's lock.
func (s *span) unlink() {
	if s.prev == nil {
		s.root.child = s.next
	} else {
		s.prev.next = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	}
	s.prev, s.next = nil, nil
}

func (s *span) init(sc oteltrace.SpanContext, name string, start time.Time) {
	r := s.root.r
	s.number, s.id, s.first, s.start, s.began = r.numbers.Add(1), sc.SpanID(), name, start, time.Now()
	s.head = max(0, s.began.Sub(start))
	if r.arms {
		s.on = goid.Get()
	}
}

// learn adds a child to those that the converter does not know. The caller holds the root's lock.
func (t *root) learn(child *span) {
	child.fresh = freshLinks{older: t.news, in: true}
	if t.news != nil {
		t.news.fresh.newer = child
	}
	t.news = child
}

// known takes a child out of the list of those that the converter does not know. The caller holds the root's lock.
func (s *span) known() {
	f := s.fresh
	if !f.in {
		return
	}
	if f.newer == nil {
		s.root.news = f.older
	} else {
		f.newer.fresh.older = f.older
	}
	if f.older != nil {
		f.older.fresh.newer = f.newer
	}
	s.fresh = freshLinks{}
}

// Calls implements [Mark].
func (s *span) Calls(c wallprofile.Call) {
	if !s.closing.Load() {
		s.call = c
	}
}

// End implements [Mark]. Whether a span was slow is decided by the time from its own start to its own end, whatever
// its marks are apart.
func (s *span) End(name string, chosen time.Time) (at time.Time, profiled bool) {
	if !s.closing.CompareAndSwap(false, true) {
		return time.Time{}, false
	}
	t := s.root
	r := t.r
	s.name = name
	now := time.Now()
	took := now.Sub(s.start)
	if !chosen.IsZero() {
		took = chosen.Sub(s.start)
		if now.Sub(chosen) > clipped {
			s.clip = max(1, chosen.Sub(s.began))
		}
		if !chosen.After(s.began) {
			took = 0 // all of it was over before the recorder knew of it: there is nothing to show
		}
	}
	s.took = took
	s.ended.Store(int64(max(1, now.Sub(s.began)))) // before the mark: its reader finds what is above
	at = now
	writing := r.writing.Load() && !r.stopped.Load()
	if writing {
		s.write(endCategory)
		// The clock is read right after the mark, which is written as the last thing that Log does: before that
		// it may have to wait, for all marks go through one lock of the runtime.
		at = time.Now()
	}
	if chosen.IsZero() {
		s.whole.Store(int64(at.Sub(s.start)))
	} else {
		s.whole.Store(int64(took))
	}

	t.mu.Lock()
	t.open--
	if s.parent == nil {
		if writing {
			r.names.put(s.number, name)
		}
		t.watchChildren()
	} else {
		if !writing && s.fresh.in {
			s.known() // there is nothing to know of it
			t.count--
		}
		s.unlink()
		if s.outlived != nil {
			s.outlived.Store(true)
		}
	}
	// A fast root has no profile: its children are not waited for, as they may never end.
	last := t.ended.Load() != 0 && (t.open == 0 || s.parent == nil && took < r.o.SlowSpan)
	given := t.gone
	t.gone = t.gone || last
	t.mu.Unlock()
	if s.parent == nil && t.chosen {
		r.sampler.open.Add(-1)
	}
	// First into the queue, then out of the registry: the recorder looks in the reverse order, so that it
	// finds the root in one of them.
	switch {
	case given:
	case s.parent == nil && took >= r.o.SlowSpan:
		r.stats.slow.Add(1)
		if lost := r.request(t); lost != nil {
			lost.Add(1)
		}
	case s.parent == nil && t.chosen && took > 0: // of one that was over before it began there is nothing to show
		if !writing || r.request(t) != nil {
			r.stats.fastLost.Add(1)
		}
	case s.parent != nil && last && t.took >= r.o.SlowSpan:
		r.request(t) // the last child that outlived a slow root
	}
	if last && r.live.remove(t) {
		notify(r.wake)
	}
	if !writing && took < min(r.o.ChildMin, r.o.SlowSpan) {
		at = time.Time{} // nothing depends on it
	}
	return at, writing && took >= r.o.ChildMin
}

func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// giveUp takes a root that has not ended, or that has children which have not, out of the registry. Spans that start
// below it from now on are roots of their own.
func (t *root) giveUp() {
	t.mu.Lock()
	t.gone = true
	t.mu.Unlock()
	t.r.live.remove(t)
}

// currentName is the span's name as far as the converter may read it.
func (s *span) currentName() string {
	if s.ended.Load() != 0 && s.name != "" {
		return s.name
	}
	return s.first
}

// step is the span as a part of a path. Only the converter calls it.
func (s *span) step() step {
	if s.ended.Load() != 0 && s.call != (wallprofile.Call{}) {
		s.frame, s.call = s.call.Frame(), wallprofile.Call{} // once: it takes a statement apart
	}
	return step{name: s.currentName(), call: s.frame}
}

// duration returns the time from the span's begin mark to its end by the process's own clock, 0 while it runs.
func (s *span) duration() time.Duration {
	d := time.Duration(s.ended.Load())
	if d != 0 && s.clip != 0 {
		return min(d, s.clip)
	}
	return d
}

// endTime returns the time of the span's end, by the process's own clock.
func (s *span) endTime() time.Time { return s.began.Add(s.duration()) }

// spanNumbers reads the number of a span, and that of its root, from a mark's message; the first is 0 if it is not one.
func spanNumbers(message string) (number, root uint64) {
	number, n := varint(message)
	if root, _ = varint(message[n:]); root == 0 {
		root = number
	}
	return number, root
}

func varint(s string) (v uint64, length int) {
	for i := 0; i < len(s) && i < binary.MaxVarintLen64; i++ {
		v |= uint64(s[i]&0x7f) << (7 * i)
		if s[i] < 0x80 {
			return v, i + 1
		}
	}
	return 0, 0
}
