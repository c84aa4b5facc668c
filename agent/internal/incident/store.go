package incident

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"spanflame/agent/internal/owndir"
	"spanflame/internal/incidentfile"
	"spanflame/internal/record"
)

// store is the directory with a service's bundles, limited in number, bytes and age. Processes of the service share it: a
// file that is being written is locked by its writer, so that one that a killed process left can be told from one of another.
type store struct {
	base     string // the directory that a person named
	service  string
	max      int
	maxBytes int64
	maxAge   time.Duration
}

// kept is a bundle in the directory.
type kept struct {
	id   incidentfile.ID
	size int64
}

func (s *store) path() string {
	return filepath.Join(s.base, incidentfile.Dir, record.DirName(s.service))
}

// open opens the directory, and makes it if it is missing.
func (s *store) open() (*os.Root, error) {
	dir, err := owndir.Base(s.base)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{incidentfile.Dir, record.DirName(s.service)} {
		below, err := owndir.Make(dir, name)
		dir.Close()
		if err != nil {
			return nil, err
		}
		dir = below
	}
	return dir, nil
}

// write makes a file with what fill writes: it is there, complete and on the disk, whenever it is seen. An error leaves
// everything as it was. Other bundles make room for it by trim, afterwards.
func (s *store) write(id incidentfile.ID, fill func(io.Writer) error) (size int64, err error) {
	root, err := s.open()
	if err != nil {
		return 0, err
	}
	defer root.Close()
	temp := id.File() + owndir.TempSuffix
	f, err := owndir.Lock(root, temp)
	if err != nil {
		return 0, err
	}
	done := false
	defer func() { // also if fill panics
		f.Close()
		if !done {
			_ = root.Remove(temp)
			_ = root.Remove(id.File())
		}
	}()
	limited := &limited{f, s.maxBytes}
	if err := fill(limited); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	if runtime.GOOS == "windows" { // which does not rename an open file
		f.Close()
	}
	if err := root.Rename(temp, id.File()); err != nil {
		return 0, err
	}
	if err := owndir.Sync(root); err != nil {
		return 0, err
	}
	done = true
	return s.maxBytes - limited.left, nil
}

// limited writes up to a number of bytes.
type limited struct {
	w    io.Writer
	left int64
}

func (l *limited) Write(b []byte) (int, error) {
	if int64(len(b)) > l.left {
		return 0, errors.New("the bundle is larger than SPANFLAME_INCIDENT_MAX_BYTES")
	}
	n, err := l.w.Write(b)
	l.left -= int64(n)
	return n, err
}

// list returns the bundles, oldest first.
func (s *store) list(root *os.Root) ([]kept, error) {
	entries, err := owndir.Entries(root, ".")
	if err != nil {
		return nil, err
	}
	var found []kept
	for _, e := range entries {
		id, err := incidentfile.ParseFile(e.Name())
		if err != nil {
			continue
		}
		if fi, err := root.Lstat(e.Name()); err == nil && fi.Mode().IsRegular() {
			found = append(found, kept{id, fi.Size()})
		}
	}
	return found, nil
}

// trim removes bundles that are too old, and the oldest ones as long as there are too many or too many bytes: the one to
// keep stays, or the newest. Bundles of the future, from when the clock was ahead, are the oldest.
func (s *store) trim(now time.Time, keep incidentfile.ID) error {
	root, err := s.open()
	if err != nil {
		return err
	}
	defer root.Close()
	all, err := s.list(root)
	if err != nil {
		return err
	}
	ahead := func(k kept) int {
		if k.id.At.After(now.Add(time.Minute)) {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(all, func(a, b kept) int { return cmp.Compare(ahead(a), ahead(b)) })
	if keep == (incidentfile.ID{}) && len(all) > 0 {
		keep = all[len(all)-1].id
	}
	left, bytes := len(all), int64(0)
	for _, k := range all {
		bytes += k.size
	}
	for _, k := range all {
		expired, crowded := now.Sub(k.id.At) > s.maxAge, left > s.max || bytes > s.maxBytes
		if !expired && (!crowded || k.id == keep) {
			continue
		}
		if err := root.Remove(k.id.File()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("an old incident bundle cannot be removed: %w", err)
		}
		left, bytes = left-1, bytes-k.size
	}
	return nil
}

// clean removes what processes left that were killed while they wrote, and what is too old. It returns how many files were
// unfinished. Without a directory there is nothing to clean.
func (s *store) clean(now time.Time) (unfinished int, err error) {
	if _, err := os.Stat(s.path()); errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	root, err := s.open()
	if err != nil {
		return 0, err
	}
	defer root.Close()
	entries, err := owndir.Entries(root, ".")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		stem, temp := strings.CutSuffix(e.Name(), owndir.TempSuffix)
		if _, err := incidentfile.ParseFile(stem); !temp || err != nil || !e.Type().IsRegular() {
			continue
		}
		f, err := owndir.Lock(root, e.Name())
		if err != nil {
			continue // it is being written
		}
		if root.Remove(e.Name()) == nil {
			unfinished++
		}
		f.Close()
	}
	return unfinished, s.trim(now, incidentfile.ID{})
}

// newest returns the bundles, newest first.
func (s *store) newest() ([]incidentfile.ID, error) {
	root, err := s.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	all, err := s.list(root)
	var ids []incidentfile.ID
	for _, k := range slices.Backward(all) {
		ids = append(ids, k.id)
	}
	return ids, err
}

// read opens a bundle.
func (s *store) read(id incidentfile.ID) (*os.File, error) {
	root, err := s.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return owndir.OpenFile(root, id.File())
}
