package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"spanflame/internal/record"
)

const (
	lockName   = "lock"
	tempSuffix = ".tmp"
	maxSlots   = 1024 // processes that share a directory
	dirMode    = 0o700
	fileMode   = 0o600
	maxSeq     = 1 << 62 // a file name that claims more is not ours

	adoptAtOnce = 10_000 // records of another process taken over before others get a turn
)

// slot is the numbered directory of one process, held by a lock that ends with the process.
type slot struct {
	dir  string
	lock *os.File
	next uint64 // sequence number of the next file
}

func (s *slot) path(seq uint64, n record.Name) string {
	return filepath.Join(s.dir, fmt.Sprintf("%016x-%s", seq, n))
}

func (s *slot) release() { s.lock.Close() }

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

// write stores one file so that it is there, whole, whenever it is seen: temp file, fsync, rename, fsync of
// the directory. After an error nothing is left of it.
func (s *slot) write(n record.Name, file []byte) (seq uint64, err error) {
	seq = s.next
	path := s.path(seq, n)
	if err := writeFile(path+tempSuffix, file); err != nil {
		return 0, err
	}
	if err = os.Rename(path+tempSuffix, path); err == nil {
		err = syncDir(s.dir)
	}
	if err != nil {
		os.Remove(path + tempSuffix)
		os.Remove(path)
		return 0, err
	}
	s.next++
	return seq, nil
}

// writeFile writes a new file through to the disk, or leaves none.
func writeFile(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(path)
	}
	return err
}

// syncDir makes the names in a directory durable. Some filesystems have no such call and need none.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) {
		return err
	}
	return nil
}

// acquire locks the first free slot and queues what is in it, then adopts.
func (s *Spool) acquire() error {
	if err := os.MkdirAll(s.opt.Dir, dirMode); err != nil {
		return err
	}
	var refused error
	for i := range maxSlots {
		dir := filepath.Join(s.opt.Dir, strconv.Itoa(i))
		lock, err := lockSlot(dir, true)
		switch {
		case errors.Is(err, errLocked):
			continue
		case errors.Is(err, fs.ErrPermission) && isDir(dir):
			refused = err // another user's slot
			continue
		case err != nil:
			return err
		}
		s.slot = &slot{dir: dir, lock: lock, next: 1}
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
	return fmt.Errorf("all %d slots in %s are taken: %w", maxSlots, s.opt.Dir, errors.Join(errLocked, refused))
}

func isDir(path string) bool {
	fi, err := os.Lstat(path)
	return err == nil && fi.IsDir()
}

// lockSlot locks the slot, without waiting. If create, a missing one is made.
func lockSlot(dir string, create bool) (*os.File, error) {
	if create {
		err := os.Mkdir(dir, dirMode)
		if err == nil {
			err = syncDir(filepath.Dir(dir))
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	return lockFile(filepath.Join(dir, lockName))
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
	entries, err := os.ReadDir(s.opt.Dir)
	if err != nil {
		s.opt.Logger.Warn("slots of other processes cannot be listed", "directory", s.opt.Dir, "error", err)
		return
	}
	for _, d := range entries {
		dir := filepath.Join(s.opt.Dir, d.Name())
		if n, err := strconv.Atoi(d.Name()); err != nil || n < 0 || n >= maxSlots || dir == s.slot.dir || !d.IsDir() {
			continue
		}
		lock, err := lockSlot(dir, false)
		if err != nil {
			continue // alive, or not ours to touch
		}
		dead := &slot{dir: dir, lock: lock}
		if err := s.adoptSlot(dead); err != nil {
			s.opt.Logger.Warn("another process's profiles cannot be taken over", "directory", dir, "error", err)
		}
		dead.release()
	}
}

func (s *Spool) adoptSlot(dead *slot) error {
	found, more, err := s.scan(dead, Adopted, adoptAtOnce)
	if err != nil || len(found) == 0 {
		return err
	}
	if more {
		s.unadopted.Store(true)
	}
	for i, e := range found {
		from := e.path()
		e.slot, e.seq = s.slot, s.slot.next
		if err = os.Rename(from, e.path()); err != nil {
			found = found[:i] // the rest stays where it is
			s.unadopted.Store(false)
			break
		}
		s.slot.next++
	}
	err = errors.Join(err, syncDir(s.slot.dir), syncDir(dead.dir))
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
	files, err := os.ReadDir(sl.dir)
	if err != nil {
		return nil, false, err
	}
	found = make([]*entry, 0, min(len(files), limit))
	var types []record.Type // one copy of each, lest every entry keeps its file's name alive
	for _, f := range files {
		name := f.Name()
		if name == lockName {
			continue
		}
		if len(found) == limit {
			return found, true, nil
		}
		var size int64
		if fi, err := f.Info(); err == nil && fi.Mode().IsRegular() {
			size = fi.Size()
		}
		stem, temp := strings.CutSuffix(name, tempSuffix)
		seq, n, ours := parseFile(stem)
		switch {
		case temp && ours && f.Type().IsRegular():
			s.queue.count(Unfinished, "", n.Type, size)
			if err := os.Remove(filepath.Join(sl.dir, name)); err != nil {
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

// setAsideForeign sets aside what lies in a slot and is no record. What cannot be moved stays, uncounted: it is not
// in the queue, so it delays nothing.
func (s *Spool) setAsideForeign(sl *slot, name string, event Event, reason, detail string, t record.Type, size int64) {
	path := filepath.Join(sl.dir, name)
	if err := s.aside.move(path, name, reason, detail); err != nil {
		s.log.warn("not_moved", "foreign file in the queue's directory cannot be moved aside", "file", path, "error", err)
		return
	}
	s.queue.count(event, "", t, size)
	s.queue.count(SetAside, reason, t, size)
	s.countEvicted()
	s.log.warn(reason, "foreign file in the queue's directory set aside", "file", path, "directory", s.aside.path())
}
