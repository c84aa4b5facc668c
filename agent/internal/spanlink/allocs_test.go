package spanlink_test

import (
	"context"
	runtimetrace "runtime/trace"
	"testing"
	"time"

	otelpyroscope "github.com/grafana/otel-profiling-go"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"spanflame/agent/internal/spanlink"
	"spanflame/agent/internal/wall"
	"spanflame/internal/record"
)

// allocations returns how often a local root span, and a child span below one, allocate from start to end.
func allocations(tp trace.TracerProvider) (root, child float64) {
	tracer := tp.Tracer("allocations")
	root = testing.AllocsPerRun(1000, func() {
		_, s := tracer.Start(context.Background(), "root")
		s.End()
	})
	ctx, s := tracer.Start(context.Background(), "root")
	defer s.End()
	child = testing.AllocsPerRun(1000, func() {
		_, s := tracer.Start(ctx, "child")
		s.End()
	})
	return root, child
}

// TestASpanIsCheap: what a span costs that no profile is made of. The labels and the attribute of a root are those of
// otel-profiling-go, for less than with that library; a child has those of its root.
func TestASpanIsCheap(t *testing.T) {
	sdk := sdktrace.NewTracerProvider()
	defer func() { _ = sdk.Shutdown(context.Background()) }()
	root, child := allocations(sdk)
	peerRoot, peerChild := allocations(otelpyroscope.NewTracerProvider(sdk))
	ourRoot, ourChild := allocations(spanlink.NewTracerProvider(sdk, nil, nil))
	mode := wall.Armed
	r, err := wall.Start(wall.Options{SlowSpan: time.Hour, Mode: &mode, Emit: func(record.Record) {}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	for start := time.Now(); runtimetrace.IsEnabled(); time.Sleep(time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatalf("an armed recorder records for a minute, while nothing runs: %+v", r.Stats())
		}
	}
	armedRoot, armedChild := allocations(spanlink.NewTracerProvider(sdk, r, nil))
	t.Logf("allocations of a root and of a child: SDK %v and %v, with otel-profiling-go %v and %v, with labels %v and %v, with an armed recorder %v and %v",
		root, child, peerRoot, peerChild, ourRoot, ourChild, armedRoot, armedChild)
	if ourRoot > peerRoot-2 {
		t.Errorf("a root allocates %v times, at most %v are expected", ourRoot, peerRoot-2)
	}
	if most := child + 1; ourChild > most {
		t.Errorf("a child allocates %v times, at most %v are expected", ourChild, most)
	}
	if armedRoot > ourRoot+1 || armedChild > ourChild+1 {
		t.Errorf("an armed recorder allocates %v times for a root and %v for a child, at most once is expected", armedRoot-ourRoot, armedChild-ourChild)
	}
}
