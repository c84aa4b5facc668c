package spanlink_test

import (
	"context"
	"testing"

	otelpyroscope "github.com/grafana/otel-profiling-go"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"spanflame/agent/internal/spanlink"
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
// otel-profiling-go, by that library; a child has those of its root, and costs less than with the library alone.
func TestASpanIsCheap(t *testing.T) {
	sdk := sdktrace.NewTracerProvider()
	defer func() { _ = sdk.Shutdown(context.Background()) }()
	root, child := allocations(sdk)
	peerRoot, peerChild := allocations(otelpyroscope.NewTracerProvider(sdk))
	ourRoot, ourChild := allocations(spanlink.NewTracerProvider(sdk, nil, nil))
	t.Logf("allocations of a root and of a child: SDK %v and %v, with otel-profiling-go %v and %v, with labels %v and %v",
		root, child, peerRoot, peerChild, ourRoot, ourChild)
	if most := peerRoot + 3; ourRoot > most {
		t.Errorf("a root allocates %v times, at most %v are expected", ourRoot, most)
	}
	if most := child + 2; ourChild > most {
		t.Errorf("a child allocates %v times, at most %v are expected", ourChild, most)
	}
}
