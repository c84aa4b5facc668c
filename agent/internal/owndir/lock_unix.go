//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package owndir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Lock opens and locks a file, without waiting. The lock ends when the file is closed, which the system does for a
// process that was killed. The error wraps [ErrLocked] if another process has it.
func Lock(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE, FileMode)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, &fs.PathError{Op: "lock", Path: filepath.Join(root.Name(), name), Err: err}
	}
	return f, nil
}
