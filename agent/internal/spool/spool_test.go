package spool

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"spanflame/internal/record"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		crashChild(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// profile is a gzip member that holds n bytes uncompressed.
func profile(n int) []byte {
	var b bytes.Buffer
	zw, _ := gzip.NewWriterLevel(&b, gzip.NoCompression)
	zw.Write(bytes.Repeat([]byte{7}, n))
	zw.Close()
	return b.Bytes()
}

var begin = time.Now().Truncate(time.Second)

// rec returns the i-th record of a test; its label distinguishes it from the others.
func rec(i int) record.Record {
	start := begin.Add(time.Duration(i) * time.Millisecond)
	return record.Record{
		Meta: record.Meta{
			Service: "shop", Type: record.CPU, Start: start, End: start.Add(time.Second),
			Labels: map[string]string{"n": fmt.Sprint(i)},
		},
		Profile: profile(500),
	}
}

func open(t *testing.T, o Options) *Spool {
	t.Helper()
	if o.Service == "" {
		o.Service = "shop"
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func next(t *testing.T, s *Spool) *Item {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	it, err := s.Next(ctx)
	if err != nil {
		t.Fatalf("Next: %v; %+v", err, s.Stats())
	}
	return it
}

// drain takes everything there is and returns the records' labels in order.
func drain(t *testing.T, s *Spool) string {
	t.Helper()
	var got []string
	for s.Stats().Items > 0 {
		it := next(t, s)
		got = append(got, it.Record.Labels["n"])
		s.Done(it)
	}
	balance(t, s)
	return strings.Join(got, " ")
}

// balance checks that no record is lost from the counters.
func balance(t *testing.T, s *Spool) {
	t.Helper()
	st := s.Stats()
	in, out := st.Sum(Put), st.Sum(Delivered)
	for _, e := range []Event{Recovered, Adopted} {
		in.Items += st.Sum(e).Items
		in.Bytes += st.Sum(e).Bytes
	}
	for _, e := range []Event{Dropped, SetAside} {
		out.Items += st.Sum(e).Items
		out.Bytes += st.Sum(e).Bytes
	}
	out.Items += st.Items
	out.Bytes += st.Bytes
	if in != out {
		t.Errorf("in %+v, out and queued %+v: %+v", in, out, st)
	}
}

func dropped(s *Spool, reason string) int {
	n := 0
	for k, c := range s.Stats().Counts {
		if k.Event == Dropped && k.Reason == reason {
			n += c.Items
		}
	}
	return n
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, d := range list {
		if d.Name() != lockName {
			names = append(names, d.Name())
		}
	}
	return names
}

func TestWrongOptionsAreNamed(t *testing.T) {
	for want, o := range map[string]Options{
		"Service":       {Dir: "x"},
		"MaxBytes":      {Service: "shop", Dir: "x", MaxBytes: -1},
		"MaxAge":        {Service: "shop", Dir: "x", MaxAge: -1},
		"MemoryBytes":   {Service: "shop", Dir: "x", MemoryBytes: -1},
		"SetAsideBytes": {Service: "shop", Dir: "x", SetAsideBytes: -1},
	} {
		if _, err := Open(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestRecordsComeBackInOrder(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	for i := range 5 {
		s.Put(rec(i))
	}
	first := next(t, s)
	if want := rec(0); !bytes.Equal(first.Record.Profile, want.Profile) || !first.Record.Start.Equal(want.Start) {
		t.Errorf("got %+v", first.Record.Meta)
	}
	s.Release(first)
	if got := drain(t, s); got != "0 1 2 3 4" {
		t.Errorf("order %q", got)
	}
	if left := files(t, s.slot.dir); len(left) > 0 {
		t.Errorf("delivered, but still there: %v", left)
	}
}

func TestOrderIsOfArrivalNotOfTheClock(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	for _, i := range []int{5, 3, 9, 1} {
		s.Put(rec(i))
	}
	s.Close()
	s = open(t, Options{Dir: dir})
	s.Put(rec(0))
	s.Close()
	s = open(t, Options{Dir: dir})
	if got := drain(t, s); got != "5 3 9 1 0" {
		t.Errorf("order %q", got)
	}
}

func TestNextWaitsForARecord(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := open(t, Options{Dir: dir})
		got := make(chan string)
		go func() {
			it, err := s.Next(t.Context())
			if err != nil {
				t.Error(err)
			}
			got <- it.Record.Labels["n"]
			s.Done(it)
		}()
		synctest.Wait()
		s.Put(rec(1))
		if n := <-got; n != "1" {
			t.Errorf("got %q", n)
		}
	})
}

func TestNextEndsWithItsContextAndWithTheSpool(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(nil)
	s.Put(rec(0))
	it, err := s.Next(ctx)
	if err != nil {
		t.Fatalf("cancelled with a record queued: %v, want the record", err)
	}
	s.Done(it)
	if _, err := s.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled with nothing queued: %v", err)
	}
	end := make(chan error)
	go func() {
		_, err := s.Next(t.Context())
		end <- err
	}()
	s.Close()
	if err := <-end; !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestAnItemEndsOnce(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	s.Put(rec(0))
	it := next(t, s)
	s.Done(it)
	s.Done(it)
	s.Release(it)
	s.SetAside(it, "x", "")
	if st := s.Stats(); st.Sum(Delivered).Items != 1 || st.Sum(SetAside).Items != 0 || st.Items != 0 {
		t.Errorf("%+v", st)
	}
}

func TestAboveMaxBytesTheOldestGo(t *testing.T) {
	dir := t.TempDir()
	var size bytes.Buffer
	record.Encode(&size, rec(0))
	s := open(t, Options{Dir: dir, MaxBytes: int64(size.Len()*3 + 100)})
	s.Put(rec(0))
	held := next(t, s) // what the reader holds is not taken from it
	for i := 1; i < 10; i++ {
		s.Put(rec(i))
	}
	if n := dropped(s, "full"); n != 7 {
		t.Errorf("dropped %d, want 7", n)
	}
	s.Release(held)
	if got := drain(t, s); got != "0 8 9" {
		t.Errorf("left %q", got)
	}
	big := rec(10)
	big.Profile = profile(size.Len() * 4)
	s.Put(big)
	if n := dropped(s, "too_large"); n != 1 {
		t.Errorf("dropped as too large: %d", n)
	}
	balance(t, s)
}

func TestAboveMaxAgeTheOldestGo(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := open(t, Options{Dir: dir, MaxAge: time.Hour})
		s.Put(rec(0))
		time.Sleep(time.Hour + time.Second)
		s.Put(rec(1))
		it, err := s.Next(t.Context())
		if err != nil || it.Record.Labels["n"] != "1" {
			t.Fatalf("%+v, %v", it, err)
		}
		s.Done(it)
		if n := dropped(s, "age"); n != 1 || len(files(t, s.slot.dir)) != 0 {
			t.Errorf("dropped %d, files %v", n, files(t, s.slot.dir))
		}
		balance(t, s)
	})
}

// TestAClockSetForwardDropsNothing has records of a year ago by the wall clock, put by this process and an earlier one.
func TestAClockSetForwardDropsNothing(t *testing.T) {
	old := func(i int) record.Record {
		r := rec(i)
		r.Start, r.End = r.Start.AddDate(-1, 0, 0), r.End.AddDate(-1, 0, 0)
		return r
	}
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := open(t, Options{Dir: dir, MaxAge: time.Hour})
		s.Put(old(0))
		s.Close()
		s = open(t, Options{Dir: dir, MaxAge: time.Hour})
		s.Put(old(1))
		time.Sleep(time.Hour)
		s.Put(old(2))
		if st := s.Stats(); st.Items != 3 || st.Sum(Dropped).Items != 0 {
			t.Errorf("%+v", st)
		}
		time.Sleep(time.Hour)
		s.Put(old(3))
		if got := drain(t, s); got != "2 3" || dropped(s, "age") != 2 {
			t.Errorf("left %q, %+v: want those that were put in the last hour", got, s.Stats())
		}
	})
}

// TestARecordInMemoryIsAsOnDisk: a reader has the same times, wherever the record was.
func TestARecordInMemoryIsAsOnDisk(t *testing.T) {
	r := rec(0)
	r.Start = time.Now()
	r.End = r.Start.Add(time.Second)
	for _, o := range []Options{{}, {Dir: t.TempDir()}} {
		s := open(t, o)
		s.Put(r)
		if got := next(t, s).Record; got.Start != r.Canonical().Start || got.End != r.Canonical().End {
			t.Errorf("in %q: from %v to %v, want %+v", o.Dir, got.Start, got.End, r.Canonical())
		}
	}
}

func TestAnInvalidRecordIsCounted(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	s.Put(record.Record{Meta: record.Meta{Type: "Nonsense"}, Profile: []byte("x")})
	if n := dropped(s, "invalid"); n != 1 || s.Stats().Counts[Key{Dropped, "invalid", "other"}].Items != 1 {
		t.Errorf("%+v", s.Stats())
	}
	balance(t, s)
}

func TestASetAsideRecordIsAProfileWithItsReason(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	s.Put(rec(1))
	s.SetAside(next(t, s), "too_old", "raise limits.reject_older_than")
	names := files(t, filepath.Join(dir, asideName))
	if len(names) != 2 || names[1] != names[0]+reasonSuffix {
		t.Fatalf("%v", names)
	}
	if _, err := record.ParseFileName(names[0]); err != nil {
		t.Error(err)
	}
	f, err := os.Open(filepath.Join(dir, asideName, names[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if r, err := record.Decode(f, 1<<20); err != nil || r.Labels["n"] != "1" {
		t.Errorf("%+v, %v", r.Meta, err)
	}
	text, _ := os.ReadFile(filepath.Join(dir, asideName, names[1]))
	if !strings.Contains(string(text), "too_old\nraise limits.reject_older_than") {
		t.Errorf("reason %q", text)
	}
	if c := s.Stats().Counts[Key{SetAside, "too_old", record.CPU}]; c.Items != 1 {
		t.Errorf("%+v", s.Stats())
	}
	balance(t, s)
}

func TestSetAsideIsBounded(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir, SetAsideBytes: 3000})
	for i := range 20 {
		s.Put(rec(i))
		s.SetAside(next(t, s), "refused", "no")
	}
	var total int64
	kept := 0
	for _, name := range files(t, filepath.Join(dir, asideName)) {
		fi, err := os.Lstat(filepath.Join(dir, asideName, name))
		if err != nil {
			t.Fatal(err)
		}
		total += fi.Size()
		if !strings.HasSuffix(name, reasonSuffix) {
			kept++
		}
	}
	st := s.Stats()
	if total > 3000 || kept == 0 || st.Sum(Evicted).Items != 20-kept || st.SetAsideBytes != total {
		t.Errorf("%d bytes, %d kept, %+v", total, kept, st)
	}
	balance(t, s)
}

func TestNothingSetAsideIsOverwritten(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"one", "two"} {
		must(t, os.MkdirAll(filepath.Join(dir, "0"), 0o700))
		must(t, os.WriteFile(filepath.Join(dir, "0", "README"), []byte(text), 0o600))
		open(t, Options{Dir: dir}).Close()
	}
	var kept []string
	for _, name := range files(t, filepath.Join(dir, asideName)) {
		if strings.HasSuffix(name, "README") {
			b, err := os.ReadFile(filepath.Join(dir, asideName, name))
			must(t, err)
			kept = append(kept, string(b))
		}
	}
	if len(kept) != 2 || kept[0] == kept[1] {
		t.Errorf("kept %q", kept)
	}
}

func TestWhatTheReaderHoldsInMemoryIsNotDropped(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(dir, nil, 0o600))
	s := open(t, Options{Dir: dir, MemoryBytes: 4000})
	s.Put(rec(0))
	held := next(t, s)
	for i := 1; i < 20; i++ {
		s.Put(rec(i))
	}
	s.Release(held)
	if got := drain(t, s); !strings.HasPrefix(got, "0 ") || !strings.HasSuffix(got, " 19") {
		t.Errorf("left %q", got)
	}
}

// A record can be delivered from memory while it is being moved to the disk.
func TestARecordDeliveredWhileItIsMovedLeavesNoFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	must(t, os.WriteFile(dir, nil, 0o600))
	s := open(t, Options{Dir: dir})
	s.Put(rec(0))
	it := next(t, s)
	s.Done(it)
	must(t, os.Remove(dir))
	must(t, s.move(it.entry))
	if left := files(t, filepath.Join(dir, "0")); len(left) != 0 || s.Stats().Bytes != 0 {
		t.Errorf("left %v, %+v", left, s.Stats())
	}
	balance(t, s)
}

func TestTwoProcessesShareADirectory(t *testing.T) {
	dir := t.TempDir()
	a := open(t, Options{Dir: dir})
	b := open(t, Options{Dir: dir})
	if a.Stats().Dir == b.Stats().Dir {
		t.Fatalf("both own %s", a.Stats().Dir)
	}
	a.Put(rec(1))
	b.Put(rec(2))
	b.tick() // a is alive: its records stay its own
	if got := drain(t, b); got != "2" {
		t.Errorf("b has %q", got)
	}
	a.Put(rec(3))
	a.Close()
	b.Put(rec(4))
	b.tick()
	if got := drain(t, b); got != "4 1 3" {
		t.Errorf("after a's end b has %q", got)
	}
	if n := b.Stats().Sum(Adopted).Items; n != 2 {
		t.Errorf("adopted %d", n)
	}
	c := open(t, Options{Dir: dir})
	if c.Stats().Dir != filepath.Join(dir, "0") || c.Stats().Items != 0 {
		t.Errorf("%+v", c.Stats())
	}
}

func TestEachRecordIsAdoptedOnce(t *testing.T) {
	dir := t.TempDir()
	for i := range 4 { // the slots of four processes that have ended
		one := t.TempDir()
		s := open(t, Options{Dir: one})
		for j := range 25 {
			s.Put(rec(i*25 + j))
		}
		s.Close()
		must(t, os.Rename(filepath.Join(one, "0"), filepath.Join(dir, fmt.Sprint(10+i))))
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	seen := map[string]int{}
	for range 4 { // four new ones start at once
		wg.Go(func() {
			s, err := Open(Options{Service: "shop", Dir: dir})
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			for s.Stats().Items > 0 {
				it, err := s.Next(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				seen[it.Record.Labels["n"]]++
				mu.Unlock()
				s.Done(it)
			}
		})
	}
	wg.Wait()
	for i := range 100 {
		if n := seen[fmt.Sprint(i)]; n != 1 {
			t.Errorf("record %d was read %d times", i, n)
		}
	}
}

// TestAnUnusableDirectory covers what an operator can get wrong. The service runs on, and what the directory
// cannot take is in memory.
func TestAnUnusableDirectory(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, dir string){
		"is a file":          func(t *testing.T, dir string) { must(t, os.WriteFile(dir, nil, 0o600)) },
		"is below a file":    func(t *testing.T, dir string) { must(t, os.WriteFile(filepath.Dir(dir), nil, 0o600)) },
		"is a dangling link": func(t *testing.T, dir string) { must(t, os.Symlink("/nonexistent/spool", dir)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "a", "spool")
			if name != "is below a file" {
				must(t, os.Mkdir(filepath.Dir(dir), 0o700))
			}
			spoil(t, dir)
			var log bytes.Buffer
			s := open(t, Options{Dir: dir, MemoryBytes: 4000, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			for i := range 10 {
				s.Put(rec(i))
			}
			st := s.Stats()
			if st.Degraded == nil || st.MemoryItems == 0 || st.MemoryItems != st.Items || st.MemoryBytes > 4000 {
				t.Errorf("%+v", st)
			}
			if n := dropped(s, "memory_full"); n != 10-st.Items {
				t.Errorf("dropped %d of 10, kept %d", n, st.Items)
			}
			if n := strings.Count(log.String(), "kept in memory"); n != 1 {
				t.Errorf("logged %d times:\n%s", n, log.String())
			}
			balance(t, s)
			// The reader still gets all records, in order.
			it := next(t, s)
			if it.Record.Labels["n"] != fmt.Sprint(10-st.Items) {
				t.Errorf("first is %s", it.Record.Labels["n"])
			}
			s.Release(it)
			// The operator mends it, and all comes to the disk with the next record.
			must(t, os.RemoveAll(filepath.Dir(dir)))
			s.Put(rec(10))
			if after := s.Stats(); after.Degraded != nil || after.MemoryItems != 0 || after.Items != st.Items+1 {
				t.Errorf("after the repair %+v", after)
			}
			if !strings.Contains(log.String(), "to disk again") {
				t.Errorf("the recovery was not logged:\n%s", log.String())
			}
			s.Close()
			s = open(t, Options{Dir: dir})
			if n := s.Stats().Sum(Recovered).Items; n != st.Items+1 {
				t.Errorf("recovered %d, want %d", n, st.Items+1)
			}
		})
	}
}

func TestTheDirectoryIsRemovedWhileRunning(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: filepath.Join(dir, "spool")})
	s.Put(rec(0))
	must(t, os.RemoveAll(filepath.Join(dir, "spool")))
	s.Put(rec(1)) // notices
	s.Put(rec(2)) // starts again
	if st := s.Stats(); st.Degraded != nil || st.MemoryItems != 0 {
		t.Errorf("%+v", st)
	}
	var got []string
	for range 2 {
		it := next(t, s)
		got = append(got, it.Record.Labels["n"])
		s.Done(it)
	}
	if fmt.Sprint(got) != "[1 2]" || dropped(s, "missing") != 1 {
		t.Errorf("%v, %+v", got, s.Stats())
	}
	balance(t, s)
}

func TestCloseCountsWhatIsLostWithTheProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(dir, nil, 0o600))
	s := open(t, Options{Dir: dir})
	s.Put(rec(0))
	s.Put(rec(1))
	held := next(t, s)
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "2 records") {
		t.Errorf("%v", err)
	}
	if n := dropped(s, "closed"); n != 2 {
		t.Errorf("dropped %d", n)
	}
	s.Done(held) // too late, and harmless
	s.Put(rec(2))
	if n := dropped(s, "closed"); n != 3 {
		t.Errorf("dropped %d", n)
	}
	if err := s.Close(); err != nil {
		t.Errorf("the second Close: %v", err)
	}
	balance(t, s)
}

func TestCloseSavesWhatTheReaderHoldsInMemory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	must(t, os.WriteFile(dir, nil, 0o600))
	s := open(t, Options{Dir: dir})
	s.Put(rec(0))
	s.Put(rec(1))
	held := next(t, s)
	must(t, os.Remove(dir))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	balance(t, s)
	s = open(t, Options{Dir: dir})
	if got := drain(t, s); got != "0 1" {
		t.Errorf("left %q, held %s", got, held.Record.Labels["n"])
	}
}

func TestDoneAfterCloseRemovesTheFile(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	s.Put(rec(0))
	it := next(t, s)
	s.Close()
	s.Done(it)
	if s = open(t, Options{Dir: dir}); s.Stats().Items != 0 {
		t.Errorf("delivered and still queued: %+v", s.Stats())
	}
}

func TestOneWriterOneReaderManyLookers(t *testing.T) {
	const n = 150
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	ctx, stop := context.WithCancel(t.Context())
	var lookers, wg sync.WaitGroup
	for range 2 {
		lookers.Go(func() {
			for ctx.Err() == nil {
				s.Stats()
			}
		})
	}
	wg.Go(func() {
		for i := range n {
			s.Put(rec(i))
			if i%50 == 0 {
				s.tick()
			}
		}
	})
	for i := range n {
		it := next(t, s)
		if it.Record.Labels["n"] != fmt.Sprint(i) {
			t.Fatalf("got %s, want %d", it.Record.Labels["n"], i)
		}
		switch {
		case i%7 == 0:
			s.Release(it)
			it = next(t, s)
			s.Done(it)
		case i%11 == 0:
			s.SetAside(it, "refused", "")
		default:
			s.Done(it)
		}
	}
	wg.Wait()
	stop()
	lookers.Wait()
	balance(t, s)
}

func TestManyReaders(t *testing.T) {
	const n = 200
	s := open(t, Options{Dir: t.TempDir()})
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	seen := map[string]int{}
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for i := 0; ; i++ {
				it, err := s.Next(ctx)
				if err != nil {
					return
				}
				if i%5 == 4 {
					s.Release(it) // for the next reader
					continue
				}
				mu.Lock()
				seen[it.Record.Labels["n"]]++
				mu.Unlock()
				s.Done(it)
			}
		})
	}
	for i := range n {
		s.Put(rec(i))
	}
	cancel() // the readers empty the queue nevertheless
	readers.Wait()
	if len(seen) != n || s.Stats().Items != 0 {
		t.Errorf("%d records of %d delivered, %d left", len(seen), n, s.Stats().Items)
	}
	for i, times := range seen {
		if times != 1 {
			t.Errorf("record %s delivered %d times", i, times)
		}
	}
	balance(t, s)
}

// TestEveryWaitingReaderIsWoken has as many records come at once as readers wait: none may wait for another
// reader to be done.
func TestEveryWaitingReaderIsWoken(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	const n = 4
	var held sync.WaitGroup
	held.Add(n)
	var readers sync.WaitGroup
	for range n {
		readers.Go(func() {
			it, err := s.Next(t.Context())
			if err != nil {
				t.Error(err)
				held.Done()
				return
			}
			held.Done()
			held.Wait() // until each of them holds one
			s.Done(it)
		})
	}
	for i := range n {
		s.Put(rec(i))
	}
	readers.Wait()
}

func TestAHundredThousandFiles(t *testing.T) {
	for slot, n := range map[string]int{"0": 100_000, "7": adoptAtOnce + 1} { // its own, and one to adopt
		t.Run("slot "+slot, func(t *testing.T) {
			dir := t.TempDir()
			fill(t, filepath.Join(dir, slot), n)
			begin := time.Now()
			s := open(t, Options{Dir: dir, MaxBytes: 1 << 40})
			t.Logf("%d files are queued after %v", n, time.Since(begin))
			if it := next(t, s); it.Record.Labels["n"] != "0" {
				t.Errorf("first is %v", it.Record.Labels)
			}
			for s.unadopted.Load() { // like an idle reader
				s.tick()
			}
			if st := s.Stats(); st.Items != n {
				t.Fatalf("%d queued", st.Items)
			}
		})
	}
}

// fill makes a slot of n records by hard links, which is quick.
func fill(t testing.TB, dir string, n int) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o700))
	var b bytes.Buffer
	record.Encode(&b, rec(0))
	var src string
	for i := range n {
		name := record.Name{Start: begin.Add(time.Duration(i)), Type: record.Wall, ID: uint32(i)}
		path := filepath.Join(dir, fmt.Sprintf("%016x-%s", i+1, name))
		if i%10_000 == 0 { // a file has a limited number of links
			src = path
			must(t, os.WriteFile(path, b.Bytes(), 0o600))
			continue
		}
		must(t, os.Link(src, path))
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	fill(b, filepath.Join(dir, "0"), 100_000)
	b.ReportAllocs()
	for b.Loop() {
		s, err := Open(Options{Service: "shop", Dir: dir, MaxBytes: 1 << 40})
		if err != nil || s.Stats().Items != 100_000 {
			b.Fatal(err)
		}
		s.Close()
	}
}

func BenchmarkPut(b *testing.B) {
	s, err := Open(Options{Service: "shop", Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	r := rec(0)
	r.Profile = profile(100_000)
	for b.Loop() {
		s.Put(r)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAPostponedRecordLetsTheOthersPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := open(t, Options{Dir: dir})
		for i := range 3 {
			s.Put(rec(i))
		}
		it := next(t, s)
		it.Tries = 7
		const wait = 20 * time.Second
		s.Postpone(it, wait)
		begun := time.Now()
		for _, want := range []string{"1", "2", "0"} {
			it := next(t, s)
			if got := it.Record.Labels["n"]; got != want {
				t.Fatalf("record %s comes, want %s", got, want)
			}
			if want == "0" && (it.Tries != 7 || time.Since(begun) != wait) {
				t.Errorf("it comes after %v with Tries %d, want %v and 7", time.Since(begun), it.Tries, wait)
			}
			s.Done(it)
		}
		balance(t, s)
	})
}

func TestAnEmptyingReaderHasPostponedRecordsLast(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	for i := range 3 {
		s.Put(rec(i))
	}
	s.Postpone(next(t, s), time.Hour)
	s.Postpone(next(t, s), time.Hour)
	now, cancel := context.WithCancel(t.Context())
	cancel()
	var got []string
	for {
		it, err := s.Next(now)
		if err != nil {
			break
		}
		got = append(got, it.Record.Labels["n"])
		s.Done(it)
	}
	if order := strings.Join(got, " "); order != "2 0 1" {
		t.Errorf("records come in the order %s, want 2 0 1", order)
	}
}

func TestWhatIsSetAsideOftenIsSaidOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		s := open(t, Options{Dir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(&out, nil))})
		aside := func(reason string, n int) {
			for i := range n {
				s.Put(rec(i))
				s.SetAside(next(t, s), reason, "the server's words")
			}
		}
		want := func(lines ...string) {
			t.Helper()
			said := strings.Split(strings.TrimSpace(out.String()), "\n")
			if len(said) != len(lines) {
				t.Fatalf("%d lines, want %d: %s", len(said), len(lines), out.String())
			}
			for i, l := range lines {
				if !strings.Contains(said[i], l) {
					t.Errorf("line %d is %s, want %s", i, said[i], l)
				}
			}
			out.Reset()
		}
		aside("permanent", 1000)
		aside("too_old", 10)
		want("reason=permanent profiles=1", "reason=too_old profiles=1")
		time.Sleep(logEvery)
		aside("permanent", 5)
		want("reason=permanent profiles=1000")
		// The last lines are logged by the waiting reader.
		ctx, cancel := context.WithTimeout(t.Context(), tickEvery+time.Second)
		defer cancel()
		if _, err := s.Next(ctx); err == nil {
			t.Fatal("a record where there is none")
		}
		if n := strings.Count(out.String(), "\n"); n != 2 || !strings.Contains(out.String(), "reason=permanent profiles=4") ||
			!strings.Contains(out.String(), "reason=too_old profiles=9") {
			t.Errorf("a minute later: %s", out.String())
		}
		out.Reset()
		aside("permanent", 2)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		want("reason=permanent profiles=2")
		if n := s.Stats().Sum(SetAside).Items; n != 1017 {
			t.Errorf("%d counted, want 1017", n)
		}
	})
}

func TestTheCountersAgreeAtEveryMoment(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := range 50 {
			s.Put(rec(i))
			s.Done(next(t, s))
		}
	}()
	for {
		st := s.Stats()
		if in, out := st.Sum(Put).Items, st.Sum(Delivered).Items+st.Items; in != out {
			t.Fatalf("%d were put, %d are delivered or queued", in, out)
		}
		select {
		case <-ended:
			return
		default:
		}
	}
}
