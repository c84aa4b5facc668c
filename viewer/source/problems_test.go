package source

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/viewer/internal/fixture"
)

func summary(id, name, cause string, took time.Duration) Summary {
	return Summary{TraceID: id, Service: "svc", Name: name, Duration: took, Cause: cause, Diagnosis: cause}
}

// TestProblems: traces are grouped by what they have in common, and ranked by what they cost in all.
func TestProblems(t *testing.T) {
	lasting := summary("l1", "events", "idle", time.Hour)
	lasting.Lasts = true
	all := []Summary{
		summary("a1", "a", "lock", 300*time.Millisecond), summary("a2", "a", "lock", 500*time.Millisecond), summary("a3", "a", "lock", 100*time.Millisecond),
		summary("a4", "a", "pool", 800*time.Millisecond), summary("b1", "b", "lock", 850*time.Millisecond),
		summary("c1", "c", "", 100*time.Millisecond), summary("c2", "c", "", 99*time.Millisecond), summary("c3", "c", "fast, and captured", 20*time.Millisecond),
		lasting, summary("l2", "events", "idle", time.Second),
		summary("d1", "d", "wait in ask, called by load, times", 12*time.Millisecond), summary("d2", "d", "wait in ask, called by pay, times", 11*time.Millisecond),
		summary("e1", "e", "wait in ask, called by load", 10*time.Millisecond), summary("e2", "e", "wait in ask, called by load", 9*time.Millisecond),
	}
	all = append(all, lasting)
	all[len(all)-1].TraceID = "l3"
	var got []string
	for _, p := range Problems(all, 100*time.Millisecond) {
		line := fmt.Sprintf("%s %s %v %v", p.Name, p.Cause, p.Cost(), p.Median())
		for _, tr := range p.Traces {
			line += " " + tr.TraceID
		}
		if p.Lasts {
			line += " lasts"
		}
		got = append(got, line)
	}
	want := []string{
		"a lock 900ms 300ms a2 a1 a3", "b lock 850ms 850ms b1", "a pool 800ms 800ms a4", "c  100ms 100ms c1", "d wait in ask, times 23ms 11ms d1 d2",
		"c fast, and captured 20ms 20ms c3", "e wait in ask, called by load 19ms 9ms e1 e2", "events idle 2h0m1s 1h0m0s l1 l3 l2 lasts",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	ids := make(map[string]bool)
	for _, p := range Problems(all, 0) {
		ids[p.ID()] = true
	}
	if len(ids) != len(Problems(all, 0)) {
		t.Errorf("%d IDs of %d problems", len(ids), len(Problems(all, 0)))
	}
	one, two := Problem{Cause: "wait in ask, called by load, times"}, Problem{Cause: "wait in ask, times"}
	if one.ID() != two.ID() {
		t.Error("a problem has another ID once somebody else calls the same function")
	}
}

// TestUndiagnosed: the slowest trace of each problem is diagnosed before the second one of any.
func TestUndiagnosed(t *testing.T) {
	all := []Summary{
		summary("a1", "a", "", 3*time.Second), summary("a2", "a", "", 2*time.Second), summary("a3", "a", "", time.Second),
		summary("b1", "b", "", 2*time.Second), summary("b2", "b", "", time.Second), summary("c1", "c", "known", time.Hour),
	}
	for most, want := range map[int]string{0: "", 2: "a1 b1", 3: "a1 b1 a2", 9: "a1 b1 a2 b2 a3"} {
		if got := strings.Join(Undiagnosed(all, 0, most), " "); got != want {
			t.Errorf("at most %d: %q, want %q", most, got, want)
		}
	}
}

// savedWall saves the diagnosis of a span and returns the path of the file.
func savedWall(t *testing.T, d fixture.Saved, name string, at time.Duration) string {
	t.Helper()
	d.Spans(fixture.Span{Trace: name, ID: name, Service: "svc", Name: name, Start: at, Took: time.Second, Profiled: true})
	d.Comments = []string{wallprofile.Comment(fixture.SpanID(name), "1000 ms "+name+": 900 ms (90 %) in "+name)}
	before := files(t, d)
	d.Wall("svc", at, time.Second, fixture.Sample("main.a", 1e9, name))
	for path := range files(t, d) {
		if !before[path] {
			return path
		}
	}
	t.Fatal("no file was saved")
	return ""
}

func files(t *testing.T, d fixture.Saved) map[string]bool {
	t.Helper()
	saved, err := profiles.Open(d.Dir)
	if err != nil {
		t.Fatal(err)
	}
	entries, _, err := saved.List(t.Context(), profiles.Query{Types: []record.Type{record.Wall}})
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]bool)
	for _, e := range entries {
		all[e.Path] = true
	}
	return all
}

// TestDiagnosesAreReadOnce reads like the life of a directory: each file is read once, newest first and within the budget, and
// what is removed is forgotten.
func TestDiagnosesAreReadOnce(t *testing.T) {
	d := fixture.New(t)
	paths := make(map[string]string)
	for i, name := range []string{"a", "b", "c"} {
		paths[savedWall(t, d, name, time.Duration(i)*time.Minute)] = name
	}
	dir := open(t, d.Dir)
	var read []string
	dir.diagnoses.read = func(path string) ([]profiles.Diagnosed, error) {
		read = append(read, paths[path])
		return profiles.Diagnoses(path)
	}
	search := func() (diagnosed, notes string) {
		t.Helper()
		dir.index.refreshed, dir.diagnoses.looked = time.Time{}, time.Time{} // the next look is due
		found, err := dir.Search(t.Context(), Filter{Diagnose: true, Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		all := make(map[string]string)
		for _, tr := range found.Traces {
			if tr.Diagnosis != "" {
				all[tr.Name] = tr.Cause
			}
		}
		return fmt.Sprint(all), strings.Join(found.Notes, "")
	}
	is := func(when, want, wantRead string) {
		t.Helper()
		read = nil
		if got, notes := search(); got != want || notes != "" || strings.Join(read, " ") != wantRead {
			t.Errorf("%s: %s after reading %v (notes %q), want %s after reading %s", when, got, read, notes, want, wantRead)
		}
	}

	dir.diagnoses.budget = -1
	if got, notes := search(); got != "map[]" || !strings.Contains(notes, "The diagnoses of 3 older profiles are still being read") {
		t.Errorf("without time: %s, notes %q", got, notes)
	}
	dir.diagnoses.budget = time.Hour
	is("first", "map[a:in a b:in b c:in c]", "c b a")
	is("again", "map[a:in a b:in b c:in c]", "")
	paths[savedWall(t, d, "d", 3*time.Minute)] = "d"
	is("a new file", "map[a:in a b:in b c:in c d:in d]", "d")
	dir.diagnoses.most = 2
	is("there are too many", "map[c:in c d:in d]", "")
	dir.diagnoses.most = 10
	is("there is room again", "map[a:in a b:in b c:in c d:in d]", "b a")
	for path, name := range paths {
		if name == "b" {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	is("a file is gone", "map[a:in a c:in c d:in d]", "")
	if n := len(dir.diagnoses.spans); n != 3 {
		t.Errorf("%d diagnoses are kept, want 3", n)
	}

	path := savedWall(t, d, "e", 4*time.Minute)
	dir.diagnoses.read = func(path string) ([]profiles.Diagnosed, error) {
		return nil, profiles.Damaged{Path: path, Err: errors.New("broken")}
	}
	if got, notes := search(); got != "map[a:in a c:in c d:in d]" || !strings.Contains(notes, "left out: 1, such as "+path) {
		t.Errorf("a damaged file: %s, notes %q", got, notes)
	}
}

// TestMainOfATrace: the span to diagnose is the same by the index of a directory as by the spans of the trace.
func TestMainOfATrace(t *testing.T) {
	at := func(id, parent, service string, took time.Duration, profiled bool) fixture.Span {
		return fixture.Span{Trace: "t", ID: id, Parent: parent, Service: service, Name: id, Took: took, Profiled: profiled}
	}
	for want, spans := range map[string][]fixture.Span{
		"root":  {at("root", "", "a", 9, true), at("child", "root", "a", 8, true), at("server", "child", "b", 7, true)},
		"other": {at("root", "", "a", 9, false), at("other", "root", "b", 7, true), at("last", "root", "b", 6, true)},
		"child": {at("root", "", "a", 9, false), at("child", "root", "a", 8, true), at("within", "child", "a", 7, true)},
		"":      {at("root", "", "a", 9, false)},
	} {
		d := fixture.New(t)
		d.Spans(spans...)
		found := found(t, open(t, d.Dir))
		if len(found.Traces) != 1 || found.Traces[0].Main.Name != want {
			t.Errorf("got %+v, want %q", found.Traces, want)
		}
	}
}
