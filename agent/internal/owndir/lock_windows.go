package owndir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"
)

// Lock opens and locks a file, without waiting. The lock ends when the file is closed, which the system does for a
// process that was killed. The error wraps [ErrLocked] if another process has it.
func Lock(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE, FileMode)
	if err != nil {
		return nil, err
	}
	// Windows lets no other process read what is locked: one byte far behind the end, so that the content can be read.
	behind := &windows.Overlapped{OffsetHigh: 1 << 30}
	const now = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
	if err := windows.LockFileEx(windows.Handle(f.Fd()), now, 0, 1, 0, behind); err != nil {
		f.Close()
		if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
			err = ErrLocked
		}
		return nil, &fs.PathError{Op: "lock", Path: filepath.Join(root.Name(), name), Err: err}
	}
	return f, nil
}
