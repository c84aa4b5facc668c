package profiles_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
)

// noon is the start of most windows in these tests.
var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// stack is a sample for newProfile: frames from the leaf on, and what it counts.
type stack struct {
	frames []string
	spanID string // none if empty
	value  int64
}

// newProfile makes a CPU or wall-clock profile. Functions of golang.org have the files of a dependency.
func newProfile(t record.Type, start time.Time, length time.Duration, stacks ...stack) *profile.Profile {
	kind := &profile.ValueType{Type: "cpu", Unit: "nanoseconds"}
	if t == record.Wall {
		kind = &profile.ValueType{Type: "wall", Unit: "nanoseconds"}
	}
	p := &profile.Profile{
		SampleType: []*profile.ValueType{kind}, PeriodType: kind, Period: 1e7,
		TimeNanos: start.UnixNano(), DurationNanos: int64(length),
	}
	locations := make(map[string]*profile.Location)
	for _, s := range stacks {
		sample := &profile.Sample{Value: []int64{s.value}}
		if s.spanID != "" {
			sample.Label = map[string][]string{"span_id": {s.spanID}}
		}
		for _, name := range s.frames {
			l := locations[name]
			if l == nil {
				id := uint64(len(locations) + 1)
				fn := &profile.Function{ID: id, Name: name, SystemName: name, Filename: "shop.go"}
				if strings.HasPrefix(name, "golang.org/") {
					fn.Filename = "golang.org/x/sync@v0.24.0/a.go"
				}
				l = &profile.Location{ID: id, Line: []profile.Line{{Function: fn, Line: int64(id)}}}
				locations[name] = l
				p.Function, p.Location = append(p.Function, fn), append(p.Location, l)
			}
			sample.Location = append(sample.Location, l)
		}
		p.Sample = append(p.Sample, sample)
	}
	return p
}

// meta is of a window of 15 s from noon on.
func meta(t record.Type) record.Meta {
	return record.Meta{Service: "shop", Type: t, Start: noon, End: noon.Add(15 * time.Second), Labels: map[string]string{"region": "eu"}}
}

func gzipped(t testing.TB, p *profile.Profile) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// save saves a profile as an agent does, and returns its path.
func save(t testing.TB, dir string, m record.Meta, p *profile.Profile) string {
	t.Helper()
	return saveZipped(t, dir, m, gzipped(t, p))
}

func saveZipped(t testing.TB, dir string, m record.Meta, zipped []byte) string {
	t.Helper()
	var b bytes.Buffer
	if err := record.Encode(&b, record.Record{Meta: m, Profile: zipped}); err != nil {
		t.Fatal(err)
	}
	return put(t, filepath.Join(dir, "profiles", filepath.FromSlash(m.SavedPath())), b.Bytes())
}

// put writes a file as a whole.
func put(t testing.TB, path string, b []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".tmp", b, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
	return path
}

// small is a profile of one sample.
func small(m record.Meta) *profile.Profile {
	return newProfile(m.Type, m.Start, m.End.Sub(m.Start), stack{frames: []string{"main.work", "main.main"}, value: 1e7})
}

// sums has what each stack with its labels counts, as text.
func sums(p *profile.Profile) map[string]int64 {
	got := make(map[string]int64)
	for _, s := range p.Sample {
		key := ""
		for _, l := range s.Location {
			for _, line := range l.Line {
				key += line.Function.Name + ";"
			}
		}
		for _, name := range slices.Sorted(maps.Keys(s.Label)) {
			key += fmt.Sprint(name, "=", s.Label[name], ";")
		}
		got[key] += s.Value[0]
	}
	return got
}
