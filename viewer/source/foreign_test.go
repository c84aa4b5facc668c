package source

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/viewer/internal/fixture"
)

// Files come, change, go, and cannot be read, while the pages are served.
func TestForeignFilesChange(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name+".pb.gz") }
	write := func(name, function string) {
		fixture.Foreign(t, path(name), fixture.Began, "cpu", "nanoseconds", fixture.Sample(function, 5e8, ""))
	}
	synctest.Test(t, func(t *testing.T) {
		write("a", "main.a")
		d, err := Open(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		list := func() (names []string) {
			time.Sleep(foreignEvery + time.Second)
			entries, damaged, err := d.profiles.List(t.Context(), profiles.Query{Types: []record.Type{record.CPU}})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				names = append(names, filepath.Base(e.Path))
			}
			for _, bad := range damaged {
				names = append(names, "damaged "+filepath.Base(bad.Path))
			}
			return names
		}
		write("b", "main.b")
		if got := list(); !slices.Equal(got, []string{"a.pb.gz", "b.pb.gz"}) {
			t.Errorf("after another file came: %q", got)
		}
		if err := os.WriteFile(path("b"), []byte("longer than before, and no profile at all"), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := list(); !slices.Equal(got, []string{"a.pb.gz", "damaged b.pb.gz"}) {
			t.Errorf("after it was overwritten: %q", got)
		}
		if err := errors.Join(os.Remove(path("a")), os.Remove(path("b"))); err != nil {
			t.Fatal(err)
		}
		if got := list(); len(got) > 0 {
			t.Errorf("after they were removed: %q", got)
		}
	})
}

func TestForeignScope(t *testing.T) {
	m := record.Meta{
		Service: "s", Type: record.Wall, Start: fixture.Began, End: fixture.Began.Add(time.Minute),
		Labels: map[string]string{record.VersionLabel: "1"},
	}
	scoped := m
	scoped.Labels = map[string]string{record.VersionLabel: "1", wallprofile.SpanScope: "child"}
	for name, tt := range map[string]struct {
		q    profiles.Query
		m    record.Meta
		want bool
	}{
		"all":                 {profiles.Query{}, m, true},
		"its service":         {profiles.Query{Service: "s"}, m, true},
		"another service":     {profiles.Query{Service: "t"}, m, false},
		"another type":        {profiles.Query{Types: []record.Type{record.CPU}}, m, false},
		"its version":         {profiles.Query{Labels: map[string]string{record.VersionLabel: "1"}}, m, true},
		"another version":     {profiles.Query{Labels: map[string]string{record.VersionLabel: "2"}}, m, false},
		"no such label":       {profiles.Query{Labels: map[string]string{record.InstanceLabel: ""}}, m, false},
		"a scope that it has": {profiles.Query{Labels: map[string]string{wallprofile.SpanScope: "root"}}, scoped, false},
		"no scope":            {profiles.Query{Labels: map[string]string{wallprofile.SpanScope: "root"}}, m, true},
		"later":               {profiles.Query{From: fixture.Began.Add(2 * time.Minute)}, m, false},
		"earlier":             {profiles.Query{To: fixture.Began}, m, false},
		"its time":            {profiles.Query{From: fixture.Began.Add(time.Second), To: fixture.Began.Add(2 * time.Second)}, m, true},
	} {
		if got := withoutScope(tt.q, tt.m).Match(tt.m); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// A directory that cannot be read is left out and reported; here it is one whose path is too long.
func TestForeignUnreadableDirectory(t *testing.T) {
	dir := fixture.TwoVersions(t)
	at, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		name := strings.Repeat("d", 250)
		if err := at.Mkdir(name, 0o755); err != nil {
			t.Fatal(err)
		}
		below, err := at.OpenRoot(name)
		if err := errors.Join(err, at.Close()); err != nil {
			t.Fatal(err)
		}
		at = below
	}
	if err := at.Close(); err != nil {
		t.Fatal(err)
	}
	entries, damaged, err := open(t, dir).profiles.List(t.Context(), profiles.Query{})
	if err != nil || len(entries) != 12 || len(damaged) != 1 || !strings.HasPrefix(damaged[0].Path, dir) {
		t.Errorf("%d profiles, damaged %v, %v: want 12 and the directory", len(entries), damaged, err)
	}
}

// TestWhatAgentsKeepForTheirNextStart: it is no profile of another tool.
func TestWhatAgentsKeepForTheirNextStart(t *testing.T) {
	d := fixture.Shop(t)
	fixture.Foreign(t, filepath.Join(d.Dir, record.RunsDir, "shop-0123abcd", "heap.pb.gz"), fixture.Began, "inuse_space", "bytes",
		fixture.Sample("main.main", 1, ""))
	if _, plain := open(t, d.Dir).profiles.(*profiles.Dir); !plain {
		t.Error("the directory has profiles of another tool")
	}
}

// An error in the contents of a file lasts; one of the machine may be gone at the next try.
func TestForeignTriesAgain(t *testing.T) {
	dir := fixture.TwoVersions(t)
	for kept, err := range map[bool]error{false: errors.New("too many open files"), true: fmt.Errorf("its end: %w", record.ErrDamaged)} {
		l, openErr := openForeign(t.Context(), dir, "shop")
		if openErr != nil {
			t.Fatal(openErr)
		}
		path := filepath.Join(dir, "before", "cpu-0.pb.gz")
		f := l.files[path]
		f.err = err
		l.files[path] = f
		if lookErr := l.look(t.Context()); lookErr != nil || (l.files[path].err != nil) != kept {
			t.Errorf("after %v: %v, %v", err, l.files[path].err, lookErr)
		}
	}
}

// Windows of other tools have no service, as their values count from the start of the process, but the version of their place.
func TestForeignSeries(t *testing.T) {
	d := open(t, fixture.TwoVersions(t))
	n := 0
	for w, err := range d.Series(t.Context(), Selection{Service: "shop", Type: record.CPU, Version: "before"}, 100) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; w.Service != "" || w.Labels[record.VersionLabel] != "before" {
			t.Errorf("service %q, labels %v: want none, and the version", w.Service, w.Labels)
		}
	}
	if n != 6 {
		t.Errorf("%d windows, want 6", n)
	}
}

// TestFilesNextTo: profiles next to those of an agent, and in directories there, are shown as well, under the name of the
// directory, and so are the agent's traces.
func TestFilesNextTo(t *testing.T) {
	saved := fixture.Shop(t)
	fixture.Foreign(t, filepath.Join(saved.Dir, "cpu.prof"), fixture.Began, "cpu", "nanoseconds", fixture.Sample("main.main", 5e8, ""))
	fixture.Foreign(t, filepath.Join(saved.Dir, "deep", "cpu.prof"), fixture.Began, "cpu", "nanoseconds", fixture.Sample("main.main", 5e8, ""))
	d := open(t, saved.Dir)
	service := filepath.Base(saved.Dir)
	services, err := d.Services(t.Context(), time.Time{}, time.Time{})
	if err != nil || !slices.Equal(services, slices.Sorted(slices.Values([]string{service, "storefront"}))) || d.Foreign() {
		t.Errorf("services %q, %v, foreign %v: want %s and storefront of an agent's directory", services, err, d.Foreign(), service)
	}
	windows, err := d.Windows(t.Context(), Selection{Service: service, Type: record.CPU})
	if err != nil || len(windows) != 2 {
		t.Errorf("windows of %s: %v, %v, want both of cpu.prof", service, windows, err)
	}
	if found, err := d.Search(t.Context(), Filter{Limit: 10}); err != nil || len(found.Traces) != 1 {
		t.Errorf("traces %v, %v, want 1", found.Traces, err)
	}
}
