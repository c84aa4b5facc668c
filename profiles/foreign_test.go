package profiles_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/pprofwire"
	"spanflame/internal/record"
	"spanflame/profiles"
)

// foreignCPU is a profile as another tool writes it.
func foreignCPU() *profile.Profile {
	return &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "cpu", Unit: "nanoseconds"}}, PeriodType: &profile.ValueType{Type: "cpu", Unit: "nanoseconds"},
		Sample: []*profile.Sample{{Value: []int64{1e9}}}, TimeNanos: noon.UnixNano(), DurationNanos: 10e9,
	}
}

func writeForeign(t *testing.T, path string, p *profile.Profile, compress bool) {
	t.Helper()
	write := p.WriteUncompressed
	if compress {
		write = p.Write
	}
	var b bytes.Buffer
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestFindForeign(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	names := []string{"a.pb.gz", "b.pprof", "c.prof", "d.pb", "default.pgo"}
	for i, name := range names {
		writeForeign(t, at(name), foreignCPU(), i%2 == 0)
	}
	for i, name := range []string{"cpu.out", "heap"} { // found by what is in them
		writeForeign(t, at(name), foreignCPU(), i == 0)
		names = append(names, name)
	}
	slices.Sort(names)
	for name, b := range map[string][]byte{
		"readme": []byte("\n\nnotes"), "empty": nil, "log.gz": pprofwire.Gzip([]byte("a log")), "cut.gz": {0x1f, 0x8b},
	} {
		if err := os.WriteFile(at(name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(at("notes.prof"), []byte("not a profile"), 0o644); err != nil {
		t.Fatal(err)
	}
	found, damaged, err := profiles.Find(t.Context(), profiles.Query{}, dir)
	var got []string
	for _, e := range found {
		got = append(got, filepath.Base(e.Path))
		if e.Kind != "cpu/nanoseconds, period cpu/nanoseconds" || e.Bytes == 0 || !e.Start.Equal(noon) || e.End.Sub(e.Start) != 10*time.Second {
			t.Errorf("%+v", e)
		}
	}
	if !slices.Equal(got, names) || err != nil {
		t.Errorf("found %q, %v, want %q", got, err, names)
	}
	if len(damaged) != 1 || damaged[0].Path != at("notes.prof") || strings.Count(damaged[0].Error(), at("notes.prof")) != 1 {
		t.Errorf("damaged: %v, want notes.prof, named once", damaged)
	}
	if _, damaged, err := profiles.Find(t.Context(), profiles.Query{}, at("readme")); err != nil || len(damaged) != 1 {
		t.Errorf("a file that is given and is not a profile: %v, %v", damaged, err)
	}
	if _, err := profiles.ReadFile(at("notes.prof")); !errors.As(err, new(profiles.Damaged)) {
		t.Errorf("not a profile: %v", err)
	}
}

// TestLooksLikeProfile: profiles of every type that the runtime writes are found by how they begin, and other files are not.
func TestLooksLikeProfile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	looks := func(b []byte) bool {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return profiles.LooksLikeProfile(path)
	}
	var cpu bytes.Buffer
	if err := pprof.StartCPUProfile(&cpu); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(50 * time.Millisecond); time.Now().Before(until); {
	}
	pprof.StopCPUProfile()
	written := map[string][]byte{"cpu": cpu.Bytes()}
	for _, p := range pprof.Profiles() {
		var b bytes.Buffer
		if err := p.WriteTo(&b, 0); err != nil {
			t.Fatal(err)
		}
		written[p.Name()] = b.Bytes()
	}
	for name, b := range written {
		plain, err := pprofwire.Gunzip(b, 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		if !looks(b) || !looks(plain) {
			t.Errorf("the %s profile of the runtime does not look like one", name)
		}
	}
	for name, b := range map[string][]byte{
		"Go source": []byte("package main\n\nfunc main() {}\n"), "newlines": []byte("\n\n\n\n"), "JSON": []byte(`{"a": 1}`), "zeros": make([]byte, 100),
		"a log": pprofwire.Gzip(bytes.Repeat([]byte("2026-01-02 15:04:05 INFO started\n"), 1000)), "ELF": []byte("\x7fELF\x02\x01\x01\x00\x00\x00"),
		"tar": pprofwire.Gzip(append([]byte("profiles/cpu.pb"), make([]byte, 2000)...)),
	} {
		if looks(b) {
			t.Errorf("%s looks like a profile", name)
		}
	}
}

// TestFindNextToAnAgent: directories with the names of an agent's hide no files, neither those next to them nor those in
// them.
func TestFindNextToAnAgent(t *testing.T) {
	dir := t.TempDir()
	saved := save(t, dir, meta(record.CPU), small(meta(record.CPU)))
	want := []string{saved}
	for _, name := range []string{"a.pb.gz", "profiles/b.pb.gz", "profiles/shop/c.prof", "traces/d.pprof", "base/e.pb.gz"} {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		writeForeign(t, path, foreignCPU(), true)
		want = append(want, path)
	}
	found, damaged, err := profiles.Find(t.Context(), profiles.Query{}, dir)
	var got []string
	for _, e := range found {
		got = append(got, e.Path)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) || len(damaged) > 0 || err != nil {
		t.Errorf("found %q, %v, %v, want %q", got, damaged, err, want)
	}
}

// TestForeignTimes: a time or a duration that cannot be counts as not given.
func TestForeignTimes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cpu.pb.gz")
	for name, tt := range map[string]struct {
		at, took int64
		start    time.Time
		length   time.Duration
	}{
		"usual":             {noon.UnixNano(), 10e9, noon, 10 * time.Second},
		"none":              {0, 10e9, time.Unix(0, 0), 10 * time.Second},
		"before 1970":       {-1e18, 10e9, time.Unix(0, 0), 10 * time.Second},
		"the last":          {1<<63 - 1, 10e9, time.Unix(0, 0), 10 * time.Second},
		"endless":           {noon.UnixNano(), 1<<63 - 1, noon, 0},
		"negative duration": {noon.UnixNano(), -5, noon, 0},
	} {
		p := foreignCPU()
		p.TimeNanos, p.DurationNanos = tt.at, tt.took
		writeForeign(t, path, p, true)
		w, err := profiles.ReadFile(path)
		if err != nil || !w.Start.Equal(tt.start) || w.End.Sub(w.Start) != tt.length || w.Profile.DurationNanos != int64(tt.length) {
			t.Errorf("%s: from %v, for %v, %v; want from %v for %v", name, w.Start, w.End.Sub(w.Start), err, tt.start, tt.length)
		}
	}
}
