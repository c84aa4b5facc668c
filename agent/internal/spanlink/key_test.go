package spanlink

import (
	"context"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// TestAnotherKey: where OpenTelemetry does not find a span by the key that it asked for at the start of the process, the
// context of a span still has it, so that the service's traces are whole.
func TestAnotherKey(t *testing.T) {
	before := otelSpanKey
	defer func() { otelSpanKey = before }()
	for _, key := range []any{nil, struct{}{}} {
		otelSpanKey = key
		sdk := sdktrace.NewTracerProvider()
		tracer := NewTracerProvider(sdk, nil, nil).Tracer("")
		ctx, root := tracer.Start(context.Background(), "root")
		if trace.SpanFromContext(ctx) != root {
			t.Errorf("with the key %v, the span of the context is %v", key, trace.SpanFromContext(ctx))
		}
		_, child := tracer.Start(ctx, "child")
		if child.(*span).root != root {
			t.Errorf("with the key %v, a child is a root", key)
		}
		if parent := child.(*span).Span.(sdktrace.ReadOnlySpan).Parent(); parent.SpanID() != root.SpanContext().SpanID() {
			t.Errorf("with the key %v, the parent of a child is %v", key, parent)
		}
		child.End()
		root.End()
	}
}
