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
	"sync"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/profiles"
)

// Directory is what an agent in local mode saves: profiles below DIR/profiles, traces below DIR/traces. It
// may be read while it is written.
type Directory struct {
	profiles *profiles.Dir
	root     *os.Root
	index    *traceIndex

	mu      sync.Mutex
	damaged map[string]error // profiles that could not be used, by path; at most maxDamaged
}

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

var _ Source = (*Directory)(nil)

// OpenDirectory returns the directory's profiles and traces. It need not have any yet, but it must exist.
func OpenDirectory(dir string) (*Directory, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	d := &Directory{damaged: make(map[string]error)}
	if d.profiles, err = profiles.Open(dir); err != nil {
		return nil, err
	}
	if d.root, err = os.OpenRoot(dir); err != nil {
		return nil, err
	}
	d.index = newTraceIndex(d.root, "traces")
	return d, nil
}

// Close releases the directory.
func (d *Directory) Close() error { return d.root.Close() }

// Search is of [TraceSource].
func (d *Directory) Search(ctx context.Context, f Filter) (Found, error) {
	if err := d.index.refresh(ctx); err != nil {
		return Found{}, err
	}
	found := d.index.search(f)
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.damaged) > 0 {
		found.Notes = append(found.Notes, fmt.Sprintf("Profiles that cannot be used and are left out: %d, such as %v.", len(d.damaged), one(d.damaged)))
	}
	return found, nil
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
		q.Labels[instanceLabel] = s.Instance
	}
	if s.Type == record.Wall && s.SpanIDs == nil {
		q.Labels["span_scope"] = "root" // which contain their children
	}
	return q
}

// Profile is of [ProfileSource].
func (d *Directory) Profile(ctx context.Context, s Selection) (*profile.Profile, error) {
	if s.SpanIDs != nil {
		return d.profiles.Span(ctx, s.query(), s.SpanIDs...)
	}
	windows := 0
	p, err := profiles.Merge(ctx, func(yield func(profiles.Window, error) bool) {
		for w, err := range profiles.WithoutDamaged(d.profiles.Windows(ctx, s.query()), d.note) {
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
	return func(yield func(profiles.Window, error) bool) {
		entries, damaged, err := d.profiles.List(ctx, s.query())
		if err != nil {
			yield(profiles.Window{}, err)
			return
		}
		for _, bad := range damaged {
			d.note(bad)
		}
		for w, err := range profiles.WithoutDamaged(profiles.Read(ctx, spread(entries, judgedWindows)), d.note) {
			if !yield(w, err) {
				return
			}
		}
	}
}

// Windows is of [ProfileSource].
func (d *Directory) Windows(ctx context.Context, s Selection) (int, error) {
	files, err := d.Files(ctx, s)
	return len(files), err
}

// Files is of [ProfileSource].
func (d *Directory) Files(ctx context.Context, s Selection) ([]string, error) {
	entries, _, err := d.profiles.List(ctx, s.query())
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		files = append(files, e.Path)
	}
	return files, nil
}

// Services is of [ProfileSource]. A directory knows its services without looking at times.
func (d *Directory) Services(ctx context.Context, _, _ time.Time) ([]string, error) {
	return d.profiles.Services(ctx)
}

// Memory is of [ProfileSource].
func (d *Directory) Memory(ctx context.Context, service string, from, to time.Time, most int) ([]MemoryPoint, error) {
	entries, damaged, err := d.profiles.List(ctx, profiles.Query{Service: service, Types: []record.Type{record.Memory}, From: from, To: to})
	if err != nil {
		return nil, err
	}
	for _, bad := range damaged {
		d.note(bad)
	}
	instance := func(e profiles.Entry) string { return e.Labels[instanceLabel] }
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
			points = append(points, MemoryPoint{Instance: instance(e), From: e.Start, To: e.End, Bytes: bytes})
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
	return total(w.Profile, "inuse_space"), true
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

// total is the sum of a profile's values of one type.
func total(p *profile.Profile, valueType string) int64 {
	i := slices.IndexFunc(p.SampleType, func(t *profile.ValueType) bool { return t.Type == valueType })
	if i < 0 {
		return 0
	}
	var sum int64
	for _, s := range p.Sample {
		sum += s.Value[i]
	}
	return sum
}
