package incident

import (
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

// tempSuffix ends the name of a file that is being written. Its writer has it locked, so that one that a process left
// which was killed can be told from one of another process.
const tempSuffix = ".tmp"

// store is the directory with a service's bundles, limited in number, bytes and age. Processes of the service share it.
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
// everything as it was. Older bundles make room for it only afterwards.
func (s *store) write(id incidentfile.ID, fill func(io.Writer) error) (size int64, err error) {
	root, err := s.open()
	if err != nil {
		return 0, err
	}
	defer root.Close()
	temp := id.File() + tempSuffix
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
	return s.maxBytes - limited.left, s.trim(root, time.Now())
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

// trim removes bundles that are too old, and the oldest ones as long as there are too many or too many bytes: the newest
// stays.
func (s *store) trim(root *os.Root, now time.Time) error {
	all, err := s.list(root)
	if err != nil {
		return err
	}
	bytes := int64(0)
	for _, k := range all {
		bytes += k.size
	}
	for i, k := range all {
		crowded := len(all)-i > s.max || bytes > s.maxBytes
		if now.Sub(k.id.At) <= s.maxAge && (!crowded || i == len(all)-1) {
			break
		}
		if err := root.Remove(k.id.File()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("an old incident bundle cannot be removed: %w", err)
		}
		bytes -= k.size
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
		stem, temp := strings.CutSuffix(e.Name(), tempSuffix)
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
	return unfinished, s.trim(root, now)
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
