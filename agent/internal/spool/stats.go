package spool

import (
	"slices"
	"time"

	"spanflame/internal/record"
)

// Event is something that happened to a record. For every type, in items and in bytes:
//
//	put + recovered + adopted = delivered + dropped + set_aside + what is queued or in a reader's hands
//
// The remaining events are outside this balance.
type Event string

// The events.
const (
	Put       Event = "put"       // Put was called: counted when the record is in the queue, or is dropped
	Recovered Event = "recovered" // left in this process's slot by an earlier one
	Adopted   Event = "adopted"   // taken over from the slot of a process that has ended
	Delivered Event = "delivered" // Done was called
	Dropped   Event = "dropped"   // lost, for the reason given: full, age, memory_full, too_large, invalid, missing, closed, set_aside_failed
	SetAside  Event = "set_aside" // kept as a file, for the reason given: damaged, foreign, unreadable, not_a_file, foreign_name, or the caller's

	Unfinished Event = "unfinished"  // a write that a crash interrupted, removed; its Put had not returned
	NotRemoved Event = "not_removed" // delivered or dropped, but its file could not be deleted
	Evicted    Event = "evicted"     // set aside earlier, deleted to make room for newer ones
)

// Key identifies a counter. Type is "other" for types that no agent captures, so that there are few keys.
type Key struct {
	Event  Event
	Reason string // "" where the event needs none
	Type   record.Type
}

// Count is a number of records and their bytes on disk.
type Count struct {
	Items int
	Bytes int64
}

func (c *Count) add(size int64) { c.Items++; c.Bytes += size }
func (c *Count) sub(size int64) { c.Items--; c.Bytes -= size }

// Stats is the state of a spool.
type Stats struct {
	Items         int       // queued or in the reader's hands, on disk and in memory
	Bytes         int64     // of these
	MemoryItems   int       // of these, in memory only
	MemoryBytes   int64     // of these
	SetAsideBytes int64     // files set aside in the directory, as last seen by this process
	Oldest        time.Time // start of the record at the head; zero if there is none
	Dir           string    // this process's slot; empty while the directory cannot be used
	Degraded      error     // why records are kept in memory; nil while the disk works
	Counts        map[Key]Count
}

// Sum adds up the counters of an event over its reasons and types.
func (s Stats) Sum(e Event) Count {
	var sum Count
	for k, c := range s.Counts {
		if k.Event == e {
			sum.Items += c.Items
			sum.Bytes += c.Bytes
		}
	}
	return sum
}

var knownTypes = []record.Type{
	record.CPU, record.Memory, record.Mutex, record.Block, record.Goroutine, record.GoroutineLeak, record.Wall,
}

// known keeps the counters' keys few: types in the names of foreign files can be anything.
func known(t record.Type) record.Type {
	if slices.Contains(knownTypes, t) {
		return t
	}
	return "other"
}
