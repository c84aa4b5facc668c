package source

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
	"sync"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

// Directory is a directory that an agent saves to, with profiles in DIR/profiles and traces in DIR/traces, or one with
// profiles of any tool. It may be written to while it is read.
type Directory struct {
	profiles  lister
	root      *os.Root
	index     *traceIndex
	diagnoses *diagnosisIndex

	mu      sync.Mutex
	damaged map[string]error // profiles that could not be used, by path; at most maxDamaged
}

// lister lists profiles in files: [profiles.Dir] those that agents save, [foreignFiles] those of other tools.
type lister interface {
	List(ctx context.Context, q profiles.Query) ([]profiles.Entry, []profiles.Damaged, error)
	Services(ctx context.Context) ([]string, error)
}

var (
	_ lister = (*profiles.Dir)(nil)
	_ lister = (*foreignFiles)(nil)
	_ lister = (listers)(nil)
)

// maxDamaged limits the files that are remembered as damaged.
const maxDamaged = 1_000

// note remembers that a file cannot be used.
func (d *Directory) note(bad profiles.Damaged) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.damaged) < maxDamaged {
		d.damaged[bad.Path] = bad.Err
	}
}

// usable forgets that a file could not be used, such as one that was still being written.
func (d *Directory) usable(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.damaged, path)
}

var _ Source = (*Directory)(nil)

// Open opens a path, which must exist: the directory of an agent, which has a directory profiles or traces or is still
// empty, and the profiles of other tools next to these; another directory with profiles in files; or one such file. It
// reads all files that are not an agent's, because only their contents show their types.
func Open(ctx context.Context, path string) (*Directory, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	service := profiles.TrimExtension(filepath.Base(path)) // of a link its own name
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
				return openBoth(ctx, path, service)
			}
		}
	}
	foreign, err := openForeign(ctx, path, service)
	switch {
	case err != nil:
		return nil, err
	case foreign == nil:
		return OpenDirectory(path)
	case !info.IsDir():
		path = filepath.Dir(path)
	}
	return newDirectory(path, foreign, info.IsDir())
}

// openBoth opens the directory of an agent that may have files of other tools next to those of the agent.
func openBoth(ctx context.Context, path, service string) (*Directory, error) {
	d, err := OpenDirectory(path)
	if err != nil {
		return nil, err
	}
	foreign, err := openForeign(ctx, path, service)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	if foreign != nil {
		d.profiles = listers{d.profiles, foreign}
	}
	return d, nil
}

// listers lists the files of several.
type listers []lister

// List implements lister.
func (all listers) List(ctx context.Context, q profiles.Query) (entries []profiles.Entry, damaged []profiles.Damaged, err error) {
	for _, l := range all {
		e, d, err := l.List(ctx, q)
		if err != nil {
			return nil, nil, err
		}
		entries, damaged = append(entries, e...), append(damaged, d...)
	}
	slices.SortStableFunc(entries, func(a, b profiles.Entry) int { return a.Start.Compare(b.Start) })
	return entries, damaged, nil
}

// Services implements lister.
func (all listers) Services(ctx context.Context) ([]string, error) {
	var names []string
	for _, l := range all {
		some, err := l.Services(ctx)
		if err != nil {
			return nil, err
		}
		names = append(names, some...)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// OpenDirectory opens the directory of an agent, which must exist and may be empty.
func OpenDirectory(dir string) (*Directory, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	saved, err := profiles.Open(dir)
	if err != nil {
		return nil, err
	}
	return newDirectory(dir, saved, true)
}

// newDirectory opens a directory whose profiles are listed by files; nextTo is set if traces next to its directory of traces
// count, too.
func newDirectory(dir string, files lister, nextTo bool) (*Directory, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Directory{
		profiles: files, root: root, index: newTraceIndex(root, "traces", nextTo), diagnoses: newDiagnosisIndex(), damaged: make(map[string]error),
	}, nil
}

// Foreign reports whether the directory has profiles of other tools, and therefore no traces.
func (d *Directory) Foreign() bool {
	_, foreign := d.profiles.(*foreignFiles)
	return foreign
}

// Close closes the directory.
func (d *Directory) Close() error { return d.root.Close() }

// Search implements [Traces].
func (d *Directory) Search(ctx context.Context, f Filter) (Found, error) {
	if err := d.index.refresh(ctx); err != nil {
		return Found{}, err
	}
	found := d.index.search(f)
	if f.Diagnose && len(found.Traces) > 0 {
		if err := d.diagnoses.refresh(ctx, d); err != nil {
			return Found{}, err
		}
		d.diagnoses.diagnose(&found)
	}
	if note := d.LeftOut(); note != "" {
		found.Notes = append(found.Notes, note)
	}
	return found, nil
}

// LeftOut implements [Profiles].
func (d *Directory) LeftOut() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.damaged) == 0 {
		return ""
	}
	return fmt.Sprintf("Profiles that cannot be used and are left out: %d, such as %v.", len(d.damaged), one(d.damaged))
}

// Trace implements [Traces].
func (d *Directory) Trace(ctx context.Context, id string) ([]traces.Span, error) {
	if err := d.index.refresh(ctx); err != nil {
		return nil, err
	}
	return d.index.trace(ctx, id)
}

// Captured implements [Traces].
func (d *Directory) Captured(ctx context.Context, f Filter) ([]traces.Span, error) {
	if err := d.index.refresh(ctx); err != nil {
		return nil, err
	}
	return d.index.captured(f), nil
}

// Requests implements [Traces]. To read all traces may take several calls; see [Directory.ReadTraces].
func (d *Directory) Requests(ctx context.Context, f Filter) ([]traces.Span, error) {
	if err := d.index.refresh(ctx); err != nil {
		return nil, err
	}
	return d.index.requests(f)
}

// ReadTraces waits until all traces are read. The other methods read for a limited time, and the next call continues.
func (d *Directory) ReadTraces(ctx context.Context) error {
	for {
		if err := d.index.read(ctx, 0); err != nil || d.index.complete() {
			return err
		}
	}
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
		q.Labels[wallprofile.SpanScope] = wallprofile.ScopeRoot // whose profiles include those of their children
	}
	return q
}

// list lists the files of a selection, by time.
func (d *Directory) list(ctx context.Context, s Selection) ([]profiles.Entry, error) {
	entries, damaged, err := d.profiles.List(ctx, s.query())
	for _, bad := range damaged {
		d.note(bad)
	}
	return entries, err
}

// read reads files one by one and leaves out those that cannot be used. Files of other tools get the labels of their
// place but no service, by which packages compare and leaks know that their values count from the start of the process.
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

// Profile implements [Profiles].
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
	if err == nil && Level(s.Type) && windows > 1 {
		err = profiles.Scale(p, 1/float64(windows))
	}
	return p, err
}

// Series implements [Profiles].
func (d *Directory) Series(ctx context.Context, s Selection, most int) iter.Seq2[profiles.Window, error] {
	entries, err := d.list(ctx, s)
	if err != nil {
		return func(yield func(profiles.Window, error) bool) { yield(profiles.Window{}, err) }
	}
	return d.read(ctx, Spread(entries, most))
}

// Windows implements [Profiles]. It leaves out files that turned out to be damaged when they were read, so that a sum is
// divided by the number of windows that are in it.
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

// Files implements [Profiles].
func (d *Directory) Files(ctx context.Context, s Selection) ([]string, error) {
	entries, err := d.list(ctx, s)
	var files []string
	for _, e := range entries {
		files = append(files, e.Path)
	}
	return files, err
}

// Contents implements [Profiles].
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
		if e.Labels[wallprofile.SpanScope] == wallprofile.ScopeFast {
			continue // a sample for comparisons, which no page shows
		}
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

// Services implements [Profiles]. It returns all services of the directory, regardless of the time range.
func (d *Directory) Services(ctx context.Context, _, _ time.Time) ([]string, error) {
	return d.profiles.Services(ctx)
}

// Memory implements [Profiles].
func (d *Directory) Memory(ctx context.Context, sel Selection, most int) ([]MemoryPoint, error) {
	sel.Type = record.Memory
	entries, err := d.list(ctx, sel)
	if err != nil {
		return nil, err
	}
	instance := func(e profiles.Entry) string { return e.Labels[record.InstanceLabel] }
	entries = largest(entries, instance, func(e profiles.Entry) float64 {
		bytes, _ := d.inUse(e) // 0 if it cannot be read
		return float64(bytes)
	})
	var points []MemoryPoint
	for _, e := range Spread(entries, most) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if bytes, ok := d.inUse(e); ok {
			points = append(points, MemoryPoint{Window{instance(e), e.Start, e.End}, e.Labels[record.VersionLabel], bytes})
		}
	}
	return points, nil
}

// inUse returns how much memory was in use, if the profile can be read.
func (d *Directory) inUse(e profiles.Entry) (int64, bool) {
	w, err := profiles.ReadFile(e.Path)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) { // removed because of its age
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

// one returns the first of the files.
func one(damaged map[string]error) profiles.Damaged {
	path := slices.Min(slices.Collect(maps.Keys(damaged)))
	return profiles.Damaged{Path: path, Err: damaged[path]}
}
