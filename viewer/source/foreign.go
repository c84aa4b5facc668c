package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

// Limits of foreign files.
const (
	maxForeign   = 10_000
	foreignEvery = 5 * time.Second // how old the list may be
)

// foreignFiles are the profiles of other tools: one file, or the files of a directory and its subdirectories that have the
// names of profiles or look like them, without those that an agent saved there. A file that does not name its service and
// version is named after its place: the service after the directory or the file, the version after the subdirectory. A file
// is read once, and again after it has changed.
type foreignFiles struct {
	path    string
	service string // of files that do not name theirs

	turn   chan struct{} // holds one token, which guards looking at files and what follows
	looked time.Time
	files  map[string]foreignFile // by path
	others map[string]otherFile   // by path: those that are not profiles by their names
}

// otherFile is a file that does not have the name of a profile, as it was last looked at.
type otherFile struct {
	size     int64
	modified time.Time
	profile  bool // it begins as a profile does
}

// foreignFile is a file as it was last read.
type foreignFile struct {
	size     int64
	modified time.Time
	typ      record.Type // the one in the file, see separateKinds
	entry    profiles.Entry
	err      error // why it cannot be used
}

// openForeign reads the files at a path, which is not a link; service is the service of those that do not name theirs. It
// returns nil for a directory without profiles, and an error for a single file that cannot be used.
func openForeign(ctx context.Context, path, service string) (*foreignFiles, error) {
	l := &foreignFiles{path: path, service: service, turn: make(chan struct{}, 1), files: make(map[string]foreignFile)}
	if err := l.look(ctx); err != nil {
		return nil, err
	}
	l.turn <- struct{}{}
	if len(l.files) == 0 {
		return nil, nil
	}
	if f, ok := l.files[l.path]; ok && f.err != nil {
		return nil, profiles.Damaged{Path: l.path, Err: f.err}
	}
	return l, nil
}

// look reads the files that are new or have changed.
func (l *foreignFiles) look(ctx context.Context) error {
	files, others := make(map[string]foreignFile), make(map[string]otherFile)
	err := filepath.WalkDir(l.path, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && path != l.path:
			return nil // it was removed after it was listed
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && path != l.path && len(files) < maxForeign:
			files[path] = foreignFile{err: err} // a directory that cannot be read
			return fs.SkipDir
		case err != nil:
			return err
		case d.IsDir() && profiles.OfAgent(l.path, path):
			return fs.SkipDir
		case !d.Type().IsRegular():
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil // it was removed, too
		}
		if !profiles.HasProfileName(d.Name()) && path != l.path && !l.looks(path, info, others) {
			return nil
		}
		if len(files) >= maxForeign {
			return fmt.Errorf("%s has more than %d profiles: name a directory below it", l.path, maxForeign)
		}
		f, ok := l.files[path]
		if !ok || f.size != info.Size() || !f.modified.Equal(info.ModTime()) || f.err != nil && !ofBytes(f.err) {
			f = foreignFile{size: info.Size(), modified: info.ModTime()}
			f.entry, f.err = l.entry(ctx, path)
			f.typ = f.entry.Type
		}
		if !errors.Is(f.err, fs.ErrNotExist) {
			files[path] = f
		}
		return ctx.Err()
	})
	if err != nil {
		maps.Copy(l.files, files) // these are not read again
		return fmt.Errorf("list profiles: %w", err)
	}
	separateKinds(files)
	l.files, l.others, l.looked = files, others, time.Now()
	return nil
}

// looks reports whether a file without the name of a profile begins as one, and notes it in others. A file is opened once,
// and again after it has changed. Of many such files in a directory, the first maxForeign are opened.
func (l *foreignFiles) looks(path string, info fs.FileInfo, others map[string]otherFile) bool {
	if len(others) >= maxForeign {
		return false
	}
	f, ok := l.others[path]
	if !ok || f.size != info.Size() || !f.modified.Equal(info.ModTime()) {
		f = otherFile{info.Size(), info.ModTime(), profiles.LooksLikeProfile(path)}
	}
	others[path] = f
	return f.profile
}

// separateKinds makes types of their own of the profiles whose kind is not that of most files of their type, as profiles
// can be merged only with those of their kind.
func separateKinds(files map[string]foreignFile) {
	counts := make(map[record.Type]map[string]int)
	for _, f := range files {
		if f.err == nil {
			if counts[f.typ] == nil {
				counts[f.typ] = make(map[string]int)
			}
			counts[f.typ][f.entry.Kind]++
		}
	}
	most := make(map[record.Type]string)
	for typ, kinds := range counts {
		most[typ] = slices.MaxFunc(slices.Sorted(maps.Keys(kinds)), func(a, b string) int { return cmp.Compare(kinds[a], kinds[b]) })
	}
	for path, f := range files {
		if f.entry.Type = f.typ; f.entry.Kind != most[f.typ] {
			f.entry.Type = record.Type(fmt.Sprintf("%s (%s)", f.typ, f.entry.Kind))
		}
		files[path] = f
	}
}

// ofBytes reports whether an error is about the contents of a file and therefore lasts until the file changes. Others,
// such as too many open files, may be gone at the next try.
func ofBytes(err error) bool {
	return errors.Is(err, record.ErrDamaged) || errors.Is(err, record.ErrTooLarge)
}

// entry reads the type, service, version and time of a profile.
func (l *foreignFiles) entry(ctx context.Context, path string) (profiles.Entry, error) {
	found, damaged, err := profiles.Find(ctx, profiles.Query{}, path)
	switch {
	case err != nil:
		return profiles.Entry{}, err
	case len(damaged) > 0:
		return profiles.Entry{}, damaged[0].Err
	case len(found) == 0:
		return profiles.Entry{}, fs.ErrNotExist // it was removed after it was listed
	}
	e := found[0]
	if e.Service == "" {
		e.Service = l.service
	}
	if below, err := filepath.Rel(l.path, filepath.Dir(path)); err == nil && e.Labels[record.VersionLabel] == "" && filepath.IsLocal(below) && below != "." {
		e.Labels = maps.Clone(e.Labels)
		if e.Labels == nil {
			e.Labels = make(map[string]string, 1)
		}
		e.Labels[record.VersionLabel] = filepath.ToSlash(below)
	}
	return e, nil
}

// List implements lister.
func (l *foreignFiles) List(ctx context.Context, q profiles.Query) ([]profiles.Entry, []profiles.Damaged, error) {
	select {
	case <-l.turn:
		defer func() { l.turn <- struct{}{} }()
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	if time.Since(l.looked) > foreignEvery {
		if err := l.look(ctx); err != nil {
			return nil, nil, err
		}
	}
	var entries []profiles.Entry
	var damaged []profiles.Damaged
	for path, f := range l.files {
		if f.err != nil {
			damaged = append(damaged, profiles.Damaged{Path: path, Err: f.err})
		} else if withoutScope(q, f.entry.Meta).Match(f.entry.Meta) {
			entries = append(entries, f.entry)
		}
	}
	slices.SortFunc(entries, func(a, b profiles.Entry) int {
		return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.Path, b.Path))
	})
	return entries, damaged, nil
}

// withoutScope returns the query without the span scope if the profile has none: only those of agents have, and all
// others count as profiles of requests.
func withoutScope(q profiles.Query, m record.Meta) profiles.Query {
	if _, ok := m.Labels[wallprofile.SpanScope]; !ok {
		q.Labels = maps.Clone(q.Labels)
		delete(q.Labels, wallprofile.SpanScope)
	}
	return q
}

// Services implements lister.
func (l *foreignFiles) Services(ctx context.Context) ([]string, error) {
	entries, _, err := l.List(ctx, profiles.Query{})
	return profiles.ServiceNames(entries), err
}
