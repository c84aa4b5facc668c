package profiles_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/profiles"
)

// pprofInputs are the inputs of google/pprof's own tests and of its fuzzing, by their path in its module.
func pprofInputs(t *testing.T) map[string][]byte {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/google/pprof").Output()
	if err != nil {
		t.Fatal(err)
	}
	module := strings.TrimSpace(string(out))
	inputs := make(map[string][]byte)
	for _, dir := range []string{
		"profile/testdata", "fuzz/corpus", "fuzz/testdata", "internal/driver/testdata", "internal/proftest/testdata",
		"internal/report/testdata", "internal/binutils/testdata",
	} {
		err := filepath.WalkDir(filepath.Join(module, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			name, err := filepath.Rel(module, path)
			if err != nil {
				return err
			}
			inputs[name], err = os.ReadFile(path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return inputs
}

// asPprof fails the test unless some bytes, alone and as a file to merge, are read as google/pprof reads them, or are
// refused with an error that has the file's name and the kind of error.
func asPprof(t *testing.T, path string, b []byte) (read bool) {
	t.Helper()
	put(t, path, b)
	w, err := profiles.ReadFile(path)
	var m profiles.Merger
	mergeErr := m.AddFile(path)
	for _, err := range []error{err, mergeErr} {
		d, named := errors.AsType[profiles.Damaged](err)
		if err != nil &&
			(!named || d.Path != path || !errors.Is(err, record.ErrDamaged) && !errors.Is(err, record.ErrTooLarge) &&
				!strings.Contains(err.Error(), "does not fit into 64 bits")) {
			t.Fatalf("%s: an error that does not tell what is wrong: %v", path, err)
		}
	}
	if err != nil {
		if mergeErr == nil {
			t.Fatalf("%s: the merger takes what ReadFile refuses: %v", path, err)
		}
		return false
	}
	want, err := profile.Parse(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("%s: google/pprof refuses what we read: %v", path, err)
	}
	if got := w.Profile.String(); got != want.String() {
		t.Fatalf("%s: got\n%s\nwant\n%s", path, got, want)
	}
	if mergeErr != nil {
		return true // such as sums that do not fit
	}
	got, err := m.Profile()
	if err != nil {
		t.Fatal(err)
	}
	if want, err = profile.Merge([]*profile.Profile{want}); err == nil {
		want, err = profile.ParseUncompressed(wire(t, want)) // without labels that say nothing
	}
	if err != nil || got.String() != want.String() {
		t.Fatalf("%s: merged %v: got\n%s\nwant\n%s", path, err, got, want)
	}
	return true
}

// maxSpoilt is the maximum size in bytes of an input that is also read in a corrupted form: the texts that are compared grow with it.
const maxSpoilt = 10_000

// The inputs of google/pprof are in formats from before its own, which are refused, and in that. Those that it
// reads are read here in its format: whole, cut off at many places and spoilt at many.
func TestInputsOfPprofAreReadAsPprofDoes(t *testing.T) {
	inputs := pprofInputs(t)
	dir := t.TempDir()
	whole, spoilt, refused := 0, 0, 0
	for name, b := range inputs {
		path := filepath.Join(dir, filepath.Base(name))
		asPprof(t, path, b)
		p, err := profile.ParseData(b)
		if err != nil || p.CheckValid() != nil {
			continue
		}
		var wire, zipped bytes.Buffer
		if err := errors.Join(p.WriteUncompressed(&wire), p.Write(&zipped)); err != nil {
			t.Fatal(err)
		}
		for form, b := range map[string][]byte{"plain": wire.Bytes(), "compressed": zipped.Bytes()} {
			if !asPprof(t, path, b) {
				t.Errorf("%s, %s: it is refused", name, form)
			}
			whole++
			if len(b) > maxSpoilt || form == "compressed" && len(b) > maxSpoilt/4 { // a sum tells nearly all damage of the latter
				continue
			}
			step := max(1, len(b)/10)
			for at := 0; at < len(b); at += step {
				cut, flipped := b[:at], bytes.Clone(b)
				flipped[at] ^= 1 << (at % 8)
				for _, damaged := range [][]byte{cut, flipped} {
					spoilt++
					if !asPprof(t, path, damaged) {
						refused++
					}
				}
			}
		}
	}
	t.Logf("of %d inputs %d profiles are read as google/pprof does; of %d that are damaged %d are refused", len(inputs), whole, spoilt, refused)
	if len(inputs) < 50 || whole < 20 || refused == 0 || refused == spoilt {
		t.Error("that is too few: are the inputs still where they were?")
	}
}

// A profile has no cycles, but a stack may have the same location again and again.
func TestAStackOfOneLocation(t *testing.T) {
	const depth = 200_000
	p := small(meta(record.CPU))
	s := p.Sample[0]
	for len(s.Location) < depth {
		s.Location = append(s.Location, s.Location[0])
	}
	path := put(t, filepath.Join(t.TempDir(), "deep.pb.gz"), gzipped(t, p))
	w, err := profiles.ReadFile(path)
	if err != nil || len(w.Profile.Sample[0].Location) != depth {
		t.Errorf("read: %v", err)
	}
	var m profiles.Merger
	for range 2 {
		if err := m.AddFile(path); err != nil {
			t.Fatal(err)
		}
	}
	if sum := add(t, &m); len(sum.Sample[0].Location) != depth || len(sum.Location) != 2 || sum.Sample[0].Value[0] != 2e7 {
		t.Errorf("merged: a sample of %d in %d of %d locations", sum.Sample[0].Value[0], len(sum.Sample[0].Location), len(sum.Location))
	}
}
