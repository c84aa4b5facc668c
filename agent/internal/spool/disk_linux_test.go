package spool

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"spanflame/agent/internal/owndir"
	"spanflame/agent/internal/owndir/owndirtest"
)

// TestDiskFullInTheMiddleOfAWrite fills a small filesystem, reads on from disk and memory, makes space, and
// finds everything back on disk.
func TestDiskFullInTheMiddleOfAWrite(t *testing.T) {
	s := open(t, Options{Dir: owndirtest.Disk(t, "128k")})
	big := func(i int) {
		r := rec(i)
		r.Profile = profile(20_000)
		s.Put(r)
	}
	for i := range 10 { // six fit
		big(i)
	}
	st := s.Stats()
	if st.Degraded == nil || st.MemoryItems == 0 || st.Items != 10 || st.Sum(Dropped).Items != 0 {
		t.Fatalf("%+v", st)
	}
	s.Put(rec(10)) // small enough for the rest of the disk, but younger than what is in memory
	if n := s.Stats().MemoryItems; n != st.MemoryItems+1 {
		t.Errorf("%d in memory, want %d", n, st.MemoryItems+1)
	}
	for _, name := range files(t, st.Dir) {
		if strings.HasSuffix(name, owndir.TempSuffix) {
			t.Errorf("left over: %s", name)
		}
	}
	var got []string
	for range 10 - st.MemoryItems { // the disk's own are delivered, which makes space
		it := next(t, s)
		got = append(got, it.Record.Labels["n"])
		s.Done(it)
	}
	big(11)
	if st := s.Stats(); st.Degraded != nil || st.MemoryItems != 0 {
		t.Errorf("with space again: %+v", st)
	}
	for s.Stats().Items > 0 {
		it := next(t, s)
		got = append(got, it.Record.Labels["n"])
		s.Done(it)
	}
	if fmt.Sprint(got) != "[0 1 2 3 4 5 6 7 8 9 10 11]" {
		t.Errorf("delivered %v", got)
	}
	balance(t, s)
}

func TestAReadOnlyDirectory(t *testing.T) {
	dir := owndirtest.Disk(t, "1m")
	remount := func(flags uintptr) { must(t, syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|flags, "")) }
	s := open(t, Options{Dir: dir})
	s.Put(rec(0))
	s.Close()
	remount(syscall.MS_RDONLY)
	s = open(t, Options{Dir: dir})
	s.Put(rec(1))
	if st := s.Stats(); st.Degraded == nil || st.MemoryItems != 1 {
		t.Fatalf("%+v", st)
	}
	remount(0)
	s.Put(rec(2))
	if got := drain(t, s); got != "0 1 2" {
		t.Errorf("order %q", got)
	}
	s.Close()
}
