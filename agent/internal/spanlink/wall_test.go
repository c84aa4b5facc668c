package spanlink_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"spanflame/agent/internal/spanlink"
	"spanflame/agent/internal/wall"
	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

// TestWithRecorder runs real spans of the SDK into a real recorder: every slow root, and every child with
// the attribute, has a profile by its own span id that sums to the span's duration.
func TestWithRecorder(t *testing.T) {
	var records []record.Record
	r, err := wall.Start(wall.Options{
		Service:  "shop",
		SlowSpan: 20 * time.Millisecond,
		CPUShare: 1,
		Emit:     func(rec record.Record) { records = append(records, rec) },
		Logger:   slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	spans := tracetest.NewSpanRecorder()
	sdk := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	defer func() { _ = sdk.Shutdown(context.Background()) }()
	tracer := spanlink.NewTracerProvider(sdk, r, nil).Tracer("test")

	var all sync.WaitGroup
	for range 500 {
		all.Go(func() {
			ctx, root := tracer.Start(context.Background(), "request")
			root.SetName("GET /stock/{id}")
			defer root.End()
			_, child := tracer.Start(ctx, "query")
			time.Sleep(25 * time.Millisecond)
			child.End()
		})
		time.Sleep(time.Millisecond)
	}
	all.Wait()
	if err := r.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}

	own := map[string]time.Duration{}
	for _, rec := range records {
		p, err := profile.ParseData(rec.Profile)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range p.Sample {
			own[s.Label["span_id"][0]] += time.Duration(s.Value[0])
			innermost := 0
			for i, l := range s.Location { // what stands below a cause is another goroutine's, such as the recorder's own
				if wallprofile.IsCause(l.Line[0].Function.Name) {
					innermost = i + 1
				}
			}
			if leaf := s.Location[innermost].Line[0].Function.Name; strings.Contains(leaf, "spanlink.(*") || strings.Contains(leaf, "wall.(*") {
				t.Fatalf("a stack ends in the mark, not in what called it: %s", leaf)
			}
			if top := s.Location[len(s.Location)-1].Line[0].Function.Name; top != "span: GET /stock/{id}" {
				t.Fatalf("a profile begins with %s", top)
			}
		}
	}
	linked := 0
	for _, s := range spans.Ended() {
		id := s.SpanContext().SpanID().String()
		for _, kv := range s.Attributes() {
			if kv.Key == "pyroscope.profile.id" && kv.Value.AsString() == id {
				linked++
			}
		}
		took := s.EndTime().Sub(s.StartTime())
		if (took - own[id]).Abs() > 128*time.Nanosecond { // the trace's clock has a step of 64 ns
			t.Errorf("%s took %v, its profile has %v", s.Name(), took, own[id])
		}
	}
	if linked != 1000 {
		t.Errorf("%d of 1000 spans have the link's attribute", linked)
	}
	if s := r.Stats(); s.Captured != 500 || s.Partial != 0 {
		t.Errorf("stats: %+v", s)
	}
}
