package save

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"spanflame/internal/record"
)

// A file of traces is closed, and another begun, when it has either of these.
const (
	maxTraceFile    = 8 << 20 // bytes; less if the limit is small
	maxTraceFileAge = time.Hour
	tracesInRing    = 8 // files that the ring has room for, at least
)

// FreePart is the Options.FreePart of an agent: profiles use at most a quarter of the space, and so do traces.
const FreePart = 4

// TracesShare returns the part of a directory's limit that traces have; profiles have the rest.
func TracesShare(maxBytes int64) int64 { return maxBytes / 4 }

// Traces saves lines, each a batch of spans. A line is in the file when Write returns, and survives the process. As
// with profiles, it is not synced to the disk.
type Traces struct {
	ring *ring

	mu     sync.Mutex
	file   *os.File // nil between files
	root   *os.Root // of the ring, in which the file is
	opened time.Time
	size   int64
	closed bool
}

// OpenTraces begins to save below o.Dir/traces. A directory that cannot be used is no error here, but one of each
// Write.
func OpenTraces(o Options) *Traces {
	t := &Traces{ring: &ring{
		base:     o.Dir,
		names:    []string{"traces", record.DirName(o.Service)},
		parse:    parseTraceFileName,
		maxBytes: o.MaxBytes, freePart: o.FreePart, maxAge: o.MaxAge, stage: o.Guard.Stage("save traces"),
	}}
	t.ring.start()
	return t
}

// Write appends one line, with its newline, to the file, or leaves the file without any of it.
func (t *Traces) Write(line []byte) (int, error) {
	size := int64(len(line))
	t.mu.Lock()
	defer t.mu.Unlock()
	err := errPanic
	t.ring.stage.Try(func() { err = t.append(line) })
	t.ring.tally.writes(err)
	if err != nil {
		t.ring.tally.count(Failed, "write", Count{1, size})
		return 0, err
	}
	return len(line), nil
}

func (t *Traces) append(line []byte) error {
	if t.closed {
		return os.ErrClosed
	}
	size := int64(len(line))
	if limit := t.ring.maxBytes / 2; size > limit {
		return fmt.Errorf("a line of %d bytes is too large for the directory: at most %d", size, limit)
	}
	full := t.size > 0 && t.size+size > min(maxTraceFile, t.ring.maxBytes/tracesInRing)
	if t.file != nil && (full || time.Since(t.opened) > min(maxTraceFileAge, t.ring.maxAge/2) || !t.there()) {
		if err := t.close(); err != nil {
			return err
		}
	}
	items := 0
	if t.file == nil {
		items, t.opened, t.size = 1, time.Now(), 0
	}
	err := t.ring.commit(".", t.opened, items, size, func(root *os.Root) (err error) {
		if t.file != nil && !t.there() { // the ring has just removed it, to make room
			if err := t.close(); err != nil {
				return err
			}
			t.opened, t.size = time.Now(), 0
		}
		if t.file == nil {
			if t.file, err = create(root, traceFileName(t.opened)); err != nil {
				return err
			}
			t.root = root
		}
		_, err = t.file.Write(line)
		return err
	})
	if err != nil {
		return errors.Join(err, t.undo())
	}
	t.size += size
	t.ring.tally.count(Saved, "", Count{items, size})
	return nil
}

// there reports whether the file still has its name: someone may have deleted it.
func (t *Traces) there() bool {
	named, err := os.Lstat(filepath.Join(t.ring.path(), filepath.Base(t.file.Name())))
	if err != nil {
		return false
	}
	open, err := t.file.Stat()
	return err == nil && os.SameFile(named, open)
}

// undo removes what a failed write left, so that the file ends with a complete line, and closes it.
func (t *Traces) undo() error {
	if t.file == nil {
		return nil
	}
	var err error
	if t.size == 0 {
		err = t.root.Remove(filepath.Base(t.file.Name()))
	} else {
		err = t.file.Truncate(t.size)
	}
	return errors.Join(err, t.close())
}

func (t *Traces) close() error {
	f := t.file
	if t.file = nil; f == nil {
		return nil
	}
	return f.Close()
}

// Close closes the file and ends the goroutine, which it waits for until ctx is done. It is called once.
func (t *Traces) Close(ctx context.Context) error {
	closed := make(chan error, 1)
	go func() { // a Write holds the lock while the disk does not answer
		t.mu.Lock()
		defer t.mu.Unlock()
		t.closed = true
		closed <- t.close()
	}()
	var err error
	select {
	case err = <-closed:
	case <-ctx.Done():
		err = fmt.Errorf("%s: a write has not ended: %w", t.ring.path(), context.Cause(ctx))
	}
	return errors.Join(err, t.ring.close(ctx))
}

// Stats returns the counts so far. It never waits for the disk.
func (t *Traces) Stats() Stats { return t.ring.tally.stats() }
