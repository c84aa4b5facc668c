package viewer

import (
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

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

// Directory is what an agent in local mode saves, profiles below DIR/profiles and traces below DIR/traces, or
// profiles alone that any tool wrote. It may be read while it is written.
type Directory struct {
	profiles lister
	root     *os.Root
	index    *traceIndex

	mu      sync.Mutex
	damaged map[string]error // profiles that could not be used, by path; at most maxDamaged
}

// lister knows the profiles in files: [profiles.Dir] those that agents save, [looseFiles] any others.
type lister interface {
	List(ctx context.Context, q profiles.Query) ([]profiles.Entry, []profiles.Damaged, error)
	Services(ctx context.Context) ([]string, error)
}

var (
	_ lister = (*profiles.Dir)(nil)
	_ lister = (*looseFiles)(nil)
)

// maxDamaged bounds the files that are remembered as damaged.
const maxDamaged = 1_000

// note remembers a file that could not be used.
func (d *Directory) note(bad profiles.Damaged) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.damaged) < maxDamaged {
		d.damaged[bad.Path] = bad.Err
	}
}

// usable forgets that a file could not be used.
func (d *Directory) usable(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.damaged, path)
}

var _ Source = (*Directory)(nil)

// Open returns what there is at a path: the directory of an agent, which is one that has profiles or traces below it
// or nothing yet; another directory with files that end in .pb.gz; or one such file. It must exist. Of files that
// are not an agent's it reads all, so that it knows what they are of.
func Open(ctx context.Context, path string) (*Directory, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	service := strings.TrimSuffix(filepath.Base(path), ".pb.gz") // a link's own name, which somebody chose
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		for _, name := range []string{"profiles", "traces"} {
			if below, err := os.Stat(filepath.Join(path, name)); err == nil && below.IsDir() {
				return OpenDirectory(path)
			}
		}
	}
	loose, err := openLoose(ctx, path, service)
	switch {
	case err != nil:
		return nil, err
	case loose == nil:
		return OpenDirectory(path)
	case !info.IsDir():
		path = filepath.Dir(path)
	}
	return newDirectory(path, loose)
}

// OpenDirectory returns the profiles and traces of an agent's directory. It need not have any yet, but it must
// exist.
func OpenDirectory(dir string) (*Directory, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	saved, err := profiles.Open(dir)
	if err != nil {
		return nil, err
	}
	return newDirectory(dir, saved)
}

func newDirectory(dir string, files lister) (*Directory, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Directory{profiles: files, root: root, index: newTraceIndex(root, "traces"), damaged: make(map[string]error)}, nil
}

// Start is the path of the page to begin with: the slow traces, or the profiles where there are only these.
func (d *Directory) Start() string {
	if _, loose := d.profiles.(*looseFiles); loose {
		return "/profiles"
	}
	return "/"
}

// Close releases the directory.
func (d *Directory) Close() error { return d.root.Close() }

// Search is of [TraceSource].
func (d *Directory) Search(ctx context.Context, f Filter) (Found, error) {
	if err := d.index.refresh(ctx); err != nil {
		return Found{}, err
	}
	found := d.index.search(f)
	if note := d.LeftOut(); note != "" {
		found.Notes = append(found.Notes, note)
	}
	return found, nil
}

// LeftOut is of [ProfileSource].
func (d *Directory) LeftOut() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.damaged) == 0 {
		return ""
	}
	return fmt.Sprintf("Profiles that cannot be used and are left out: %d, such as %v.", len(d.damaged), one(d.damaged))
}

// Trace is of [TraceSource].
func (d *Directory) Trace(ctx context.Context, id string) ([]traces.Span, error) {
	if err := d.index.refresh(ctx); err != nil {
		return nil, err
	}
	return d.index.trace(ctx, id)
}

// Captured is of [TraceSource].
func (d *Directory) Captured(ctx context.Context, f Filter) ([]traces.Span, error) {
	if err := d.index.refresh(ctx); err != nil {
		return nil, err
	}
	return d.index.captured(f), nil
}

func (s Selection) query() profiles.Query {
	q := profiles.Query{Service: s.Service, Types: []record.Type{s.Type}, From: s.From, To: s.To, Labels: make(map[string]string)}
	if s.Instance != "" {
		q.Labels[record.InstanceLabel] = s.Instance
	}
	if s.Version != "" {
		q.Labels[record.VersionLabel] = s.Version
	}
	if s.Type == record.Wall && s.SpanIDs == nil {
		q.Labels[wallprofile.SpanScope] = wallprofile.ScopeRoot // which contain their children
	}
	return q
}

// list returns the files of a selection, by time.
func (d *Directory) list(ctx context.Context, s Selection) ([]profiles.Entry, error) {
	entries, damaged, err := d.profiles.List(ctx, s.query())
	for _, bad := range damaged {
		d.note(bad)
	}
	return entries, err
}

// read reads files one by one, but for those that cannot be used. Those of other tools have the labels that their place
// gives them, but no service: packages compare and leaks tell by it that their values count from the process's start.
func (d *Directory) read(ctx context.Context, entries []profiles.Entry) iter.Seq2[profiles.Window, error] {
	return func(yield func(profiles.Window, error) bool) {
		for _, e := range entries {
			for w, err := range profiles.WithoutDamaged(profiles.Read(ctx, []profiles.Entry{e}), d.note) {
				if err == nil {
					d.usable(e.Path)
					w.Labels = e.Labels
				}
				if !yield(w, err) || err != nil {
					return
				}
			}
		}
	}
}

// Profile is of [ProfileSource].
func (d *Directory) Profile(ctx context.Context, s Selection) (*profile.Profile, error) {
	entries, err := d.list(ctx, s)
	if err != nil {
		return nil, err
	}
	read := d.read(ctx, entries)
	if s.SpanIDs != nil {
		read = profiles.OfSpans(read, s.SpanIDs...)
	}
	windows := 0
	p, err := profiles.Merge(ctx, func(yield func(profiles.Window, error) bool) {
		for w, err := range read {
			windows++
			if !yield(w, err) {
				return
			}
		}
	})
	if err == nil && gauge(s.Type) && windows > 1 {
		p.Scale(1 / float64(windows))
	}
	return p, err
}

// Series is of [ProfileSource].
func (d *Directory) Series(ctx context.Context, s Selection) iter.Seq2[profiles.Window, error] {
	entries, err := d.list(ctx, s)
	if err != nil {
		return func(yield func(profiles.Window, error) bool) { yield(profiles.Window{}, err) }
	}
	return d.read(ctx, spread(entries, judgedWindows))
}

// Windows is of [ProfileSource]. Files that turned out to be damaged when they were read have none, so that a sum is
// divided by the windows that are in it.
func (d *Directory) Windows(ctx context.Context, s Selection) ([]Window, error) {
	entries, err := d.list(ctx, s)
	d.mu.Lock()
	defer d.mu.Unlock()
	windows := make([]Window, 0, len(entries))
	for _, e := range entries {
		if d.damaged[e.Path] == nil {
			windows = append(windows, Window{Instance: e.Labels[record.InstanceLabel], From: e.Start, To: e.End})
		}
	}
	return windows, err
}

// Files is of [ProfileSource].
func (d *Directory) Files(ctx context.Context, s Selection) ([]string, error) {
	entries, err := d.list(ctx, s)
	var files []string
	for _, e := range entries {
		files = append(files, e.Path)
	}
	return files, err
}

// Contents is of [ProfileSource].
func (d *Directory) Contents(ctx context.Context, service string, from, to time.Time) ([]Content, error) {
	entries, damaged, err := d.profiles.List(ctx, profiles.Query{Service: service, From: from, To: to})
	if err != nil {
		return nil, err
	}
	for _, bad := range damaged {
		d.note(bad)
	}
	type key struct {
		typ     record.Type
		version string
	}
	found := make(map[key]*Content)
	for _, e := range entries {
		k := key{e.Type, e.Labels[record.VersionLabel]}
		c := found[k]
		if c == nil {
			c = &Content{Type: e.Type, Version: k.version, From: e.Start, To: e.End}
			found[k] = c
		} else {
			c.Several = true
		}
		if e.End.After(c.To) {
			c.To = e.End
		}
	}
	var all []Content
	for _, c := range found {
		all = append(all, *c)
	}
	sortContents(all)
	return all, nil
}

// Services is of [ProfileSource]. A directory knows its services without looking at times.
func (d *Directory) Services(ctx context.Context, _, _ time.Time) ([]string, error) {
	return d.profiles.Services(ctx)
}

// Memory is of [ProfileSource].
func (d *Directory) Memory(ctx context.Context, service string, from, to time.Time, most int) ([]MemoryPoint, error) {
	entries, err := d.list(ctx, Selection{Service: service, Type: record.Memory, From: from, To: to})
	if err != nil {
		return nil, err
	}
	instance := func(e profiles.Entry) string { return e.Labels[record.InstanceLabel] }
	entries = largest(entries, instance, func(e profiles.Entry) float64 {
		bytes, _ := d.inUse(e) // nothing, if it cannot be read
		return float64(bytes)
	})
	var points []MemoryPoint
	for _, e := range spread(entries, most) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if bytes, ok := d.inUse(e); ok {
			points = append(points, MemoryPoint{Window{instance(e), e.Start, e.End}, bytes})
		}
	}
	return points, nil
}

// inUse is how much memory was in use, if the profile can be read.
func (d *Directory) inUse(e profiles.Entry) (int64, bool) {
	w, err := profiles.ReadFile(e.Path)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) { // its time was over
			d.note(profiles.Damaged{Path: e.Path, Err: err})
		}
		return 0, false
	}
	inUse := profiles.SampleIndex(w.Profile, "inuse_space")
	if inUse < 0 {
		return 0, true
	}
	return profiles.Total(w.Profile, inUse, nil), true
}

// one is the first of the files in order.
func one(damaged map[string]error) profiles.Damaged {
	path := slices.Min(slices.Collect(maps.Keys(damaged)))
	return profiles.Damaged{Path: path, Err: damaged[path]}
}

// spread takes at most n of all, evenly, the first and the last among them.
func spread[T any](all []T, n int) []T {
	if len(all) <= n {
		return all
	}
	var some []T
	for i := range n {
		some = append(some, all[i*(len(all)-1)/(n-1)])
	}
	return some
}
