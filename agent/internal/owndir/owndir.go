// Package owndir opens the directories that the agent writes to, so that another user of the machine cannot have the
// agent write, read or delete anywhere else, and locks files in them. Packages spool, save and instance are its users. It
// is not for directories that people only read.
//
// A person names the base directory; the agent makes the directories in it. The base may be a volume that root made
// and that everyone may write to, as in containers. The directories in it must be the agent's own: they belong to the
// effective user, nobody else may write to them, and none is a symbolic link. What is done below an [os.Root] stays
// below it.
//
// Windows has neither owners nor modes in this sense: there only links are refused.
package owndir

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Modes of what the agent makes: other users neither read nor write it.
const (
	DirMode  = 0o700
	FileMode = 0o600
)

// ErrUnsafe is wrapped by the error for a directory or a file that another user controls, or might.
var ErrUnsafe = errors.New("not safe to use")

// ErrLocked is wrapped by Lock's error if another process has the lock.
var ErrLocked = errors.New("locked by another process")

// Base opens the directory at path, and makes it and its parents if they are missing. It must belong to the effective
// user or to root. Symbolic links on the way to it must, too, and it must not be one itself.
func Base(path string) (*os.Root, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := links(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, DirMode); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return checked(root, path, os.Lstat, func(fi fs.FileInfo) error {
		if uid, ok := owner(fi); ok && uid != 0 && uid != os.Geteuid() {
			return unsafe(path, "belongs to the user %d: want %d, as whom the process runs, or root", uid, os.Geteuid())
		}
		return nil
	})
}

// links checks the owners of the symbolic links on the way to path.
func links(path string) error {
	for at := path; ; at = filepath.Dir(at) {
		fi, err := os.Lstat(at)
		if err == nil && fi.Mode().Type() == fs.ModeSymlink {
			if uid, ok := owner(fi); ok && uid != 0 && uid != os.Geteuid() {
				return unsafe(at, "is a symbolic link of the user %d", uid)
			}
		}
		if at == filepath.Dir(at) {
			return nil
		}
	}
}

// Make opens the directory name in base, and makes it if it is missing. It must be the agent's own.
func Make(base *os.Root, name string) (*os.Root, error) {
	err := base.Mkdir(name, DirMode)
	if err == nil {
		err = Sync(base)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return Open(base, name)
}

// Open opens the directory name in base. It must be the agent's own.
func Open(base *os.Root, name string) (*os.Root, error) {
	// A link out of the base cannot be opened: that it is a link is the better message.
	path := filepath.Join(base.Name(), name)
	if fi, err := base.Lstat(name); err == nil && fi.Mode().Type() == fs.ModeSymlink {
		return nil, unsafe(path, "is a symbolic link")
	}
	root, err := base.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	return checked(root, path, func(string) (fs.FileInfo, error) { return base.Lstat(name) }, func(fi fs.FileInfo) error {
		uid, ok := owner(fi)
		switch {
		case !ok:
			return nil
		case uid != os.Geteuid():
			return unsafe(path, "belongs to the user %d: want %d, as whom the process runs", uid, os.Geteuid())
		case fi.Mode().Perm()&0o022 != 0:
			return unsafe(path, "can be written by others (mode %v): chmod go-w", fi.Mode().Perm())
		}
		return nil
	})
}

// checked closes root and returns an error unless the directory that is open is the one that lstat finds, so that no
// link was followed, and allowed accepts it.
func checked(root *os.Root, path string, lstat func(string) (fs.FileInfo, error), allowed func(fs.FileInfo) error) (*os.Root, error) {
	opened, err := root.Stat(".")
	if err == nil {
		var named fs.FileInfo
		if named, err = lstat(path); err == nil {
			switch {
			case named.Mode().Type() == fs.ModeSymlink:
				err = unsafe(path, "is a symbolic link: name the directory itself")
			case !os.SameFile(opened, named):
				err = unsafe(path, "was replaced while it was opened")
			default:
				err = allowed(opened)
			}
		}
	}
	if err != nil {
		root.Close()
		return nil, err
	}
	return root, nil
}

func unsafe(path, format string, args ...any) error {
	return fmt.Errorf("%s %s: %w", path, fmt.Sprintf(format, args...), ErrUnsafe)
}

// Is reports whether the directory that is open is still the one at path.
func Is(root *os.Root, path string) bool {
	opened, err := root.Stat(".")
	if err != nil {
		return false
	}
	named, err := os.Lstat(path)
	return err == nil && os.SameFile(opened, named)
}

// Entries returns what is in the directory name, sorted by name. Use [os.Root.Lstat] for more about an entry: its own
// Info follows the path that the directory had when it was opened.
func Entries(root *os.Root, name string) ([]fs.DirEntry, error) {
	d, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	return entries, err
}

// OpenFile opens a file to read it, if it is a regular one of the agent's own: a link is not followed, a pipe not
// waited for.
func OpenFile(root *os.Root, name string) (*os.File, error) {
	path := filepath.Join(root.Name(), name)
	f, err := root.OpenFile(name, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return nil, err
	}
	opened, err := f.Stat()
	if err == nil {
		var named fs.FileInfo
		if named, err = root.Lstat(name); err == nil {
			uid, ok := owner(opened)
			switch {
			case !named.Mode().IsRegular() || !os.SameFile(opened, named):
				err = unsafe(path, "is not a regular file")
			case ok && uid != os.Geteuid():
				err = unsafe(path, "belongs to the user %d: want %d, as whom the process runs", uid, os.Geteuid())
			}
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// TempSuffix ends the name of a file that is being written. It gets its own name when it is complete.
const TempSuffix = ".tmp"

// Write writes a file so that it is there, complete and on the disk, whenever it is seen, in the place of one that was there
// before. An error from before that leaves everything as it was.
func Write(root *os.Root, name string, b []byte) error {
	temp := name + TempSuffix
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, FileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = root.Rename(temp, name)
	}
	if err != nil {
		_ = root.Remove(temp)
		return err
	}
	return Sync(root)
}
