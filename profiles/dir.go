package profiles

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"spanflame/internal/pprofwire"
	"spanflame/internal/record"
)

const (
	// longest is how long a window may be: one that began longer before a query's time range is not looked
	// for, so that few hours have to be opened.
	longest = time.Hour

	// maxIndexed bounds the files whose metadata a Dir remembers, at about 300 bytes each.
	maxIndexed = 200_000

	// settled is how old a directory's modification time must be for its listing to be good until that time
	// changes. File systems keep that time in steps, the coarsest of them of two seconds: a file that
	// comes in the same step as the listing leaves no trace.
	settled = 3 * time.Second

	suffix = ".pb.gz"
)

// Dir is a directory of saved profiles. It may be used by many goroutines at once. It remembers what the
// heads of files say, so that listing again opens only files that are new.
type Dir struct {
	root string // of the profiles
	most int    // files and folders to remember

	mu      sync.Mutex // guards what follows, and what it guards in a folder
	hours   map[string]*folder
	indexed int    // sum of the folders' sizes
	uses    uint64 // of folders, so far
}

// folder is the directory of an hour, as it was last listed.
type folder struct {
	path string
	size int    // files, and one for itself; guarded by the Dir
	used uint64 // the Dir's count at its last use; guarded by the Dir

	mu       sync.Mutex // guards what follows; held while the directory is read
	modified time.Time
	listed   time.Time
	files    []file // by name
}

// file is a name in an hour's directory and, once its head was read, what that says.
type file struct {
	name  record.Name
	read  bool  // its head
	entry Entry // but for the path, only once that was read
	err   error // why it cannot be used
}

// Open opens a directory that agents save to. It need not hold profiles yet.
func Open(dir string) (*Dir, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("directory of saved profiles: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("directory of saved profiles: %s is a file: give the directory that it lies in, or read the file itself", dir)
	}
	return &Dir{root: filepath.Join(dir, "profiles"), most: maxIndexed, hours: make(map[string]*folder)}, nil
}

// Services are the names of the services that have profiles, sorted.
func (d *Dir) Services(ctx context.Context) ([]string, error) {
	dirs, err := subdirs(d.root)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, dir := range dirs {
		name, err := d.service(ctx, dir)
		if err != nil {
			return nil, err
		}
		if name != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// service is the name of the service whose directory is called dir, as its newest profile has it; it is
// empty where there is no profile.
func (d *Dir) service(ctx context.Context, dir string) (string, error) {
	days, err := subdirs(filepath.Join(d.root, dir))
	if err != nil {
		return "", err
	}
	for _, day := range slices.Backward(days) {
		hours, err := subdirs(filepath.Join(d.root, dir, day))
		if err != nil {
			return "", err
		}
		for _, hour := range slices.Backward(hours) {
			entries, _, err := d.hour(ctx, filepath.Join(d.root, dir, day, hour), Query{}, 1)
			if err != nil {
				return "", err
			}
			if len(entries) > 0 {
				return entries[0].Service, nil
			}
		}
	}
	return "", nil
}

// List returns the profiles that the query chooses, by their start, and the files among them that cannot be
// used. A window that began more than an hour before the query's time range is not found.
func (d *Dir) List(ctx context.Context, q Query) ([]Entry, []Damaged, error) {
	services := []string{record.DirName(q.Service)}
	if q.Service == "" {
		var err error
		if services, err = subdirs(d.root); err != nil {
			return nil, nil, err
		}
	}
	var entries []Entry
	var damaged []Damaged
	for _, service := range services {
		hours, err := d.within(filepath.Join(d.root, service), q)
		if err != nil {
			return nil, nil, err
		}
		for _, hour := range hours {
			e, dam, err := d.hour(ctx, hour, q, -1)
			if err != nil {
				return nil, nil, err
			}
			entries, damaged = append(entries, e...), append(damaged, dam...)
		}
	}
	slices.SortFunc(entries, byStart)
	return entries, damaged, nil
}

func byStart(a, b Entry) int {
	return cmp.Or(a.Start.Compare(b.Start), strings.Compare(a.Path, b.Path))
}

// within returns the directories of a service's hours that may hold what the query chooses.
func (d *Dir) within(service string, q Query) ([]string, error) {
	days, err := subdirs(service)
	if err != nil {
		return nil, err
	}
	// may tells whether the time from start, as long as span, meets the query's.
	may := func(start time.Time, span time.Duration) bool {
		return (q.To.IsZero() || start.Before(q.To)) &&
			(q.From.IsZero() || start.Add(span).After(q.From.Add(-longest)))
	}
	var found []string
	for _, day := range days {
		date, err := time.Parse(time.DateOnly, day)
		if err != nil || !may(date, 24*time.Hour) {
			continue
		}
		hours, err := subdirs(filepath.Join(service, day))
		if err != nil {
			return nil, err
		}
		for _, hour := range hours {
			start, err := time.Parse(time.DateOnly+"/15", day+"/"+hour)
			if err == nil && may(start, time.Hour) {
				found = append(found, filepath.Join(service, day, hour))
			}
		}
	}
	return found, nil
}

// subdirs are the names of the directories in dir, sorted; none if dir does not exist.
func subdirs(dir string) ([]string, error) {
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list saved profiles: %w", err)
	}
	var names []string
	for _, e := range list {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// hour lists the directory of one hour, up to limit entries if it is not negative.
func (d *Dir) hour(ctx context.Context, dir string, q Query, limit int) ([]Entry, []Damaged, error) {
	f := d.folder(dir)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.list(); err != nil {
		return nil, nil, fmt.Errorf("list saved profiles: %w", err)
	}
	d.remember(f, len(f.files))
	var entries []Entry
	var damaged []Damaged
	var last *Entry // its service and labels are probably the next one's, too
	for i := range f.files {
		file := &f.files[i]
		if len(entries) == limit {
			break
		}
		if file.err == nil && !q.mayMatch(file.name.Type, file.name.Start) {
			continue
		}
		if !file.read {
			if err := ctx.Err(); err != nil {
				return nil, nil, fmt.Errorf("list saved profiles: %w", err)
			}
			file.head(last)
		}
		switch {
		case errors.Is(file.err, fs.ErrNotExist): // it was removed since
		case file.err != nil:
			damaged = append(damaged, Damaged{Path: file.entry.Path, Err: file.err})
		default:
			last = &file.entry
			if q.Match(file.entry.Meta) {
				entries = append(entries, file.entry)
			}
		}
	}
	return entries, damaged, nil
}

// folder returns what is remembered of an hour's directory.
func (d *Dir) folder(dir string) *folder {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.hours[dir]
	if f == nil {
		f = &folder{path: dir}
		d.hours[dir] = f
	}
	d.uses++
	f.used = d.uses
	return f
}

// remember notes how many files a folder has, and forgets the folders that were used longest ago where all
// of them have too many.
func (d *Dir) remember(f *folder, files int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hours[f.path] != f {
		return // forgotten in the meantime
	}
	d.indexed += files + 1 - f.size
	f.size = files + 1
	for d.indexed > d.most && len(d.hours) > 1 {
		oldest := f
		for _, other := range d.hours {
			if other.used < oldest.used && other != f || oldest == f {
				oldest = other
			}
		}
		d.indexed -= oldest.size
		delete(d.hours, oldest.path)
	}
}

// list brings the names in the folder up to date. What was read of a file stays: files do not change once
// they have their name. Files that could not be used are looked at again.
func (f *folder) list() error {
	now := time.Now()
	info, err := os.Stat(f.path)
	if err == nil && info.ModTime().Equal(f.modified) && f.listed.Sub(f.modified) > settled {
		return nil
	}
	var names []os.DirEntry
	if err == nil {
		names, err = os.ReadDir(f.path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		f.files, f.modified = nil, time.Time{}
		return nil
	}
	if err != nil {
		return err
	}
	known := make(map[string]file, len(f.files))
	for _, old := range f.files {
		if old.err == nil {
			known[filepath.Base(old.entry.Path)] = old
		}
	}
	f.files = make([]file, 0, len(names))
	for _, e := range names {
		if !e.Type().IsRegular() || !strings.HasSuffix(e.Name(), suffix) {
			continue // such as a file that is being written
		}
		next, ok := known[e.Name()]
		if !ok {
			next.entry.Path = filepath.Join(f.path, e.Name())
			if next.name, next.err = record.ParseFileName(e.Name()); next.err != nil {
				next.read = true
			}
		}
		f.files = append(f.files, next)
	}
	f.modified, f.listed = info.ModTime(), now
	return nil
}

// head reads the file's metadata.
func (f *file) head(like *Entry) {
	f.read = true
	var e Entry
	if e, f.err = readEntry(f.entry.Path); f.err != nil {
		return
	}
	if !e.Start.Equal(f.name.Start) || e.Type != f.name.Type {
		f.err = fmt.Errorf("%w: by its name it is a %s profile of %v, by its head a %s profile of %v",
			record.ErrDamaged, f.name.Type, f.name.Start, e.Type, e.Start)
	}
	if like != nil && like.Service == e.Service && maps.Equal(like.Labels, e.Labels) {
		e.Service, e.Labels = like.Service, like.Labels // share the memory
	}
	f.entry = e
}

// errNotGzip means that a file is no record, and may be an uncompressed profile of another tool.
var errNotGzip = errors.New("not gzip-compressed")

// readEntry reads the metadata of a file that an agent saved. The error is record.ErrForeign for a compressed file
// without metadata, and errNotGzip for one that is not compressed, which makes a record a damaged one.
func readEntry(path string) (Entry, error) {
	f, err := openRegular(path)
	if err != nil {
		return Entry{}, err
	}
	defer f.Close() // it was only read
	info, err := f.Stat()
	if err != nil {
		return Entry{}, err
	}
	e := Entry{Path: path, Bytes: info.Size()}
	head := bufio.NewReader(f)
	if start, _ := head.Peek(2); !pprofwire.IsGzip(start) { // where the file is too short, it is no gzip either
		return e, fmt.Errorf("%w: %w", record.ErrDamaged, errNotGzip)
	}
	e.Meta, err = record.DecodeMeta(head)
	return e, err
}

// Windows reads the profiles that the query chooses, one at a time, by their start. A file that cannot be
// used is yielded as an error that wraps Damaged; the next ones follow.
func (d *Dir) Windows(ctx context.Context, q Query) iter.Seq2[Window, error] {
	return func(yield func(Window, error) bool) {
		entries, damaged, err := d.List(ctx, q)
		if err != nil {
			yield(Window{}, err)
			return
		}
		for _, dam := range damaged {
			if !yield(Window{}, dam) {
				return
			}
		}
		for w, err := range Read(ctx, entries) {
			if !yield(w, err) {
				return
			}
		}
	}
}
