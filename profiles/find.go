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

	"spanflame/internal/record"
)

// Find returns the profiles that a query chooses among files and directories, by their start, and the files
// among them that cannot be used. A directory is one that agents save to, or any other that has profiles in
// files that end in .pb.gz, also in directories below it. No match is no error.
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
			if file.Type().IsRegular() && strings.HasSuffix(path, suffix) && (nameErr != nil || q.mayMatch(name.Type, name.Start)) {
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

// entry reads what a file says of itself, one of ours or of another tool.
func entry(path string) (Entry, error) {
	e, err := readEntry(path)
	if !errors.Is(err, record.ErrForeign) {
		return e, err
	}
	w, err := ReadFile(path)
	e.Meta = w.Meta
	return e, err
}
