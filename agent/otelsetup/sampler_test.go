package otelsetup

import (
	"context"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"spanflame/agent"
	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

// A sampler that samples nothing takes no slow request its profile.
func TestSlowRequestsThatAreNotSampledAreProfiled(t *testing.T) {
	for _, sampler := range []string{"always_off", "parentbased_traceidratio"} {
		cfg := quiet(t)
		cfg.Agent.ServiceName, cfg.Agent.Dir, cfg.TracesSampler, cfg.TracesSamplerArg = "shop", t.TempDir(), sampler, "0"
		cfg.Agent.SlowSpan, cfg.Agent.WallCPUShare = 10*time.Millisecond, 1
		a, err := Start(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		root := slowRequest(t.Context())
		_, fast := otel.Tracer("test").Start(t.Context(), "GET /fast")
		fast.End(trace.WithTimestamp(time.Now()))
		shutdown(t, a)
		if root.SpanContext().IsSampled() {
			t.Fatal("the request was sampled")
		}
		id, walls := root.SpanContext().SpanID().String(), 0
		for _, r := range savedProfiles(t, cfg.Agent.Dir, "shop") {
			if r.Type == record.Wall {
				walls++
			}
		}
		spans := savedSpans(t, cfg.Agent.Dir, "shop")
		s := spans["POST /checkout"]
		if walls != 1 || len(spans) != 1 || s.ID != id || s.Attributes[wallprofile.UnsampledAttribute] != "true" || !wallprofile.Marked(s.Attributes, s.ID) {
			t.Errorf("%s: %d wall-clock profiles and the spans %v are saved, want one of the slow request alone", sampler, walls, spans)
		}
	}
}

// The exporters of a service get what its own sampler samples, and nothing else.
func TestSamplerExportsNothingMore(t *testing.T) {
	exported := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSampler(Sampler(sdktrace.ParentBased(sdktrace.NeverSample()))), sdktrace.WithSyncer(exported))
	defer func() { _ = provider.Shutdown(context.Background()) }()
	a, err := agent.Start(t.Context(), quiet(t).Agent)
	if err != nil {
		t.Fatal(err)
	}
	tracer := a.TracerProvider(provider).Tracer("test")
	remote := func(flags trace.TraceFlags) context.Context {
		return trace.ContextWithRemoteSpanContext(t.Context(),
			trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: flags}))
	}
	for name, ctx := range map[string]context.Context{"root": t.Context(), "caller that is not sampled": remote(0), "sampled": remote(trace.FlagsSampled)} {
		ctx, root := tracer.Start(ctx, name)
		_, child := tracer.Start(ctx, "below "+name)
		if sampled := name == "sampled"; !root.IsRecording() || child.IsRecording() != sampled || root.SpanContext().IsSampled() != sampled {
			t.Errorf("%s: recorded %t, sampled %t, its child recorded %t", name, root.IsRecording(), root.SpanContext().IsSampled(), child.IsRecording())
		}
		child.End()
		root.End()
	}
	if err := a.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if spans := exported.GetSpans(); len(spans) != 2 {
		t.Errorf("%d spans are exported, want the sampled one and its child: %v", len(spans), spans.Snapshots())
	}
}

func TestSamplerOfNilIsTheDefault(t *testing.T) {
	provider := sdktrace.NewTracerProvider(sdktrace.WithSampler(Sampler(nil)))
	defer func() { _ = provider.Shutdown(context.Background()) }()
	tracer := provider.Tracer("test")
	_, root := tracer.Start(t.Context(), "root")
	_, called := tracer.Start(trace.ContextWithRemoteSpanContext(t.Context(),
		trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}})), "caller that is not sampled")
	if !root.SpanContext().IsSampled() || called.SpanContext().IsSampled() {
		t.Errorf("a root is sampled: %t, one whose caller is not: %t", root.SpanContext().IsSampled(), called.SpanContext().IsSampled())
	}
}
