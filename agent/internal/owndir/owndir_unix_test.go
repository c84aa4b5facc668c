//go:build unix

package owndir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// nobody is a user that the tests do not run as.
const nobody = 65534

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can make what belongs to another user")
	}
}

func TestBaseIsMadeAndOnlyForItsUser(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	root, err := Base(path)
	must(t, err)
	defer root.Close()
	below, err := Make(root, "0")
	must(t, err)
	defer below.Close()
	for _, dir := range []string{filepath.Dir(path), path, filepath.Join(path, "0")} {
		fi, err := os.Stat(dir)
		must(t, err)
		if fi.Mode().Perm() != DirMode {
			t.Errorf("%s has the mode %v, want %v", dir, fi.Mode().Perm(), fs.FileMode(DirMode))
		}
	}
	if !Is(root, path) || Is(below, path) {
		t.Error("Is does not know the directory")
	}
	must(t, os.Rename(path, path+"-"))
	if Is(root, path) {
		t.Error("Is still knows a directory that was moved")
	}
}

func TestBaseRefusesWhatAnotherUserControls(t *testing.T) {
	asRoot(t)
	for name, make := range map[string]func(t *testing.T, dir, path string){
		"the directory": func(t *testing.T, dir, path string) {
			must(t, os.MkdirAll(path, 0o700))
			must(t, os.Chown(path, nobody, nobody))
		},
		"a link in its place": func(t *testing.T, dir, path string) {
			must(t, os.MkdirAll(filepath.Dir(path), 0o700))
			must(t, os.Symlink(dir, path))
			must(t, os.Lchown(path, nobody, nobody))
		},
		"a link on the way": func(t *testing.T, dir, path string) {
			must(t, os.Symlink(dir, filepath.Dir(path)))
			must(t, os.Lchown(filepath.Dir(path), nobody, nobody))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "shared", "spool")
			make(t, dir, path)
			before, err := os.ReadDir(dir)
			must(t, err)
			if root, err := Base(path); !errors.Is(err, ErrUnsafe) {
				if err == nil {
					root.Close()
				}
				t.Errorf("Base: %v, want %v", err, ErrUnsafe)
			}
			if after, err := os.ReadDir(dir); err != nil || len(after) != len(before) {
				t.Errorf("it made %v, %v", after, err)
			}
		})
	}
	t.Run("one's own link on the way", func(t *testing.T) {
		dir := t.TempDir()
		must(t, os.Symlink(dir, filepath.Join(dir, "link")))
		root, err := Base(filepath.Join(dir, "link", "spool"))
		must(t, err)
		root.Close()
	})
	t.Run("one's own link", func(t *testing.T) {
		dir := t.TempDir()
		must(t, os.Symlink(dir, filepath.Join(dir, "link")))
		if _, err := Base(filepath.Join(dir, "link")); !errors.Is(err, ErrUnsafe) {
			t.Errorf("Base: %v, want %v", err, ErrUnsafe)
		}
	})
}

func TestOpenRefusesWhatOthersControl(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "good"), 0o700))
	must(t, os.Mkdir(filepath.Join(dir, "writable"), 0o700))
	must(t, os.Chmod(filepath.Join(dir, "writable"), 0o720))
	must(t, os.Symlink("good", filepath.Join(dir, "link")))
	must(t, os.Symlink("/", filepath.Join(dir, "out")))
	refused := []string{"writable", "link", "out"}
	if os.Geteuid() == 0 {
		must(t, os.Mkdir(filepath.Join(dir, "theirs"), 0o700))
		must(t, os.Chown(filepath.Join(dir, "theirs"), nobody, nobody))
		refused = append(refused, "theirs")
	}
	base, err := Base(dir)
	must(t, err)
	defer base.Close()
	root, err := Open(base, "good")
	must(t, err)
	root.Close()
	for _, name := range refused {
		if root, err := Make(base, name); !errors.Is(err, ErrUnsafe) {
			if err == nil {
				root.Close()
			}
			t.Errorf("%s: %v, want %v", name, err, ErrUnsafe)
		}
	}
}

// TestAVolumeOfRootIsABaseForAnyUser has a base like that of containers: root made it, and everyone may write to it.
func TestAVolumeOfRootIsABaseForAnyUser(t *testing.T) {
	asRoot(t)
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o777))
	base, err := Base(dir)
	must(t, err)
	base.Close()
}

func TestOnlyRegularFilesOfItsOwnAreOpened(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "good"), nil, 0o600))
	must(t, os.Symlink("good", filepath.Join(dir, "link")))
	must(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "directory"), 0o700))
	refused := []string{"link", "pipe", "directory"}
	if os.Geteuid() == 0 {
		must(t, os.WriteFile(filepath.Join(dir, "theirs"), nil, 0o600))
		must(t, os.Chown(filepath.Join(dir, "theirs"), nobody, nobody))
		refused = append(refused, "theirs")
	}
	base, err := Base(dir)
	must(t, err)
	defer base.Close()
	f, err := OpenFile(base, "good")
	must(t, err)
	f.Close()
	for _, name := range refused {
		if f, err := OpenFile(base, name); !errors.Is(err, ErrUnsafe) {
			if err == nil {
				f.Close()
			}
			t.Errorf("%s: %v, want %v", name, err, ErrUnsafe)
		}
	}
	entries, err := Entries(base, ".")
	if err != nil || len(entries) < 4 || entries[0].Name() != "directory" {
		t.Errorf("entries %v, %v", entries, err)
	}
}
