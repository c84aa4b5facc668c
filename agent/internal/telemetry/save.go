package telemetry

import (
	"context"
	"io"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"spanflame/internal/traces"
)

const (
	// saveEvery is how long a span waits at most to be saved: people wait for it.
	saveEvery = time.Second

	// saveSpans is how many spans share a line. The Collector reads lines up to 1 MiB, unless it is told to
	// read longer ones: that leaves 10 KiB for a span.
	saveSpans = 100

	// saveQueue is how many spans may wait to be saved; further ones are lost, and counted.
	saveQueue = 8192

	// saveLast bounds how long the last spans take at the shutdown: far more than they do, should a disk hang.
	saveLast = 5 * time.Second
)

// saver is a span processor that writes lines to a file. The SDK's batch processor, which it is made of, does
// not tell what it drops when its queue is full: here no more spans are let in than the queue holds.
type saver struct {
	sdktrace.SpanProcessor
	waiting atomic.Int64 // spans in the processor
	outage  *outage
}

func newSaver(ctx context.Context, w io.Writer, o *outage) (*saver, error) {
	lines, err := otlptrace.New(ctx, lineClient{w})
	if err != nil {
		return nil, err
	}
	s := &saver{outage: o}
	s.SpanProcessor = sdktrace.NewBatchSpanProcessor(savedSpans{watchedSpans{lines, o}, s}, sdktrace.WithBatchTimeout(saveEvery),
		sdktrace.WithMaxQueueSize(saveQueue), sdktrace.WithMaxExportBatchSize(saveSpans))
	return s, nil
}

func (s *saver) OnEnd(span sdktrace.ReadOnlySpan) {
	if !span.SpanContext().IsSampled() {
		return
	}
	if s.waiting.Add(1) > saveQueue {
		s.waiting.Add(-1)
		s.outage.lost.Add(1)
		return
	}
	s.SpanProcessor.OnEnd(span)
}

// Shutdown does nothing: the provider ends its processors one after the other, and neither the file nor a
// server that is away is to wait for the other.
func (s *saver) Shutdown(context.Context) error { return nil }

// finish writes what waits and ends the processor, even when ctx is done: that takes no server.
func (s *saver) finish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveLast)
	defer cancel()
	return s.SpanProcessor.Shutdown(ctx)
}

// savedSpans tells the saver which spans have left the processor.
type savedSpans struct {
	watchedSpans
	saver *saver
}

func (s savedSpans) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	defer s.saver.waiting.Add(-int64(len(spans)))
	return s.watchedSpans.ExportSpans(ctx, spans)
}

// lineClient is an OTLP client whose server is a file.
type lineClient struct{ w io.Writer }

var _ otlptrace.Client = lineClient{}

func (lineClient) Start(context.Context) error { return nil }
func (lineClient) Stop(context.Context) error  { return nil }

func (c lineClient) UploadTraces(_ context.Context, rs []*tracepb.ResourceSpans) error {
	return traces.Marshal(c.w, rs)
}
