package source

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"spanflame/internal/traces"
	"spanflame/viewer/internal/fixture"
)

// found are the traces that the index knows now.
func found(t *testing.T, d *Directory) Found {
	t.Helper()
	d.index.refreshed = time.Time{} // the next look is due
	for {
		f, err := d.Search(t.Context(), Filter{Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		if d.index.unread == 0 {
			return f
		}
	}
}

func names(f Found) string {
	var all []string
	for _, tr := range f.Traces {
		all = append(all, fmt.Sprintf("%s %d", tr.Name, tr.Spans))
	}
	return strings.Join(all, ", ")
}

func single(name string, took time.Duration) fixture.Span {
	return fixture.Span{Trace: name, ID: name, Service: "svc", Name: name, Took: took}
}

// TestFilesGrowAndGo reads like the life of a directory.
func TestFilesGrowAndGo(t *testing.T) {
	d := fixture.New(t)
	dir := open(t, d.Dir)
	is := func(when, want string) {
		t.Helper()
		if got := names(found(t, dir)); got != want {
			t.Errorf("%s: traces %q, want %q", when, got, want)
		}
	}
	is("nothing was saved", "")

	first := d.TraceFile("svc", "20260102T150405")
	a, b := fixture.Line(t, single("a", 3*time.Second)), fixture.Line(t, single("b", 2*time.Second))
	d.Write(first, a)
	is("one line", "a 1")
	d.Write(first, b[:len(b)/2])
	is("half of a line", "a 1")
	d.Write(first, b[len(b)/2:len(b)-1])
	is("a line without its end", "a 1")
	d.Write(first, b[len(b)-1:])
	is("the line's end", "a 1, b 1")

	d.Write(first, []byte("no JSON\n\n{\"resourceSpans\":[{\"scopeSpans\":[{\"spans\":[{}]}]}]}\n"))
	is("lines that are no traces", "a 1, b 1")
	if notes := strings.Join(found(t, dir).Notes, ""); !strings.Contains(notes, "left out: 2.") {
		t.Errorf("notes %q, want the 2 damaged lines to be counted", notes)
	}

	second := d.TraceFile("other", "20260102T160000")
	d.Write(second, fixture.Line(t, fixture.Span{Trace: "a", ID: "a2", Parent: "a", Service: "other", Name: "child", Took: time.Second}))
	is("a span of another service", "a 2, b 1")
	if spans, err := dir.Trace(t.Context(), fixture.TraceID("a")); err != nil || len(spans) != 2 || spans[0].Name != "a" || spans[1].Name != "child" {
		t.Errorf("trace: %v, %v", spans, err)
	}

	if err := os.Remove(first); err != nil {
		t.Fatal(err)
	}
	is("a file is gone", "a 2") // what is known of the whole stays
	if spans, err := dir.Trace(t.Context(), fixture.TraceID("a")); err != nil || len(spans) != 1 {
		t.Errorf("trace whose one file is gone: %v, %v", spans, err)
	}

	if err := os.WriteFile(second, fixture.Line(t, single("c", time.Second))[:0], 0o644); err != nil {
		t.Fatal(err)
	}
	is("a file was emptied", "")
	d.Write(second, fixture.Line(t, single("c", time.Second)))
	is("and written again", "c 1")
}

func TestLineThatIsTooLong(t *testing.T) {
	d := fixture.New(t)
	dir := open(t, d.Dir)
	file := d.TraceFile("svc", "f")
	long := bytes.Repeat([]byte("x"), traces.MaxLine/2+1)
	d.Write(file, long)
	d.Write(file, long)
	if got := names(found(t, dir)); got != "" {
		t.Errorf("traces %q", got)
	}
	d.Write(file, append(long, '\n'))
	d.Write(file, fixture.Line(t, single("a", time.Second)))
	f := found(t, dir)
	if names(f) != "a 1" || len(f.Notes) != 1 || !strings.Contains(f.Notes[0], "left out: 1.") {
		t.Errorf("traces %q, notes %q, want the line after the long one, which is counted once", names(f), f.Notes)
	}
}

func TestSearchFilters(t *testing.T) {
	d := fixture.New(t)
	d.Spans(
		fixture.Span{Trace: "a", ID: "a", Service: "shop", Name: "POST /checkout", Took: time.Second},
		fixture.Span{Trace: "a", ID: "a2", Parent: "a", Service: "stock", Name: "reserve", Took: time.Second / 2},
		fixture.Span{Trace: "b", ID: "b", Service: "shop", Name: "GET /", Start: time.Hour, Took: 100 * time.Millisecond},
	)
	dir := open(t, d.Dir)
	for _, tt := range []struct {
		f    Filter
		want string
	}{
		{Filter{}, "POST /checkout 2, GET / 1"},
		{Filter{Service: "stock"}, "POST /checkout 2"},
		{Filter{Service: "stock", Name: "checkout"}, ""}, // of one and the same span
		{Filter{Name: "CHECK"}, "POST /checkout 2"},
		{Filter{Min: 200 * time.Millisecond}, "POST /checkout 2"},
		{Filter{From: fixture.Began.Add(time.Minute)}, "GET / 1"},
		{Filter{To: fixture.Began.Add(time.Minute)}, "POST /checkout 2"},
		{Filter{Limit: 1}, "POST /checkout 2"},
	} {
		if tt.f.Limit == 0 {
			tt.f.Limit = 10
		}
		got, err := dir.Search(t.Context(), tt.f)
		if err != nil || names(got) != tt.want {
			t.Errorf("%+v: %q, %v, want %q", tt.f, names(got), err, tt.want)
		}
	}
}

// TestRequestsThatEndAfterManyQueries: the root of a trace, and a request that another service received, are found although
// batches with more of their spans than the index keeps were saved before them.
func TestRequestsThatEndAfterManyQueries(t *testing.T) {
	d := fixture.New(t)
	for _, request := range []fixture.Span{
		{ID: "stock", Parent: "shop", Service: "stock", Name: "reserve", Took: time.Second / 2, Profiled: true},
		{ID: "shop", Service: "shop", Name: "POST /checkout", Took: time.Second},
	} {
		request.Trace = "a"
		var queries []fixture.Span
		for i := range maxEntries + 1 {
			queries = append(queries, fixture.Span{
				Trace: "a", ID: fmt.Sprint(request.ID, i), Parent: request.ID, Service: request.Service, Name: "SELECT", Took: time.Millisecond,
			})
		}
		d.Spans(queries...)
		d.Spans(request)
	}
	dir := open(t, d.Dir)
	for _, f := range []Filter{{}, {Name: "checkout"}, {Service: "stock", Name: "reserve"}} {
		f.Limit = 10
		got, err := dir.Search(t.Context(), f)
		if want := fmt.Sprintf("POST /checkout %d", 2*(maxEntries+2)); err != nil || names(got) != want || got.Traces[0].Main.Name != "reserve" {
			t.Errorf("%+v: %q, to diagnose is %+v, %v, want %q, reserve", f, names(got), got.Traces, err, want)
		}
	}
}

func TestIndexIsBounded(t *testing.T) {
	d := fixture.New(t)
	dir := open(t, d.Dir)
	const files, each = 5, 100
	dir.index.most = files * each
	for i := range files {
		var b bytes.Buffer
		for j := range each {
			n := i*each + j
			name := fmt.Sprint(n)
			b.Write(
				fixture.Line(
					t,
					fixture.Span{Trace: name, ID: name, Service: "svc", Name: name, Start: time.Duration(n) * time.Second, Took: time.Second, Profiled: true},
				),
			)
		}
		d.Write(d.TraceFile("svc", fmt.Sprint("f", i)), b.Bytes())
	}
	f := found(t, dir)
	x := dir.index
	if size := x.indexed + len(x.traces); size > x.most {
		t.Errorf("the index holds %d, at most %d are allowed", size, x.most)
	}
	last := false
	for _, tr := range x.traces {
		last = last || tr.entries[0].name == fmt.Sprint(files*each-1)
	}
	if !last || !strings.Contains(strings.Join(f.Notes, ""), "The oldest traces are left out") {
		t.Errorf("the latest trace is there: %v; notes %q", last, f.Notes)
	}
	// The requests that are left are not all, except after the end of those that were forgotten.
	if some, err := dir.Requests(t.Context(), Filter{}); err != nil || len(some) > 0 {
		t.Errorf("%d requests, %v, want none as some are forgotten", len(some), err)
	}
	after := fixture.Began.Add((files*each - 10) * time.Second)
	if latest, err := dir.Requests(t.Context(), Filter{From: after}); err != nil || len(latest) != 10 {
		t.Errorf("%d requests, %v, want the latest 10", len(latest), err)
	}
}

// Reading all traces may take long: only who asks for that waits.
func TestRequestsDoNotWait(t *testing.T) {
	d := fixture.New(t)
	d.Write(d.TraceFile("svc", "20260102T150405"), fixture.Line(t, single("a", time.Second)))
	d.Write(d.TraceFile("svc", "20260102T160000"), fixture.Line(t, single("b", time.Second)))
	dir := open(t, d.Dir)
	dir.index.budget = 0 // of one file at a time
	if some, err := dir.Requests(t.Context(), Filter{}); !errors.Is(err, ErrReading) {
		t.Errorf("one file was read: %v, %v, want %v", some, err, ErrReading)
	}
	if err := dir.ReadTraces(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all, err := dir.Requests(t.Context(), Filter{}); err != nil || len(all) != 2 {
		t.Errorf("all files were read: %v, %v, want both requests", all, err)
	}
}

// TestFilesOfOtherPrograms: files that are read as a whole, in the directory of traces and next to it, and what else is there.
func TestFilesOfOtherPrograms(t *testing.T) {
	d := fixture.New(t)
	write := func(name string, b []byte) {
		t.Helper()
		path := filepath.Join(d.Dir, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	zipped := func(b []byte) []byte {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, fixture.Line(t, single("indented", time.Second)), "", "  "); err != nil {
		t.Fatal(err)
	}
	two := append(fixture.Line(t, single("one", time.Second)), fixture.Line(t, single("two", time.Second))...)
	write("traces/indented.json", indented.Bytes())
	write("traces/svc/lines.json", two)
	write("traces/zipped.jsonl.gz", zipped(fixture.Line(t, single("zipped", time.Second))))
	write("answer.json", bytes.Replace(fixture.Line(t, single("answer", time.Second)), []byte("resourceSpans"), []byte("batches"), 1))
	write("package.json", []byte(`{"name": "x", "data": "y"}`))
	write("list.json", []byte(`[1, 2]`))
	write("bad.json.gz", []byte("not gzip"))
	dir := open(t, d.Dir)
	all := func() (names []string) {
		f := found(t, dir)
		for _, tr := range f.Traces {
			spans, err := dir.Trace(t.Context(), tr.TraceID)
			if err != nil || len(spans) != 1 {
				t.Errorf("trace %s: %v, %v", tr.Name, spans, err)
			}
			names = append(names, tr.TraceID)
		}
		slices.Sort(names)
		if dir.index.damaged > 0 {
			t.Errorf("%d damaged lines, %q", dir.index.damaged, f.Notes)
		}
		return names
	}
	want := []string{fixture.TraceID("indented"), fixture.TraceID("one"), fixture.TraceID("two"), fixture.TraceID("zipped"), fixture.TraceID("answer")}
	slices.Sort(want)
	if got := all(); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	// A file that is read as a whole is read again when it has changed.
	write("answer.json", fixture.Line(t, single("another answer", time.Second)))
	want = slices.DeleteFunc(append(want, fixture.TraceID("another answer")), func(id string) bool { return id == fixture.TraceID("answer") })
	slices.Sort(want)
	if got := all(); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	write("traces/cut.json", two[:len(two)-9])
	if f := found(t, dir); dir.index.damaged != 1 {
		t.Errorf("%d damaged lines, want 1: %q", dir.index.damaged, f.Notes)
	}
}

func FuzzTraceFile(f *testing.F) {
	f.Add([]byte("{}\n"))
	f.Add(fixture.Line(f, single("a", time.Second)))
	f.Add(append(fixture.Line(f, single("a", time.Second)), fixture.Line(f, single("b", time.Second))[:20]...))
	f.Fuzz(func(t *testing.T, content []byte) {
		d := fixture.New(t)
		d.Write(d.TraceFile("svc", "f"), content)
		dir := open(t, d.Dir)
		for _, tr := range found(t, dir).Traces {
			spans, err := dir.Trace(t.Context(), tr.TraceID)
			if err != nil || len(spans) == 0 {
				t.Errorf("trace %s is listed, but: %v, %v", tr.TraceID, spans, err)
			}
		}
	})
}
