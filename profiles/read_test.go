package profiles_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/profiles"
)

func TestReadFile(t *testing.T) {
	m := meta(record.Wall)
	path := save(t, t.TempDir(), m, small(m))
	w, err := profiles.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if w.Service != m.Service || w.Type != m.Type || !w.Start.Equal(m.Start) || !w.End.Equal(m.End) || !maps.Equal(w.Labels, m.Labels) {
		t.Errorf("got %+v, want %+v", w.Meta, m)
	}
	if want := map[string]int64{"main.work;main.main;": 1e7}; !maps.Equal(sums(w.Profile), want) {
		t.Errorf("got %v, want %v", sums(w.Profile), want)
	}
}

func TestReadFileOfAnotherTool(t *testing.T) {
	p := small(meta(record.CPU))
	var plain bytes.Buffer
	if err := p.WriteUncompressed(&plain); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"compressed.pb.gz": gzipped(t, p), "plain.pb": plain.Bytes()} {
		w, err := profiles.ReadFile(put(t, filepath.Join(t.TempDir(), name), b))
		if err != nil || w.Service != "" || w.Type != record.CPU || !w.Start.Equal(noon) || w.End.Sub(w.Start) != 15*time.Second || len(w.Profile.Sample) != 1 {
			t.Errorf("%s: got %+v, %v", name, w, err)
		}
	}
}

func TestTypesOfOtherToolsProfiles(t *testing.T) {
	for _, tt := range []struct {
		samples string
		want    record.Type
	}{
		{"samples cpu", record.CPU}, {"alloc_objects alloc_space inuse_objects inuse_space", record.Memory},
		{"contentions delay", record.Block}, {"goroutine", record.Goroutine}, {"goroutineleak", record.GoroutineLeak},
		{"wall", record.Wall}, {"Threadcreate", "threadcreate"}, {"", ""},
	} {
		p := &profile.Profile{}
		for name := range strings.FieldsSeq(tt.samples) {
			p.SampleType = append(p.SampleType, &profile.ValueType{Type: name, Unit: "count"})
		}
		w, err := profiles.ReadFile(put(t, filepath.Join(t.TempDir(), "x.pb.gz"), gzipped(t, p)))
		if err != nil || w.Type != tt.want {
			t.Errorf("%q: type %q, %v; want %q", tt.samples, w.Type, err, tt.want)
		}
	}
}

// malformed are profiles that say something impossible, in their wire form.
func malformed(t testing.TB) map[string][]byte {
	spoiled := func(spoil func(*profile.Profile)) []byte {
		p := small(meta(record.CPU))
		spoil(p)
		var b bytes.Buffer
		if err := p.WriteUncompressed(&b); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	whole := spoiled(func(*profile.Profile) {})
	return map[string][]byte{
		"empty":                        {},
		"zeros":                        make([]byte, 4096),
		"text":                         []byte("notes on a heap profile\n"),
		"cut off":                      whole[:len(whole)-3],
		"two, one after the other":     append(bytes.Clone(whole), whole...),
		"a location of no table":       spoiled(func(p *profile.Profile) { p.Location = p.Location[1:] }),
		"a function of no table":       spoiled(func(p *profile.Profile) { p.Function = p.Function[1:] }),
		"two locations of one ID":      spoiled(func(p *profile.Profile) { p.Location[1].ID = p.Location[0].ID }),
		"two functions of one ID":      spoiled(func(p *profile.Profile) { p.Function[1].ID = p.Function[0].ID }),
		"a location with the ID 0":     spoiled(func(p *profile.Profile) { p.Location[0].ID = 0 }),
		"a value too many":             spoiled(func(p *profile.Profile) { p.Sample[0].Value = []int64{1, 2} }),
		"no sample types":              spoiled(func(p *profile.Profile) { p.SampleType = nil }),
		"a string of no table":         append(bytes.Clone(whole), 14<<3, 99),
		"a first string with a letter": append([]byte{6<<3 | 2, 1, 'x'}, whole...),
		"a number where a message is":  append(bytes.Clone(whole), 2<<3, 1),
		"a message where a number is":  append(bytes.Clone(whole), 12<<3|2, 0),
		"a field longer than the rest": append(bytes.Clone(whole), 2<<3|2, 99),
		"a group":                      append(bytes.Clone(whole), 2<<3|3),
		"a group that ends":            append(bytes.Clone(whole), 15<<3|3, 15<<3|4),
		"a number of eight bytes":      append(bytes.Clone(whole), 12<<3|1, 1, 0, 0, 0, 0, 0, 0, 0),
		"four bytes for a message":     append(bytes.Clone(whole), 2<<3|5, 1, 0, 0, 0),
	}
}

func TestMalformedProfiles(t *testing.T) {
	for name, b := range malformed(t) {
		t.Run(name, func(t *testing.T) {
			var zipped bytes.Buffer
			zw := gzip.NewWriter(&zipped)
			if _, err := zw.Write(b); err != nil {
				t.Fatal(err)
			}
			if err := zw.Close(); err != nil {
				t.Fatal(err)
			}
			for form, b := range map[string][]byte{"plain": b, "compressed": zipped.Bytes()} {
				path := put(t, filepath.Join(t.TempDir(), "x.pb.gz"), b)
				if _, err := profiles.Parse(bytes.NewReader(b)); !errors.Is(err, record.ErrDamaged) {
					t.Errorf("%s: Parse: %v", form, err)
				}
				if _, err := profiles.ReadFile(path); !errors.Is(err, record.ErrDamaged) || !strings.Contains(err.Error(), path) {
					t.Errorf("%s: ReadFile: %v", form, err)
				}
				if err := new(profiles.Merger).AddFile(path); !errors.Is(err, record.ErrDamaged) || !strings.Contains(err.Error(), path) {
					t.Errorf("%s: AddFile: %v", form, err)
				}
			}
		})
	}
}

func TestDamagedFiles(t *testing.T) {
	m := meta(record.CPU)
	dir := t.TempDir()
	file, err := os.ReadFile(save(t, dir, m, small(m)))
	if err != nil {
		t.Fatal(err)
	}
	foreign := gzipped(t, small(m))
	flipped := bytes.Clone(file)
	flipped[len(file)-20] ^= 4
	for name, b := range map[string][]byte{
		"empty":                          nil,
		"cut in the head":                file[:40],
		"cut in the profile":             file[:len(file)-9],
		"a flipped bit":                  flipped,
		"filled with zeros from half":    append(bytes.Clone(file[:len(file)/2]), make([]byte, len(file)/2)...),
		"another tool's, cut":            foreign[:len(foreign)-9],
		"another tool's, with more":      append(bytes.Clone(foreign), "more"...),
		"only the beginnings of gzip":    {0x1f, 0x8b},
		"another tool's, cut in a field": foreign[:5],
	} {
		path := put(t, filepath.Join(dir, "x.pb.gz"), b)
		w, err := profiles.ReadFile(path)
		if d, ok := errors.AsType[profiles.Damaged](err); !ok || d.Path != path || !errors.Is(err, record.ErrDamaged) {
			t.Errorf("%s: %v, %v", name, w, err)
		}
	}
}

func TestWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe.pb.gz")
	if err := syscall.Mkfifo(pipe, 0o644); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{pipe: "not a regular file", dir: "not a regular file"} {
		if _, err := profiles.ReadFile(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if _, err := profiles.ReadFile(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func TestParseKeepsTheReadersError(t *testing.T) {
	broken := errors.New("input/output error")
	if _, err := profiles.Parse(iotest.ErrReader(broken)); !errors.Is(err, broken) || errors.Is(err, record.ErrDamaged) {
		t.Errorf("got %v", err)
	}
}

func TestParseTypeAndTime(t *testing.T) {
	for name, want := range map[string]record.Type{"cpu": record.CPU, "memory": record.Memory, "goroutines": record.Goroutine, "wall": record.Wall} {
		if got, err := profiles.ParseType(name); got != want || err != nil || profiles.TypeName(got) != name {
			t.Errorf("type %q: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"threadcreate", "objects/space"} {
		if got, err := profiles.ParseType(name); string(got) != name || err != nil {
			t.Errorf("type %q of another tool: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "Tea", "heap", "process_cpu"} {
		if _, err := profiles.ParseType(name); err == nil || !strings.Contains(err.Error(), `"`+name+`": want one of cpu, wall, memory, mutex, `) {
			t.Errorf("an unknown type: %v", err)
		}
	}
	for s, want := range map[string]time.Time{"15m": noon.Add(-15 * time.Minute), "2026-01-02T13:00:00+01:00": noon, "2026-01-02 12:00:00": noon,
		"2026-01-02 12:00:00 UTC": noon} {
		if got, err := profiles.ParseTime(s, noon); !got.Equal(want) || err != nil {
			t.Errorf("time %q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "yesterday", "-5m", "12:00", "2026-01-02"} {
		if _, err := profiles.ParseTime(s, noon); err == nil {
			t.Errorf("time %q: no error", s)
		}
	}
}

func TestFind(t *testing.T) {
	saved, plain := t.TempDir(), t.TempDir()
	cpu, wall := meta(record.CPU), meta(record.Wall)
	cpu.Start, cpu.End = cpu.Start.Add(time.Minute), cpu.End.Add(time.Minute)
	own, span := save(t, saved, cpu, small(cpu)), save(t, saved, wall, small(wall))
	b, err := os.ReadFile(own)
	if err != nil {
		t.Fatal(err)
	}
	inside := put(t, filepath.Join(plain, "below", "copy.pb.gz"), b)
	foreign := put(t, filepath.Join(plain, "profile.pb.gz"), gzipped(t, small(meta(record.CPU))))
	broken := put(t, filepath.Join(plain, "broken.pb.gz"), nil)
	put(t, filepath.Join(plain, "notes.txt"), nil)
	for name, tt := range map[string]struct {
		query profiles.Query
		paths []string
		want  []string
		bad   []string
	}{
		"a saved directory":    {profiles.Query{}, []string{saved}, []string{span, own}, nil},
		"its CPU profiles":     {profiles.Query{Types: []record.Type{record.CPU}}, []string{saved}, []string{own}, nil},
		"a part of it":         {profiles.Query{}, []string{filepath.Join(saved, "profiles", "shop")}, []string{span, own}, nil},
		"any directory":        {profiles.Query{}, []string{plain}, []string{foreign, inside}, []string{broken}},
		"of a service":         {profiles.Query{Service: "shop"}, []string{plain}, []string{inside}, []string{broken}},
		"files":                {profiles.Query{}, []string{own, foreign, span}, []string{span, foreign, own}, nil},
		"one file twice":       {profiles.Query{}, []string{own, filepath.Dir(own) + "/./" + filepath.Base(own)}, []string{own}, nil},
		"a file and the whole": {profiles.Query{}, []string{saved, own}, []string{span, own}, nil},
	} {
		entries, damaged, err := profiles.Find(t.Context(), tt.query, tt.paths...)
		if err != nil {
			t.Fatal(err)
		}
		found, want := make(map[string]int), make(map[string]int)
		for _, e := range entries {
			found[e.Path]++
			if e.Bytes == 0 || e.Type == "" {
				t.Errorf("%s: %+v", name, e)
			}
		}
		for _, path := range tt.want {
			want[path]++
		}
		if !maps.Equal(found, want) || len(damaged) != len(tt.bad) || len(damaged) > 0 && damaged[0].Path != tt.bad[0] {
			t.Errorf("%s: found %v and damaged %v, want %v and %v", name, found, damaged, want, tt.bad)
		}
	}
	if _, _, err := profiles.Find(t.Context(), profiles.Query{}, filepath.Join(plain, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing path: %v", err)
	}
}
