// Package spool is the agent's queue of records on disk: bounded, in order, and whole again after a crash at
// any point. Capture puts records in; the delivery loop takes them out, oldest first, and says what became
// of each. It knows no network and starts no goroutine.
//
// A record is durable when Put returns. Where the directory cannot be written the queue goes on in memory,
// within a bound of its own, and returns to the disk by itself. Files that are not what was written are set
// aside, never deleted and never in the way. Whatever is lost is counted with its reason.
//
// Below the directory each process owns one numbered slot by a file lock, so several processes of a service
// can share a directory; the records of a process that has ended are adopted by the next one that looks.
package spool

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"spanflame/internal/record"
)

// Defaults of Options.
const (
	DefaultMaxBytes    = 256 << 20
	DefaultMaxAge      = 24 * time.Hour
	DefaultMemoryBytes = 8 << 20
)

const (
	maxRecordBytes = 64 << 20        // one record's file; what is larger is neither taken in nor read
	tickEvery      = time.Minute     // how often a waiting reader looks for dead processes' records
	retryRead      = 5 * time.Second // pause when the process has no file descriptors or memory to read with
)

// ErrClosed is what Next returns once the spool is closed.
var ErrClosed = errors.New("spool: closed")

// Options of a spool. Only Dir is required.
type Options struct {
	Dir           string        // made if missing, shared by the processes of a service
	MaxBytes      int64         // of this process's queue on disk; above it the oldest records go. 0 is 256 MiB
	MaxAge        time.Duration // since a record's start; older ones go. 0 is 24 h
	MemoryBytes   int64         // of the queue kept while the directory cannot be written. 0 is 8 MiB
	SetAsideBytes int64         // of the files set aside, for the whole directory; above it the oldest go. 0 is half of MaxBytes
	Logger        *slog.Logger  // nil is silence
}

func (o *Options) complete() error {
	switch {
	case o.Dir == "":
		return errors.New("spool: Dir is empty: name a directory that survives restarts")
	case o.MaxBytes < 0:
		return fmt.Errorf("spool: MaxBytes %d: want a positive number of bytes, or 0 for %d", o.MaxBytes, DefaultMaxBytes)
	case o.MaxAge < 0:
		return fmt.Errorf("spool: MaxAge %v: want a positive duration, or 0 for %v", o.MaxAge, DefaultMaxAge)
	case o.MemoryBytes < 0:
		return fmt.Errorf("spool: MemoryBytes %d: want a positive number of bytes, or 0 for %d", o.MemoryBytes, DefaultMemoryBytes)
	case o.SetAsideBytes < 0:
		return fmt.Errorf("spool: SetAsideBytes %d: want a positive number of bytes, or 0 for half of MaxBytes", o.SetAsideBytes)
	}
	o.MaxBytes = cmp.Or(o.MaxBytes, DefaultMaxBytes)
	o.MaxAge = cmp.Or(o.MaxAge, DefaultMaxAge)
	o.MemoryBytes = cmp.Or(o.MemoryBytes, DefaultMemoryBytes)
	o.SetAsideBytes = cmp.Or(o.SetAsideBytes, max(1, o.MaxBytes/2))
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// state of an entry in the queue.
type state uint8

const (
	queued state = iota
	taken        // the reader has it
	moving       // on its way from memory to disk
)

// entry is one record in the queue. A spool may hold a hundred thousand of them, so an entry on disk keeps
// what its file name says and nothing else.
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
	due   time.Duration // since the spool was opened: until then it is postponed
}

func (e *entry) name() record.Name {
	return record.Name{Start: time.Unix(0, e.start), Type: e.typ, ID: e.id}
}

func (e *entry) path() string { return e.slot.path(e.seq, e.name()) }

// Spool is the queue. Any goroutine may write, read (Next, then Done, Release or SetAside) and look.
type Spool struct {
	opt    Options
	opened time.Time
	aside  *quarantine
	wake   chan struct{} // capacity 1: something changed for the reader

	unadopted atomic.Bool // a dead process's slot holds more than adopt took

	// files serialises what makes or moves files in a slot. It is taken before mu and held over disk writes;
	// mu is not, so a slow disk holds up neither the reader's bookkeeping nor Stats.
	files sync.Mutex
	slot  *slot // nil while the directory cannot be used; guarded by files

	mu       sync.Mutex
	queue    []*entry // oldest first, whatever the clock says
	disk     Count
	memory   Count
	counts   map[Key]Count
	degraded error // why records stay in memory
	since    time.Time
	where    string // the slot's directory
	closed   bool
	said     map[string]said // by reason
}

// Item is one record in the reader's hands. It ends with Done, Release, Postpone or SetAside.
type Item struct {
	Record record.Record
	Tries  uint8 // for the reader to count in: kept with a record that is given back
	entry  *entry
}

// Open opens the queue and takes in what earlier processes left. Only wrong options are an error: a directory
// that cannot be used leaves the queue in memory.
func Open(o Options) (*Spool, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	s := &Spool{
		opt:    o,
		opened: time.Now(),
		wake:   make(chan struct{}, 1),
		counts: map[Key]Count{},
		said:   map[string]said{},
	}
	s.aside = &quarantine{dir: o.Dir, max: o.SetAsideBytes}
	s.files.Lock()
	defer s.files.Unlock()
	if err := s.acquire(); err != nil {
		s.setDegraded(err)
	}
	return s, nil
}

// Put queues the record. It returns when the record is on disk, or in memory where the disk cannot take it,
// or counted as dropped. It never waits for the reader.
func (s *Spool) Put(r record.Record) {
	var b bytes.Buffer
	err := record.Encode(&b, r)
	size := int64(b.Len())
	if err != nil {
		size = int64(len(r.Profile))
	}
	name := r.Name()
	e := &entry{rec: &r, start: name.Start.UnixNano(), size: size, typ: r.Type, id: name.ID}

	s.files.Lock()
	defer s.files.Unlock()
	s.mu.Lock()
	switch {
	case s.closed:
		s.refuse(e, "closed")
	case err != nil:
		s.refuse(e, "invalid")
		s.opt.Logger.Warn("profile cannot be queued", "type", r.Type, "error", err)
	case size > min(s.opt.MaxBytes, maxRecordBytes):
		s.refuse(e, "too_large")
		s.opt.Logger.Warn("profile is too large for the queue", "type", r.Type, "bytes", size, "limit", min(s.opt.MaxBytes, maxRecordBytes))
	default:
		s.mu.Unlock()
		// What is in memory is older: it goes to the disk first, or the record joins it.
		if !s.flush() || s.store(e, b.Bytes()) != nil {
			s.keep(e)
		}
		s.mu.Lock()
	}
	s.mu.Unlock()
	s.expire() // the reader may be busy with one record for long
	s.signal()
}

// refuse counts a record that does not get into the queue. It is called with mu held.
func (s *Spool) refuse(e *entry, reason string) {
	s.count(Put, "", e.typ, e.size)
	s.count(Dropped, reason, e.typ, e.size)
}

// store writes the entry's file and appends it to the queue.
func (s *Spool) store(e *entry, file []byte) error {
	if err := s.write(e, file); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count(Put, "", e.typ, e.size)
	s.disk.add(e.size)
	s.queue = append(s.queue, e)
	return nil
}

// move writes an entry of the queue from memory to disk.
func (s *Spool) move(e *entry) error {
	s.mu.Lock()
	onDisk := *e
	s.mu.Unlock()
	var b bytes.Buffer
	if err := record.Encode(&b, *onDisk.rec); err != nil {
		return err
	}
	if err := s.write(&onDisk, b.Bytes()); err != nil {
		return err
	}
	s.mu.Lock()
	here := slices.Contains(s.queue, e)
	if here {
		s.memory.sub(e.size)
		s.disk.add(e.size)
		e.slot, e.seq, e.rec = onDisk.slot, onDisk.seq, nil
	}
	s.mu.Unlock()
	if !here { // the reader was done with it meanwhile
		s.unlink(&onDisk)
	}
	return nil
}

// write writes the file of an entry that nobody else knows, makes room for it, and notes whether the disk
// works. Room is made afterwards: a write that fails shall not have cost an older record.
func (s *Spool) write(e *entry, file []byte) error {
	if s.slot == nil {
		if err := s.acquire(); err != nil {
			s.setDegraded(err)
			return err
		}
	}
	seq, err := s.slot.write(e.name(), file)
	if err != nil {
		if !isDir(s.slot.dir) { // removed under us: begin anew
			s.slot.release()
			s.slot = nil
		}
		s.setDegraded(err)
		return err
	}
	s.setWorking()
	e.slot, e.seq, e.rec = s.slot, seq, nil
	s.makeRoom(e.size)
	return nil
}

// keep appends the entry to the queue in memory and drops the oldest there when that is full.
func (s *Spool) keep(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count(Put, "", e.typ, e.size)
	s.queue = append(s.queue, e)
	s.memory.add(e.size)
	for s.memory.Bytes > s.opt.MemoryBytes {
		i := slices.IndexFunc(s.queue, func(e *entry) bool { return e.slot == nil && e.state == queued })
		if i < 0 {
			return // the reader has the only one
		}
		old := s.queue[i]
		s.remove(old)
		s.count(Dropped, "memory_full", old.typ, old.size)
	}
}

// flush moves records from memory to disk, oldest first, and reports whether none is left to move. What the
// reader holds stays where it is.
func (s *Spool) flush() bool {
	for {
		s.mu.Lock()
		var e *entry
		if s.memory.Items > 0 {
			if i := slices.IndexFunc(s.queue, func(e *entry) bool { return e.slot == nil && e.state == queued }); i >= 0 {
				e = s.queue[i]
				e.state = moving
			}
		}
		s.mu.Unlock()
		if e == nil {
			return true
		}
		err := s.move(e)
		s.mu.Lock()
		e.state = queued
		s.mu.Unlock()
		s.signal()
		if err != nil {
			return false
		}
	}
}

// makeRoom drops the oldest records on disk until size more bytes fit.
func (s *Spool) makeRoom(size int64) {
	for {
		s.mu.Lock()
		var old *entry
		if s.disk.Bytes+size > s.opt.MaxBytes {
			if i := slices.IndexFunc(s.queue, func(e *entry) bool { return e.slot != nil && e.state == queued }); i >= 0 {
				old = s.queue[i]
				s.remove(old)
				s.count(Dropped, "full", old.typ, old.size)
			}
		}
		s.mu.Unlock()
		if old == nil {
			return
		}
		s.unlink(old)
	}
}

// Next hands out the oldest record that nobody holds, and waits for one if there is none. The context bounds
// the wait only: with a context that is done already, Next empties the queue, what was postponed last. Files
// that cannot be read are set aside on the way. It fails with ErrClosed or the context's error and with nothing
// else.
func (s *Spool) Next(ctx context.Context) (*Item, error) {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		e, wait, err := s.take(ctx.Err() != nil)
		if err != nil {
			return nil, err
		}
		if e == nil {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if s.unadopted.Load() {
				s.tick()
				continue
			}
			select {
			case <-ctx.Done():
			case <-s.wake:
			case <-time.After(wait):
			case <-tick.C:
				s.tick()
			}
			continue
		}
		r, err := s.load(e)
		it := &Item{Record: r, Tries: e.tries, entry: e}
		switch reason := damage(err); {
		case err == nil:
			return it, nil
		case reason == "":
			s.Release(it)
			s.opt.Logger.Warn("queued profile cannot be read now", "file", e.path(), "error", err)
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(retryRead):
			}
		case reason == "missing":
			s.mu.Lock()
			s.remove(e)
			s.count(Dropped, reason, e.typ, e.size)
			s.mu.Unlock()
			s.opt.Logger.Warn("queued profile has disappeared", "file", e.path())
		default:
			s.SetAside(it, reason, err.Error())
		}
	}
}

// take returns the oldest record that nobody holds, and those that are postponed last and only if all. It
// returns nil if there is none now, and how long to wait at most until there may be.
func (s *Spool) take(all bool) (*entry, time.Duration, error) {
	s.expire()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, 0, ErrClosed
	}
	now, wait := time.Since(s.opened), tickEvery
	var first *entry
search:
	for _, e := range s.queue {
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
	s.signal() // there may be another for the next reader
	return first, 0, nil
}

// expire drops records above MaxAge from the head of the queue.
func (s *Spool) expire() {
	limit := time.Now().Add(-s.opt.MaxAge).UnixNano()
	for {
		s.mu.Lock()
		var old *entry
		if len(s.queue) > 0 && s.queue[0].state == queued && s.queue[0].start < limit {
			old = s.queue[0]
			s.remove(old)
			s.count(Dropped, "age", old.typ, old.size)
		}
		s.mu.Unlock()
		if old == nil {
			return
		}
		s.unlink(old)
	}
}

// load reads the record of an entry that the reader has taken.
func (s *Spool) load(e *entry) (record.Record, error) {
	s.mu.Lock()
	now := *e // Close may move it to the disk meanwhile
	s.mu.Unlock()
	if now.slot == nil {
		return *now.rec, nil
	}
	f, err := openRegular(now.path())
	if err != nil {
		return record.Record{}, err
	}
	defer f.Close()
	return record.Decode(f, maxRecordBytes)
}

// damage gives the reason for which a file that cannot be read leaves the queue: "" if it should not.
func damage(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, fs.ErrNotExist):
		return "missing"
	case errors.Is(err, record.ErrForeign):
		return "foreign"
	case errors.Is(err, record.ErrDamaged), errors.Is(err, record.ErrTooLarge):
		return "damaged"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOMEM):
		return "" // nothing speaks against the file
	}
	return "unreadable"
}

// tick is what a waiting reader does now and then: records in memory may fit on the disk again, and other
// processes may have ended and left theirs.
func (s *Spool) tick() {
	s.sayRest(sayEvery)
	s.files.Lock()
	defer s.files.Unlock()
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed || !s.flush() || s.slot == nil {
		s.unadopted.Store(false) // try again at the next tick
		return
	}
	s.adopt()
}

// Done removes a record that was delivered.
func (s *Spool) Done(it *Item) {
	s.mu.Lock()
	ended := s.finish(it)
	if ended {
		s.count(Delivered, "", it.entry.typ, it.entry.size)
	}
	s.mu.Unlock()
	if ended {
		s.unlink(it.entry)
	}
}

// Release gives a record back to its place in the queue, which is the head.
func (s *Spool) Release(it *Item) { s.Postpone(it, 0) }

// Postpone gives a record back to its place in the queue, but hands it out only after d, so that the reader
// has the others meanwhile.
func (s *Spool) Postpone(it *Item, d time.Duration) {
	s.mu.Lock()
	if it.entry.state == taken {
		it.entry.state, it.entry.tries, it.entry.due = queued, it.Tries, time.Since(s.opened)+d
	}
	s.mu.Unlock()
	s.signal()
}

// SetAside takes a record out of the queue and keeps it as a file, with the reason beside it, where an
// operator finds it. The reason is one word for the counters, the detail is for people. Where that fails, which
// is logged, the record is out of the queue too: its file has stayed in the slot, to be met again after a
// restart, or, if it was in memory, it is counted as dropped.
func (s *Spool) SetAside(it *Item, reason, detail string) {
	e := it.entry
	s.mu.Lock()
	ended, onDisk := s.finish(it), e.slot != nil
	if ended && onDisk {
		s.count(SetAside, reason, e.typ, e.size)
	}
	s.mu.Unlock()
	if !ended {
		return
	}
	var err error
	if onDisk {
		err = s.aside.move(e.path(), e.name().String(), reason, detail)
	} else {
		err = s.aside.write(*e.rec, e.name().String(), reason, detail)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !onDisk && err == nil {
		s.count(SetAside, reason, e.typ, e.size)
	}
	switch {
	case err == nil:
		s.say(reason, "profile set aside", "directory", s.aside.path(), "name", e.name().String(), "detail", detail)
	case !onDisk:
		s.count(Dropped, "set_aside_failed", e.typ, e.size)
		s.say("set_aside_failed", "profile dropped: it was in memory and cannot be set aside", "error", err, "detail", detail)
	default:
		s.say("not_moved", "profile cannot be moved aside", "file", e.path(), "error", err, "detail", detail)
	}
	s.countEvicted()
}

// finish takes the item out of the queue, once. It is called with mu held, and what becomes of the record is
// counted before mu is given back: the counters agree at every moment.
func (s *Spool) finish(it *Item) bool {
	return it.entry.state == taken && s.remove(it.entry)
}

// remove takes the entry out of the queue. It is called with mu held.
func (s *Spool) remove(e *entry) bool {
	i := slices.Index(s.queue, e)
	if i < 0 {
		return false
	}
	if i == 0 {
		s.queue[0] = nil
		s.queue = s.queue[1:]
	} else {
		s.queue = slices.Delete(s.queue, i, i+1)
	}
	if e.slot != nil {
		s.disk.sub(e.size)
	} else {
		s.memory.sub(e.size)
	}
	return true
}

// unlink deletes the file of an entry that has left the queue.
func (s *Spool) unlink(e *entry) {
	if e.slot == nil {
		return
	}
	// Not followed by an fsync: a removal that a power cut undoes means a record delivered twice, not lost.
	if err := os.Remove(e.path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.mu.Lock()
		s.count(NotRemoved, "", e.typ, e.size)
		s.mu.Unlock()
		s.opt.Logger.Warn("profile cannot be removed and will be met again after a restart", "file", e.path(), "error", err)
	}
}

func (s *Spool) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Spool) setDegraded(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.degraded == nil {
		s.since = time.Now()
		s.opt.Logger.Warn("profiles cannot be written to disk and are kept in memory",
			"directory", s.opt.Dir, "limit_bytes", s.opt.MemoryBytes, "error", err)
	}
	s.degraded = err
}

func (s *Spool) setWorking() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.degraded != nil {
		s.opt.Logger.Info("profiles can be written to disk again", "directory", s.opt.Dir, "after", time.Since(s.since))
	}
	s.degraded = nil
}

// Close leaves the queue on disk for the next process. Records in memory are tried on the disk once more;
// what it cannot take is counted as dropped, and the error gives the number. The reader ends with ErrClosed.
func (s *Spool) Close() error {
	s.files.Lock()
	defer s.files.Unlock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	held := slices.DeleteFunc(slices.Clone(s.queue), func(e *entry) bool { return e.slot != nil || e.state != taken })
	s.mu.Unlock()

	// What the reader still holds in memory would be gone with the process.
	for _, e := range held {
		if s.move(e) != nil {
			break
		}
	}
	s.flush()

	s.mu.Lock()
	var lost Count
	for _, e := range slices.Clone(s.queue) {
		if e.slot == nil {
			s.remove(e)
			s.count(Dropped, "closed", e.typ, e.size)
			lost.add(e.size)
		}
	}
	err := s.degraded
	s.mu.Unlock()
	if s.slot != nil {
		s.slot.release()
		s.slot = nil
	}
	s.signal()
	s.sayRest(0)
	if lost.Items > 0 {
		return fmt.Errorf("spool: %d records of %d bytes are lost with the process: %w", lost.Items, lost.Bytes, err)
	}
	return nil
}

// Stats returns the state of the queue and its counters since Open.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{
		Items:       s.disk.Items + s.memory.Items,
		Bytes:       s.disk.Bytes + s.memory.Bytes,
		MemoryItems: s.memory.Items,
		MemoryBytes: s.memory.Bytes,
		Dir:         s.where,
		Degraded:    s.degraded,
		Counts:      maps.Clone(s.counts),
	}
	st.SetAsideBytes = s.aside.bytes.Load()
	if len(s.queue) > 0 {
		st.Oldest = time.Unix(0, s.queue[0].start).UTC()
	}
	return st
}
