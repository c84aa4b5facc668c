// Package save keeps what the agent captures in a directory, in standard files that other tools read: profiles as
// compressed pprof, one file each, and spans as lines of OTLP JSON. Both are rings, limited in bytes and age. The agent
// is its only user. Records for a server wait in package spool instead, which loses nothing: here the service comes
// first, and data that cannot be written are counted and dropped.
package save

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"spanflame/agent/internal/guard"
	"spanflame/agent/internal/owndir"
	"spanflame/internal/record"
)

// Options of a ring. All but FreePart and Guard are required.
type Options struct {
	Dir      string // the directory that services share; made if missing
	Service  string
	MaxBytes int64 // of this service's files
	// FreePart limits the files to a part, such as 4 for a quarter, of the disk space that is free or theirs. 0 is no limit.
	FreePart int64
	MaxAge   time.Duration // older files are removed
	Guard    *guard.Guard  // has the stages "save profiles" and "save traces"
}

// Limits of the profiles that wait to be written: about as much as a minute of slow requests.
const (
	maxQueue      = 1024
	maxQueueBytes = 16 << 20
)

// Profiles saves records. It owns a goroutine that writes: Put never waits for the disk.
//
// A file is written under another name and renamed when it is complete, so a reader sees all of it or nothing. It is
// not synced to the disk: that would keep the disk busy for a copy that nobody waits for. When the process is killed,
// what is written stays; when the power fails, the files of the last half minute may be empty or cut off, which a
// record's checksum shows.
type Profiles struct {
	ring *ring
	log  *slog.Logger
	wake chan struct{} // capacity 1: the queue has changed

	done chan struct{}

	mu     sync.Mutex
	queue  []record.Record
	bytes  int64
	closed bool

	// Of the goroutine alone.
	since time.Time // of the first file that could not be written; zero while they can
	lost  Count     // since then
}

// OpenProfiles begins to save below o.Dir/profiles. A directory that cannot be used is no error: that is logged
// once, and again when it can be used.
func OpenProfiles(o Options, log *slog.Logger) *Profiles {
	p := &Profiles{
		ring: &ring{
			base:   o.Dir,
			names:  []string{"profiles", record.DirName(o.Service)},
			levels: []string{"2006-01-02", "15"}, // as in record.Meta.SavedPath
			parse: func(file string) (time.Time, error) {
				n, err := record.ParseFileName(file)
				return n.Start, err
			},
			maxBytes: o.MaxBytes, freePart: o.FreePart, maxAge: o.MaxAge, stage: o.Guard.Stage("save profiles"),
		},
		log:  log,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	p.ring.start()
	go p.run()
	return p
}

// Put hands over a record to be saved, with its comments.
func (p *Profiles) Put(r record.Record) {
	r = r.Commented()
	size := int64(len(r.Profile))
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		p.ring.tally.count(Failed, "closed", Count{1, size})
	case len(p.queue) >= maxQueue || len(p.queue) > 0 && p.bytes+size > maxQueueBytes:
		p.ring.tally.count(Failed, "queue_full", Count{1, size})
	default:
		p.queue = append(p.queue, r)
		p.bytes += size
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// run writes what is put until the queue is closed and empty.
func (p *Profiles) run() {
	defer close(p.done)
	for {
		r, ok, closed := p.next()
		switch {
		case ok:
			if !p.ring.stage.Try(func() { p.save(r) }) {
				p.ring.tally.count(Failed, "panic", Count{1, int64(len(r.Profile))})
				p.lost.Items++
				p.lost.Bytes += int64(len(r.Profile))
			}
		case closed:
			return
		default:
			<-p.wake
		}
	}
}

func (p *Profiles) next() (r record.Record, ok, closed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		p.queue = nil // with the array that a burst has left
		return record.Record{}, false, p.closed
	}
	r = p.queue[0]
	p.queue[0] = record.Record{}
	p.queue = p.queue[1:]
	p.bytes -= int64(len(r.Profile))
	return r, true, false
}

// giveUp empties the queue, so that the goroutine ends after the file that it writes.
func (p *Profiles) giveUp() Count {
	p.mu.Lock()
	defer p.mu.Unlock()
	lost := Count{len(p.queue), p.bytes}
	p.ring.tally.count(Failed, "shut_down", lost)
	p.queue, p.bytes = nil, 0
	return lost
}

// save writes one record, and logs when that begins to fail and when it works again.
func (p *Profiles) save(r record.Record) {
	var file bytes.Buffer
	if err := record.Encode(&file, r); err != nil {
		p.ring.tally.count(Failed, "invalid", Count{1, int64(len(r.Profile))})
		p.log.Warn("profile cannot be saved", "type", r.Type, "error", err)
		return
	}
	size := int64(file.Len())
	if size > p.ring.maxBytes/2 {
		p.ring.tally.count(Failed, "too_large", Count{1, size})
		p.log.Warn("profile is too large for the directory", "type", r.Type, "bytes", size, "limit", p.ring.maxBytes/2)
		return
	}
	_, name, _ := strings.Cut(r.SavedPath(), "/") // the ring's directory is the service's
	name = filepath.FromSlash(name)
	err := p.ring.commit(filepath.Dir(name), r.Start, 1, size, func(root *os.Root) error {
		return writeFile(root, name, file.Bytes())
	})
	p.ring.tally.writes(err)
	switch {
	case err != nil:
		p.ring.tally.count(Failed, "write", Count{1, size})
		if p.since.IsZero() {
			p.since = time.Now()
			p.log.Warn("profiles cannot be saved and are dropped until they can (logged once); set SPANFLAME_DIR to another directory, or to off",
				"directory", p.ring.path(), "error", err)
		}
		p.lost.Items++
		p.lost.Bytes += size
	default:
		p.ring.tally.count(Saved, "", Count{1, size})
		if !p.since.IsZero() {
			p.log.Info("profiles are saved again", "directory", p.ring.path(),
				"outage", time.Since(p.since).Round(time.Millisecond).String(), "lost", p.lost.Items, "bytes", p.lost.Bytes)
			p.since, p.lost = time.Time{}, Count{}
		}
	}
}

// writeFile writes a new file so that it is there, complete, whenever it is seen, or leaves none.
func writeFile(root *os.Root, name string, b []byte) error {
	temp := name + owndir.TempSuffix
	f, err := create(root, temp)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = root.Rename(temp, name)
	}
	if err != nil {
		root.Remove(temp)
	}
	return err
}

// create makes a new file, and the directories that it is in.
func create(root *os.Root, name string) (*os.File, error) {
	for tries := 0; ; tries++ {
		if err := root.MkdirAll(filepath.Dir(name), owndir.DirMode); err != nil {
			return nil, err
		}
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, owndir.FileMode)
		if err == nil || tries > 0 || !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
		// Another process has just removed the directory, because it was empty.
	}
}

// Close writes what waits, until ctx is done, and ends the goroutines. It is called once. The error says what is lost:
// what still waits then, and what could not be written.
func (p *Profiles) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
	var lost Count
	select {
	case <-p.done:
		lost = p.lost
	case <-ctx.Done():
		lost = p.giveUp()
	}
	err := p.ring.close(ctx)
	if lost.Items > 0 {
		err = errors.Join(err, fmt.Errorf("%d profiles (%d bytes) could not be saved in %s", lost.Items, lost.Bytes, p.ring.path()))
	}
	return err
}

// Stats returns the counts so far. It never waits for the disk.
func (p *Profiles) Stats() Stats { return p.ring.tally.stats() }
