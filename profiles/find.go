package profiles

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
)

// extensions are the ends of the names that profiles in files usually have.
var extensions = []string{suffix, ".pb", ".pprof", ".pprof.gz", ".prof", ".pgo"}

// HasProfileName reports whether the name of a file is one that profiles usually have: it ends in .pb.gz, .pb, .pprof,
// .pprof.gz, .prof or .pgo.
func HasProfileName(name string) bool { return TrimExtension(name) != name }

// TrimExtension returns the name of a file without the end that profiles usually have.
func TrimExtension(name string) string {
	for _, ext := range extensions {
		if trimmed, ok := strings.CutSuffix(name, ext); ok && trimmed != "" {
			return trimmed
		}
	}
	return name
}

// FileNames describes the names of HasProfileName.
func FileNames() string { return "*" + strings.Join(extensions, ", *") }

// Find returns the profiles that a query chooses among files and directories, by their start, and the files among them
// that cannot be used. A directory is one that agents save to, or any other whose files and those in directories below it
// have the names of profiles (see HasProfileName). A file given directly may have any name. It is not an error if nothing matches.
func Find(ctx context.Context, q Query, paths ...string) ([]Entry, []Damaged, error) {
	var entries []Entry
	var damaged []Damaged
	add := func(path string) {
		switch e, err := entry(path); {
		case errors.Is(err, fs.ErrNotExist): // it was removed since it was listed
		case err != nil:
			damaged = append(damaged, Damaged{Path: path, Err: err})
		case q.Match(e.Meta):
			entries = append(entries, e)
		}
	}
	for _, path := range paths {
		path = filepath.Clean(path)
		info, err := os.Stat(path)
		if err != nil {
			return nil, nil, err
		}
		if !info.IsDir() {
			add(path)
			continue
		}
		if saved, err := os.Stat(filepath.Join(path, "profiles")); err == nil && saved.IsDir() {
			d, err := Open(path)
			if err != nil {
				return nil, nil, err
			}
			e, dam, err := d.List(ctx, q)
			if err != nil {
				return nil, nil, err
			}
			entries, damaged = append(entries, e...), append(damaged, dam...)
			continue
		}
		err = filepath.WalkDir(path, func(path string, file fs.DirEntry, err error) error {
			if err = cmp.Or(err, ctx.Err()); err != nil {
				return err
			}
			name, nameErr := record.ParseFileName(file.Name())
			if file.Type().IsRegular() && HasProfileName(file.Name()) && (nameErr != nil || q.mayMatch(name.Type, name.Start)) {
				add(path)
			}
			return nil
		})
		if err != nil {
			return nil, nil, fmt.Errorf("list profiles: %w", err)
		}
	}
	slices.SortFunc(entries, byStart)
	entries = slices.CompactFunc(entries, func(a, b Entry) bool { return a.Path == b.Path })
	return entries, damaged, nil
}

// entry reads the metadata of a file, saved by an agent or written by another tool.
func entry(path string) (Entry, error) {
	e, err := readEntry(path)
	if !errors.Is(err, record.ErrForeign) && !errors.Is(err, errNotGzip) {
		return e, err
	}
	w, err := ReadFile(path)
	if damaged, ok := errors.AsType[Damaged](err); ok {
		err = damaged.Err // the caller names the file
	}
	if err != nil {
		return e, err
	}
	return Entry{Meta: w.Meta, Path: path, Bytes: e.Bytes, Kind: kindOf(w.Profile)}, nil
}

// kindOf returns the kind of a profile, see [Entry].
func kindOf(p *profile.Profile) string {
	var names []string
	for _, t := range p.SampleType {
		names = append(names, t.Type+"/"+t.Unit)
	}
	if t := p.PeriodType; t != nil && t.Type != "" {
		names = append(names, "period "+t.Type+"/"+t.Unit)
	}
	return strings.Join(names, ", ")
}
