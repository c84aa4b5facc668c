package save

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"spanflame/agent/internal/owndir/owndirtest"
)

// fill leaves less than 40 kB.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	if err := os.WriteFile(path, make([]byte, 90_000), 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestProfilesOnAFullDisk(t *testing.T) {
	o := options(owndirtest.Disk(t, "128k"))
	free := fill(t, o.Dir)
	synctest.Test(t, func(t *testing.T) {
		p, log := openProfiles(t, o)
		put := func() {
			p.Put(rec(t, time.Now(), 25_000))
			synctest.Wait()
		}
		put() // fits
		put()
		put()
		s := p.Stats()
		if s.Counts[Key{Saved, ""}].Items != 1 || s.Counts[Key{Failed, "write"}].Items != 2 || s.Degraded == nil || log.said("cannot be saved") != 1 {
			t.Errorf("%+v, and the log says %q", s, log.b.String())
		}
		if names, _ := files(t, filepath.Join(o.Dir, "profiles")); len(names) != 1 {
			t.Errorf("files %q, want the one that fitted and nothing of the others", names)
		}
		free()
		put()
		if s := p.Stats(); s.Counts[Key{Saved, ""}].Items != 2 || s.Degraded != nil || log.said("saved again") != 1 {
			t.Errorf("%+v, and the log says %q", s, log.b.String())
		}
		closeProfiles(t, p)
	})
}

// TestTracesOnAFullDisk: a line that was cut off does not spoil the next one.
func TestTracesOnAFullDisk(t *testing.T) {
	o := options(owndirtest.Disk(t, "128k"))
	free := fill(t, o.Dir)
	tr := OpenTraces(o)
	<-scanned(tr.ring)
	write(t, tr, line(t, "fits", 10_000))
	for range 2 {
		if _, err := tr.Write(line(t, strings.Repeat("x", 100), 50_000)); err == nil || tr.Stats().Degraded == nil {
			t.Fatalf("Write: %v, degraded: %v", err, tr.Stats().Degraded)
		}
	}
	free()
	write(t, tr, line(t, "fits again", 50_000))
	if got, want := spans(t, o.Dir), [][]string{{"fits"}, {"fits again"}}; !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("got %v, want %v", got, want)
	}
	_, size := files(t, filepath.Join(o.Dir, "traces"))
	if s := tr.Stats(); s.Bytes != size || s.Counts[Key{Failed, "write"}].Items != 2 || s.Degraded != nil {
		t.Errorf("%+v, want %d bytes", s, size)
	}
	closeTraces(t, tr)
}

// TestNoMoreThanAPartOfTheDisk has a limit far above what the disk has: the rings use a quarter of what is free, and give
// way when others need the space.
func TestNoMoreThanAPartOfTheDisk(t *testing.T) {
	o := options(owndirtest.Disk(t, "128k")) // 128 KiB
	o.MaxBytes, o.FreePart = 1<<30, 4
	synctest.Test(t, func(t *testing.T) {
		p, log := openProfiles(t, o)
		synctest.Wait()
		put := func(size int) {
			p.Put(rec(t, time.Now(), size))
			time.Sleep(trimEvery)
			synctest.Wait()
		}
		for range 30 {
			put(3000)
		}
		s := p.Stats()
		if s.Bytes > 40<<10 || s.Bytes < 20<<10 || s.Degraded != nil || s.Counts[Key{Saved, ""}].Items != 30 {
			t.Errorf("%+v, want about a quarter of 128 KiB", s)
		}
		free := fill(t, o.Dir) // by 90 kB
		time.Sleep(trimEvery)
		synctest.Wait()
		if after := p.Stats(); after.Bytes > 12<<10 {
			t.Errorf("%d bytes when the disk is nearly full, %d before", after.Bytes, s.Bytes)
		}
		put(20_000)
		if s := p.Stats(); s.Degraded == nil || !strings.Contains(s.Degraded.Error(), "nearly full") || log.said("profiles cannot be saved") != 1 {
			t.Errorf("%+v, and the log says %q", s, log.b.String())
		}
		free()
		time.Sleep(trimEvery)
		put(3000)
		if s := p.Stats(); s.Degraded != nil {
			t.Errorf("with space again: %+v", s)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
