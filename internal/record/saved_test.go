package record_test

import (
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"spanflame/internal/record"
)

func TestDirName(t *testing.T) {
	long := strings.Repeat("ü", 1000)
	for service, want := range map[string]string{
		"checkout":       "checkout",
		"Check-out_2.x":  "Check-out_2.x",
		"a/b\\c":         "a%2Fb%5Cc",
		"..":             "%2E%2E",
		".":              "%2E",
		"../etc":         "..%2Fetc",
		"50%":            "50%25",
		"größe":          "gr%C3%B6%C3%9Fe",
		"a~b":            "a%7Eb",
		"":               "%",
		"<script>\n\x00": "%3Cscript%3E%0A%00",
	} {
		if got := record.DirName(service); got != want {
			t.Errorf("DirName(%q) = %q, want %q", service, got, want)
		}
	}
	if a, b := record.DirName(long), record.DirName(long+"x"); a == b || len(a) > 200 {
		t.Errorf("two long names become %q and %q", a, b)
	}
}

func FuzzDirName(f *testing.F) {
	for _, s := range []string{"checkout", "..", ".", "", "a/b", `a\b`, "~", "%2E", strings.Repeat("ü", 100), strings.Repeat("a", 180) + "ü~"} {
		f.Add(s)
	}
	plain := regexp.MustCompile(`^([a-zA-Z0-9._-]|%[0-9A-F]{2})+$`)
	cut := regexp.MustCompile(`^([a-zA-Z0-9._-]|%[0-9A-F]{2})+~[0-9a-f]{16}$`)
	f.Fuzz(func(t *testing.T, service string) {
		name := record.DirName(service)
		if name == "." || name == ".." || len(name) > 200 || filepath.Base(name) != name {
			t.Fatalf("DirName(%q) = %q", service, name)
		}
		switch back, err := url.PathUnescape(name); {
		case service == "":
		case plain.MatchString(name):
			if err != nil || back != service {
				t.Errorf("DirName(%q) = %q, which is %q, %v", service, name, back, err)
			}
		case !cut.MatchString(name) || 3*len(service) <= 200:
			t.Errorf("DirName(%q) = %q", service, name)
		}
	})
}

func TestSavedPath(t *testing.T) {
	m := sample(t).Meta
	m.Service = "shop/front"
	m.Start = time.Date(2026, 1, 2, 1, 4, 5, 0, time.FixedZone("", 2*60*60))
	dir, file := path.Split(m.SavedPath())
	if want := "shop%2Ffront/2026-01-01/23/"; dir != want {
		t.Errorf("saved in %q, want %q: the hour of the start in UTC", dir, want)
	}
	if n, err := record.ParseFileName(file); err != nil || !n.Start.Equal(m.Start) || n.Type != m.Type {
		t.Errorf("saved as %q: %v, %v", file, n, err)
	}
	if a, b := m.SavedPath(), m.SavedPath(); a == b {
		t.Errorf("two records share the file %s", a)
	}
}

func TestDefaultDir(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CACHE_HOME", filepath.Join(home, "cache"))
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	if dir, err := record.DefaultDir(); err != nil || dir != filepath.Join(cache, "spanflame", "saved") {
		t.Errorf("got %q, %v", dir, err)
	}
	t.Setenv("HOME", "")
	t.Setenv("XDG_CACHE_HOME", "")
	if dir, err := record.DefaultDir(); err == nil {
		t.Errorf("got %q without a home, want an error", dir)
	}
}
