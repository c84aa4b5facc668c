// Package lastrun tells how the run of the service before this one ended, if it did so without a shutdown, and has what its
// memory was used for. Each run keeps a directory with what the next one needs; near the memory limit that is profiles of
// the heap and of the goroutines, which are on the disk before the kernel kills the process. The agent starts one [Run]. It
// needs no privileges. It is not for profiles in windows, which package capture takes.
package lastrun

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"spanflame/agent/internal/guard"
	"spanflame/agent/internal/memlimit"
	"spanflame/agent/internal/owndir"
	"spanflame/internal/record"
)

// Options configures a Run. All but Emit, Crashes and Guard are required.
type Options struct {
	Dir     string // that the service's processes share
	Service string
	Labels  map[string]string // of the profiles that it keeps

	// Emit receives the profiles of a run that ended without a shutdown, with the label [record.EndedLabel].
	Emit func(record.Record)

	// Crashes has the runtime write what it prints of a crash into a file, too.
	Crashes bool

	Guard  *guard.Guard // recovers panics
	Logger *slog.Logger
}

// Names in a run's directory.
const (
	lockName   = "lock"
	aboutName  = "run.json"
	memoryName = "memory.json"
	crashName  = "crash.txt"
)

// Why a run ended, as the values of [record.EndedLabel].
const (
	ForMemory = "memory"
	ByCrash   = "crash"
	Unknown   = "unknown"
)

// Limits of what is read of the run before.
const (
	maxCrash   = 64 << 10
	maxAbout   = 64 << 10
	maxProfile = 64 << 20
	maxTries   = 200
	settled    = time.Minute // how old a directory without a description must be for its run to have ended
)

// about describes a run.
type about struct {
	PID    int       `json:"pid"`
	Start  time.Time `json:"start"`
	Killed uint64    `json:"killed"` // by the kernel in the process's cgroups, at the start
}

// memory is what a run used when it was last near its limit.
type memory struct {
	At    time.Time `json:"at"`
	Used  uint64    `json:"used"`
	Limit uint64    `json:"limit"`
}

// Run is this run. It owns one goroutine.
type Run struct {
	o     Options
	name  string
	root  *os.Root // of the directory
	base  *os.Root // in which it is
	lock  *os.File
	meter *memlimit.Meter
	stage *guard.Stage
	stop  chan struct{}
	done  chan struct{}

	mu    sync.Mutex
	stats Stats
}

// Stats has counts since the start.
type Stats struct {
	Profiles int64            // taken near the limit
	Elapsed  time.Duration    // for these
	Failed   int64            // profiles that could not be taken or written
	Ended    map[string]int64 // runs found that had ended without a shutdown, by why
}

// Start begins to keep what the next run needs, and reports what earlier ones left.
func Start(o Options) (*Run, error) {
	r := &Run{
		o: o, meter: memlimit.New(), stage: o.Guard.Stage("last run"), stop: make(chan struct{}), done: make(chan struct{}),
		stats: Stats{Ended: map[string]int64{}},
	}
	dir, err := owndir.Base(o.Dir)
	if err != nil {
		return nil, err
	}
	r.base, err = owndir.Make(dir, record.RunsDir)
	dir.Close()
	if err != nil {
		return nil, err
	}
	if err := r.begin(); err != nil {
		r.base.Close()
		return nil, err
	}
	go func() {
		defer close(r.done)
		r.stage.Keep(r.stop, func() {
			r.report()
			r.watch()
		})
	}()
	return r, nil
}

// begin makes the directory of this run.
func (r *Run) begin() (err error) {
	r.name = fmt.Sprintf("%s-%08x", record.DirName(r.o.Service), rand.Uint32())
	if r.root, err = owndir.Make(r.base, r.name); err != nil {
		return err
	}
	r.lock, err = owndir.Lock(r.root, lockName)
	for tries := 0; errors.Is(err, owndir.ErrLocked) && tries < maxTries; tries++ {
		time.Sleep(10 * time.Millisecond) // another start looks whether it belongs to a run that has ended
		r.lock, err = owndir.Lock(r.root, lockName)
	}
	if err == nil {
		err = r.writeJSON(aboutName, about{PID: os.Getpid(), Start: time.Now(), Killed: r.meter.Killed()})
	}
	if err == nil && r.o.Crashes {
		err = r.catch()
	}
	if err != nil {
		r.remove(r.root, r.lock, r.name)
		r.root.Close()
	}
	return err
}

// catch has the runtime write what it prints of a crash into a file, until the service sets another.
func (r *Run) catch() error {
	f, err := r.root.OpenFile(crashName, os.O_WRONLY|os.O_CREATE|os.O_EXCL, owndir.FileMode)
	if err != nil {
		return err
	}
	defer f.Close() // the runtime has a descriptor of its own
	return debug.SetCrashOutput(f, debug.CrashOptions{})
}

// runName matches the name of a run's directory, after the service's.
var runName = regexp.MustCompile(`^-[0-9a-f]{8}$`)

// report looks for runs of the service that have ended without a shutdown, delivers what they left, and removes it.
func (r *Run) report() {
	entries, err := owndir.Entries(r.base, ".")
	if err != nil {
		r.o.Logger.Warn("it is not known how the run before ended", "directory", r.base.Name(), "error", err)
		return
	}
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), record.DirName(r.o.Service))
		if !ours || !runName.MatchString(rest) || !e.IsDir() {
			continue
		}
		r.stage.Try(func() { r.examine(e.Name()) })
	}
}

// examine reports one run, if it has ended.
func (r *Run) examine(name string) {
	root, err := owndir.Open(r.base, name)
	if err != nil {
		return // another user's
	}
	lock, err := owndir.Lock(root, lockName)
	if err != nil {
		root.Close()
		return // it runs
	}
	defer root.Close()
	defer lock.Close()
	var a about
	if err := readJSON(root, aboutName, &a); err != nil {
		if fi, err := root.Stat("."); err == nil && time.Since(fi.ModTime()) > settled {
			r.remove(root, lock, name)
		}
		return // it may be starting
	}
	r.tell(root, a)
	r.remove(root, lock, name)
}

// tell says how a run ended, and delivers its profiles.
func (r *Run) tell(root *os.Root, a about) {
	var m memory
	near := readJSON(root, memoryName, &m) == nil && m.Limit > 0
	crash := readFile(root, crashName, maxCrash)
	killed := r.meter.Killed()
	args := []any{"pid", a.PID, "started", a.Start.UTC().Format(time.RFC3339)}
	if near {
		args = append(args, "memory", m.Used, "limit", m.Limit, "seen", m.At.UTC().Format(time.RFC3339Nano))
	}
	why, text, level := Unknown, "it is not known why", slog.LevelInfo
	switch {
	case len(crash) > 0:
		why, text, level = ByCrash, "it crashed", slog.LevelWarn
		args = append(args, "crash", firstGoroutine(crash))
	case killed > a.Killed:
		why, text, level = ForMemory, "the kernel has killed it, or another process of its cgroup, for memory", slog.LevelWarn
	case near:
		why, text, level = ForMemory, "probably killed for memory: it was near the limit", slog.LevelWarn
	}
	delivered := 0
	for _, typ := range []record.Type{record.Memory, record.Goroutine} {
		rec, err := r.kept(root, typ, why)
		switch {
		case err == nil:
			r.o.Emit(rec)
			delivered++
		case !errors.Is(err, fs.ErrNotExist):
			r.o.Logger.Warn("a profile of the run before cannot be used", "type", typ, "error", err)
		}
	}
	r.mu.Lock()
	r.stats.Ended[why]++
	r.mu.Unlock()
	args = append(args, "profiles", delivered)
	r.o.Logger.Log(context.Background(), level, "the run before ended without a shutdown; "+text, args...)
}

// firstGoroutine returns what a crash is about, and the stack of its goroutine.
func firstGoroutine(crash []byte) string {
	head, rest, _ := strings.Cut(strings.ToValidUTF8(string(crash), "\ufffd"), "\n\ngoroutine ")
	stack, _, _ := strings.Cut(rest, "\n\n")
	if stack == "" {
		return head
	}
	return head + "\n\ngoroutine " + stack
}

// writeJSON writes a file so that it is there, complete, whenever it is seen.
func (r *Run) writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return owndir.Write(r.root, name, b)
}

// readFile returns a file of the agent's own, at most so many bytes of it, nil if it cannot be read.
func readFile(root *os.Root, name string, most int64) []byte {
	f, err := owndir.OpenFile(root, name)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return nil
	}
	return bytes.TrimSpace(b)
}

func readJSON(root *os.Root, name string, v any) error {
	f, err := owndir.OpenFile(root, name)
	if err != nil {
		return err
	}
	defer f.Close()
	return json.NewDecoder(io.LimitReader(f, maxAbout)).Decode(v)
}

// remove removes a run's directory with the files that runs have; one with others stays. It closes the lock, which cannot be
// removed on Windows while it is open: without a description nobody takes the directory for that of a run.
func (r *Run) remove(root *os.Root, lock *os.File, name string) {
	files := []string{aboutName, memoryName, crashName}
	for typ := range profileNames {
		files = append(files, profileNames[typ])
	}
	for _, file := range files {
		_ = root.Remove(file)
		_ = root.Remove(file + owndir.TempSuffix)
	}
	if lock != nil {
		lock.Close()
	}
	_ = root.Remove(lockName)
	_ = r.base.Remove(name)
}

// Stats returns the counts since the start.
func (r *Run) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Ended = map[string]int64{}
	for why, n := range r.stats.Ended {
		s.Ended[why] = n
	}
	return s
}

// Path returns the directory of this run.
func (r *Run) Path() string { return filepath.Join(r.base.Name(), r.name) }

// Close notes that the run ended with a shutdown: nothing of it is left. It waits for a profile that is being taken until
// ctx is done, and is called once.
func (r *Run) Close(ctx context.Context) error {
	close(r.stop)
	select {
	case <-r.done:
	case <-ctx.Done():
		return fmt.Errorf("%s: the disk does not answer: %w", r.Path(), context.Cause(ctx))
	}
	r.remove(r.root, r.lock, r.name)
	return errors.Join(r.root.Close(), r.base.Close())
}
