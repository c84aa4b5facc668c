package save

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Event is the result for a file.
type Event string

// The events. Of profiles, what was put is saved, failed, or waiting to be written.
const (
	Saved   Event = "saved"
	Removed Event = "removed" // to keep the limits: full or age
	// Failed is what was not saved: write, queue_full, too_large, invalid, panic, shut_down or closed. Of traces a batch of
	// spans counts as one.
	Failed     Event = "failed"
	Unfinished Event = "unfinished" // left by a process that was killed while it wrote, and removed
)

// Key identifies a counter.
type Key struct {
	Event  Event
	Reason string // "" where the event needs none
}

// Count is a number of files and their bytes.
type Count struct {
	Items int
	Bytes int64
}

// Stats has the counts since the start.
type Stats struct {
	Bytes    int64 // in the directory, as far as known
	Degraded error // why files cannot be saved, or not kept within the limits; nil while they can
	Counts   map[Key]Count
}

// tally collects Stats. It has a lock of its own, so that a disk that hangs does not delay its readers.
type tally struct {
	held atomic.Int64

	mu      sync.Mutex
	counts  map[Key]Count
	writing error // why the last file could not be written
	keeping error // why the limits could not be kept the last time
}

func (t *tally) count(e Event, reason string, n Count) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts == nil {
		t.counts = make(map[Key]Count)
	}
	c := t.counts[Key{e, reason}]
	c.Items += n.Items
	c.Bytes += n.Bytes
	t.counts[Key{e, reason}] = c
}

func (t *tally) writes(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.writing = err
}

func (t *tally) keeps(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.keeping = err
}

func (t *tally) stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := Stats{Bytes: t.held.Load(), Degraded: t.writing, Counts: maps.Clone(t.counts)}
	if s.Degraded == nil {
		s.Degraded = t.keeping
	}
	return s
}
