package spanlink

import (
	"context"
	"runtime/pprof"

	otelpyroscope "github.com/grafana/otel-profiling-go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// names are those by which otel-profiling-go links a span with its profiles: of the labels that a goroutine has in a local root
// span, and the attribute of that span whose value is its ID.
type names struct {
	spanID, spanName, traceID string
	profileID                 attribute.Key
}

// learn has otel-profiling-go link a span.
func learn() (n names) {
	defer setGoroutineLabels(goroutineLabels())
	s := &linkedSpan{sc: trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled,
	})}
	const name = "name"
	ctx, _ := otelpyroscope.NewTracerProvider(linkedProvider{s: s}).Tracer("").Start(context.Background(), name)
	pprof.ForLabels(ctx, func(label, value string) bool {
		switch value {
		case name:
			n.spanName = label
		case s.sc.SpanID().String():
			n.spanID = label
		case s.sc.TraceID().String():
			n.traceID = label
		}
		return true
	})
	n.profileID = s.attribute
	return n
}

// The provider has one tracer, and that one span, which notes the attribute that it gets.
type (
	linkedProvider struct {
		noop.TracerProvider
		s *linkedSpan
	}
	linkedTracer struct {
		noop.Tracer
		s *linkedSpan
	}
	linkedSpan struct {
		noop.Span
		sc        trace.SpanContext
		attribute attribute.Key
	}
)

func (p linkedProvider) Tracer(string, ...trace.TracerOption) trace.Tracer {
	return linkedTracer{s: p.s}
}

func (t linkedTracer) Start(ctx context.Context, _ string, _ ...trace.SpanStartOption) (context.Context, trace.Span) {
	return ctx, t.s
}

func (s *linkedSpan) SpanContext() trace.SpanContext { return s.sc }

func (s *linkedSpan) SetAttributes(attributes ...attribute.KeyValue) {
	for _, a := range attributes {
		s.attribute = a.Key
	}
}
