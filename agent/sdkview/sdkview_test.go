package sdkview_test

import (
	"context"
	"errors"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"spanflame/agent/internal/spanlink"
	"spanflame/agent/sdkview"
)

func TestSpansAreTheSDKs(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	sdk := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	defer func() { _ = sdk.Shutdown(context.Background()) }()
	tracer := sdkview.TracerProvider(spanlink.NewTracerProvider(sdk, nil, nil)).Tracer("test")

	ctx, root := tracer.Start(context.Background(), "root", trace.WithAttributes(attribute.String("route", "/")))
	for _, s := range []trace.Span{root, trace.SpanFromContext(ctx)} {
		ro, ok := s.(sdktrace.ReadOnlySpan)
		if !ok {
			t.Fatalf("%T is no ReadOnlySpan", s)
		}
		if ro.Name() != "root" || !ro.SpanContext().Equal(root.SpanContext()) || ro.StartTime().IsZero() || len(ro.Attributes()) != 2 {
			t.Errorf("%s, %v, %v", ro.Name(), ro.StartTime(), ro.Attributes())
		}
		if _, of := s.TracerProvider().Tracer("library").Start(ctx, "of its provider"); of.(sdktrace.ReadOnlySpan) == nil {
			t.Error("the span's provider makes other spans")
		}
	}
	// The detached child is found to be one: it shares the root's labels and has no link of its own.
	_, child := tracer.Start(trace.ContextWithSpan(context.Background(), trace.SpanFromContext(ctx)), "child")
	child.End()
	root.End()
	if ended := recorder.Ended(); len(ended) != 2 || len(ended[0].Attributes()) != 0 || ended[0].Parent().SpanID() != root.SpanContext().SpanID() {
		t.Errorf("ended: %v", ended)
	}
}

func TestPanicUnwindsThroughTheView(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	sdk := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	defer func() { _ = sdk.Shutdown(context.Background()) }()
	boom := errors.New("boom")
	func() {
		defer func() {
			if v := recover(); v != boom {
				t.Errorf("recovered %v", v)
			}
		}()
		_, s := sdkview.TracerProvider(spanlink.NewTracerProvider(sdk, nil, nil)).Tracer("test").Start(context.Background(), "op")
		defer s.End()
		panic(boom)
	}()
	if ended := recorder.Ended(); len(ended) != 1 || len(ended[0].Events()) != 1 || ended[0].Events()[0].Name != "exception" {
		t.Errorf("the panic is not recorded: %v", ended)
	}
}

func TestOtherSpansStayAsTheyAre(t *testing.T) {
	sc := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: trace.FlagsSampled})
	ctx := trace.ContextWithSpanContext(context.Background(), sc) // a no-op span takes it over
	_, s := sdkview.TracerProvider(spanlink.NewTracerProvider(noop.NewTracerProvider(), nil, nil)).Tracer("test").Start(ctx, "op")
	if _, ok := s.(sdktrace.ReadOnlySpan); ok {
		t.Error("a span of another implementation is reported as the SDK's")
	}
	s.End()
}
