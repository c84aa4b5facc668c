package source

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/http/pprof"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"spanflame/internal/record"
	"spanflame/profiles"
)

// The profiles of a running process are read once. What is not there is named.
func TestDownload(t *testing.T) {
	pages := http.NewServeMux()
	pages.HandleFunc("/below/debug/pprof/", pprof.Index)
	for _, name := range []string{"heap", "goroutine"} {
		pages.Handle("/below/debug/pprof/"+name, pprof.Handler(name))
	}
	pages.HandleFunc("/below/debug/pprof/mutex", http.NotFound)
	pages.HandleFunc("/below/debug/pprof/block", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) })
	pages.HandleFunc("/below/debug/pprof/profile", pprof.Profile)
	server := httptest.NewServer(pages)
	defer server.Close()
	for _, end := range []string{"/below", "/below/debug/pprof/"} {
		var missing []string
		dir, err := Download(t.Context(), server.URL+end, t.TempDir(), time.Millisecond, func(err error) { missing = append(missing, err.Error()) })
		if err != nil {
			t.Fatal(err)
		}
		if len(missing) != 2 || !strings.Contains(missing[0], "the mutex profile is missing") || !strings.Contains(missing[0], "404") ||
			!strings.Contains(missing[1], "the block profile is missing") {
			t.Errorf("missing: %q", missing)
		}
		d, err := Open(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		entries, _, err := d.profiles.List(t.Context(), profiles.Query{})
		var types []record.Type
		for _, e := range entries {
			types = append(types, e.Type)
			if want := strings.ReplaceAll(strings.TrimPrefix(server.URL, "http://"), ":", "-"); e.Service != want {
				t.Errorf("service %q, want %s", e.Service, want)
			}
		}
		slices.Sort(types)
		if want := []record.Type{record.Goroutine, record.Memory, record.CPU}; err != nil || !slices.Equal(types, want) {
			t.Errorf("%v, %v; want %v", types, err, want)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestDownloadSaysWhatIsWrong(t *testing.T) {
	locked := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusUnauthorized) }))
	defer locked.Close()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for address, want := range map[string]string{
		locked.URL: "TOKEN@HOST:PORT: the heap profile is missing",
		gone.URL:   "cannot be reached: dial tcp",
		strings.Replace(gone.URL, "http://", "http://any:secret@", 1): gone.URL + " cannot be reached",
		"http://":                     "want http://HOST:PORT",
		"http://../a":                 "want http://HOST:PORT",
		"http://host/?a=b":            "want http://HOST:PORT",
		"ftp://host":                  "want http://HOST:PORT",
		"http://any:secret@host/?a=b": `address "http://host/?…": want http://HOST:PORT`,
		"http://any:secret@ho st":     `address "http://ho st": want http://HOST:PORT`,
		"http://any:secret/1@host":    `address "http://host": want http://HOST:PORT`,
	} {
		dir := t.TempDir()
		_, err := Download(t.Context(), address, dir, time.Second, func(error) {})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %q", address, err, want)
		}
		if files, err := filepath.Glob(filepath.Join(dir, "*", "*")); err != nil || files != nil {
			t.Errorf("%s: left %q, %v", address, files, err)
		}
	}
	ctx, interrupt := context.WithCancelCause(t.Context())
	interrupted := errors.New("interrupted")
	busy := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		interrupt(interrupted)
		<-r.Context().Done()
	}))
	defer busy.Close()
	if _, err := Download(ctx, busy.URL, t.TempDir(), time.Second, func(error) {}); err != interrupted {
		t.Errorf("interrupted: %v", err)
	}
	if _, err := Download(t.Context(), gone.URL, filepath.Join(t.TempDir(), "none"), time.Second, nil); !os.IsNotExist(err) {
		t.Errorf("without a directory: %v", err)
	}
}
