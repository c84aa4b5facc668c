package profiles

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/pprofwire"
	"spanflame/internal/record"
	"spanflame/profiles/internal/bomb"
)

// large is a profile of n samples, each with its own stack of 30 and its own label.
func large(n int) *profile.Profile {
	kind := &profile.ValueType{Type: "cpu", Unit: "nanoseconds"}
	p := &profile.Profile{SampleType: []*profile.ValueType{kind}, PeriodType: kind, Period: 1}
	for i := range n + 30 {
		id := uint64(i + 1)
		fn := &profile.Function{ID: id, Name: fmt.Sprintf("main.function%d", i), Filename: "main.go"}
		p.Function = append(p.Function, fn)
		p.Location = append(p.Location, &profile.Location{ID: id, Line: []profile.Line{{Function: fn, Line: 1}}})
	}
	for i := range n {
		p.Sample = append(p.Sample, &profile.Sample{
			Location: p.Location[i : i+30], Value: []int64{1}, Label: map[string][]string{"span_id": {fmt.Sprintf("%016x", i)}},
		})
	}
	return p
}

func wireOf(t testing.TB, p *profile.Profile) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := p.WriteUncompressed(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestLimits(t *testing.T) {
	dir := t.TempDir()
	explodes := filepath.Join(dir, "bomb.pb.gz")
	if err := os.WriteFile(explodes, bomb.New(t, 1), 0o644); err != nil {
		t.Fatal(err)
	}
	many := filepath.Join(dir, "many.pb")
	if err := os.WriteFile(many, wireOf(t, large(2000)), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path   string
		limits limits
		want   string
	}{
		{explodes, limits{file: 100, profile: 1 << 30, memory: 1 << 40}, "the file has more than 100 bytes"},
		{explodes, limits{file: 1 << 20, profile: 1 << 20, memory: 1 << 40}, "the decompressed profile has more than 1048576 bytes"},
		{many, limits{file: 1 << 30, profile: 1 << 30, memory: 1 << 20}, "bytes of memory, the limit is 1048576"},
	} {
		m := Merger{reader: &reader{limits: tt.limits}}
		if err := m.AddFile(tt.path); !errors.Is(err, record.ErrTooLarge) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.path) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
		if grown := m.reader.data.Cap(); int64(grown) > 4*tt.limits.profile {
			t.Errorf("%s: a limit of %d bytes let the buffer grow to %d", tt.path, tt.limits.profile, grown)
		}
	}
}

// The estimate must not be below what is really taken, nor far above.
func TestWeighEstimatesMemory(t *testing.T) {
	for name, p := range map[string]*profile.Profile{"with labels": large(5_000), "without": without(large(20_000))} {
		data := wireOf(t, p)
		weight, err := pprofwire.Weigh(data)
		if err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.GC()
		runtime.GC() // what pools hold goes with the second collection
		runtime.ReadMemStats(&before)
		q, err := parse(data)
		if err != nil {
			t.Fatal(err)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		runtime.KeepAlive(q)
		kept := int64(after.HeapAlloc) - int64(before.HeapAlloc)
		if weight < kept || weight > 6*kept {
			t.Errorf("%s: estimated %d bytes, %d are kept", name, weight, kept)
		}
	}
}

func without(p *profile.Profile) *profile.Profile {
	for _, s := range p.Sample {
		s.Label = nil
	}
	return p
}

func TestMergedProfileIsBounded(t *testing.T) {
	var m Merger
	if err := m.Add(large(10)); err != nil {
		t.Fatal(err)
	}
	m.samples.bytes = maxMergedBytes + 1
	if err := m.Add(large(10)); !errors.Is(err, record.ErrTooLarge) || !strings.Contains(err.Error(), "drop the labels") {
		t.Errorf("got %v", err)
	}
}

func TestIndexIsBounded(t *testing.T) {
	dir := t.TempDir()
	kind := &profile.ValueType{Type: "cpu", Unit: "nanoseconds"}
	var b bytes.Buffer
	if err := (&profile.Profile{SampleType: []*profile.ValueType{kind}}).Write(&b); err != nil {
		t.Fatal(err)
	}
	start := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	for i := range 24 {
		m := record.Meta{Service: "shop", Type: record.CPU, Start: start.Add(time.Duration(i) * time.Hour)}
		m.End = m.Start
		path := filepath.Join(dir, "profiles", filepath.FromSlash(m.SavedPath()))
		var file bytes.Buffer
		if err := record.Encode(&file, record.Record{Meta: m, Profile: b.Bytes()}); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, file.Bytes(), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	d, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	d.most = 10
	for range 2 {
		entries, damaged, err := d.List(context.Background(), Query{})
		if err != nil || len(entries) != 24 || damaged != nil {
			t.Fatalf("%d entries, %v, %v", len(entries), damaged, err)
		}
	}
	sum := 0
	for _, f := range d.hours {
		sum += len(f.files) + 1
	}
	if d.indexed != sum || sum > d.most || len(d.hours) != 5 {
		t.Errorf("%d folders with %d files are remembered, counted as %d; at most %d may be", len(d.hours), sum, d.indexed, d.most)
	}
	newest := filepath.Join(d.root, "shop", "2026-01-02", "23")
	if d.hours[newest] == nil {
		t.Error("the folder that was used last is forgotten")
	}
}
