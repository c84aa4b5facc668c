package profiles

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
)

// tiny is a small profile that has a bit of everything.
func tiny() *profile.Profile {
	kind := &profile.ValueType{Type: "a", Unit: "b"}
	m := &profile.Mapping{ID: 1, Start: 1, Limit: 9, File: "f", BuildID: "g"}
	fn := &profile.Function{ID: 1, Name: "n"}
	l := &profile.Location{ID: 1, Mapping: m, Address: 2, Line: []profile.Line{{Function: fn, Line: 3}}}
	return &profile.Profile{
		SampleType: []*profile.ValueType{kind}, PeriodType: kind, Period: 1, TimeNanos: 1, DurationNanos: 2, Comments: []string{"n"},
		Mapping: []*profile.Mapping{m}, Function: []*profile.Function{fn}, Location: []*profile.Location{l},
		Sample: []*profile.Sample{
			{Location: []*profile.Location{l}, Value: []int64{5}, Label: map[string][]string{"a": {"b", "n"}}},
			{Location: []*profile.Location{l, l, l}, Value: []int64{6}, NumLabel: map[string][]int64{"a": {1, 2}}, NumUnit: map[string][]string{"a": {"b", "n"}}},
		},
	}
}

// mergedByPprof returns the result of google/pprof's merger after writing and reading it: in memory it may also have labels
// without content, such as the number 0 in the unit "".
func mergedByPprof(t *testing.T, ps ...*profile.Profile) *profile.Profile {
	t.Helper()
	sum, err := profile.Merge(ps)
	if err != nil {
		t.Fatal(err)
	}
	sum, err = profile.ParseUncompressed(wireOf(t, sum))
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// FuzzParse also holds the merger against google/pprof's, for one profile and for two.
func FuzzParse(f *testing.F) {
	f.Add(wireOf(f, tiny()))
	f.Add([]byte{})
	f.Add(make([]byte, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, record.ErrDamaged) && !errors.Is(err, record.ErrTooLarge) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		var one, two Merger
		if one.Add(p) != nil {
			return // such as sums that do not fit
		}
		got, err := one.Profile()
		if err != nil {
			t.Fatal(err)
		}
		want := mergedByPprof(t, p)
		if got.String() != want.String() {
			t.Fatalf("alone: got\n%v\nwant\n%v", got, want)
		}
		for range 2 {
			if two.Add(p) != nil {
				return
			}
		}
		got, err = two.Profile()
		if err != nil {
			t.Fatal(err)
		}
		if want = mergedByPprof(t, p, p); got.String() != want.String() {
			t.Fatalf("twice: got\n%v\nwant\n%v", got, want)
		}
	})
}

func FuzzReadFile(f *testing.F) {
	var file, zipped bytes.Buffer
	if err := tiny().Write(&zipped); err != nil {
		f.Fatal(err)
	}
	m := record.Meta{Service: "shop", Type: record.CPU}
	m.Start = m.Start.AddDate(2025, 0, 0)
	m.End = m.Start
	if err := record.Encode(&file, record.Record{Meta: m, Profile: zipped.Bytes()}); err != nil {
		f.Fatal(err)
	}
	f.Add(file.Bytes())
	f.Add(zipped.Bytes())
	f.Add(wireOf(f, tiny()))
	f.Add([]byte{})
	path := filepath.Join(f.TempDir(), "x.pb.gz")
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		w, err := ReadFile(path)
		if _, damaged := errors.AsType[Damaged](err); err != nil && !damaged || err == nil && w.Profile == nil {
			t.Fatalf("%+v, %v", w, err)
		}
		if mergeErr := new(Merger).AddFile(path); err != nil && mergeErr == nil {
			t.Fatalf("the merger takes what ReadFile refuses: %v", err)
		}
	})
}
