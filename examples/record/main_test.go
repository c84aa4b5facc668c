package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
)

var start = time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)

// save saves a profile that began so long after the start and gives 10 ms of CPU time to each of the spans.
func save(t *testing.T, dir string, typ record.Type, after time.Duration, labels map[string]string, spans ...string) {
	t.Helper()
	cpu := &profile.ValueType{Type: "cpu", Unit: "nanoseconds"}
	p := &profile.Profile{SampleType: []*profile.ValueType{cpu}, PeriodType: cpu}
	for _, span := range spans {
		p.Sample = append(p.Sample, &profile.Sample{Value: []int64{1e7}, Label: map[string][]string{"span_id": {span}}})
	}
	var zipped, file bytes.Buffer
	if err := p.Write(&zipped); err != nil {
		t.Fatal(err)
	}
	m := record.Meta{Service: service, Type: typ, Start: start.Add(after), End: start.Add(after + window), Labels: labels}
	if err := record.Encode(&file, record.Record{Meta: m, Profile: zipped.Bytes()}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "profiles", filepath.FromSlash(m.SavedPath()))
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, file.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func TestKeep(t *testing.T) {
	saved, kepts := t.TempDir(), []kept{{record.CPU, 2}, {record.Wall, 2}}
	root, child := map[string]string{"span_scope": "root"}, map[string]string{"span_scope": "child"}
	for _, after := range []time.Duration{-window, -1, 0, window, 2 * window} {
		save(t, saved, record.CPU, after, nil)
	}
	save(t, saved, record.Wall, 1, child, "a")
	for i, after := range []time.Duration{2, 3, window + 1, window + 2} {
		save(t, saved, record.Wall, after, root, string(rune('b'+i)))
	}
	out := filepath.Join(t.TempDir(), "set")
	if err := (side{keeps: kepts}).keep(t.Context(), saved, out, start); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(out)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(out, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		r, err := record.Decode(bytes.NewReader(b), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, f.Name()+" "+r.Start.Sub(start).String())
	}
	want := []string{"cpu-01.pb.gz 0s", "cpu-02.pb.gz 3s", "wall-01.pb.gz 2ns", "wall-02.pb.gz 3.000000001s"}
	if !slices.Equal(got, want) {
		t.Errorf("kept %q, want %q", got, want)
	}
	err = side{keeps: []kept{{record.CPU, 4}}}.keep(t.Context(), saved, out, start)
	if err == nil || !strings.Contains(err.Error(), "3 windows of type process_cpu are saved, want 4") {
		t.Errorf("with too few: %v", err)
	}
}

func TestHeaviest(t *testing.T) {
	dir := t.TempDir()
	if span, err := heaviest(t.Context(), dir); err == nil {
		t.Errorf("of nothing: %q", span)
	}
	save(t, dir, record.CPU, 0, nil, "a", "b")
	save(t, dir, record.CPU, window, nil, "b", "c")
	if span, err := heaviest(t.Context(), dir); err != nil || span != "b" {
		t.Errorf("%q, %v, want b", span, err)
	}
}
