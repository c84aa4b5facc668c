package spool

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"spanflame/agent/internal/owndir"
	"spanflame/internal/record"
)

// TestDamagedFiles puts one bad file between two good records. In every case the good records are delivered, the bad file
// is set aside unchanged with a file that has the reason, and the counters agree.
func TestDamagedFiles(t *testing.T) {
	cut := func(n int) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			fi, err := os.Stat(path)
			must(t, err)
			must(t, os.Truncate(path, fi.Size()*int64(n)/100))
		}
	}
	replace := func(b []byte) func(t *testing.T, path string) {
		return func(t *testing.T, path string) { must(t, os.WriteFile(path, b, 0o600)) }
	}
	become := func(f func(path string) error) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, f(path))
		}
	}
	outside := filepath.Join(t.TempDir(), "outside")
	must(t, os.WriteFile(outside, []byte("not to be read, not to be moved"), 0o600))
	var good bytes.Buffer
	must(t, record.Encode(&good, rec(7)))

	for name, tc := range map[string]struct {
		reason string
		spoil  func(t *testing.T, path string)
	}{
		"truncated in the profile":  {"damaged", cut(90)},
		"truncated in the metadata": {"damaged", cut(10)},
		"empty":                     {"damaged", cut(0)},
		"zero-filled":               {"damaged", replace(make([]byte, 700))},
		"text":                      {"damaged", replace([]byte("hello"))},
		"a profile of another tool": {"foreign", replace(profile(100))},
		"a directory":               {"not_a_file", become(func(p string) error { return os.MkdirAll(filepath.Join(p, "sub"), 0o700) })},
		"a link to a file":          {"not_a_file", become(func(p string) error { return os.Symlink(outside, p) })},
		"a link to nothing":         {"not_a_file", become(func(p string) error { return os.Symlink("/nonexistent", p) })},
		"a name with no number": {"foreign_name", become(func(p string) error {
			return os.WriteFile(filepath.Join(filepath.Dir(p), "cpu.pb.gz"), good.Bytes(), 0o600)
		})},
		"a name with a wrong number": {"foreign_name", become(func(p string) error {
			return os.WriteFile(filepath.Join(filepath.Dir(p), "ffffffffffffffff-"+rec(0).FileName()), good.Bytes(), 0o600)
		})},
		"a foreign temporary file": {"foreign_name", become(func(p string) error {
			return os.WriteFile(filepath.Join(filepath.Dir(p), "x.tmp"), good.Bytes(), 0o600)
		})},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, Options{Dir: dir})
			for i := range 3 {
				s.Put(rec(i))
			}
			s.Close()
			slot := filepath.Join(dir, "0")
			tc.spoil(t, filepath.Join(slot, files(t, slot)[1]))
			found := files(t, slot)

			s = open(t, Options{Dir: dir})
			s.Put(rec(3))
			var got []string
			for range 3 {
				it := next(t, s)
				got = append(got, it.Record.Labels["n"])
				s.Done(it)
			}
			if fmt.Sprint(got) != "[0 2 3]" {
				t.Errorf("delivered %v", got)
			}
			n := 0
			for k, c := range s.Stats().Counts {
				if k.Event == SetAside && k.Reason == tc.reason {
					n += c.Items
				}
			}
			if n != 1 || s.Stats().Sum(SetAside).Items != 1 || s.Stats().Items != 0 {
				t.Errorf("set aside as %s: %d, %+v", tc.reason, n, s.Stats())
			}
			balance(t, s)
			kept := files(t, filepath.Join(dir, asideName))
			if len(kept) != 2 || !strings.HasSuffix(kept[1], reasonSuffix) {
				t.Fatalf("found %v, kept %v", found, kept)
			}
			if left := files(t, slot); len(left) != 0 {
				t.Errorf("in the way: %v", left)
			}
			if b, err := os.ReadFile(outside); err != nil || len(b) == 0 {
				t.Errorf("the file outside: %q, %v", b, err)
			}
		})
	}
}

func TestAFileWithoutPermission(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may read every file")
	}
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	s.Put(rec(0))
	s.Put(rec(1))
	must(t, os.Chmod(filepath.Join(dir, "0", files(t, filepath.Join(dir, "0"))[0]), 0))
	if it := next(t, s); it.Record.Labels["n"] != "1" {
		t.Errorf("got %v", it.Record.Labels)
	}
	if c := s.Stats().Counts[Key{SetAside, "unreadable", record.CPU}]; c.Items != 1 {
		t.Errorf("%+v", s.Stats())
	}
}

func TestUnfinishedFilesAreCleanedUpAndCounted(t *testing.T) {
	dir := t.TempDir()
	slot := filepath.Join(dir, "0")
	must(t, os.Mkdir(slot, 0o700))
	must(t, os.WriteFile(filepath.Join(slot, "0000000000000001-"+rec(0).FileName()+owndir.TempSuffix), []byte("half"), 0o600))
	s := open(t, Options{Dir: dir})
	if c := s.Stats().Counts[Key{Unfinished, "", record.CPU}]; c != (Count{1, 4}) {
		t.Errorf("%+v", s.Stats())
	}
	if left := files(t, slot); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestAFileThatTurnsIntoALinkIsNotFollowed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	s.Put(rec(0))
	s.Put(rec(1))
	outside := filepath.Join(t.TempDir(), "secret")
	var b bytes.Buffer
	must(t, record.Encode(&b, rec(9)))
	must(t, os.WriteFile(outside, b.Bytes(), 0o600))
	path := filepath.Join(dir, "0", files(t, filepath.Join(dir, "0"))[0])
	must(t, os.Remove(path))
	must(t, os.Symlink(outside, path))
	if it := next(t, s); it.Record.Labels["n"] != "1" {
		t.Errorf("got %v", it.Record.Labels)
	}
	if c := s.Stats().Counts[Key{SetAside, "unreadable", record.CPU}]; c.Items != 1 {
		t.Errorf("%+v", s.Stats())
	}
}

func FuzzParseFile(f *testing.F) {
	f.Add("0000000000000001-" + rec(0).FileName())
	f.Add("4000000000000000-" + rec(0).FileName())
	f.Add("lock")
	f.Fuzz(func(t *testing.T, name string) {
		seq, n, ok := parseFile(name)
		if !ok {
			return
		}
		s := slot{dir: "d"}
		if got := s.path(seq, n); got != filepath.Join("d", name) || seq >= maxSeq {
			t.Fatalf("%q is written as %q", name, got)
		}
	})
}
