package save

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"spanflame/agent/internal/guard"
	"spanflame/agent/internal/owndir"
)

const (
	// slack is the part of the limit that is freed beyond what is needed, so that a full ring lists its
	// oldest directory now and then and not for each file.
	slack = 64

	trimEvery = time.Minute      // how often files above the age are looked for
	scanEvery = 10 * time.Minute // how often the ring looks at what others have done in the directory

	// settled is how old a directory's modification time must be to show every later change: the coarsest
	// clocks of file systems have steps of two seconds.
	settled = 3 * time.Second

	// abandoned is how old an unfinished file must be for its writer to have ended.
	abandoned = time.Hour
)

// ring is a directory of files that are named by time, limited in bytes and in age: the oldest files are removed.
// Files with other names are neither counted nor touched. It remembers a sum for each directory and nothing for a
// file, so a ring of a hundred thousand files costs the service no memory. Other processes may save to the same
// directory and remove from it: a ring notices every ten minutes.
type ring struct {
	base     string   // the directory that a person named
	names    []string // of the agent's own directories in it; the last one has the files
	levels   []string // layouts of the names of the directories between that one and the files
	parse    func(file string) (time.Time, error)
	maxBytes int64
	freePart int64 // Options.FreePart
	maxAge   time.Duration
	tally    tally
	stage    *guard.Stage // keeps it within its limits

	quit chan struct{}
	done chan struct{}

	mu      sync.Mutex // held over each change of the directory, so that the sums are those of what is there
	dir     *os.Root   // nil until it is opened
	folders map[string]*folder
	used    int64
	limit   int64     // maxBytes, or what the disk has room for
	newest  time.Time // when this process last saved something, or began; with the monotonic clock
	scanned bool      // the sums include what earlier processes left; the limit is kept from here on
}

// folder is a directory with files in it.
type folder struct {
	Count
	first    time.Time   // of the oldest file
	last     time.Time   // of the newest file
	times    []time.Time // of all files in their order, if they are not in directories for the time
	modified time.Time   // when it was listed; zero unless it shows whether the directory has changed since
}

// path returns where the ring's files are.
func (r *ring) path() string { return filepath.Join(r.base, filepath.Join(r.names...)) }

// open returns the ring's directory. It makes it if it is missing, and opens it again if it was replaced.
func (r *ring) open() (*os.Root, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.root()
}

// root is open for the methods that have the lock.
func (r *ring) root() (*os.Root, error) {
	if r.dir != nil {
		if owndir.Is(r.dir, r.path()) {
			return r.dir, nil
		}
		r.dir.Close()
		r.dir = nil
	}
	dir, err := owndir.Base(r.base)
	if err != nil {
		return nil, err
	}
	for _, name := range r.names {
		below, err := owndir.Make(dir, name)
		dir.Close()
		if err != nil {
			return nil, err
		}
		dir = below
	}
	r.dir = dir
	return dir, nil
}

// start keeps the ring within its limits until close. The goroutine looks first at what is there, one directory at a
// time: writers wait no longer than that takes.
func (r *ring) start() {
	r.folders = make(map[string]*folder)
	r.newest, r.limit = time.Now(), r.maxBytes
	r.quit, r.done = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(r.done)
		trim, scan := time.NewTicker(trimEvery), time.NewTicker(scanEvery)
		defer trim.Stop()
		defer scan.Stop()
		err := r.keep(r.scan)
		for {
			r.tally.keeps(err)
			select {
			case <-r.quit:
				return
			case <-scan.C:
				err = r.keep(r.scan)
			case <-trim.C:
				if err != nil {
					err = r.keep(r.scan)
					continue
				}
				err = r.keep(r.trimNow)
			}
		}
	}()
}

// errPanic is the error of an operation that panicked: the log has the details.
var errPanic = errors.New("the agent panicked: see its log")

// keep does one thing that keeps the limits.
func (r *ring) keep(do func() error) error {
	err := errPanic
	r.stage.Try(func() { err = do() })
	return err
}

// close ends the ring's goroutine, and waits for it until ctx is done.
func (r *ring) close(ctx context.Context) error {
	close(r.quit)
	select {
	case <-r.done:
	case <-ctx.Done():
		return fmt.Errorf("%s: the disk does not answer: %w", r.path(), context.Cause(ctx))
	}
	closed := make(chan error, 1)
	go func() { // a writer holds the lock while the disk does not answer
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.dir == nil {
			closed <- nil
			return
		}
		closed <- r.dir.Close()
	}()
	select {
	case err := <-closed:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s: the disk does not answer: %w", r.path(), context.Cause(ctx))
	}
}

// scan updates the sums to what is in the directory, and removes what is above the limits.
func (r *ring) scan() error {
	root, err := r.open()
	if err != nil {
		return err
	}
	dirs, err := r.dirs(root)
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(dirs))
	for _, dir := range dirs {
		select {
		case <-r.quit:
			return nil
		default:
		}
		there[dir] = true
		err = errors.Join(err, r.measureNow(root, dir))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for dir := range r.folders {
		// One that was made after the listing is not in it.
		if _, statErr := root.Stat(dir); !there[dir] && errors.Is(statErr, fs.ErrNotExist) {
			r.forget(dir)
		}
	}
	r.scanned = true
	r.fit(root)
	return errors.Join(err, r.trim(root, 0))
}

func (r *ring) measureNow(root *os.Root, dir string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.measure(root, dir)
}

// trimNow removes what is above the limits.
func (r *ring) trimNow() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	root, err := r.root()
	if err != nil {
		return err
	}
	r.fit(root)
	return r.trim(root, 0)
}

// fit limits the ring to its part of the disk.
func (r *ring) fit(root *os.Root) {
	r.limit = r.maxBytes
	if r.freePart == 0 {
		return
	}
	if free, ok := owndir.Free(root); ok {
		r.limit = min(r.maxBytes, (r.used+free)/r.freePart)
	}
}

// dirs returns the directories, below the root, that files may be in.
func (r *ring) dirs(root *os.Root) ([]string, error) {
	dirs := []string{"."}
	for _, layout := range r.levels {
		var below []string
		for _, dir := range dirs {
			entries, err := owndir.Entries(root, dir)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			for _, e := range entries {
				if _, err := time.Parse(layout, e.Name()); err == nil && e.IsDir() {
					below = append(below, filepath.Join(dir, e.Name()))
				}
			}
		}
		dirs = below
	}
	return dirs, nil
}

// measure sums up a directory, unless it is known not to have changed. It has the lock, as all that follows.
func (r *ring) measure(root *os.Root, dir string) error {
	info, err := root.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		r.forget(dir)
		return nil
	}
	if err != nil {
		return err
	}
	now := time.Now()
	f := &folder{}
	// Files that grow do not change their directory: with such files, none is ever settled.
	if len(r.levels) > 0 && now.Sub(info.ModTime()) > settled {
		f.modified = info.ModTime()
		if before := r.folders[dir]; before != nil && before.modified.Equal(f.modified) {
			return nil
		}
	}
	entries, err := owndir.Entries(root, dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		stem, temp := strings.CutSuffix(e.Name(), owndir.TempSuffix)
		at, err := r.parse(stem)
		if err != nil || !e.Type().IsRegular() {
			continue
		}
		name := filepath.Join(dir, e.Name())
		info, err := root.Lstat(name)
		switch {
		case err != nil: // removed meanwhile
		case !temp:
			r.add(f, at, 1, info.Size())
		case now.Sub(info.ModTime()) > abandoned && root.Remove(name) == nil:
			r.tally.count(Unfinished, "", Count{1, info.Size()})
		}
	}
	r.forget(dir)
	if f.Items > 0 {
		r.folders[dir] = f
		r.use(f.Bytes)
	}
	return nil
}

// add notes that files of a folder are of the time at: a new one, or none, if one has grown.
func (r *ring) add(f *folder, at time.Time, items int, size int64) {
	if f.Items == 0 || at.Before(f.first) {
		f.first = at
	}
	if f.Items == 0 || at.After(f.last) {
		f.last = at
	}
	f.Items += items
	f.Bytes += size
	if len(r.levels) == 0 && items > 0 {
		i, _ := slices.BinarySearchFunc(f.times, at, time.Time.Compare)
		f.times = slices.Insert(f.times, i, at)
	}
}

// forget leaves a directory out of the sums.
func (r *ring) forget(dir string) {
	if f := r.folders[dir]; f != nil {
		delete(r.folders, dir)
		r.use(-f.Bytes)
	}
}

func (r *ring) use(bytes int64) {
	r.used += bytes
	r.tally.held.Store(r.used)
}

// commit makes room for size bytes and calls write to put them into a file of dir, whose name has the time at.
// items is 1 for a new file and 0 for one that grows. size is far below the limit. A write that fails leaves
// nothing.
func (r *ring) commit(dir string, at time.Time, items int, size int64, write func(*os.Root) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	root, err := r.root()
	if err != nil {
		return err
	}
	if r.limit < r.maxBytes && size > r.limit/2 {
		return fmt.Errorf("%s: the disk is nearly full: saved files may use %d bytes", r.path(), r.limit)
	}
	if err := r.trim(root, size); err != nil {
		return err
	}
	if err := write(root); err != nil {
		return err
	}
	f := r.folders[dir]
	if f == nil {
		f = &folder{}
		r.folders[dir] = f
	}
	r.add(f, at, items, size)
	r.use(size)
	r.newest = time.Now()
	return nil
}

// period is a time in which files were saved.
type period struct{ first, last time.Time }

// periods returns the times of all files, oldest first.
func (r *ring) periods() []period {
	var all []period
	for _, f := range r.folders {
		if len(r.levels) > 0 {
			all = append(all, period{f.first, f.last})
		}
		for _, at := range f.times {
			all = append(all, period{at, at})
		}
	}
	slices.SortFunc(all, func(a, b period) int { return a.first.Compare(b.first) })
	return all
}

// tooOld returns the time before which files are above the maximum age. Where nothing was saved for longer than that
// age, the service may have been down, or the clock may have been set forward: which of them cannot be known, so
// that time does not count, unless this process has seen it pass. idle is how long it has saved nothing.
func tooOld(periods []period, now time.Time, maxAge, idle time.Duration) time.Time {
	at, left := now, maxAge // what was saved before at may still be older by left
	for _, p := range slices.Backward(periods) {
		if p.first.After(now) {
			continue // saved before the clock was set back
		}
		if p.last.After(now) {
			p.last = now
		}
		gap := max(0, at.Sub(p.last))
		if gap > maxAge {
			gap = min(gap, idle)
		}
		idle = 0 // is that of the newest gap
		if gap >= left {
			return at.Add(-left)
		}
		left -= gap
		length := p.last.Sub(p.first)
		if length >= left {
			return p.last.Add(-left)
		}
		left -= length
		at = p.first
	}
	return time.Time{}
}

// trim removes files that are too old, and of the others the oldest, until size more bytes fit.
func (r *ring) trim(root *os.Root, size int64) error {
	now := time.Now()
	oldest := now.Add(-r.maxAge)
	if _, f := r.oldest(); f != nil && f.first.Before(oldest) {
		oldest = tooOld(r.periods(), now, r.maxAge, time.Since(r.newest))
	}
	room := r.limit - size
	if r.scanned && r.used > room {
		room -= r.limit / slack
	}
	for {
		dir, f := r.oldest()
		if f == nil || !f.first.Before(oldest) && !(r.scanned && r.used > room) {
			return nil
		}
		if err := r.shrink(root, dir, oldest, room); err != nil {
			return fmt.Errorf("the oldest files cannot be removed: %w", err)
		}
	}
}

// oldest returns the directory with the oldest file, nil if there is no file.
func (r *ring) oldest() (string, *folder) {
	var dir string
	var oldest *folder
	for d, f := range r.folders {
		if oldest == nil || f.first.Before(oldest.first) {
			dir, oldest = d, f
		}
	}
	return dir, oldest
}

// shrink removes files from a directory, oldest first, as long as they are older than the given time or the ring has
// more bytes than room. A directory that is empty then is removed as well.
func (r *ring) shrink(root *os.Root, dir string, oldest time.Time, room int64) error {
	entries, err := owndir.Entries(root, dir) // by name, and so by time
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f := r.folders[dir]
	ours := entries[:0]
	for _, e := range entries {
		if _, err := r.parse(e.Name()); err == nil && e.Type().IsRegular() {
			ours = append(ours, e)
		}
	}
	if len(ours) != f.Items { // another process has been here: with old sums too much would go
		f.modified = time.Time{}
		return r.measure(root, dir)
	}
	for _, e := range ours {
		at, err := r.parse(e.Name())
		if err != nil {
			return err
		}
		reason := "age"
		if !at.Before(oldest) {
			if !r.scanned || r.used <= room {
				f.first = at
				return nil
			}
			reason = "full"
		}
		name := filepath.Join(dir, e.Name())
		info, err := root.Lstat(name)
		if err == nil {
			err = root.Remove(name)
		}
		if errors.Is(err, fs.ErrNotExist) { // another process removes files, too: look again
			f.modified = time.Time{}
			return r.measure(root, dir)
		}
		if err != nil {
			return err
		}
		r.tally.count(Removed, reason, Count{1, info.Size()})
		f.Items--
		f.Bytes -= info.Size()
		if len(f.times) > 0 {
			f.times = f.times[1:]
		}
		r.use(-info.Size())
	}
	r.forget(dir)
	for range r.levels {
		if root.Remove(dir) != nil {
			return nil // not empty: foreign files, or a fresh one
		}
		dir = filepath.Dir(dir)
	}
	return nil
}
