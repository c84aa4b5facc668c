package profiles_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime/pprof"
	"runtime/trace"
	"strings"
	"testing"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/profiles"
)

// Every form in which pprof's tools write a profile is read and merged, regardless of the file's name.
func TestFormats(t *testing.T) {
	var gzipped, plain, text bytes.Buffer
	if err := pprof.Lookup("heap").WriteTo(&gzipped, 0); err != nil {
		t.Fatal(err)
	}
	p, err := profile.ParseData(gzipped.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WriteUncompressed(&plain); err != nil {
		t.Fatal(err)
	}
	if err := pprof.Lookup("heap").WriteTo(&text, 1); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := map[string][]byte{"gzip.pb.gz": gzipped.Bytes(), "plain.pprof": plain.Bytes(), "text.prof": text.Bytes(), "default.pgo": gzipped.Bytes()}
	for name, b := range files {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		want, err := profile.ParseData(b)
		if err != nil {
			t.Fatal(err)
		}
		w, err := profiles.ReadFile(path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := len(w.Profile.Sample); got != len(want.Sample) || got == 0 || profiles.TypeName(w.Type) != "memory" {
			t.Errorf("%s: %d samples of type %s, want %d of memory", name, got, w.Type, len(want.Sample))
		}
		var merger profiles.Merger
		if err := merger.AddFile(path); err != nil {
			t.Errorf("merge %s: %v", name, err)
		}
	}
	notes := filepath.Join(dir, "notes.txt") // no profile by its name
	if err := os.WriteFile(notes, []byte("notes"), 0o600); err != nil {
		t.Fatal(err)
	}
	found, damaged, err := profiles.Find(t.Context(), profiles.Query{}, dir)
	if err != nil || len(damaged) > 0 || len(found) != len(files) {
		t.Errorf("%d of %d files found, %v damaged, %v", len(found), len(files), damaged, err)
	}
	if _, damaged, err := profiles.Find(t.Context(), profiles.Query{}, notes); err != nil || len(damaged) != 1 {
		t.Errorf("a file that is no profile: %v, %v", damaged, err)
	}
}

// A file in a format of Go that is not a profile says how to get one.
func TestOtherFormatsOfGo(t *testing.T) {
	var stacks, events bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&stacks, 2); err != nil {
		t.Fatal(err)
	}
	if err := trace.Start(&events); err != nil {
		t.Fatal(err)
	}
	trace.Stop()
	for want, b := range map[string][]byte{"debug=1": stacks.Bytes(), "go tool trace -pprof=": events.Bytes()} {
		if _, err := profiles.Parse(bytes.NewReader(b)); !errors.Is(err, record.ErrDamaged) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v, want an error with %q", b, err, want)
		}
	}
}
