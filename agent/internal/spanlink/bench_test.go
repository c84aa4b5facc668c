package spanlink_test

import (
	"context"
	"testing"
	"time"

	otelpyroscope "github.com/grafana/otel-profiling-go"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"spanflame/agent/internal/spanlink"
	"spanflame/agent/internal/wall"
	"spanflame/internal/record"
)

var _ spanlink.Marks = (*wall.Recorder)(nil)

// BenchmarkSpan is the cost of starting and ending a root span with one child: with the SDK alone, with
// otel-profiling-go, and with this package's labels, without and with marks for the wall-clock profile.
func BenchmarkSpan(b *testing.B) {
	sdk := sdktrace.NewTracerProvider()
	unsampled := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()))
	defer func() {
		_ = sdk.Shutdown(context.Background())
		_ = unsampled.Shutdown(context.Background())
	}()
	run := func(name string, tp trace.TracerProvider) {
		tracer := tp.Tracer("bench")
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				ctx, root := tracer.Start(context.Background(), "root")
				_, child := tracer.Start(ctx, "child")
				child.End()
				root.End()
			}
		})
	}
	run("none", sdk)
	run("otel-profiling-go", otelpyroscope.NewTracerProvider(sdk))
	run("labels", spanlink.NewTracerProvider(sdk, nil, nil))
	r, err := wall.Start(wall.Options{SlowSpan: time.Second, Emit: func(record.Record) {}})
	if err != nil {
		b.Fatal(err)
	}
	run("recorder, no marks", spanlink.NewTracerProvider(sdk, nil, nil))
	run("labels and marks", spanlink.NewTracerProvider(sdk, r, nil))
	if err := r.Stop(context.Background()); err != nil {
		b.Fatal(err)
	}
	run("unsampled", unsampled)
	run("unsampled, wrapped", spanlink.NewTracerProvider(unsampled, r, nil))
}
