package telemetry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"spanflame/internal/traces"
)

// file stands for the directory of saved traces.
type file struct {
	mu    sync.Mutex
	lines [][]byte
	err   error         // of each Write
	hang  chan struct{} // if not nil, each Write waits until it is closed
}

func (f *file) Write(b []byte) (int, error) {
	if f.hang != nil {
		<-f.hang
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return 0, f.err
	}
	f.lines = append(f.lines, bytes.Clone(b))
	return len(b), nil
}

func (f *file) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// spans returns the spans written so far, by name, and checks that no line has more than saveSpans.
func (f *file) spans(t *testing.T) map[string]traces.Span {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	spans := map[string]traces.Span{}
	for _, line := range f.lines {
		batch, err := traces.Unmarshal(line)
		if err != nil || len(batch) > saveSpans {
			t.Errorf("a line with %d spans: %v", len(batch), err)
		}
		for _, s := range batch {
			spans[s.Name] = s
		}
	}
	return spans
}

func TestSpansAreSavedWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &file{}
		o := options(io.Discard)
		o.Saved = f
		tel := start(t, o)
		ctx, root := tel.Traces.Tracer("test").Start(t.Context(), "root", trace.WithSpanKind(trace.SpanKindServer))
		_, child := tel.Traces.Tracer("test").Start(ctx, "child")
		child.AddEvent("an event")
		child.SetStatus(codes.Error, "went wrong")
		child.End()
		root.End()
		time.Sleep(saveEvery + time.Millisecond)
		synctest.Wait()
		spans := f.spans(t)
		if s := spans["root"]; s.Kind != "server" || s.Service != "svc" || s.Resource["other"] != "x" || s.TraceID != root.SpanContext().TraceID().String() {
			t.Errorf("the root is %+v", s)
		}
		if s := spans["child"]; !s.Error || s.StatusMessage != "went wrong" || len(s.Events) != 1 ||
			s.ParentID != spans["root"].ID || s.ID != child.SpanContext().SpanID().String() {
			t.Errorf("the child is %+v", s)
		}

		for range 3*saveSpans + 1 {
			_, span := tel.Traces.Tracer("test").Start(t.Context(), "last")
			span.End()
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := tel.Shutdown(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		n := 0
		for _, line := range f.lines {
			n += bytes.Count(line, []byte(`"last"`))
		}
		if f.spans(t); n != 3*saveSpans+1 {
			t.Errorf("a shutdown with an expired context saves %d of the last spans, want %d", n, 3*saveSpans+1)
		}
	})
}

func TestSpansAreSavedAndExported(t *testing.T) {
	f, out := &file{}, &output{}
	o := options(out)
	o.Saved, o.Traces = f, Signal{Exporter: ExporterConsole}
	tel := start(t, o)
	_, span := tel.Traces.Tracer("test").Start(t.Context(), "the span")
	span.End()
	if err := tel.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if len(f.spans(t)) != 1 || !strings.Contains(out.b.String(), `"Name":"the span"`) {
		t.Errorf("saved %v, exported %s", f.spans(t), out.b.String())
	}
}

// TestSavingFails checks that lost spans are counted, and that an outage is logged once, with its end.
func TestSavingFails(t *testing.T) {
	f, out := &file{err: errors.New("no space left")}, &output{}
	o := options(out)
	o.Saved, o.SavedIn = f, "/saved"
	tel := start(t, o)
	end := func(n int) {
		for range n {
			_, span := tel.Traces.Tracer("test").Start(t.Context(), "op")
			span.End()
		}
		_ = tel.Traces.ForceFlush(t.Context())
	}
	end(3)
	end(2)
	if n := lost(t, tel); n != 5 {
		t.Errorf("%v spans are counted as lost, want 5", n)
	}
	if lines := out.logged(t, "saved traces export failing"); len(lines) != 1 || lines[0]["endpoint"] != "/saved" {
		t.Errorf("the log has %v", lines)
	}
	f.fail(nil)
	end(1)
	if lines := out.logged(t, "saved traces export recovered"); len(lines) != 1 || lines[0]["lost"] != 5.0 {
		t.Errorf("the log has %v", lines)
	}
	if err := tel.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestQueueOfSavedSpansIsBounded fills the queue while the disk hangs: every further span is counted as lost.
func TestQueueOfSavedSpansIsBounded(t *testing.T) {
	f := &file{hang: make(chan struct{})}
	o := options(io.Discard)
	o.Saved = f
	tel := start(t, o)
	tracer := tel.Traces.Tracer("test")
	for range saveQueue + 7 {
		_, span := tracer.Start(t.Context(), "op")
		span.End()
	}
	if n := lost(t, tel); n != 7 {
		t.Errorf("%v spans are counted as lost, want 7", n)
	}
	close(f.hang)
	if err := tel.Traces.ForceFlush(t.Context()); err != nil {
		t.Error(err)
	}
	if err := tel.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	n := 0
	for _, line := range f.lines {
		n += bytes.Count(line, []byte(`"op"`))
	}
	if n != saveQueue {
		t.Errorf("%d spans are saved, want %d", n, saveQueue)
	}
}

// lost returns the metric of lost saved spans.
func lost(t *testing.T, tel *Telemetry) float64 {
	t.Helper()
	return count(t, tel, "spanflame_telemetry_lost_total", "signal", "saved traces")
}

// count returns the counter of that name whose label has the value.
func count(t *testing.T, tel *Telemetry, name, label, value string) float64 {
	t.Helper()
	families, err := tel.Scrape.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == label && l.GetValue() == value {
					return m.GetCounter().GetValue()
				}
			}
		}
	}
	t.Errorf("the metric %s{%s=%q} is missing", name, label, value)
	return 0
}
