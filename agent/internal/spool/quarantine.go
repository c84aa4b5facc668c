package spool

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"spanflame/agent/internal/owndir"
	"spanflame/internal/record"
)

const (
	asideName    = "set-aside"
	reasonSuffix = ".reason.txt"
)

// quarantine is the folder for files that are out of the queue and worth keeping. The processes that share the
// directory share it: its names are unique, and a process that finds it too large deletes the oldest files.
type quarantine struct {
	dir   string // the spool's
	max   int64
	bytes atomic.Int64 // as last seen

	mu      sync.Mutex
	evicted []evicted // not yet counted
}

type evicted struct {
	typ  record.Type
	size int64
}

func (q *quarantine) path() string { return filepath.Join(q.dir, asideName) }

// open makes the folder. The caller closes both roots.
func (q *quarantine) open() (base, folder *os.Root, err error) {
	if q.dir == "" {
		return nil, nil, errNoDirectory
	}
	if base, err = owndir.Base(q.dir); err != nil {
		return nil, nil, err
	}
	if folder, err = owndir.Make(base, asideName); err != nil {
		base.Close()
		return nil, nil, err
	}
	return base, folder, nil
}

// move moves a file of any kind out of its slot. It opens no file and follows no link.
func (q *quarantine) move(slot, file, name, reason, detail string) error {
	base, folder, err := q.open()
	if err != nil {
		return err
	}
	defer base.Close()
	defer folder.Close()
	name = q.prepare(folder, name, reason, detail)
	from := filepath.Join(slot, file)
	fi, err := base.Lstat(from)
	if err == nil {
		err = base.Rename(from, filepath.Join(asideName, name))
	}
	if err != nil {
		folder.Remove(name + reasonSuffix)
		return err
	}
	q.settle(folder, size(fi))
	return nil
}

// write keeps a record that was never on disk.
func (q *quarantine) write(r record.Record, name, reason, detail string) error {
	var b bytes.Buffer
	if err := record.Encode(&b, r); err != nil {
		return err
	}
	base, folder, err := q.open()
	if err != nil {
		return err
	}
	defer base.Close()
	defer folder.Close()
	name = q.prepare(folder, name, reason, detail)
	if err := owndir.Write(folder, name, b.Bytes()); err != nil {
		folder.Remove(name + reasonSuffix)
		return err
	}
	q.settle(folder, int64(b.Len()))
	return nil
}

// prepare writes the file with the reason, and returns a free name for the file itself.
func (q *quarantine) prepare(folder *os.Root, name, reason, detail string) string {
	if _, err := folder.Lstat(name); err == nil {
		if n, err := record.ParseFileName(name); err == nil {
			n.ID = rand.Uint32()
			name = n.String()
		} else {
			name = fmt.Sprintf("%08x-%s", rand.Uint32(), name)
		}
	}
	text := fmt.Sprintf("%s %s\n%s\n", time.Now().UTC().Format(time.RFC3339), reason, detail)
	// Without space for the reason the file itself is still worth keeping.
	if err := folder.WriteFile(name+reasonSuffix, []byte(text), owndir.FileMode); err == nil {
		q.bytes.Add(int64(len(text)))
	}
	return name
}

// settle makes the move durable as far as the disk allows, and keeps the folder within its limit.
func (q *quarantine) settle(folder *os.Root, added int64) {
	_ = owndir.Sync(folder) // the file is in its place; nothing better can be done with it
	if q.bytes.Add(added) > q.max {
		q.trim(folder)
	}
}

// measure looks at what is in the folder, if there is one, and keeps it within its limit.
func (q *quarantine) measure() {
	base, err := owndir.Base(q.dir)
	if err != nil {
		return // the slot's error says as much
	}
	defer base.Close()
	folder, err := owndir.Open(base, asideName)
	if err != nil {
		return // not there yet, or not the agent's: then nothing must be deleted
	}
	defer folder.Close()
	q.trim(folder)
}

// trim deletes the oldest files in the folder above the limit. Only records and their reasons are deleted; what has
// other names stays until someone has looked at it, and does not count against the limit.
func (q *quarantine) trim(folder *os.Root) {
	q.mu.Lock()
	defer q.mu.Unlock()
	list, err := owndir.Entries(folder, ".")
	if err != nil {
		return
	}
	var files []fs.FileInfo
	var total, foreign int64
	for _, d := range list {
		fi, err := folder.Lstat(d.Name())
		if err != nil {
			continue // another process was faster
		}
		if _, err := record.ParseFileName(strings.TrimSuffix(d.Name(), reasonSuffix)); err != nil || !fi.Mode().IsRegular() {
			foreign += size(fi)
			continue
		}
		total += fi.Size()
		files = append(files, fi)
	}
	slices.SortStableFunc(files, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, fi := range files {
		if total <= q.max {
			break
		}
		if err := folder.Remove(fi.Name()); err != nil {
			continue
		}
		total -= fi.Size()
		if !strings.HasSuffix(fi.Name(), reasonSuffix) {
			n, _ := record.ParseFileName(fi.Name())
			q.evicted = append(q.evicted, evicted{n.Type, fi.Size()})
		}
	}
	q.bytes.Store(total + foreign)
}

func size(fi fs.FileInfo) int64 {
	if fi.Mode().IsRegular() {
		return fi.Size()
	}
	return 0
}

// takeEvicted returns what was deleted since the last call.
func (q *quarantine) takeEvicted() []evicted {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := q.evicted
	q.evicted = nil
	return all
}

// countEvicted counts what the quarantine deleted.
func (s *Spool) countEvicted() {
	for _, e := range s.aside.takeEvicted() {
		s.queue.count(Evicted, "", e.typ, e.size)
	}
}
