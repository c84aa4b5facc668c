package save

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spanflame/internal/record"
)

func traceFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "traces", "shop", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// A file that is as old as its limit can only be removed whole, so it must not grow for an hour.
func TestTraceFilesAreShorterThanTheirAge(t *testing.T) {
	dir := t.TempDir()
	traces := OpenTraces(Options{Dir: dir, Service: "shop", MaxBytes: 1 << 20, MaxAge: 30 * time.Minute})
	defer traces.Close(context.Background())
	for range 2 {
		if _, err := traces.Write([]byte("{}\n")); err != nil {
			t.Fatal(err)
		}
		traces.opened = traces.opened.Add(-16 * time.Minute)
	}
	if files := traceFiles(t, dir); len(files) != 2 {
		t.Errorf("files %v, want two of a quarter of an hour", files)
	}
}

// A disk that does not answer holds a writer, and the writer the lock.
func TestCloseOfTracesEndsWithItsContext(t *testing.T) {
	traces := OpenTraces(Options{Dir: t.TempDir(), Service: "shop", MaxBytes: 1 << 20, MaxAge: time.Hour})
	traces.mu.Lock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := traces.Close(ctx) // with a Close that waits for the writer, the test never ends
	traces.mu.Unlock()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
	<-traces.ring.done // it makes directories, which the end of the test removes
}

// The room for a line may be made by removing the open file, on a disk that has become full.
func TestLineAfterItsFileWasRemoved(t *testing.T) {
	dir := t.TempDir()
	traces := OpenTraces(Options{Dir: dir, Service: "shop", MaxBytes: 64 << 20, MaxAge: time.Hour})
	line := bytes.Repeat([]byte("x"), 100<<10)
	line[len(line)-1] = '\n'
	for range 30 {
		if _, err := traces.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	traces.ring.mu.Lock()
	traces.ring.limit = 2 << 20
	traces.ring.mu.Unlock()
	copy(line, "last")
	if _, err := traces.Write(line); err != nil {
		t.Fatal(err)
	}
	if err := traces.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	files := traceFiles(t, dir)
	if len(files) != 1 {
		t.Fatalf("files %v, want one", files)
	}
	if b, err := os.ReadFile(files[0]); err != nil || !strings.Contains(string(b), "last") {
		t.Errorf("the line that was written last is not in %s (%v)", files[0], err)
	}
}

func TestLargeProfileIsSavedAlone(t *testing.T) {
	p := OpenProfiles(Options{Dir: t.TempDir(), Service: "shop", MaxBytes: 1 << 30, MaxAge: time.Hour}, slog.New(slog.DiscardHandler))
	b := make([]byte, maxQueueBytes+1)
	b[0], b[1] = 0x1f, 0x8b
	now := time.Now()
	p.Put(record.Record{Meta: record.Meta{Service: "shop", Type: record.Memory, Start: now, End: now}, Profile: b})
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if s := p.Stats(); s.Counts[Key{Event: Saved}].Items != 1 {
		t.Errorf("%+v, want one profile saved", s)
	}
}
