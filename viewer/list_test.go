package viewer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/traces"
	"spanflame/viewer/internal/fixture"
	"spanflame/viewer/source"
)

// The agent's own diagnosis is shown if it was saved with the profile. It is without the duration and the name of its span
// if the card has the same.
func TestDiagnosisIsTheAgents(t *testing.T) {
	d := fixture.New(t)
	d.Spans(
		fixture.Span{Trace: "a", ID: "a", Service: "svc", Name: "GET /: x", Took: 600 * time.Millisecond, Profiled: true},
		fixture.Span{Trace: "b", ID: "b", Service: "front", Name: "GET /front", Took: 900 * time.Millisecond},
		fixture.Span{Trace: "b", ID: "inside b", Parent: "b", Service: "svc", Name: "GET /back", Took: 700 * time.Millisecond, Profiled: true},
	)
	d.Comments = []string{
		"span_id=" + fixture.SpanID("a") + " 601 ms GET /: x: 450 ms (75 %) waiting for a mutex in main.a, held by main.audit",
		"span_id=" + fixture.SpanID("other") + " 5 ms x",
	}
	d.Wall("svc", 0, time.Second,
		fixture.Sample("main.a;sync.(*Mutex).Lock;[waiting: mutex]", 600e6, "a"), fixture.Sample("main.b;time.Sleep;[waiting: sleep]", 700e6, "inside b"))
	h := pages(t, open(t, d.Dir), Options{})
	shows(t, page(t, h, "/?show=traces"), "1 span<", "2 spans<",
		"<bdi>450 ms (75 %) waiting for a mutex in main.a, held by main.audit</bdi>", "<bdi>700 ms GET /back: 700 ms (100 %) sleeping in main.b (passwd:1)</bdi>")
	shows(
		t, page(t, h, TracePath(fixture.TraceID("a"))),
		"601 ms GET /: x: 450 ms (75 %) waiting for a mutex in main.a, held by main.audit", "1 span of 1 service",
	)
	w := get(h, fmt.Sprintf("%s/span/%s/wall.pb.gz", TracePath(fixture.TraceID("a")), fixture.SpanID("a")))
	p, err := profile.Parse(w.Body)
	if err != nil || !slices.Equal(p.Comments, d.Comments[:1]) {
		t.Errorf("the download's comments are %q, %v, want the span's own", p.Comments, err)
	}
}

func TestEmptyDirectorySaysWhatToDo(t *testing.T) {
	h := pages(t, open(t, fixture.New(t).Dir), Options{})
	shows(t, page(t, h, "/"), "There are no traces yet", "spanflame demo")
	shows(t, page(t, h, "/?name=x"), "No trace matches")
	shows(t, page(t, h, "/?show=traces"), "There are no traces yet")
	shows(t, page(t, h, "/names"), "No span with a profile")
	shows(t, page(t, h, "/memory"), "There are no profiles yet")
	if _, err := source.OpenDirectory(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a missing directory was opened")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := source.OpenDirectory(file); err == nil {
		t.Error("a file was opened as a directory")
	}
}

// reading is a source that has all traces only once all requests were asked for, which may fail.
type reading struct {
	source.Source
	done bool
	err  error
}

func (s *reading) Requests(ctx context.Context, f source.Filter) ([]traces.Span, error) {
	s.done = s.err == nil
	if s.err != nil {
		return nil, s.err
	}
	return s.Source.Requests(ctx, f)
}

func (s *reading) Search(ctx context.Context, f source.Filter) (source.Found, error) {
	found, err := s.Source.Search(ctx, f)
	if !s.done {
		found.Notes = append(found.Notes, "Older traces are still being read")
	}
	return found, err
}

// TestNotesAreOfWhatIsShown: a page with the distributions of all requests does not say that traces are still being read.
func TestNotesAreOfWhatIsShown(t *testing.T) {
	h := pages(t, &reading{Source: open(t, ten(t).Dir)}, Options{})
	if shown := page(t, h, "/"); !strings.Contains(shown, "slow or not: median") || strings.Contains(shown, "still being read") {
		t.Errorf("the page shows\n%s", shown)
	}
	h = pages(t, &reading{Source: open(t, ten(t).Dir), err: source.ErrReading}, Options{})
	if shown := page(t, h, "/"); strings.Contains(shown, "slow or not: median") || !strings.Contains(shown, "still being read") {
		t.Errorf("while traces are being read, the page shows\n%s", shown)
	}
}
