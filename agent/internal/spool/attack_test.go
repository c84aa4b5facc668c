//go:build unix

package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"spanflame/agent/internal/owndir"
	"spanflame/agent/internal/owndir/owndirtest"
	"spanflame/internal/record"
)

// planted is a record's file that everyone can read.
func planted(t *testing.T, r record.Record) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "planted")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	var b bytes.Buffer
	must(t, record.Encode(&b, r))
	path := filepath.Join(dir, "0000000000000001-"+r.FileName())
	must(t, os.WriteFile(path, b.Bytes(), 0o644))
	return path
}

// fillVictim puts old files with the names of records into a directory.
func fillVictim(t *testing.T, dir string) []string {
	t.Helper()
	for i, name := range []string{rec(1).FileName(), "README.reason.txt", "data", rec(2).FileName() + reasonSuffix} {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, make([]byte, 1000), 0o600))
		must(t, os.Chtimes(path, time.Time{}, time.Unix(int64(i), 0)))
	}
	return files(t, dir)
}

// deliverable returns the labels of the records that the spool hands out.
func deliverable(t *testing.T, s *Spool) []string {
	t.Helper()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var got []string
	for {
		it, err := s.Next(ended)
		if err != nil {
			return got
		}
		got = append(got, it.Record.Labels["n"])
		s.Done(it)
	}
}

// TestAnotherUsersDirectoryIsNotUsed: a user who creates the spool's directory first controls neither what the agent deletes
// nor what it sends.
func TestAnotherUsersDirectoryIsNotUsed(t *testing.T) {
	tmp, victim := owndirtest.Shared(t)
	there := fillVictim(t, victim)
	dir := filepath.Join(tmp, "spanflame", "spool", "shop")
	owndirtest.Attack(t, `umask 022; mkdir -p "$1/0"; ln -s "$2" "$1/set-aside"; cp "$3" "$1/0/"`, dir, victim, planted(t, rec(666)))

	s := open(t, Options{Dir: dir, SetAsideBytes: 1})
	s.Put(rec(0))
	s.Put(rec(1))
	s.SetAside(next(t, s), "permanent", "test")
	if st := s.Stats(); !errors.Is(st.Degraded, owndir.ErrUnsafe) || st.MemoryItems != 1 {
		t.Errorf("%+v, want one record in memory, and why", st)
	}
	if got := deliverable(t, s); fmt.Sprint(got) != "[1]" {
		t.Errorf("delivered %v, want what this process put alone", got)
	}
	if left := files(t, victim); !slices.Equal(left, there) {
		t.Errorf("of the files %q there are %q", there, left)
	}
	balance(t, s)
}

// TestASharedVolume has a directory of root that everyone may write to, in which another user plants slots and links.
func TestASharedVolume(t *testing.T) {
	tmp, victim := owndirtest.Shared(t)
	there := fillVictim(t, victim)
	dir := filepath.Join(tmp, "volume")
	must(t, os.Mkdir(dir, 0o700))
	must(t, os.Chmod(dir, 0o777))
	owndirtest.Attack(t, `umask 0; mkdir "$1/0"; cp "$3" "$1/0/"; ln -s "$2" "$1/1"; ln -s "$2" "$1/set-aside"; ln -s 0 "$1/2"`,
		dir, victim, planted(t, rec(666)))

	s := open(t, Options{Dir: dir, SetAsideBytes: 1})
	if st := s.Stats(); st.Degraded != nil || st.Dir != filepath.Join(dir, "3") {
		t.Errorf("%+v, want the first slot that is nobody's", st)
	}
	s.Put(rec(0))
	s.Put(rec(1))
	s.SetAside(next(t, s), "permanent", "test")
	s.tick()
	if got := deliverable(t, s); fmt.Sprint(got) != "[1]" {
		t.Errorf("delivered %v, want what this process put alone", got)
	}
	if left := files(t, victim); !slices.Equal(left, there) {
		t.Errorf("of the files %q there are %q", there, left)
	}
	if left := files(t, filepath.Join(dir, "3")); len(left) != 1 {
		t.Errorf("in the slot there is %q, want the one file that cannot be set aside", left)
	}
	s.Close()

	// The process's own slot is swapped for another user's while it is down.
	owndirtest.Attack(t, `umask 0; mv "$1/3" "$1/taken"; mkdir "$1/3"; cp "$2" "$1/3/"`, dir, planted(t, rec(667)))
	s = open(t, Options{Dir: dir})
	if got := deliverable(t, s); len(got) > 0 {
		t.Errorf("delivered %v, want nothing", got)
	}
}

func TestAFileOfAnotherUserIsNotSent(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	s.Put(rec(0))
	s.Put(rec(1))
	s.Close()
	if os.Geteuid() != 0 {
		t.Skip("only root can make a file of another user")
	}
	must(t, os.Chown(filepath.Join(dir, "0", files(t, filepath.Join(dir, "0"))[0]), owndirtest.Nobody, owndirtest.Nobody))
	s = open(t, Options{Dir: dir})
	if got := deliverable(t, s); fmt.Sprint(got) != "[1]" {
		t.Errorf("delivered %v, want the file of this user alone", got)
	}
	balance(t, s)
}

func TestOnlyRecordsAndTheirReasonsAreDeleted(t *testing.T) {
	dir := t.TempDir()
	aside := filepath.Join(dir, asideName)
	must(t, os.Mkdir(aside, 0o700))
	all := fillVictim(t, aside)
	s := open(t, Options{Dir: dir, SetAsideBytes: 1})
	left := files(t, aside)
	if fmt.Sprint(left) != "[README.reason.txt data]" {
		t.Errorf("of %q there are %q, want all but the records and their reasons", all, left)
	}
	if st := s.Stats(); st.Sum(Evicted).Items != 1 || st.SetAsideBytes != 2000 {
		t.Errorf("%+v", st)
	}
}

func TestRecordsOfAnotherServiceAreSetAside(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	s.Put(rec(0))
	s.Close()
	other := rec(1)
	other.Service = "other"
	path := planted(t, other)
	must(t, os.Rename(path, filepath.Join(dir, "0", strings.Replace(filepath.Base(path), "1-", "9-", 1))))
	s = open(t, Options{Dir: dir})
	if got := deliverable(t, s); fmt.Sprint(got) != "[0]" {
		t.Errorf("delivered %v, want the record of this service alone", got)
	}
	if n := s.Stats().Counts[Key{SetAside, "other_service", record.CPU}].Items; n != 1 {
		t.Errorf("%+v", s.Stats())
	}
	balance(t, s)
}

// TestServicesThatShareADirectory do not touch each other's slots, as long as there are records in them.
func TestServicesThatShareADirectory(t *testing.T) {
	dir := t.TempDir()
	a := open(t, Options{Dir: dir})
	a.Put(rec(0))
	a.Close()
	b := open(t, Options{Service: "other", Dir: dir})
	if st := b.Stats(); st.Dir != filepath.Join(dir, "1") || st.Items != 0 {
		t.Errorf("%+v, want a slot of its own", st)
	}
	b.Close()
	lock := filepath.Join(dir, "0", lockName)
	if name, err := os.ReadFile(lock); err != nil || string(name) != "shop" {
		t.Errorf("the lock's file has %q, %v: want the service", name, err)
	}
	must(t, os.WriteFile(lock, make([]byte, 4), 0o600)) // a power cut
	a = open(t, Options{Dir: dir})
	if got := deliverable(t, a); fmt.Sprint(got) != "[0]" {
		t.Errorf("delivered %v, want what the service left", got)
	}
	a.Close()
	b = open(t, Options{Service: "other", Dir: dir})
	if st := b.Stats(); st.Dir != filepath.Join(dir, "0") {
		t.Errorf("%+v, want the slot that is empty now", st)
	}
}

func TestWithoutADirectoryTheQueueIsInMemory(t *testing.T) {
	s := open(t, Options{})
	s.Put(rec(0))
	if st := s.Stats(); st.MemoryItems != 1 || st.Degraded == nil || !strings.Contains(st.Degraded.Error(), "SPANFLAME_SPOOL_DIR") {
		t.Errorf("%+v, want the record in memory, and what to set", st)
	}
	s.SetAside(next(t, s), "permanent", "test")
	if n := dropped(s, "set_aside_failed"); n != 1 {
		t.Errorf("%+v", s.Stats())
	}
	balance(t, s)
}
