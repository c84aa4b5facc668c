package save

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"spanflame/agent/internal/guard"
	"spanflame/agent/internal/owndir"
	"spanflame/internal/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const service = "shop/front"

// logged is a log that tests can read.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// said counts the lines that hold text.
func (l *logged) said(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

func options(dir string) Options {
	return Options{Dir: dir, Service: service, MaxBytes: 1 << 20, MaxAge: 24 * time.Hour}
}

func openProfiles(t *testing.T, o Options) (*Profiles, *logged) {
	t.Helper()
	log := &logged{}
	p := OpenProfiles(o, slog.New(slog.NewTextHandler(log, nil)))
	return p, log
}

func closeProfiles(t *testing.T, p *Profiles) {
	t.Helper()
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// rec is a record that starts at the given time, whose file has a little more than size bytes.
func rec(t testing.TB, start time.Time, size int) record.Record {
	t.Helper()
	noise := make([]byte, size)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	if _, err := zw.Write(noise); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return record.Record{
		Meta:    record.Meta{Service: service, Type: record.CPU, Start: start, End: start.Add(time.Second), Labels: map[string]string{"n": "1"}},
		Profile: b.Bytes(),
	}
}

// files returns the sizes of the files below dir, by path.
func files(t *testing.T, dir string) (names []string, bytes int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		names, bytes = append(names, filepath.ToSlash(rel)), bytes+info.Size()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names, bytes
}

// starts are the starts of the saved profiles, oldest first.
func starts(t *testing.T, dir string) []time.Time {
	t.Helper()
	var at []time.Time
	names, _ := files(t, filepath.Join(dir, "profiles"))
	for _, name := range names {
		n, err := record.ParseFileName(filepath.Base(name))
		if err != nil {
			t.Error(err)
		}
		at = append(at, n.Start)
	}
	slices.SortFunc(at, time.Time.Compare)
	return at
}

func TestAProfileIsSavedAsAFileOfItsOwn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	p, _ := openProfiles(t, options(dir))
	start := time.Now().Add(-time.Minute)
	want := rec(t, start, 100)
	p.Put(want)
	closeProfiles(t, p)

	names, size := files(t, dir)
	if len(names) != 1 {
		t.Fatalf("files %q, want one", names)
	}
	if prefix := "profiles/shop%2Ffront/" + start.UTC().Format("2006-01-02/15/20060102T150405"); !strings.HasPrefix(names[0], prefix) {
		t.Errorf("saved as %s, want it below %s", names[0], prefix)
	}
	f, err := os.Open(filepath.Join(dir, names[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := record.Decode(f, 1<<20)
	if err != nil || got.Service != service || !got.Start.Equal(start) || got.Labels["n"] != "1" || !bytes.Equal(got.Profile, want.Profile) {
		t.Errorf("read back %+v, %v", got.Meta, err)
	}
	for path := filepath.Join(dir, names[0]); path != filepath.Dir(dir); path = filepath.Dir(path) {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has the mode %v, %v: others can read it", path, info.Mode(), err)
		}
	}
	if s := p.Stats(); s.Counts[Key{Saved, ""}] != (Count{1, size}) || s.Bytes != size || s.Degraded != nil {
		t.Errorf("%+v, want one file of %d bytes", s, size)
	}
}

func TestTheOldestGoFirst(t *testing.T) {
	o := options(t.TempDir())
	p, _ := openProfiles(t, o)
	<-scanned(p.ring)
	begin := time.Now().Add(-20 * time.Hour).Truncate(time.Hour)
	const n = 60 // 20 minutes apart, 20 hours in all, 3 MB
	for i := range n {
		p.Put(rec(t, begin.Add(time.Duration(i)*20*time.Minute), 50_000))
	}
	closeProfiles(t, p)

	names, size := files(t, o.Dir)
	if size > o.MaxBytes || size < o.MaxBytes*8/10 {
		t.Errorf("%d bytes are left, want at most %d and not much less", size, o.MaxBytes)
	}
	for i, at := range starts(t, o.Dir) {
		if want := begin.Add(time.Duration(n-len(names)+i) * 20 * time.Minute); !at.Equal(want) {
			t.Fatalf("of %d that are left, number %d is of %v, want %v: the newest stay", len(names), i, at, want)
		}
	}
	s := p.Stats()
	saved, removed := s.Counts[Key{Saved, ""}], s.Counts[Key{Removed, "full"}]
	if saved.Items != n || removed.Items != n-len(names) || saved.Bytes-removed.Bytes != size || s.Bytes != size {
		t.Errorf("%+v, want %d saved and %d removed, %d bytes", s, n, n-len(names), size)
	}
	if hours, err := filepath.Glob(filepath.Join(o.Dir, "profiles", "*", "*", "*")); err != nil || len(hours) > len(names)/3+2 {
		t.Errorf("%d directories of hours are left for %d files, %v", len(hours), len(names), err)
	}
}

func TestTheBoundHoldsAcrossStarts(t *testing.T) {
	o := options(t.TempDir())
	p, _ := openProfiles(t, o)
	begin := time.Now().Add(-3 * time.Hour)
	for i := range 10 {
		p.Put(rec(t, begin.Add(time.Duration(i)*15*time.Minute), 50_000))
	}
	closeProfiles(t, p)
	if names, _ := files(t, o.Dir); len(names) != 10 {
		t.Fatalf("%d files, want 10", len(names))
	}

	o.MaxBytes = 160_000
	synctest.Test(t, func(t *testing.T) { // what the start does by itself has been done when all is quiet
		o.MaxAge = 100 * 365 * 24 * time.Hour // the bubble's clock has its own idea of now
		p, _ = openProfiles(t, o)
		synctest.Wait()
		names, size := files(t, o.Dir)
		if len(names) != 3 || size > o.MaxBytes || p.Stats().Bytes != size {
			t.Errorf("%d files with %d bytes after the start, want the 3 that fit; %+v", len(names), size, p.Stats())
		}
		if first := starts(t, o.Dir)[0]; !first.Equal(begin.Add(7 * 15 * time.Minute)) {
			t.Errorf("the oldest that is left is of %v, want the newest three", first)
		}
		closeProfiles(t, p)
	})
}

func TestOldFilesGo(t *testing.T) {
	o := options(t.TempDir())
	o.MaxAge = time.Hour
	synctest.Test(t, func(t *testing.T) {
		p, _ := openProfiles(t, o)
		for i := range 4 {
			p.Put(rec(t, time.Now().Add(time.Duration(i)*-20*time.Minute), 100)) // now and 20, 40, 60 minutes ago
		}
		synctest.Wait()
		if names, _ := files(t, o.Dir); len(names) != 4 {
			t.Fatalf("%d files, want 4", len(names))
		}
		for left := 3; left >= 0; left-- {
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			if names, _ := files(t, o.Dir); len(names) != left {
				t.Errorf("%d files, want %d: %q", len(names), left, names)
			}
			time.Sleep(18 * time.Minute)
		}
		if removed := p.Stats().Counts[Key{Removed, "age"}]; removed.Items != 4 || p.Stats().Bytes != 0 {
			t.Errorf("%+v, want 4 removed for their age", p.Stats())
		}
		if left, err := os.ReadDir(filepath.Join(o.Dir, "profiles", record.DirName(service))); err != nil || len(left) > 0 {
			t.Errorf("empty directories stay: %v, %v", left, err)
		}
		closeProfiles(t, p)
	})
}

// TestWhatIsNotOursStays: only files with names that the agent gives are counted and removed.
func TestWhatIsNotOursStays(t *testing.T) {
	o := options(t.TempDir())
	o.MaxBytes = 10_000
	old := time.Now().UTC().Add(-o.MaxAge - time.Hour)
	hour := filepath.Join(o.Dir, "profiles", record.DirName(service), old.Format("2006-01-02"), old.Format("15"))
	name := func(id uint32) string { return record.Name{Start: old, Type: record.CPU, ID: id}.String() }
	if err := os.MkdirAll(filepath.Join(hour, name(0)), 0o700); err != nil {
		t.Fatal(err) // a directory with the name of a file
	}
	write := func(name string, size int, age time.Duration) {
		path := filepath.Join(hour, name)
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	write("mine.pb.gz", 20_000, 0)
	write(name(1), 100, 0) // too old
	write(name(2)+owndir.TempSuffix, 100, 2*time.Hour)
	write(name(3)+owndir.TempSuffix, 100, 0) // another process may be writing it
	p, _ := openProfiles(t, o)
	<-scanned(p.ring)
	p.Put(rec(t, old.Add(12*time.Hour), 100)) // the service has not been down since
	p.Put(rec(t, time.Now(), 100))
	closeProfiles(t, p)
	left, err := os.ReadDir(hour)
	if err != nil || len(left) != 3 {
		t.Errorf("left: %v, %v; want the foreign file, the directory and the unfinished one", left, err)
	}
	s := p.Stats()
	removed, unfinished := s.Counts[Key{Removed, "age"}], s.Counts[Key{Unfinished, ""}]
	if removed != (Count{1, 100}) || unfinished != (Count{1, 100}) || s.Counts[Key{Saved, ""}].Items != 2 || s.Degraded != nil {
		t.Errorf("%+v", s)
	}
}

// scanned returns a channel that is closed when the ring knows what lies in its directory.
func scanned(r *ring) <-chan struct{} {
	c := make(chan struct{})
	go func() {
		defer close(c)
		for {
			r.mu.Lock()
			done := r.scanned
			r.mu.Unlock()
			if done {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	return c
}

// TestTwoProcessesOfAService share a directory: each keeps the bound, and neither minds what the other removed.
func TestTwoProcessesOfAService(t *testing.T) {
	o := options(t.TempDir())
	o.MaxBytes = 200_000
	synctest.Test(t, func(t *testing.T) {
		a, _ := openProfiles(t, o)
		b, _ := openProfiles(t, o)
		begin := time.Now()
		for i := range 40 {
			for _, p := range []*Profiles{a, b} {
				p.Put(rec(t, begin.Add(time.Duration(i)*time.Minute), 10_000))
				synctest.Wait()
			}
		}
		time.Sleep(scanEvery + time.Minute) // now each has seen what the other did
		synctest.Wait()
		names, size := files(t, o.Dir)
		if size > o.MaxBytes || size < o.MaxBytes/2 {
			t.Errorf("%d files with %d bytes, want at most %d and not much less", len(names), size, o.MaxBytes)
		}
		if first := starts(t, o.Dir)[0]; first.Before(begin.Add(25 * time.Minute)) {
			t.Errorf("the oldest is of %v, want the newest ones to be left", first)
		}
		removed := 0
		for _, p := range []*Profiles{a, b} {
			s := p.Stats()
			if s.Bytes != size || s.Degraded != nil || s.Counts[Key{Saved, ""}].Items != 40 {
				t.Errorf("%+v, want %d bytes", s, size)
			}
			removed += s.Counts[Key{Removed, "full"}].Items
			closeProfiles(t, p)
		}
		if removed != 80-len(names) {
			t.Errorf("%d are counted as removed, want %d: none twice", removed, 80-len(names))
		}
	})
}

func TestAServiceWhoseDirectoryIsTakenAwayGoesOn(t *testing.T) {
	o := options(t.TempDir())
	synctest.Test(t, func(t *testing.T) {
		p, _ := openProfiles(t, o)
		p.Put(rec(t, time.Now(), 1000))
		synctest.Wait()
		if err := os.RemoveAll(filepath.Join(o.Dir, "profiles")); err != nil {
			t.Fatal(err)
		}
		p.Put(rec(t, time.Now(), 1000))
		synctest.Wait()
		_, size := files(t, o.Dir)
		time.Sleep(scanEvery)
		synctest.Wait()
		if s := p.Stats(); size == 0 || s.Bytes != size || s.Counts[Key{Saved, ""}].Items != 2 || s.Degraded != nil {
			t.Errorf("%d bytes, %+v", size, s)
		}
		closeProfiles(t, p)
	})
}

func TestADirectoryThatCannotBeUsed(t *testing.T) {
	o := options(filepath.Join(t.TempDir(), "dir"))
	if err := os.WriteFile(o.Dir, []byte("a file in the way"), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		p, log := openProfiles(t, o)
		for range 3 {
			p.Put(rec(t, time.Now(), 1000))
			synctest.Wait()
		}
		s := p.Stats()
		if s.Degraded == nil || s.Counts[Key{Failed, "write"}].Items != 3 || log.said("profiles cannot be saved") != 1 {
			t.Errorf("%+v, and the log says %q", s, log.b.String())
		}
		if err := os.Remove(o.Dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		for range 2 {
			p.Put(rec(t, time.Now(), 1000))
			synctest.Wait()
		}
		s = p.Stats()
		if s.Degraded != nil || s.Counts[Key{Saved, ""}].Items != 2 || log.said("profiles are saved again") != 1 || log.said("outage=1m0s lost=3") != 1 {
			t.Errorf("%+v, and the log says %q", s, log.b.String())
		}
		closeProfiles(t, p)
	})
}

// TestPutNeverWaits: with a disk that hangs, the queue fills up to its bound and the rest is counted.
func TestPutNeverWaits(t *testing.T) {
	for _, tt := range []struct {
		name      string
		size, fit int
	}{
		{"by number", 10, maxQueue},
		{"by size", 1 << 20, maxQueueBytes>>20 - 1}, // a little more than 1 MiB each
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, _ := openProfiles(t, options(t.TempDir()))
			<-scanned(p.ring)
			p.ring.mu.Lock() // the disk hangs
			r := rec(t, time.Now(), tt.size)
			p.Put(r)
			for p.waiting() > 0 { // the first one is being written
				time.Sleep(time.Millisecond)
			}
			for range tt.fit + 5 {
				p.Put(r)
			}
			full := p.Stats().Counts[Key{Failed, "queue_full"}]
			if full.Items != 5 || full.Bytes != 5*int64(len(r.Profile)) {
				t.Errorf("%+v are counted as too many, want 5", full)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			err := p.Close(ctx)
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%d profiles (", tt.fit)) {
				t.Errorf("Close: %v, want how many are lost", err)
			}
			if lost := p.Stats().Counts[Key{Failed, "shut_down"}]; lost.Items != tt.fit {
				t.Errorf("%+v are counted as lost at the end, want %d", lost, tt.fit)
			}
			p.Put(r)
			if late := p.Stats().Counts[Key{Failed, "closed"}]; late.Items != 1 {
				t.Errorf("%+v are counted as too late, want 1", late)
			}
			p.ring.mu.Unlock()
			<-p.done
			<-p.ring.done
		})
	}
}

func (p *Profiles) waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue)
}

func TestRecordsThatAreNotSaved(t *testing.T) {
	o := options(t.TempDir())
	o.MaxBytes = 100_000
	p, log := openProfiles(t, o)
	p.Put(rec(t, time.Now(), 60_000)) // more than half of the directory
	bad := rec(t, time.Now(), 100)
	bad.Service = ""
	p.Put(bad)
	closeProfiles(t, p)
	s := p.Stats()
	if s.Counts[Key{Failed, "too_large"}].Items != 1 || s.Counts[Key{Failed, "invalid"}].Items != 1 || s.Degraded != nil {
		t.Errorf("%+v", s)
	}
	if log.said("too large for the directory") != 1 || log.said("the service name is empty") != 1 {
		t.Errorf("the log says %q", log.b.String())
	}
	if names, _ := files(t, o.Dir); len(names) > 0 {
		t.Errorf("files %q", names)
	}
}

// TestAClockSetForwardRemovesNothing has files of before and after a jump of the clock that is longer than the age
// limit, whether the process runs meanwhile, starts after it, or saves more.
func TestAClockSetForwardRemovesNothing(t *testing.T) {
	o := options(t.TempDir())
	before := time.Now().Add(-30 * 24 * time.Hour)
	for range 3 { // processes
		p, _ := openProfiles(t, o)
		<-scanned(p.ring)
		for i := range 3 {
			p.Put(rec(t, before.Add(time.Duration(i)*time.Hour), 100)) // as if saved then
		}
		closeProfiles(t, p)
	}
	tr := OpenTraces(o)
	<-scanned(tr.ring)
	write(t, tr, line(t, "now", 100))
	closeTraces(t, tr)
	spans := filepath.Join(o.Dir, "traces", record.DirName(service))
	named, _ := files(t, spans)
	for i, at := range []time.Time{before, before.Add(time.Hour)} {
		if err := os.WriteFile(filepath.Join(spans, traceFileName(at)), make([]byte, i+1), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		p, _ := openProfiles(t, o)
		<-scanned(p.ring)
		p.Put(rec(t, time.Now(), 100))
		closeProfiles(t, p)
		tr := OpenTraces(o)
		<-scanned(tr.ring)
		closeTraces(t, tr)
	}
	if at := starts(t, o.Dir); len(at) != 11 || !at[0].Equal(before) {
		t.Errorf("%d profiles are left, of %v: want all 11", len(at), at)
	}
	if names, _ := files(t, spans); len(names) != 3 {
		t.Errorf("%d files of traces are left, want 3: %q and the two before", len(names), named)
	}
}

func TestTooOld(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	ago := func(days float64) time.Time { return now.Add(-time.Duration(days * 24 * float64(time.Hour))) }
	for name, tt := range map[string]struct {
		periods []period
		idle    float64 // days
		want    float64 // days ago; 0 for nothing
	}{
		"nothing saved":                  {nil, 0, 0},
		"young":                          {[]period{{ago(3), ago(1)}}, 0, 0},
		"one period":                     {[]period{{ago(10), ago(0)}}, 0, 7},
		"many":                           {[]period{{ago(10), ago(9)}, {ago(8), ago(6)}, {ago(4), ago(1)}}, 0, 7},
		"the limit is in a gap":          {[]period{{ago(10), ago(9)}, {ago(3), ago(1)}}, 0, 7},
		"down or set forward":            {[]period{{ago(40), ago(30)}, {ago(2), ago(0)}}, 0, 35},
		"twice":                          {[]period{{ago(70), ago(60)}, {ago(32), ago(30)}, {ago(2), ago(0)}}, 0, 63},
		"as it starts":                   {[]period{{ago(33), ago(30)}}, 0, 0},
		"as it starts, some are old":     {[]period{{ago(40), ago(30)}}, 0, 37},
		"seen to pass, in part":          {[]period{{ago(40), ago(30)}}, 3, 34},
		"seen to pass":                   {[]period{{ago(40), ago(30)}}, 7, 7},
		"clock set back":                 {[]period{{ago(10), ago(1)}, {ago(-3), ago(-2)}}, 0, 7},
		"clock set back inside a period": {[]period{{ago(10), ago(-2)}}, 0, 7},
	} {
		var want time.Time
		if tt.want != 0 {
			want = ago(tt.want)
		}
		if got := tooOld(tt.periods, now, 7*24*time.Hour, now.Sub(ago(tt.idle))); !got.Equal(want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

// TestAPanicInSaving: what panics is counted, and the process, the ring and the next file are not affected.
func TestAPanicInSaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := guard.New(slog.New(slog.DiscardHandler))
		o := options(t.TempDir())
		o.Guard = g
		p, log := openProfiles(t, o)
		tr := OpenTraces(o)
		synctest.Wait()
		parse := p.ring.parse
		planted := func(string) (time.Time, error) { panic("planted") }
		set := func(f func(string) (time.Time, error)) {
			for _, r := range []*ring{p.ring, tr.ring} {
				r.mu.Lock()
				r.parse, r.maxAge = f, time.Nanosecond // so that each write looks for old files
				r.mu.Unlock()
			}
		}
		p.Put(rec(t, time.Now(), 100))
		write(t, tr, line(t, "one", 10))
		synctest.Wait()
		time.Sleep(time.Second)
		set(planted)
		p.Put(rec(t, time.Now(), 100))
		synctest.Wait()
		if _, err := tr.Write(line(t, "two", 10)); err == nil {
			t.Error("no error for a batch of spans that is not written")
		}
		time.Sleep(scanEvery + time.Minute) // the rings look at the directory
		synctest.Wait()
		for stage, stats := range map[string]Stats{"save profiles": p.Stats(), "save traces": tr.Stats()} {
			if g.Panics()[stage] < 2 || stats.Degraded == nil {
				t.Errorf("%s: %v panics, %+v: want two and why", stage, g.Panics(), stats)
			}
		}
		if n := p.Stats().Counts[Key{Failed, "panic"}].Items; n != 1 {
			t.Errorf("%+v, want one that was not saved: %s", p.Stats(), log.b.String())
		}
		for r, f := range map[*ring]func(string) (time.Time, error){p.ring: parse, tr.ring: parseTraceFileName} {
			r.mu.Lock()
			r.parse, r.maxAge = f, o.MaxAge
			r.mu.Unlock()
		}
		time.Sleep(scanEvery)
		p.Put(rec(t, time.Now(), 100))
		write(t, tr, line(t, "three", 10))
		synctest.Wait()
		if s := p.Stats(); s.Counts[Key{Saved, ""}].Items != 2 || s.Degraded != nil || tr.Stats().Degraded != nil || len(g.Degraded()) > 0 {
			t.Errorf("afterwards %+v, %+v, %q", s, tr.Stats(), g.Degraded())
		}
		if err := p.Close(t.Context()); err == nil || !strings.Contains(err.Error(), "1 profiles") {
			t.Errorf("Close: %v, want what is lost", err)
		}
		closeTraces(t, tr)
	})
}
