package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"spanflame/agent/internal/owndir"
	"spanflame/internal/record"
)

const (
	lockName = "lock"
	maxSlots = 1024    // processes that share a directory
	maxSeq   = 1 << 62 // a file name that claims more is not ours

	adoptAtOnce = 10_000 // records of another process taken over before others get a turn
)

// slot is the numbered directory of one process, held by a lock that ends with the process. The lock's file names the
// service, so that services that share the spool's directory do not take each other's slots.
type slot struct {
	dir  string
	root *os.Root
	lock *os.File
	next uint64 // sequence number of the next file
}

func (s *slot) path(seq uint64, n record.Name) string { return filepath.Join(s.dir, fileName(seq, n)) }

// release gives the slot to other processes.
func (s *slot) release() {
	s.lock.Close()
	s.root.Close()
}

// remove deletes a file of the slot, also after release: a reader may be done with it only then.
func (s *slot) remove(name string) error {
	err := s.root.Remove(name)
	if !errors.Is(err, os.ErrClosed) {
		return err
	}
	base, err := owndir.Base(filepath.Dir(s.dir))
	if err != nil {
		return err
	}
	defer base.Close()
	root, err := owndir.Open(base, s.name())
	if err != nil {
		return err
	}
	defer root.Close()
	return root.Remove(name)
}

// name returns the slot's name in the spool's directory.
func (s *slot) name() string { return filepath.Base(s.dir) }

func fileName(seq uint64, n record.Name) string { return fmt.Sprintf("%016x-%s", seq, n) }

// errOtherService is wrapped by the error for a slot that this process leaves alone.
var errOtherService = errors.New("has records of another service")

// errNoDirectory is the reason for a queue in memory if no directory is set.
var errNoDirectory = errors.New("no directory is named, and the user has no cache directory: set SPANFLAME_SPOOL_DIR")

// maxServiceBytes limits the name of a service in the lock's file.
const maxServiceBytes = 4096

// parseFile reads the name of a record's file in a slot.
func parseFile(name string) (uint64, record.Name, bool) {
	head, tail, ok := strings.Cut(name, "-")
	if !ok || len(head) != 16 {
		return 0, record.Name{}, false
	}
	seq, err := strconv.ParseUint(head, 16, 64)
	if err != nil || seq >= maxSeq || fmt.Sprintf("%016x", seq) != head {
		return 0, record.Name{}, false
	}
	n, err := record.ParseFileName(tail)
	return seq, n, err == nil
}

// write stores one file, as owndir.Write does. After an error nothing is left of it.
func (s *slot) write(n record.Name, file []byte) (seq uint64, err error) {
	seq = s.next
	name := fileName(seq, n)
	if err = owndir.Write(s.root, name, file); err != nil {
		s.root.Remove(name)
		return 0, err
	}
	s.next++
	return seq, nil
}

// acquire locks the first free slot and queues what is in it, then adopts.
func (s *Spool) acquire() error {
	if s.opt.Dir == "" {
		return errNoDirectory
	}
	base, err := owndir.Base(s.opt.Dir)
	if err != nil {
		return err
	}
	defer base.Close()
	var refused error
	for i := range maxSlots {
		sl, err := s.lockSlot(base, strconv.Itoa(i), owndir.Make)
		switch {
		case errors.Is(err, owndir.ErrLocked), errors.Is(err, errOtherService):
			continue
		case errors.Is(err, fs.ErrPermission), errors.Is(err, owndir.ErrUnsafe):
			refused = err // another user's slot
			continue
		case err != nil:
			return err
		}
		s.slot = sl
		if refused != nil {
			s.log.warn("refused", "slots in the queue's directory are not used", "error", refused)
		}
		if err := s.recover(); err != nil {
			s.slot.release()
			s.slot = nil
			return err
		}
		s.adopt()
		s.aside.measure()
		s.countEvicted()
		return nil
	}
	return fmt.Errorf("all %d slots in %s are in use: %w", maxSlots, s.opt.Dir, errors.Join(owndir.ErrLocked, refused))
}

// lockSlot locks a slot of this service, without waiting. A slot of another service is free to use if it is empty.
func (s *Spool) lockSlot(base *os.Root, name string, open func(*os.Root, string) (*os.Root, error)) (*slot, error) {
	root, err := open(base, name)
	if err != nil {
		return nil, err
	}
	sl := &slot{dir: filepath.Join(s.opt.Dir, name), root: root, next: 1}
	if sl.lock, err = owndir.Lock(root, lockName); err != nil {
		root.Close()
		return nil, err
	}
	if err := s.claim(sl); err != nil {
		sl.release()
		return nil, err
	}
	return sl, nil
}

// claim writes the service into the lock's file, unless another is there that has records in the slot.
func (s *Spool) claim(sl *slot) error {
	there, err := io.ReadAll(io.LimitReader(sl.lock, maxServiceBytes))
	there = bytes.Trim(there, "\x00") // what a power cut can leave of a name: it is free to use
	if err != nil || string(there) == s.opt.Service {
		return err
	}
	if len(there) > 0 {
		entries, err := owndir.Entries(sl.root, ".")
		if err != nil {
			return err
		}
		if len(entries) > 1 {
			return fmt.Errorf("%s: %w %q", sl.dir, errOtherService, there)
		}
	}
	if err := sl.lock.Truncate(0); err != nil {
		return err
	}
	_, err = sl.lock.WriteAt([]byte(s.opt.Service), 0)
	return err
}

// recover queues what earlier processes left in the slot: it is older than all that the queue has.
func (s *Spool) recover() error {
	found, _, err := s.scan(s.slot, Recovered, math.MaxInt)
	if err != nil {
		return err
	}
	for _, e := range found {
		s.slot.next = max(s.slot.next, e.seq+1)
	}
	s.disk.at(s.slot.dir)
	s.queue.found(found, Recovered)
	return nil
}

// adopt takes over the records of processes that have ended. A record moves by one rename, so it is in one
// slot or the other, whenever this process may end. Of many it takes the oldest, because Put waits meanwhile;
// unadopted then notes that there are more.
func (s *Spool) adopt() {
	s.unadopted.Store(false)
	base, err := owndir.Base(s.opt.Dir)
	if err != nil {
		s.opt.Logger.Warn("slots of other processes cannot be listed", "directory", s.opt.Dir, "error", err)
		return
	}
	defer base.Close()
	entries, err := owndir.Entries(base, ".")
	if err != nil {
		s.opt.Logger.Warn("slots of other processes cannot be listed", "directory", s.opt.Dir, "error", err)
		return
	}
	for _, d := range entries {
		n, err := strconv.Atoi(d.Name())
		if err != nil || n < 0 || n >= maxSlots || d.Name() == s.slot.name() || !d.IsDir() {
			continue
		}
		dead, err := s.lockSlot(base, d.Name(), owndir.Open)
		if err != nil {
			continue // alive, or not ours to touch
		}
		if err := s.adoptSlot(base, dead); err != nil {
			s.opt.Logger.Warn("another process's profiles cannot be taken over", "directory", dead.dir, "error", err)
		}
		dead.release()
	}
}

func (s *Spool) adoptSlot(base *os.Root, dead *slot) error {
	found, more, err := s.scan(dead, Adopted, adoptAtOnce)
	if err != nil || len(found) == 0 {
		return err
	}
	if more {
		s.unadopted.Store(true)
	}
	for i, e := range found {
		from := filepath.Join(dead.name(), fileName(e.seq, e.name()))
		e.slot, e.seq = s.slot, s.slot.next
		if err = base.Rename(from, filepath.Join(s.slot.name(), fileName(e.seq, e.name()))); err != nil {
			found = found[:i] // the rest stays where it is
			s.unadopted.Store(false)
			break
		}
		s.slot.next++
	}
	err = errors.Join(err, owndir.Sync(s.slot.root), owndir.Sync(dead.root))
	s.queue.found(found, Adopted)
	s.makeRoom(0)
	s.queue.signal()
	s.opt.Logger.Info("took over the profiles of a process that has ended", "directory", dead.dir, "profiles", len(found))
	return err
}

// scan lists the records in a slot in their order, from names and sizes alone: no file is opened. Unfinished
// writes are removed; everything else that is no record is set aside and counted under the event. It stops at
// limit records and reports whether there are more.
func (s *Spool) scan(sl *slot, event Event, limit int) (found []*entry, more bool, err error) {
	files, err := owndir.Entries(sl.root, ".")
	if err != nil {
		return nil, false, err
	}
	found = make([]*entry, 0, min(len(files), limit))
	var types []record.Type // one copy of each, so that the entries do not keep their files' names in memory
	for _, f := range files {
		name := f.Name()
		if name == lockName {
			continue
		}
		if len(found) == limit {
			return found, true, nil
		}
		var size int64
		if fi, err := sl.root.Lstat(name); err == nil && fi.Mode().IsRegular() {
			size = fi.Size()
		}
		stem, temp := strings.CutSuffix(name, owndir.TempSuffix)
		seq, n, ours := parseFile(stem)
		switch {
		case temp && ours && f.Type().IsRegular():
			s.queue.count(Unfinished, "", n.Type, size)
			if err := sl.root.Remove(name); err != nil {
				s.opt.Logger.Warn("unfinished file cannot be removed", "file", filepath.Join(sl.dir, name), "error", err)
			}
		case temp || !ours:
			s.setAsideForeign(sl, name, event, "foreign_name", "its name is not one that the agent gives", n.Type, size)
		case !f.Type().IsRegular():
			s.setAsideForeign(sl, name, event, "not_a_file", fmt.Sprintf("it is not a regular file but %s", f.Type()), n.Type, size)
		default:
			i := slices.Index(types, n.Type)
			if i < 0 {
				i = len(types)
				types = append(types, record.Type(strings.Clone(string(n.Type))))
			}
			found = append(found, &entry{slot: sl, seq: seq, start: n.Start.UnixNano(), size: size, typ: types[i], id: n.ID})
		}
	}
	return found, false, nil
}

// setAsideForeign sets aside files in a slot that are not records. Files that cannot be moved stay and are not counted:
// they are not in the queue, so they delay nothing.
func (s *Spool) setAsideForeign(sl *slot, name string, event Event, reason, detail string, t record.Type, size int64) {
	path := filepath.Join(sl.dir, name)
	if err := s.aside.move(sl.name(), name, name, reason, detail); err != nil {
		s.log.warn("not_moved", "foreign file in the queue's directory cannot be moved aside", "file", path, "error", err)
		return
	}
	s.queue.count(event, "", t, size)
	s.queue.count(SetAside, reason, t, size)
	s.countEvicted()
	s.log.warn(reason, "foreign file in the queue's directory set aside", "file", path, "directory", s.aside.path())
}
