package spool

import (
	"bytes"
	"errors"
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

// move takes a file, whatever it is, out of its place. Nothing is opened or followed.
func (q *quarantine) move(from, name, reason, detail string) error {
	to, err := q.prepare(name, reason, detail)
	if err != nil {
		return err
	}
	fi, err := os.Lstat(from)
	if err == nil {
		err = os.Rename(from, to)
	}
	if err != nil {
		os.Remove(to + reasonSuffix)
		return err
	}
	q.settle(size(fi))
	return nil
}

// write keeps a record that was never on disk.
func (q *quarantine) write(r record.Record, name, reason, detail string) error {
	var b bytes.Buffer
	if err := record.Encode(&b, r); err != nil {
		return err
	}
	to, err := q.prepare(name, reason, detail)
	if err != nil {
		return err
	}
	if err := writeFile(to, b.Bytes()); err != nil {
		os.Remove(to + reasonSuffix)
		return err
	}
	q.settle(int64(b.Len()))
	return nil
}

// prepare makes the folder and the file with the reason, and returns the path for the file itself.
func (q *quarantine) prepare(name, reason, detail string) (string, error) {
	if err := os.Mkdir(q.path(), dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	to := filepath.Join(q.path(), name)
	if _, err := os.Lstat(to); err == nil {
		to = filepath.Join(q.path(), fmt.Sprintf("%08x-%s", rand.Uint32(), name))
	}
	text := fmt.Sprintf("%s %s\n%s\n", time.Now().UTC().Format(time.RFC3339), reason, detail)
	// Without space for the reason the file itself is still worth keeping.
	if err := os.WriteFile(to+reasonSuffix, []byte(text), fileMode); err == nil {
		q.bytes.Add(int64(len(text)))
	}
	return to, nil
}

// settle makes the move durable as far as the disk allows, and keeps the folder within its limit.
func (q *quarantine) settle(added int64) {
	_ = syncDir(q.path()) // the file is in its place; nothing better can be done with it
	if q.bytes.Add(added) > q.max {
		q.measure()
	}
}

// measure looks at what is in the folder and deletes the oldest files above the limit. Only regular files
// are deleted; a directory or a link that was set aside stays until someone has looked at it.
func (q *quarantine) measure() {
	q.mu.Lock()
	defer q.mu.Unlock()
	list, err := os.ReadDir(q.path())
	if err != nil {
		return // not there yet, or not to be read: then nothing can be deleted either
	}
	var files []fs.FileInfo
	var total int64
	for _, d := range list {
		fi, err := d.Info()
		if err != nil {
			continue // another process was faster
		}
		total += size(fi)
		if fi.Mode().IsRegular() {
			files = append(files, fi)
		}
	}
	slices.SortStableFunc(files, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, fi := range files {
		if total <= q.max {
			break
		}
		if err := os.Remove(filepath.Join(q.path(), fi.Name())); err != nil {
			continue
		}
		total -= fi.Size()
		if !strings.HasSuffix(fi.Name(), reasonSuffix) {
			n, _ := record.ParseFileName(fi.Name())
			q.evicted = append(q.evicted, evicted{n.Type, fi.Size()})
		}
	}
	q.bytes.Store(total)
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
