package viewer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

// Bounds of files that are not an agent's.
const (
	maxLoose   = 10_000
	looseEvery = 5 * time.Second // how old the list may be
)

// looseFiles are profiles in files of any tool: those of a directory that end in .pb.gz, also in directories below it,
// or one file. What a file does not say of itself its place says: the service is named after the directory, or the
// file, and the version after the directory below it. A file is read once, and again when it has changed.
type looseFiles struct {
	path    string
	service string // of files that do not say it

	turn   chan struct{} // holds one token: who has it looks at files, and at what follows
	looked time.Time
	files  map[string]looseFile // by path
}

// looseFile is a file as it was when it was read.
type looseFile struct {
	size     int64
	modified time.Time
	entry    profiles.Entry
	err      error // why it cannot be used
}

// openLoose reads the files at a path, which is no link; service is theirs unless they say another. It is nil where a
// directory has none. A file that is named must be usable.
func openLoose(ctx context.Context, path, service string) (*looseFiles, error) {
	l := &looseFiles{path: path, service: service, turn: make(chan struct{}, 1), files: make(map[string]looseFile)}
	if err := l.look(ctx); err != nil {
		return nil, err
	}
	l.turn <- struct{}{}
	if len(l.files) == 0 {
		return nil, nil
	}
	if f, ok := l.files[path]; ok && f.err != nil {
		return nil, profiles.Damaged{Path: path, Err: f.err}
	}
	return l, nil
}

// look reads the files that are new.
func (l *looseFiles) look(ctx context.Context) error {
	files := make(map[string]looseFile)
	err := filepath.WalkDir(l.path, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && path != l.path:
			return nil // it was removed since it was listed
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && path != l.path && len(files) < maxLoose:
			files[path] = looseFile{err: err} // a directory that cannot be read
			return fs.SkipDir
		case err != nil:
			return err
		case !d.Type().IsRegular() || !strings.HasSuffix(path, ".pb.gz") && path != l.path:
			return nil
		case len(files) >= maxLoose:
			return fmt.Errorf("%s has more than %d profiles: name a directory below it", l.path, maxLoose)
		}
		info, err := d.Info()
		if err != nil {
			return nil // likewise
		}
		f, ok := l.files[path]
		if !ok || f.size != info.Size() || !f.modified.Equal(info.ModTime()) || f.err != nil && !ofBytes(f.err) {
			f = looseFile{size: info.Size(), modified: info.ModTime()}
			f.entry, f.err = l.entry(ctx, path)
		}
		if !errors.Is(f.err, fs.ErrNotExist) {
			files[path] = f
		}
		return ctx.Err()
	})
	if err != nil {
		maps.Copy(l.files, files) // need not be read again
		return fmt.Errorf("list profiles: %w", err)
	}
	l.files, l.looked = files, time.Now()
	return nil
}

// ofBytes tells whether an error is of what is in a file, and comes again until the file changes. Others, such as of too
// many open files, may be over the next time.
func ofBytes(err error) bool {
	return errors.Is(err, record.ErrDamaged) || errors.Is(err, record.ErrTooLarge)
}

// entry reads what a file is of.
func (l *looseFiles) entry(ctx context.Context, path string) (profiles.Entry, error) {
	found, damaged, err := profiles.Find(ctx, profiles.Query{}, path)
	switch {
	case err != nil:
		return profiles.Entry{}, err
	case len(damaged) > 0:
		return profiles.Entry{}, damaged[0].Err
	case len(found) == 0:
		return profiles.Entry{}, fs.ErrNotExist // it was removed since it was listed
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

// List is of lister.
func (l *looseFiles) List(ctx context.Context, q profiles.Query) ([]profiles.Entry, []profiles.Damaged, error) {
	select {
	case <-l.turn:
		defer func() { l.turn <- struct{}{} }()
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	if time.Since(l.looked) > looseEvery {
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

// withoutScope is the query for a profile. Only the wall-clock profiles of agents say of which spans they are: all others
// are searched as those of requests.
func withoutScope(q profiles.Query, m record.Meta) profiles.Query {
	if _, ok := m.Labels[wallprofile.SpanScope]; !ok {
		q.Labels = maps.Clone(q.Labels)
		delete(q.Labels, wallprofile.SpanScope)
	}
	return q
}

// Services is of lister.
func (l *looseFiles) Services(ctx context.Context) ([]string, error) {
	entries, _, err := l.List(ctx, profiles.Query{})
	return profiles.ServiceNames(entries), err
}
