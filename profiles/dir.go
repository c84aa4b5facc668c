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
	// longest is the maximum length of a window: windows that began earlier than this before a query's time range are not
	// searched, so that few hours have to be opened.
	longest = time.Hour

	// maxIndexed limits the files whose metadata a Dir remembers, at about 300 bytes each.
	maxIndexed = 200_000

	// settled is the age of a directory's modification time from which its listing is valid until that time changes.
	// File systems store the time in steps of up to two seconds: a file that is created in the same step as the listing
	// does not change the time.
	settled = 3 * time.Second

	suffix = ".pb.gz"

	savedDir = "profiles" // below a directory that agents save to
)

// Dir is a directory of saved profiles. It is safe for concurrent use. It remembers the metadata of files, so that
// listing again opens only new files.
type Dir struct {
	root string // of the profiles
	most int    // files and folders to remember

	mu      sync.Mutex // guards the fields below, and the folders' fields size and used
	hours   map[string]*folder
	indexed int    // sum of the folders' sizes
	uses    uint64 // count of uses of folders
}

// folder is the last listing of the directory of one hour.
type folder struct {
	path string
	size int    // files, and one for itself; guarded by the Dir
	used uint64 // the Dir's count at its last use; guarded by the Dir

	mu       sync.Mutex // guards the fields below; held while the directory is read
	modified time.Time
	listed   time.Time
	files    []file // by name
}

// file is a name in an hour's directory, with the file's metadata once they were read.
type file struct {
	name  record.Name
	read  bool  // the metadata were read
	entry Entry // only the path until they are read
	err   error // why the file is unusable
}

// Open opens a directory in which agents save profiles. It need not contain profiles yet.
func Open(dir string) (*Dir, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("directory of saved profiles: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("directory of saved profiles: %s is a file: give the directory that it lies in, or read the file itself", dir)
	}
	return &Dir{root: filepath.Join(dir, savedDir), most: maxIndexed, hours: make(map[string]*folder)}, nil
}

// Services returns the sorted names of the services that have profiles.
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

// service returns the name of the service with the directory dir, from its newest profile. It is empty if there are no
// profiles.
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

// List returns the profiles that match the query, sorted by their start, and the unusable files among them. It does not
// find windows that began more than an hour before the query's time range.
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

// within returns the directories of a service's hours that may contain profiles that match the query.
func (d *Dir) within(service string, q Query) ([]string, error) {
	days, err := subdirs(service)
	if err != nil {
		return nil, err
	}
	// may reports whether a period overlaps the query's time range.
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

// subdirs returns the sorted names of the directories in dir; none if dir does not exist.
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

// hour lists the directory of one hour, up to limit entries if limit is not negative.
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
	var last *Entry // the next entry probably has the same service and labels
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
		case errors.Is(file.err, fs.ErrNotExist): // removed in the meantime
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

// folder returns the remembered listing of an hour's directory, or an empty one.
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

// remember records the number of files in a folder, and forgets the least recently used folders while there are too many
// files in all.
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

// list updates the names in the folder. Metadata that were read are kept, because files do not change once they have
// their name. Unusable files are read again.
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
			continue // for example a file that is being written
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
		e.Service, e.Labels = like.Service, like.Labels // share memory
	}
	f.entry = e
}

// errNotGzip means that a file is not a record, but may be an uncompressed profile of another tool.
var errNotGzip = errors.New("not gzip-compressed")

// readEntry reads the metadata of a file that an agent saved. The error is record.ErrForeign for a compressed file without
// metadata. For an uncompressed file it is errNotGzip and record.ErrDamaged.
func readEntry(path string) (Entry, error) {
	f, err := openRegular(path)
	if err != nil {
		return Entry{}, err
	}
	defer f.Close() // only read, so the error does not matter
	info, err := f.Stat()
	if err != nil {
		return Entry{}, err
	}
	e := Entry{Path: path, Bytes: info.Size()}
	head := bufio.NewReader(f)
	if start, _ := head.Peek(2); !pprofwire.IsGzip(start) { // a file that is too short is not gzip either
		return e, fmt.Errorf("%w: %w", record.ErrDamaged, errNotGzip)
	}
	e.Meta, err = record.DecodeMeta(head)
	return e, err
}

// Windows reads the profiles that match the query, one at a time, in the order of their start. For an unusable file it
// yields an error that wraps Damaged, and continues.
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
