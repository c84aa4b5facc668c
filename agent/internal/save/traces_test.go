package save

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"spanflame/internal/record"
	"spanflame/internal/traces"
)

// line is a batch of one span with the name, of about size bytes.
func line(t testing.TB, name string, size int) []byte {
	t.Helper()
	padding := &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: strings.Repeat("x", size)}}
	var b bytes.Buffer
	err := traces.Marshal(&b, []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{{
		TraceId: make([]byte, 16), SpanId: make([]byte, 8), Name: name, Attributes: []*commonpb.KeyValue{{Key: "padding", Value: padding}},
	}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func write(t testing.TB, tr *Traces, b []byte) {
	t.Helper()
	if n, err := tr.Write(b); n != len(b) || err != nil {
		t.Errorf("%d bytes written, %v, want %d", n, err, len(b))
	}
}

// spans are the names of the spans in the files below dir, by file in the order of the names.
func spans(t testing.TB, dir string) [][]string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "traces", record.DirName(service), "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(paths)
	var all [][]string
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for line := range bytes.Lines(b) {
			spans, err := traces.Unmarshal(line)
			if err != nil {
				t.Errorf("%s: %v", path, err)
			}
			for _, s := range spans {
				names = append(names, s.Name)
			}
		}
		all = append(all, names)
	}
	return all
}

func closeTraces(t *testing.T, tr *Traces) {
	t.Helper()
	if err := tr.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestLinesAreThereAtOnce(t *testing.T) {
	o := options(t.TempDir())
	tr := OpenTraces(o)
	write(t, tr, line(t, "one", 10))
	write(t, tr, line(t, "two", 10))
	if got := spans(t, o.Dir); len(got) != 1 || !slices.Equal(got[0], []string{"one", "two"}) {
		t.Errorf("got %v", got)
	}
	closeTraces(t, tr)
	names, size := files(t, o.Dir)
	if opened, err := parseTraceFileName(filepath.Base(names[0])); err != nil || time.Since(opened) > time.Hour {
		t.Errorf("the file is %s: %v", names[0], err)
	}
	if s := tr.Stats(); s.Counts[Key{Saved, ""}] != (Count{1, size}) || s.Bytes != size || s.Degraded != nil {
		t.Errorf("%+v, want one file of %d bytes", s, size)
	}
	if _, err := tr.Write(line(t, "late", 10)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
}

func TestFilesOfTracesAreBoundedInSizeAndTime(t *testing.T) {
	o := options(t.TempDir()) // 1 MiB: files of 128 KiB
	synctest.Test(t, func(t *testing.T) {
		tr := OpenTraces(o)
		synctest.Wait()
		for range 3 {
			write(t, tr, line(t, "big", 60_000))
			time.Sleep(time.Second)
		}
		time.Sleep(30 * time.Minute)
		write(t, tr, line(t, "half an hour later", 10))
		time.Sleep(31 * time.Minute)
		write(t, tr, line(t, "an hour later", 10))
		got := spans(t, o.Dir)
		if want := [][]string{{"big", "big"}, {"big", "half an hour later"}, {"an hour later"}}; !slices.EqualFunc(got, want, slices.Equal) {
			t.Errorf("got %v, want %v", got, want)
		}

		for range 40 {
			write(t, tr, line(t, "more", 60_000))
			time.Sleep(time.Second)
		}
		names, size := files(t, o.Dir)
		if s := tr.Stats(); size > o.MaxBytes || size < o.MaxBytes/2 || s.Bytes != size || s.Counts[Key{Removed, "full"}].Items == 0 {
			t.Errorf("%d files with %d bytes, want at most %d and not much less; %+v", len(names), size, o.MaxBytes, s)
		}
		for _, file := range spans(t, o.Dir) {
			if file[0] != "more" {
				t.Errorf("%v is left, want the newest", file)
			}
		}
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		if names, _ := files(t, o.Dir); len(names) > 0 {
			t.Errorf("a day later %v is left", names)
		}
		write(t, tr, line(t, "a day later", 10)) // the file that was open is gone
		if got := spans(t, o.Dir); len(got) != 1 || got[0][0] != "a day later" {
			t.Errorf("got %v", got)
		}
		closeTraces(t, tr)
	})
}

func TestAFileOfTracesThatIsTakenAway(t *testing.T) {
	o := options(t.TempDir())
	tr := OpenTraces(o)
	<-scanned(tr.ring)
	write(t, tr, line(t, "before", 10))
	if err := os.RemoveAll(filepath.Join(o.Dir, "traces")); err != nil {
		t.Fatal(err)
	}
	write(t, tr, line(t, "after", 10))
	if got := spans(t, o.Dir); len(got) != 1 || got[0][0] != "after" {
		t.Errorf("got %v", got)
	}
	closeTraces(t, tr)
}

func TestTracesThatCannotBeWritten(t *testing.T) {
	o := options(filepath.Join(t.TempDir(), "dir"))
	if err := os.WriteFile(o.Dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		tr := OpenTraces(o)
		b := line(t, "one", 10)
		if _, err := tr.Write(b); err == nil || tr.Stats().Degraded == nil {
			t.Errorf("Write: %v, and degraded: %v; want an error", err, tr.Stats().Degraded)
		}
		if failed := tr.Stats().Counts[Key{Failed, "write"}]; failed != (Count{1, int64(len(b))}) {
			t.Errorf("%+v failed, want one of %d bytes", failed, len(b))
		}
		if err := os.Remove(o.Dir); err != nil {
			t.Fatal(err)
		}
		if _, err := tr.Write(line(t, "large", 600_000)); err == nil || !strings.Contains(err.Error(), "too large") {
			t.Errorf("a line of more than half of the directory: %v", err)
		}
		write(t, tr, b)
		time.Sleep(trimEvery)
		synctest.Wait()
		if got := spans(t, o.Dir); len(got) != 1 || tr.Stats().Degraded != nil {
			t.Errorf("got %v, degraded: %v", got, tr.Stats().Degraded)
		}
		closeTraces(t, tr)
	})
}
