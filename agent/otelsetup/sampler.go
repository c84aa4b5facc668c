package otelsetup

import (
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Sampler returns a sampler that decides as the other one does, and records the spans by which requests enter the service
// whatever it decides. So slow requests have wall-clock profiles, and a [TraceSaver] saves their span, although no
// exporter gets it. Such a span costs a microsecond or two; the spans below it are not recorded. [Start] uses it; a
// service with its own provider gives it to that:
//
//	provider := sdktrace.NewTracerProvider(sdktrace.WithSampler(otelsetup.Sampler(sampler)), ...)
//
// A span processor of the service gets these spans, too: the processors of the SDK leave out what is not sampled. If the
// other sampler is nil, it is the default of the SDK.
func Sampler(of sdktrace.Sampler) sdktrace.Sampler {
	if of == nil {
		of = sdktrace.ParentBased(sdktrace.AlwaysSample())
	}
	return entries{of}
}

// entries records the spans by which requests enter the process.
type entries struct{ sdktrace.Sampler }

// ShouldSample implements [sdktrace.Sampler].
func (s entries) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	result := s.Sampler.ShouldSample(p)
	if above := trace.SpanContextFromContext(p.ParentContext); result.Decision == sdktrace.Drop && (!above.IsValid() || above.IsRemote()) {
		result.Decision = sdktrace.RecordOnly
	}
	return result
}
