// Package spool is the agent's queue of records on disk: bounded, in order, and complete again after a crash at any
// point. Capture adds records; the delivery removes them, oldest first, and reports the result of each. The spool does not
// use the network and starts no goroutine.
//
// A record is durable when Put returns. While the directory cannot be written, the queue continues in memory, within
// a limit of its own, and returns to the disk by itself. Files that differ from what was written are set aside; they are
// never deleted and do not delay others. Every loss is counted with its reason.
//
// Below the directory each process owns one numbered slot by a file lock, so several processes of a service can share
// a directory. The next process that looks takes over the records of a process that has ended.
package spool

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"spanflame/agent/internal/owndir"
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

// ErrClosed is returned by Next after the spool was closed.
var ErrClosed = errors.New("spool: closed")

// Options of a spool. Service is required.
type Options struct {
	Service       string        // whose records these are; those of others are set aside, unless AnyService
	AnyService    bool          // records are of any services, and Service is that of this process, which owns the slot
	Dir           string        // made if missing, shared by the processes of a service. Empty keeps the queue in memory
	MaxBytes      int64         // of this process's queue on disk; above it the oldest are dropped. 0 is 256 MiB
	MaxAge        time.Duration // that a process keeps a record for, by its own time; then it is dropped. 0 is 24 h
	MemoryBytes   int64         // of the queue kept while the directory cannot be written. 0 is 8 MiB
	SetAsideBytes int64         // of the files set aside, for the whole directory; above it the oldest are deleted. 0 is half of MaxBytes
	Logger        *slog.Logger  // nil is silence
}

func (o *Options) complete() error {
	switch {
	case o.Service == "":
		return errors.New("spool: Service is empty: want the name of the service whose records are spooled")
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

// Spool is the queue. Any goroutine may write, read (Next, then Done, Release, Postpone or SetAside) and look.
type Spool struct {
	opt   Options
	queue *queue
	disk  health
	aside *quarantine
	log   rareLog // what can happen by the thousand

	unadopted atomic.Bool // a dead process's slot holds more than adopt took

	// files serialises what makes or moves files in a slot: Open, Put, Close and tick hold it, over disk writes
	// too. Readers do not: a slow disk delays neither them nor Stats.
	files sync.Mutex
	slot  *slot // nil while the directory cannot be used
}

// Item is one record in a reader's hands. It ends with Done, Release, Postpone or SetAside.
type Item struct {
	Record record.Record
	Tries  uint8 // for the reader to count in: kept with a record that is given back
	entry  *entry
}

// Open opens the queue with the records that earlier processes left. Only wrong options are an error: if the directory
// cannot be used, the queue is in memory.
func Open(o Options) (*Spool, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	s := &Spool{
		opt:   o,
		queue: newQueue(),
		disk:  health{opt: o},
		aside: &quarantine{dir: o.Dir, max: o.SetAsideBytes},
		log:   rareLog{log: o.Logger},
	}
	s.files.Lock()
	defer s.files.Unlock()
	if err := s.acquire(); err != nil {
		s.disk.failed(err)
	}
	return s, nil
}

// Put queues the record. It returns when the record is on disk, or in memory if the disk does not accept it, or
// counted as dropped. It never waits for a reader.
func (s *Spool) Put(r record.Record) {
	r.Meta = r.Canonical() // in memory as on disk
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
	switch {
	case s.queue.isClosed():
		s.queue.refuse(e, "closed")
	case err != nil:
		s.queue.refuse(e, "invalid")
		s.opt.Logger.Warn("profile cannot be queued", "type", r.Type, "error", err)
	case size > min(s.opt.MaxBytes, maxRecordBytes):
		s.queue.refuse(e, "too_large")
		s.opt.Logger.Warn("profile is too large for the queue", "type", r.Type, "bytes", size, "limit", min(s.opt.MaxBytes, maxRecordBytes))
	case s.flush() && s.write(e, b.Bytes()) == nil: // what is in memory is older: it goes to the disk first
		s.queue.put(e)
	default:
		s.queue.putInMemory(e, s.opt.MemoryBytes)
	}
	s.expire() // the reader may be busy with one record for long
	s.queue.signal()
}

// move writes an entry of the queue from memory to disk.
func (s *Spool) move(e *entry) error {
	onDisk, _ := s.queue.look(e)
	var b bytes.Buffer
	if err := record.Encode(&b, *onDisk.rec); err != nil {
		return err
	}
	if err := s.write(&onDisk, b.Bytes()); err != nil {
		return err
	}
	if !s.queue.moved(e, onDisk) { // the reader was done with it meanwhile
		s.unlink(&onDisk)
	}
	return nil
}

// write writes the file of an entry that nobody else knows, makes room for it, and notes whether the disk
// works. Room is made afterwards, so that a failed write costs no older record.
func (s *Spool) write(e *entry, file []byte) error {
	if s.slot == nil {
		if err := s.acquire(); err != nil {
			s.disk.failed(err)
			return err
		}
	}
	seq, err := s.slot.write(e.name(), file)
	if err != nil {
		if !owndir.Is(s.slot.root, s.slot.dir) { // removed while in use: make another
			s.slot.lock.Close() // not its root: readers find there that their files are missing
			s.slot = nil
		}
		s.disk.failed(err)
		return err
	}
	s.disk.works()
	e.slot, e.seq, e.rec = s.slot, seq, nil
	s.makeRoom(e.size)
	return nil
}

// flush moves records from memory to disk, oldest first, and reports whether none is left to move. What a
// reader holds stays where it is.
func (s *Spool) flush() bool {
	for e := s.queue.move(); e != nil; e = s.queue.move() {
		err := s.move(e)
		s.queue.settled(e)
		if err != nil {
			return false
		}
	}
	return true
}

// makeRoom drops the oldest records on disk until size more bytes fit.
func (s *Spool) makeRoom(size int64) {
	for e := s.queue.dropAbove(s.opt.MaxBytes, size); e != nil; e = s.queue.dropAbove(s.opt.MaxBytes, size) {
		s.unlink(e)
	}
}

// Next hands out the oldest record that nobody holds, and waits for one if there is none. The context limits the wait
// only: with a context that is done, Next empties the queue, with postponed records last. Files that cannot be read
// are set aside on the way. The error is ErrClosed or the context's error.
func (s *Spool) Next(ctx context.Context) (*Item, error) {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		s.expire()
		e, wait, err := s.queue.take(ctx.Err() != nil)
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
			case <-s.queue.wake:
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
			s.queue.finish(e, Dropped, reason)
			s.opt.Logger.Warn("queued profile has disappeared", "file", e.path())
		default:
			s.SetAside(it, reason, err.Error())
		}
	}
}

// expire drops the records that have been in the queue for longer than MaxAge.
func (s *Spool) expire() {
	for e := s.queue.dropAfter(s.opt.MaxAge); e != nil; e = s.queue.dropAfter(s.opt.MaxAge) {
		s.unlink(e)
	}
}

// load reads the record of an entry that the reader has taken.
func (s *Spool) load(e *entry) (record.Record, error) {
	now, _ := s.queue.look(e) // Close may move it to the disk meanwhile
	if now.slot == nil {
		return *now.rec, nil
	}
	f, err := owndir.OpenFile(now.slot.root, fileName(now.seq, now.name()))
	if err != nil {
		return record.Record{}, err
	}
	defer f.Close()
	r, err := record.Decode(f, maxRecordBytes)
	if err == nil && r.Service != s.opt.Service && !s.opt.AnyService {
		err = fmt.Errorf("%w: the record is of the service %q, the spool of %q", errOtherRecord, r.Service, s.opt.Service)
	}
	return r, err
}

// errOtherRecord is wrapped by the error for a record that is not to be sent with this service's credentials.
var errOtherRecord = errors.New("not this service's")

// damage returns the reason for which a file that cannot be read leaves the queue, "" if it stays.
func damage(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, fs.ErrNotExist):
		return "missing"
	case errors.Is(err, record.ErrForeign):
		return "foreign"
	case errors.Is(err, errOtherRecord):
		return "other_service"
	case errors.Is(err, record.ErrDamaged), errors.Is(err, record.ErrTooLarge):
		return "damaged"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOMEM):
		return "" // the file may be intact
	}
	return "unreadable"
}

// tick is called regularly by waiting readers: records in memory may fit on the disk again, and other processes may have
// ended and left records.
func (s *Spool) tick() {
	s.log.rest(s.opt.Dir, logEvery)
	s.files.Lock()
	defer s.files.Unlock()
	if s.queue.isClosed() || !s.flush() || s.slot == nil {
		s.unadopted.Store(false) // try again at the next tick
		return
	}
	s.adopt()
}

// Done removes a record that was delivered.
func (s *Spool) Done(it *Item) {
	if e, ok := s.queue.finish(it.entry, Delivered, ""); ok {
		s.unlink(&e)
	}
}

// Release gives a record back to its place in the queue, which is the head.
func (s *Spool) Release(it *Item) { s.Postpone(it, 0) }

// Postpone gives a record back to its place in the queue, but hands it out only after d, so that the others come
// first.
func (s *Spool) Postpone(it *Item, d time.Duration) { s.queue.giveBack(it.entry, it.Tries, d) }

// SetAside takes a record out of the queue and keeps it as a file with its reason next to it, for an operator to
// find. The reason is one word for the counters, the detail is for people. If that fails, which is logged, the record
// is out of the queue too: its file stays in the slot, to be found again after a restart, or, if it was in memory, it
// is counted as dropped.
func (s *Spool) SetAside(it *Item, reason, detail string) {
	now, held := s.queue.look(it.entry)
	if !held {
		return
	}
	name := now.name().String()
	if now.slot == nil {
		s.setAsideFromMemory(it.entry, *now.rec, reason, detail)
	} else if e, ok := s.queue.finish(it.entry, SetAside, reason); ok {
		if err := s.aside.move(e.slot.name(), fileName(e.seq, e.name()), name, reason, detail); err != nil {
			s.log.warn("not_moved", "profile cannot be moved aside", "file", e.path(), "error", err, "detail", detail)
		} else {
			s.logSetAside(reason, name, detail)
		}
	}
	s.countEvicted()
}

func (s *Spool) setAsideFromMemory(e *entry, r record.Record, reason, detail string) {
	name := e.name().String()
	if err := s.aside.write(r, name, reason, detail); err != nil {
		s.log.warn("set_aside_failed", "profile dropped: it was in memory and cannot be set aside", "error", err, "detail", detail)
		reason = "set_aside_failed"
		if last, ok := s.queue.finish(e, Dropped, reason); ok {
			s.unlink(&last) // Close may have moved it to the disk meanwhile
		}
		return
	}
	if last, ok := s.queue.finish(e, SetAside, reason); ok {
		s.unlink(&last)
	}
	s.logSetAside(reason, name, detail)
}

func (s *Spool) logSetAside(reason, name, detail string) {
	s.log.warn(reason, "profile set aside", "directory", s.aside.path(), "name", name, "detail", detail)
}

// unlink deletes the file of an entry that has left the queue.
func (s *Spool) unlink(e *entry) {
	if e.slot == nil {
		return
	}
	// Not followed by an fsync: a removal that a power cut undoes means a record delivered twice, not lost.
	if err := e.slot.remove(fileName(e.seq, e.name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.queue.count(NotRemoved, "", e.typ, e.size)
		s.opt.Logger.Warn("profile cannot be removed and will be found again after a restart", "file", e.path(), "error", err)
	}
}

// Close leaves the queue on disk for the next process. It tries once more to write records in memory; those that cannot be
// written are counted as dropped, and the error has their number. Readers return ErrClosed.
func (s *Spool) Close() error {
	s.files.Lock()
	defer s.files.Unlock()
	held, first := s.queue.close()
	if !first {
		return nil
	}
	// What readers still hold in memory would be lost with the process.
	for _, e := range held {
		if s.move(e) != nil {
			break
		}
	}
	s.flush()
	lost := s.queue.dropMemory("closed")
	if s.slot != nil {
		s.slot.release()
		s.slot = nil
	}
	s.queue.signal()
	s.log.rest(s.opt.Dir, 0)
	if lost.Items > 0 {
		return fmt.Errorf("spool: %d records of %d bytes are lost with the process: %w", lost.Items, lost.Bytes, s.disk.error())
	}
	return nil
}

// Stats returns the state of the queue and its counters since Open.
func (s *Spool) Stats() Stats {
	st := s.queue.stats()
	st.Dir, st.Degraded = s.disk.state()
	st.SetAsideBytes = s.aside.bytes.Load()
	return st
}
