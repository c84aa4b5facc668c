//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package spool

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"spanflame/agent/internal/owndir"
)

// lockFile opens and locks a file, without waiting. The lock ends when the file is closed, which the system
// does for a process that was killed.
func lockFile(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE, owndir.FileMode)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, &fs.PathError{Op: "lock", Path: filepath.Join(root.Name(), name), Err: err}
	}
	return f, nil
}
