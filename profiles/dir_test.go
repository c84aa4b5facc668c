package profiles_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"spanflame/internal/record"
	"spanflame/profiles"
)

func open(t testing.TB, dir string) *profiles.Dir {
	t.Helper()
	d, err := profiles.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// list returns the listed profiles as "type service start", and the damaged files' names.
func list(t *testing.T, d *profiles.Dir, q profiles.Query) (found, damaged []string) {
	t.Helper()
	entries, bad, err := d.List(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		found = append(found, fmt.Sprint(e.Type, " ", e.Service, " ", e.Start.Format("15:04:05")))
	}
	for _, b := range bad {
		damaged = append(damaged, filepath.Base(b.Path))
	}
	return found, damaged
}

func TestListChooses(t *testing.T) {
	dir := t.TempDir()
	at := func(service string, typ record.Type, start string, length time.Duration, labels map[string]string) {
		clock, err := time.Parse("15:04:05", start)
		if err != nil {
			t.Fatal(err)
		}
		m := meta(typ)
		m.Service, m.Labels = service, labels
		m.Start = noon.Truncate(24 * time.Hour).Add(clock.Sub(clock.Truncate(24 * time.Hour)))
		m.End = m.Start.Add(length)
		save(t, dir, m, small(m))
	}
	eu, us := map[string]string{"region": "eu", "zone": "1"}, map[string]string{"region": "us"}
	at("shop", record.CPU, "11:59:50", 15*time.Second, eu)
	at("shop", record.CPU, "12:00:05", 15*time.Second, eu)
	at("shop", record.Memory, "12:00:05", 15*time.Second, eu)
	at("shop", record.Wall, "11:30:00", 40*time.Minute, us)
	at("a/b ü", record.CPU, "12:00:01", 15*time.Second, us)
	at("..", record.CPU, "23:59:59", 15*time.Second, nil)

	clock := func(h, m, s int) time.Time {
		return time.Date(noon.Year(), noon.Month(), noon.Day(), h, m, s, 0, time.UTC)
	}
	all := []string{
		"wall shop 11:30:00",
		"process_cpu shop 11:59:50",
		"process_cpu a/b ü 12:00:01",
		"memory shop 12:00:05",
		"process_cpu shop 12:00:05",
		"process_cpu .. 23:59:59",
	}
	d := open(t, dir)
	for name, tt := range map[string]struct {
		query profiles.Query
		want  []string
	}{
		"all":                  {profiles.Query{}, all},
		"a service":            {profiles.Query{Service: "a/b ü"}, all[2:3]},
		"a service called ..":  {profiles.Query{Service: ".."}, all[5:]},
		"an unknown service":   {profiles.Query{Service: "../shop"}, nil},
		"types":                {profiles.Query{Types: []record.Type{record.Memory, record.Wall}}, []string{all[0], all[3]}},
		"labels":               {profiles.Query{Labels: map[string]string{"region": "us"}}, []string{all[0], all[2]}},
		"a label nobody has":   {profiles.Query{Labels: map[string]string{"planet": ""}}, nil},
		"from":                 {profiles.Query{From: clock(12, 0, 6)}, []string{all[0], all[2], all[3], all[4], all[5]}},
		"from an end":          {profiles.Query{Service: "shop", Types: []record.Type{record.CPU}, From: clock(12, 0, 5)}, []string{all[4]}},
		"to a start":           {profiles.Query{To: clock(12, 0, 1)}, all[:2]},
		"a window over bounds": {profiles.Query{From: clock(11, 40, 0), To: clock(11, 41, 0)}, all[:1]},
		"across midnight":      {profiles.Query{From: clock(24, 0, 5), To: clock(24, 10, 0)}, all[5:]},
		"a time without any":   {profiles.Query{From: clock(14, 0, 0), To: clock(15, 0, 0)}, nil},
	} {
		for _, again := range []string{"", " again"} {
			found, damaged := list(t, d, tt.query)
			slices.Sort(found)
			want := slices.Sorted(slices.Values(tt.want))
			if !slices.Equal(found, want) || damaged != nil {
				t.Errorf("%s%s: got %q and damaged %q, want %q", name, again, found, damaged, want)
			}
		}
	}
	if found, _ := list(t, d, profiles.Query{}); found[0] != all[0] || found[5] != all[5] {
		t.Errorf("%q is not in the order of starts", found)
	}
	services, err := d.Services(t.Context())
	if want := []string{"..", "a/b ü", "shop"}; err != nil || !slices.Equal(services, want) {
		t.Errorf("services %q, %v; want %q", services, err, want)
	}
}

func TestEntrySaysWhatTheFileIs(t *testing.T) {
	dir, m := t.TempDir(), meta(record.Wall)
	path := save(t, dir, m, small(m))
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	entries, _, err := open(t, dir).List(t.Context(), profiles.Query{})
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	e := entries[0]
	if e.Path != path || e.Bytes != info.Size() || e.Service != m.Service || e.Type != m.Type ||
		!e.Start.Equal(m.Start) || !e.End.Equal(m.End) || !maps.Equal(e.Labels, m.Labels) {
		t.Errorf("got %+v, want %+v at %s", e, m, path)
	}
}

func TestListReportsDamageAndGoesOn(t *testing.T) {
	dir, m := t.TempDir(), meta(record.CPU)
	good := save(t, dir, m, small(m))
	hour := filepath.Dir(good)
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	other := m
	other.Start = noon.Add(time.Minute)
	other.End = other.Start.Add(time.Minute)
	for name, b := range map[string][]byte{
		m.FileName():           nil,
		other.FileName():       whole, // renamed
		"heap.pb.gz":           whole,
		m.FileName() + ".tmp":  whole[:9],
		"notes.txt":            nil,
		"." + m.FileName():     nil,
		m.FileName() + ".part": nil,
	} {
		put(t, filepath.Join(hour, name), b)
	}
	cut, zeros := put(t, filepath.Join(hour, m.FileName()), whole[:30]), put(t, filepath.Join(hour, m.FileName()), make([]byte, len(whole)))
	if err := os.Mkdir(filepath.Join(hour, m.FileName()), 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "profiles", "shop", "yesterday", "12", m.FileName()), nil) // no day of ours

	d := open(t, dir)
	entries, damaged, err := d.List(t.Context(), profiles.Query{})
	if err != nil || len(entries) != 1 || entries[0].Path != good {
		t.Errorf("found %v, %v", entries, err)
	}
	byPath := make(map[string]error)
	for _, bad := range damaged {
		byPath[bad.Path] = bad.Err
	}
	if len(damaged) != 6 || !errors.Is(byPath[cut], record.ErrDamaged) || !errors.Is(byPath[zeros], record.ErrDamaged) {
		t.Errorf("damaged: %v", damaged)
	}
	if err := byPath[filepath.Join(hour, "heap.pb.gz")]; err == nil || !strings.Contains(err.Error(), "file name") {
		t.Errorf("a foreign name: %v", err)
	}
	put(t, cut, whole) // under a name of the same type and start
	if entries, damaged, _ := d.List(t.Context(), profiles.Query{}); len(entries) != 2 || len(damaged) != 5 {
		t.Errorf("after one was mended: %d listed, %d damaged", len(entries), len(damaged))
	}
}

func TestHoursOutsideTheTimeAreNotOpened(t *testing.T) {
	dir, m := t.TempDir(), meta(record.CPU)
	save(t, dir, m, small(m))
	for _, hour := range []string{"2026-01-02/10", "2026-01-02/13", "2026-01-01/12", "2025-12-31/12"} {
		put(t, filepath.Join(dir, "profiles", "shop", hour, "would be reported.pb.gz"), nil)
	}
	found, damaged := list(t, open(t, dir), profiles.Query{From: noon, To: noon.Add(time.Hour)})
	if len(found) != 1 || damaged != nil {
		t.Errorf("found %q, damaged %q", found, damaged)
	}
}

// Listing again opens only new files: changes of old ones are not noticed as long as their directory does not change.
func TestHeadsAreReadOnce(t *testing.T) {
	dir, m := t.TempDir(), meta(record.CPU)
	old := save(t, dir, m, small(m))
	d := open(t, dir)
	list(t, d, profiles.Query{})
	if err := os.WriteFile(old, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for range 3 { // also where the directory has changed
		save(t, dir, m, small(m))
		if found, damaged := list(t, d, profiles.Query{}); damaged != nil {
			t.Fatalf("found %d, damaged %q: the file was opened again", len(found), damaged)
		}
	}
	if found, _ := list(t, d, profiles.Query{}); len(found) != 4 {
		t.Errorf("found %d, want 4", len(found))
	}
}

// File systems keep directories' times in steps: files that come within one step must be found as well.
func TestFilesOfOneMomentAreFound(t *testing.T) {
	dir, m := t.TempDir(), meta(record.CPU)
	hour := filepath.Dir(save(t, dir, m, small(m)))
	moment := time.Now()
	d := open(t, dir)
	for n := 1; n < 5; n++ {
		if err := os.Chtimes(hour, moment, moment); err != nil {
			t.Fatal(err)
		}
		if found, _ := list(t, d, profiles.Query{}); len(found) != n {
			t.Fatalf("found %d, want %d", len(found), n)
		}
		save(t, dir, m, small(m))
	}
}

func TestRemovedFilesAreGone(t *testing.T) {
	dir, m := t.TempDir(), meta(record.CPU)
	first, second := save(t, dir, m, small(m)), save(t, dir, m, small(m))
	d := open(t, dir)
	entries, _, err := d.List(t.Context(), profiles.Query{})
	if err != nil || len(entries) != 2 {
		t.Fatal(entries, err)
	}
	if err := os.Remove(first); err != nil {
		t.Fatal(err)
	}
	n := 0
	for w, err := range profiles.Read(t.Context(), entries) { // listed before
		if n++; err != nil || w.Profile == nil {
			t.Errorf("%v, %v", w, err)
		}
	}
	if found, _ := list(t, d, profiles.Query{}); n != 1 || len(found) != 1 {
		t.Errorf("read %d, found %d, want 1", n, len(found))
	}
	if err := os.RemoveAll(filepath.Dir(second)); err != nil {
		t.Fatal(err)
	}
	if found, _ := list(t, d, profiles.Query{}); found != nil {
		t.Errorf("found %q in a directory that was removed", found)
	}
}

func TestOpenWantsADirectory(t *testing.T) {
	dir := t.TempDir()
	if _, err := profiles.Open(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing one: %v", err)
	}
	if _, err := profiles.Open(put(t, filepath.Join(dir, "file"), nil)); err == nil || !strings.Contains(err.Error(), "is a file") {
		t.Errorf("a file: %v", err)
	}
	d := open(t, dir)
	if found, damaged := list(t, d, profiles.Query{}); found != nil || damaged != nil {
		t.Errorf("an empty one: %q, %q", found, damaged)
	}
	if services, err := d.Services(t.Context()); err != nil || services != nil {
		t.Errorf("an empty one: services %q, %v", services, err)
	}
}

func TestListStopsWhenCancelled(t *testing.T) {
	dir, m := t.TempDir(), meta(record.CPU)
	save(t, dir, m, small(m))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d := open(t, dir)
	_, _, err := d.List(ctx, profiles.Query{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("List: %v", err)
	}
	for _, err := range d.Windows(ctx, profiles.Query{}) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Windows: %v", err)
		}
	}
	if found, _ := list(t, d, profiles.Query{}); len(found) != 1 {
		t.Errorf("afterwards found %q", found)
	}
}

func TestSpan(t *testing.T) {
	dir := t.TempDir()
	const one, two, three = "0000000000000001", "0000000000000002", "0000000000000003"
	for i := range 3 {
		m := meta(record.Wall)
		m.Start = noon.Add(time.Duration(i) * time.Minute)
		m.End = m.Start.Add(15 * time.Second)
		p := newProfile(record.Wall, m.Start, 15*time.Second,
			stack{[]string{"[waiting: mutex]", "main.lock", "span: GET /"}, one, int64(i + 1)},
			stack{[]string{"main.compute", "span: GET /"}, two, 100},
			stack{[]string{"main.idle"}, "", 1000})
		p.Comments = []string{"span_id=" + two + " 9 ms GET /: …", "made by hand", "span_id=" + one + " 8 ms GET /: …, held by main.x"}
		save(t, dir, m, p)
	}
	d := open(t, dir)
	q := profiles.Query{Types: []record.Type{record.Wall}, From: noon, To: noon.Add(90 * time.Second)}
	p, err := d.Span(t.Context(), q, one)
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]int64{"[waiting: mutex];main.lock;span: GET /;span_id=[" + one + "];": 3}; !maps.Equal(sums(p), want) {
		t.Errorf("one span: %v, want %v", sums(p), want)
	}
	if want := []string{"made by hand", "span_id=" + one + " 8 ms GET /: …, held by main.x"}; !slices.Equal(p.Comments, want) {
		t.Errorf("one span: comments %q, want %q", p.Comments, want)
	}
	if len(p.Function) != 3 || len(p.Location) != 3 {
		t.Errorf("one span: %d functions and %d locations, want only its own", len(p.Function), len(p.Location))
	}
	if p, err = d.Span(t.Context(), q, one, two, three); err != nil || len(p.Sample) != 2 {
		t.Errorf("several spans: %v, %v", p, err)
	}
	if p, err = d.Span(t.Context(), q, three); !errors.Is(err, profiles.ErrNone) || errors.Is(err, record.ErrDamaged) {
		t.Errorf("an unknown span: %v, %v", p, err)
	}
	m := meta(record.Wall)
	put(t, filepath.Join(dir, "profiles", filepath.FromSlash(m.SavedPath())), []byte("zap"))
	if p, err = d.Span(t.Context(), q, one); err != nil || len(p.Sample) != 1 {
		t.Errorf("with a damaged file: %v, %v", p, err)
	}
	if p, err = d.Span(t.Context(), q, three); !errors.Is(err, profiles.ErrNone) || !errors.Is(err, record.ErrDamaged) {
		t.Errorf("an unknown span, with a damaged file: %v, %v", p, err)
	}
}

// The viewer keeps profiles and shows parts of them to several at once.
func TestByLabelSharesNothingThatWritingChanges(t *testing.T) {
	p := newProfile(record.CPU, noon, time.Second, stack{[]string{"main.a"}, "00000000000000aa", 1}, stack{[]string{"main.b"}, "00000000000000bb", 2})
	p.Comments = []string{"kept"}
	before := p.String()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			q := profiles.ByLabel(p, "span_id", "00000000000000bb", "00000000000000cc")
			if err := q.Write(io.Discard); err != nil {
				t.Error(err)
			}
			if want := map[string]int64{"main.b;span_id=[00000000000000bb];": 2}; !maps.Equal(sums(q), want) || len(q.Function) != 1 ||
				q.Comments[0] != "kept" {
				t.Errorf("got %v, want %v and its function", q, want)
			}
		})
	}
	wg.Wait()
	if p.String() != before {
		t.Errorf("the profile became %v", p)
	}
}

func TestWindows(t *testing.T) {
	dir, m := t.TempDir(), meta(record.CPU)
	save(t, dir, m, small(m))
	broken := put(t, filepath.Join(dir, "profiles", filepath.FromSlash(m.SavedPath())), nil)
	// Whole in its head, but not behind it.
	late := m
	late.Start = noon.Add(time.Second)
	tail := save(t, dir, late, small(late))
	b, err := os.ReadFile(tail)
	if err != nil {
		t.Fatal(err)
	}
	put(t, tail, b[:len(b)-5])
	var bad []string
	n := 0
	for w, err := range open(t, dir).Windows(t.Context(), profiles.Query{}) {
		if err == nil {
			if n++; w.Service != "shop" || len(w.Profile.Sample) != 1 {
				t.Errorf("got %+v", w)
			}
			continue
		}
		d, ok := errors.AsType[profiles.Damaged](err)
		if !ok {
			t.Fatal(err)
		}
		bad = append(bad, d.Path)
	}
	if n != 1 || !slices.Equal(bad, []string{broken, tail}) {
		t.Errorf("%d whole, damaged %q", n, bad)
	}
	for range open(t, dir).Windows(t.Context(), profiles.Query{}) {
		break // the rest is not read
	}
}

// Many readers look at a directory that is being written to and cleaned.
func TestReadersDuringAWrite(t *testing.T) {
	dir, d := t.TempDir(), (*profiles.Dir)(nil)
	window := func(i int) record.Meta {
		m := meta(record.Wall)
		m.Start = noon.Add(time.Duration(i) * time.Minute)
		m.End = m.Start.Add(15 * time.Second)
		return m
	}
	const kept = 20 // the window that every reader looks for stays
	m := window(kept)
	save(t, dir, m, newProfile(record.Wall, m.Start, time.Second, stack{[]string{"main.kept"}, "00000000000000aa", 5}))
	d = open(t, dir)

	var done atomic.Bool
	var writer, readers sync.WaitGroup
	writer.Go(func() {
		for i := 0; !done.Load(); i++ {
			path := save(t, dir, window(i%60), small(window(i%60)))
			if i%2 == 0 {
				if err := os.Remove(path); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for range 64 {
		readers.Go(func() {
			for range 5 {
				if _, damaged, err := d.List(t.Context(), profiles.Query{}); err != nil || damaged != nil {
					t.Errorf("List: %v, %v", damaged, err)
				}
				if names, err := d.Services(t.Context()); err != nil || len(names) != 1 {
					t.Errorf("Services: %v, %v", names, err)
				}
				q := profiles.Query{From: m.Start, To: m.End}
				p, err := d.Span(t.Context(), q, "00000000000000aa")
				if err != nil || len(p.Sample) != 1 || p.Sample[0].Value[0] != 5 {
					t.Errorf("Span: %v, %v", p, err)
				}
			}
		})
	}
	readers.Wait()
	done.Store(true)
	writer.Wait()
}
