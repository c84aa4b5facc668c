package telemetry

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"spanflame/agent/internal/guard"
	"spanflame/internal/traces"
)

const (
	// saveEvery is the longest time before an ended span is saved. It is short because people wait for it.
	saveEvery = time.Second

	// saveSpans is the maximum number of spans in one line. By default the Collector reads lines up to 1 MiB,
	// which leaves 10 KiB for a span.
	saveSpans = 100

	// saveQueue is the maximum number of spans that wait to be saved. Further spans are dropped and counted.
	saveQueue = 8192

	// saveLast limits the time to save the last spans at shutdown. It matters only if the disk hangs.
	saveLast = 5 * time.Second
)

// saver is a span processor that writes lines to a file. It is built on the SDK's batch processor, which does
// not report the spans it drops when its queue is full, so saver admits no more spans than the queue holds.
type saver struct {
	sdktrace.SpanProcessor
	slow    time.Duration // from which spans that are not sampled are saved, 0 for none
	waiting atomic.Int64  // spans in the processor
	outage  *outage
}

func newSaver(ctx context.Context, w io.Writer, slow time.Duration, o *outage) (*saver, error) {
	lines, err := otlptrace.New(ctx, lineClient{w})
	if err != nil {
		return nil, err
	}
	s := &saver{slow: slow, outage: o}
	s.SpanProcessor = sdktrace.NewBatchSpanProcessor(savedSpans{watchedSpans{lines, o}, s}, sdktrace.WithBatchTimeout(saveEvery),
		sdktrace.WithMaxQueueSize(saveQueue), sdktrace.WithMaxExportBatchSize(saveSpans))
	return s, nil
}

// NewSaver returns a processor for the spans of a provider that is not of this package. Spans that are recorded but not
// sampled are saved if they took as long as slow, above 0. Its Shutdown saves the waiting
// spans even if its context is done. The log has each series of failures once. The caller closes w after Shutdown.
func NewSaver(
	ctx context.Context, w io.Writer, slow time.Duration, savedIn string, log *slog.Logger, g *guard.Guard,
) (sdktrace.SpanProcessor, error) {
	s, err := newSaver(ctx, w, slow, &outage{signal: savedTraces, endpoint: savedIn, log: log, stage: g.Stage("export " + savedTraces)})
	if err != nil {
		return nil, err
	}
	return ownSaver{s}, nil
}

// savedTraces is the signal of saved spans in the log.
const savedTraces = "saved traces"

// ownSaver is a saver that its provider shuts down.
type ownSaver struct{ *saver }

func (s ownSaver) Shutdown(ctx context.Context) error { return s.finish(ctx) }

func (s *saver) OnEnd(span sdktrace.ReadOnlySpan) {
	if !span.SpanContext().IsSampled() {
		if s.slow <= 0 || span.EndTime().Sub(span.StartTime()) < s.slow {
			return
		}
		span = taken{span}
	}
	if s.waiting.Add(1) > saveQueue {
		s.waiting.Add(-1)
		s.outage.lost.Add(1)
		return
	}
	s.SpanProcessor.OnEnd(span)
}

// taken is a span that is saved although it is not sampled: the SDK's processor takes sampled ones alone.
type taken struct{ sdktrace.ReadOnlySpan }

func (t taken) SpanContext() trace.SpanContext {
	sc := t.ReadOnlySpan.SpanContext()
	return sc.WithTraceFlags(sc.TraceFlags() | trace.FlagsSampled)
}

// Shutdown does nothing: the provider shuts its processors down one after the other, and saving must not wait
// for an unreachable server. See finish.
func (s *saver) Shutdown(context.Context) error { return nil }

// finish saves the waiting spans and shuts the processor down, even if ctx is done: it needs no server.
func (s *saver) finish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveLast)
	defer cancel()
	return s.SpanProcessor.Shutdown(ctx)
}

// savedSpans counts down the saver's waiting spans as they leave the processor.
type savedSpans struct {
	watchedSpans
	saver *saver
}

func (s savedSpans) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	defer s.saver.waiting.Add(-int64(len(spans)))
	return s.watchedSpans.ExportSpans(ctx, spans)
}

// lineClient is an OTLP client that writes to a file.
type lineClient struct{ w io.Writer }

var _ otlptrace.Client = lineClient{}

func (lineClient) Start(context.Context) error { return nil }
func (lineClient) Stop(context.Context) error  { return nil }

func (c lineClient) UploadTraces(_ context.Context, rs []*tracepb.ResourceSpans) error {
	return traces.Marshal(c.w, rs)
}
