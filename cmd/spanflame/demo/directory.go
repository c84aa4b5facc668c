package demo

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// marker is the file that marks a directory as a demo's own, so that data of an earlier run may be removed. A lock
// on it keeps a second demo out.
const marker = ".spanflame-demo"

// takeDirectory creates the directory and keeps other demos out of it until release is called or the process ends.
// It refuses a directory with files that are not a demo's.
func takeDirectory(dir string) (release func() error, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, marker)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		if len(entries) > 0 {
			return nil, fmt.Errorf("%s contains files that are not a demo's, such as %s, and the demo removes the contents of its directory", dir, entries[0].Name())
		}
	}
	lock, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return nil, errors.Join(fmt.Errorf("%s is in use by another demo", dir), lock.Close())
	case err != nil:
		return nil, errors.Join(fmt.Errorf("lock %s: %w", lock.Name(), err), lock.Close())
	}
	return lock.Close, nil
}
