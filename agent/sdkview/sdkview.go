// Package sdkview makes the spans of a provider that [spanflame/agent.Agent.TracerProvider] returned offer what the
// spans of the OpenTelemetry SDK offer: code that asks a span for its [sdktrace.ReadOnlySpan] finds it. It is a package of
// its own because it links the SDK, which a service without it should not have to. It is for services whose code, or
// whose libraries, look at running spans in this way, and package otelsetup uses it; it is not for other implementations
// of the OpenTelemetry API.
package sdkview

import (
	"context"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"spanflame/agent/internal/spanlink"
)

// TracerProvider wraps a provider that [spanflame/agent.Agent.TracerProvider] returned for one of the SDK. Its spans are
// a [sdktrace.ReadWriteSpan]; they are the same in every other way:
//
//	otel.SetTracerProvider(sdkview.TracerProvider(a.TracerProvider(sdk)))
func TracerProvider(of trace.TracerProvider) trace.TracerProvider { return &provider{of} }

type provider struct{ trace.TracerProvider }

func (p *provider) Tracer(name string, options ...trace.TracerOption) trace.Tracer {
	return &tracer{p.TracerProvider.Tracer(name, options...), p}
}

type tracer struct {
	trace.Tracer
	p *provider
}

func (t *tracer) Start(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	ctx, s := t.Tracer.Start(ctx, name, options...)
	ours, ok := s.(spanlink.Span)
	if !ok {
		return ctx, s // not sampled: it is the SDK's own
	}
	sdk, ok := ours.Wrapped().(sdktrace.ReadOnlySpan)
	if !ok {
		return ctx, s
	}
	seen := &span{ours, sdk, t.p}
	return trace.ContextWithSpan(ctx, seen), seen
}

// span embeds the SDK's span because ReadOnlySpan cannot be implemented: it has a private method.
type span struct {
	spanlink.Span
	sdktrace.ReadOnlySpan
	p *provider
}

var _ sdktrace.ReadWriteSpan = (*span)(nil)

// SpanContext is of both.
func (s *span) SpanContext() trace.SpanContext { return s.Span.SpanContext() }

func (s *span) TracerProvider() trace.TracerProvider { return s.p }
