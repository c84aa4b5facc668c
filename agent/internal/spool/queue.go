package spool

import (
	"maps"
	"slices"
	"sync"
	"time"

	"spanflame/internal/record"
)

// state of an entry in the queue.
type state uint8

const (
	queued state = iota
	taken        // a reader has it
	moving       // on its way from memory to disk
)

// entry is one record in the queue. A spool may hold a hundred thousand of them, so an entry on disk keeps
// what its file name says and nothing else. Once an entry is in a queue, the queue alone reads and writes what
// changes: slot, rec, seq, state, tries, since and due.
type entry struct {
	slot  *slot          // where the file is; nil while the record is in memory only
	rec   *record.Record // the record while it is in memory only
	seq   uint64         // order of the file in its slot
	start int64          // nanoseconds since 1970
	size  int64          // of the file, in bytes
	typ   record.Type
	id    uint32
	state state
	tries uint8         // Item.Tries
	since time.Duration // when it came into the queue, since the queue was made
	due   time.Duration // since the queue was made: until then it is postponed
}

func (e *entry) name() record.Name {
	return record.Name{Start: time.Unix(0, e.start), Type: e.typ, ID: e.id}
}

func (e *entry) path() string { return e.slot.path(e.seq, e.name()) }

// queue holds the records in their order, and the counters of what became of each. Each method that moves a
// record counts it under the same lock, so that the counters agree at every moment. The queue touches no file:
// a slow disk delays neither readers nor Stats.
type queue struct {
	made time.Time
	wake chan struct{} // capacity 1: something changed for the readers

	mu      sync.Mutex
	entries []*entry // oldest first, in the order of arrival
	disk    Count
	memory  Count
	counts  map[Key]Count
	closed  bool
}

func newQueue() *queue {
	return &queue{made: time.Now(), wake: make(chan struct{}, 1), counts: map[Key]Count{}}
}

// signal wakes a waiting reader.
func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// count adds one record to a counter.
func (q *queue) count(e Event, reason string, t record.Type, size int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.add(e, reason, t, size)
}

// add is count for the methods that have the lock.
func (q *queue) add(e Event, reason string, t record.Type, size int64) {
	k := Key{e, reason, known(t)}
	c := q.counts[k]
	c.add(size)
	q.counts[k] = c
}

// refuse counts a record that does not get into the queue.
func (q *queue) refuse(e *entry, reason string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.add(Put, "", e.typ, e.size)
	q.add(Dropped, reason, e.typ, e.size)
}

// put appends an entry that is on disk.
func (q *queue) put(e *entry) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.add(Put, "", e.typ, e.size)
	q.disk.add(e.size)
	e.since = time.Since(q.made)
	q.entries = append(q.entries, e)
}

// putInMemory appends an entry that is in memory, and drops the oldest there as long as they have more bytes
// than the limit. What a reader holds stays.
func (q *queue) putInMemory(e *entry, limit int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.add(Put, "", e.typ, e.size)
	e.since = time.Since(q.made)
	q.entries = append(q.entries, e)
	q.memory.add(e.size)
	for q.memory.Bytes > limit {
		i := slices.IndexFunc(q.entries, func(e *entry) bool { return e.slot == nil && e.state == queued })
		if i < 0 {
			return // readers have them all
		}
		q.drop(q.entries[i], "memory_full")
	}
}

// found adds entries that were found on disk: those of the process's own slot, which are older than
// everything in the queue, in front, and others at the end.
func (q *queue) found(entries []*entry, event Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if event == Recovered {
		q.entries = append(slices.Clip(entries), q.entries...)
	} else {
		q.entries = append(q.entries, entries...)
	}
	now := time.Since(q.made)
	for _, e := range entries {
		e.since = now
		q.add(event, "", e.typ, e.size)
		q.disk.add(e.size)
	}
}

// move returns the oldest entry in memory that no reader holds, for its way to the disk: [queue.moved] and
// [queue.settled] follow. It returns nil if there is none.
func (q *queue) move() *entry {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.memory.Items == 0 {
		return nil
	}
	i := slices.IndexFunc(q.entries, func(e *entry) bool { return e.slot == nil && e.state == queued })
	if i < 0 {
		return nil
	}
	q.entries[i].state = moving
	return q.entries[i]
}

// moved notes that the entry's record is now in the file that onDisk names. It returns false if the entry has
// left the queue meanwhile: the file then belongs to no entry.
func (q *queue) moved(e *entry, onDisk entry) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !slices.Contains(q.entries, e) {
		return false
	}
	q.memory.sub(e.size)
	q.disk.add(e.size)
	e.slot, e.seq, e.rec = onDisk.slot, onDisk.seq, nil
	return true
}

// settled ends what move began, whether the entry is on disk now or not.
func (q *queue) settled(e *entry) {
	q.mu.Lock()
	e.state = queued
	q.mu.Unlock()
	q.signal()
}

// dropAbove takes the oldest entry on disk out of the queue if size more bytes do not fit below the limit. The
// caller deletes its file. It returns nil if they fit, or readers hold all there is.
func (q *queue) dropAbove(limit, size int64) *entry {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.disk.Bytes+size <= limit {
		return nil
	}
	i := slices.IndexFunc(q.entries, func(e *entry) bool { return e.slot != nil && e.state == queued })
	if i < 0 {
		return nil
	}
	e := q.entries[i]
	q.drop(e, "full")
	return e
}

// dropAfter takes the head of the queue out if it has been in the queue for longer than age. The caller deletes its
// file. The time is this process's own: the wall clock can be set, and records deleted because of it would be lost.
func (q *queue) dropAfter(age time.Duration) *entry {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.entries) == 0 || q.entries[0].state != queued || time.Since(q.made)-q.entries[0].since <= age {
		return nil
	}
	e := q.entries[0]
	q.drop(e, "age")
	return e
}

// drop takes an entry out of the queue and counts it as lost, for the methods that have the lock.
func (q *queue) drop(e *entry, reason string) {
	q.remove(e)
	q.add(Dropped, reason, e.typ, e.size)
}

// take hands out the oldest record that nobody holds; those that are postponed come last, and only if all. It
// returns nil if there is none now, and how long to wait at most until there may be.
func (q *queue) take(all bool) (*entry, time.Duration, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, 0, ErrClosed
	}
	now, wait := time.Since(q.made), tickEvery
	var first *entry
search:
	for _, e := range q.entries {
		switch {
		case e.state == moving:
			break search // its turn comes when it is on disk
		case e.state != queued:
		case e.due <= now:
			first = e
			break search
		case all && first == nil:
			first = e
		default:
			wait = min(wait, e.due-now)
		}
	}
	if first == nil {
		return nil, wait, nil
	}
	first.state = taken
	q.signal() // there may be another for the next reader
	return first, 0, nil
}

// look returns a copy of an entry as it is now, and whether a reader holds it.
func (q *queue) look(e *entry) (entry, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return *e, e.state == taken && slices.Contains(q.entries, e)
}

// finish takes an entry that a reader holds out of the queue, and counts what became of it. It returns the entry
// as it was, and false if no reader held it.
func (q *queue) finish(e *entry, event Event, reason string) (entry, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if e.state != taken || !q.remove(e) {
		return entry{}, false
	}
	q.add(event, reason, e.typ, e.size)
	return *e, true
}

// giveBack ends a reader's hold on an entry without an outcome. It is handed out again after d.
func (q *queue) giveBack(e *entry, tries uint8, d time.Duration) {
	q.mu.Lock()
	if e.state == taken {
		e.state, e.tries, e.due = queued, tries, time.Since(q.made)+d
	}
	q.mu.Unlock()
	q.signal()
}

// remove takes the entry out of the queue, for the methods that have the lock.
func (q *queue) remove(e *entry) bool {
	i := slices.Index(q.entries, e)
	if i < 0 {
		return false
	}
	if i == 0 {
		q.entries[0] = nil
		q.entries = q.entries[1:]
	} else {
		q.entries = slices.Delete(q.entries, i, i+1)
	}
	if e.slot != nil {
		q.disk.sub(e.size)
	} else {
		q.memory.sub(e.size)
	}
	return true
}

func (q *queue) isClosed() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed
}

// close ends the readers and returns the entries that they hold in memory. It returns false if the queue was
// closed before.
func (q *queue) close() ([]*entry, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, false
	}
	q.closed = true
	return slices.DeleteFunc(slices.Clone(q.entries), func(e *entry) bool { return e.slot != nil || e.state != taken }), true
}

// dropMemory drops all that is in memory and returns how much that was.
func (q *queue) dropMemory(reason string) Count {
	q.mu.Lock()
	defer q.mu.Unlock()
	lost := q.memory
	for _, e := range slices.Clone(q.entries) {
		if e.slot == nil {
			q.drop(e, reason)
		}
	}
	return lost
}

// stats returns what the queue knows of [Stats].
func (q *queue) stats() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	st := Stats{
		Items:       q.disk.Items + q.memory.Items,
		Bytes:       q.disk.Bytes + q.memory.Bytes,
		MemoryItems: q.memory.Items,
		MemoryBytes: q.memory.Bytes,
		Counts:      maps.Clone(q.counts),
	}
	if len(q.entries) > 0 {
		st.Oldest = time.Unix(0, q.entries[0].start).UTC()
	}
	return st
}
