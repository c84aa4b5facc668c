package viewer

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"spanflame/internal/traces"
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

func single(name string, took time.Duration) span {
	return span{trace: name, id: name, service: "svc", name: name, took: took}
}

// TestFilesGrowAndGo reads like the life of a directory.
func TestFilesGrowAndGo(t *testing.T) {
	d := newSaved(t)
	dir := d.open()
	is := func(when, want string) {
		t.Helper()
		if got := names(found(t, dir)); got != want {
			t.Errorf("%s: traces %q, want %q", when, got, want)
		}
	}
	is("nothing was saved", "")

	first := d.traceFile("svc", "20260102T150405")
	a, b := asLine(t, single("a", 3*time.Second)), asLine(t, single("b", 2*time.Second))
	d.write(first, a)
	is("one line", "a 1")
	d.write(first, b[:len(b)/2])
	is("half of a line", "a 1")
	d.write(first, b[len(b)/2:len(b)-1])
	is("a line without its end", "a 1")
	d.write(first, b[len(b)-1:])
	is("the line's end", "a 1, b 1")

	d.write(first, []byte("no JSON\n\n{\"resourceSpans\":[{\"scopeSpans\":[{\"spans\":[{}]}]}]}\n"))
	is("lines that are no traces", "a 1, b 1")
	if notes := strings.Join(found(t, dir).Notes, ""); !strings.Contains(notes, "left out: 2.") {
		t.Errorf("notes %q, want the 2 damaged lines to be counted", notes)
	}

	second := d.traceFile("other", "20260102T160000")
	d.write(second, asLine(t, span{trace: "a", id: "a2", parent: "a", service: "other", name: "child", took: time.Second}))
	is("a span of another service", "a 2, b 1")
	if spans, err := dir.Trace(t.Context(), traceID("a")); err != nil || len(spans) != 2 || spans[0].Name != "a" || spans[1].Name != "child" {
		t.Errorf("trace: %v, %v", spans, err)
	}

	if err := os.Remove(first); err != nil {
		t.Fatal(err)
	}
	is("a file is gone", "a 2") // what is known of the whole stays
	if spans, err := dir.Trace(t.Context(), traceID("a")); err != nil || len(spans) != 1 {
		t.Errorf("trace whose one file is gone: %v, %v", spans, err)
	}

	if err := os.WriteFile(second, asLine(t, single("c", time.Second))[:0], 0o644); err != nil {
		t.Fatal(err)
	}
	is("a file was emptied", "")
	d.write(second, asLine(t, single("c", time.Second)))
	is("and written anew", "c 1")
}

func TestLineThatIsTooLong(t *testing.T) {
	d := newSaved(t)
	dir := d.open()
	file := d.traceFile("svc", "f")
	long := bytes.Repeat([]byte("x"), traces.MaxLine/2+1)
	d.write(file, long)
	d.write(file, long)
	if got := names(found(t, dir)); got != "" {
		t.Errorf("traces %q", got)
	}
	d.write(file, append(long, '\n'))
	d.write(file, asLine(t, single("a", time.Second)))
	f := found(t, dir)
	if names(f) != "a 1" || len(f.Notes) != 1 || !strings.Contains(f.Notes[0], "left out: 1.") {
		t.Errorf("traces %q, notes %q, want the line after the long one, which is counted once", names(f), f.Notes)
	}
}

func TestSearchFilters(t *testing.T) {
	d := newSaved(t)
	d.spans(
		span{trace: "a", id: "a", service: "shop", name: "POST /checkout", took: time.Second},
		span{trace: "a", id: "a2", parent: "a", service: "stock", name: "reserve", took: time.Second / 2},
		span{trace: "b", id: "b", service: "shop", name: "GET /", start: time.Hour, took: 100 * time.Millisecond},
	)
	dir := d.open()
	for _, tt := range []struct {
		f    Filter
		want string
	}{
		{Filter{}, "POST /checkout 2, GET / 1"},
		{Filter{Service: "stock"}, "POST /checkout 2"},
		{Filter{Service: "stock", Name: "checkout"}, ""}, // of one and the same span
		{Filter{Name: "CHECK"}, "POST /checkout 2"},
		{Filter{Min: 200 * time.Millisecond}, "POST /checkout 2"},
		{Filter{From: began.Add(time.Minute)}, "GET / 1"},
		{Filter{To: began.Add(time.Minute)}, "POST /checkout 2"},
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

func TestIndexIsBounded(t *testing.T) {
	d := newSaved(t)
	dir := d.open()
	const files, each = 5, 100
	dir.index.most = files * each
	for i := range files {
		var b bytes.Buffer
		for j := range each {
			n := i*each + j
			name := fmt.Sprint(n)
			b.Write(asLine(t, span{trace: name, id: name, service: "svc", name: name, start: time.Duration(n) * time.Second, took: time.Second, profiled: true}))
		}
		d.write(d.traceFile("svc", fmt.Sprint("f", i)), b.Bytes())
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
}

func FuzzTraceFile(f *testing.F) {
	f.Add([]byte("{}\n"))
	f.Add(asLine(f, single("a", time.Second)))
	f.Add(append(asLine(f, single("a", time.Second)), asLine(f, single("b", time.Second))[:20]...))
	f.Fuzz(func(t *testing.T, content []byte) {
		d := newSaved(t)
		d.write(d.traceFile("svc", "f"), content)
		dir := d.open()
		for _, tr := range found(t, dir).Traces {
			spans, err := dir.Trace(t.Context(), tr.TraceID)
			if err != nil || len(spans) == 0 {
				t.Errorf("trace %s is listed, but: %v, %v", tr.TraceID, spans, err)
			}
		}
	})
}
