// Package spanlink wraps a TracerProvider so that profiles are linked to spans: the agent installs
// it as the global provider. The goroutine that starts a recorded span carries the pprof labels span_id and
// span_name of its local root while the span runs, which the CPU profile records, and the span's start and
// end are marked for the wall-clock profile (see [Marks]). A local root span gets the attribute
// pyroscope.profile.id, by which Grafana links it to its flame graph. The package neither samples nor
// exports spans, and a span that is not recorded costs only the check. A panic in what it does does not reach the caller: that span
// has no link, or no profile, and is otherwise started and ended as ever.
//
// The labels and the attribute are those of github.com/grafana/otel-profiling-go, which is asked for them once: to have it
// make them for each span takes longer. Its wrapper restores at
// the end of a span the labels of the span's context, on whichever goroutine calls End. Here the labels
// are restored to those that the goroutine had before the span, from a context or not, and only on a
// goroutine that still has the span's labels: its starter, or a goroutine which that one started during the
// span and which ends the span. A goroutine that ends a span of another one keeps its labels. A child span
// that starts on a goroutine with the labels of its context, as nearly all do, leaves them unchanged.
//
// A child span that took at least ten milliseconds gets the attribute, too, while its marks are recorded:
// its own wall-clock profile exists if its local root turns out to be slow, which is not known yet when the
// child ends. If the root was fast, the link of such a child opens an empty graph.
//
// # Limits (Go 1.26)
//
// A goroutine's labels can be changed by that goroutine only. When a span is ended on another goroutine,
// its starter keeps the labels until it starts its next span; at the end of that one they are gone. The
// same holds for a goroutine that was started inside a span and outlives it. Until then CPU profiles
// charge both to the span; the wall-clock profile does not, since it uses marks. Labels
// that the application set outside of the context are not visible during a span, because labels cannot be
// merged without their context, and are restored at its end. Labels that it sets during a span and does not
// restore stay.
package spanlink

import (
	"context"
	"encoding/hex"
	"runtime/pprof"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"spanflame/agent/internal/guard"
	"spanflame/internal/wallprofile"
)

// Mark is a span whose start was marked. End marks its end on the goroutine that calls it, under the name
// that the span has by then, and at the time that its author chose for its end, which is zero if there is none.
// It returns when the mark was made, which is zero if it does not matter when the span ends, and whether the span took
// long enough for a profile of its own. Calls notes before the end what a client span called.
type Mark = interface {
	Calls(wallprofile.Call)
	End(name string, chosen time.Time) (at time.Time, profiled bool)
}

// Marks marks the start of recorded spans, on the goroutine that calls Begin. The parent is the mark of the nearest
// span above in this process, nil if there is none. The mark is nil when the span gets no profile. Package wall has
// the implementation.
type Marks interface {
	Begin(parent Mark, span trace.SpanContext, name string, start time.Time) Mark
}

// Span is a recorded span of this package, which alone makes one. A type that embeds a Span is taken for it where it is the
// span of a context.
type Span interface {
	trace.Span
	Wrapped() trace.Span // of the wrapped provider
	linked() *span
}

// NewTracerProvider wraps tp. Marks may be nil; spans then have labels only. So may the guard, which recovers panics.
func NewTracerProvider(tp trace.TracerProvider, marks Marks, g *guard.Guard) trace.TracerProvider {
	return &provider{
		TracerProvider: tp,
		marks:          marks,
		starting:       g.Stage("start of a span"),
		ending:         g.Stage("end of a span"),
		names:          learn(),
	}
}

// provider embeds what it wraps, as the tracer and the span do, so that methods which are added to the
// interfaces pass through.
type provider struct {
	trace.TracerProvider
	marks  Marks
	names  names
	recent recent

	starting, ending *guard.Stage
}

func (p *provider) Tracer(name string, options ...trace.TracerOption) trace.Tracer {
	return &tracer{Tracer: p.TracerProvider.Tracer(name, options...), p: p}
}

type tracer struct {
	trace.Tracer
	p *provider
}

func (t *tracer) Start(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	above := ctx
	ctx, inner := t.Tracer.Start(ctx, name, options...)
	sc := inner.SpanContext()
	if !sc.IsSampled() && !inner.IsRecording() || t.p.starting.Paused() {
		return ctx, inner
	}
	if linked, s := t.link(above, ctx, inner, sc, name); s != nil {
		return linked, s
	}
	return ctx, inner
}

// link wraps a span that has begun. The span is nil if that panicked.
func (t *tracer) link(above, ctx context.Context, inner trace.Span, sc trace.SpanContext, name string) (_ context.Context, _ *span) {
	defer t.p.starting.Recover()
	s := &span{Span: inner, p: t.p, name: name}
	s.root = s
	done := false
	defer func() {
		if !done && s.marked { // a mark without an end would be a slow span for a long time
			s.mark.End(s.name, s.start)
		}
	}()
	if parent := parentIn(above, inner); parent != nil && parent.SpanContext().TraceID() == sc.TraceID() {
		s.root, s.mark = parent.root, parent.mark
	}
	if t.p.marks != nil {
		// First of all: the mark should be as near to the SDK's own time as possible.
		if timed, ok := inner.(interface{ StartTime() time.Time }); ok {
			s.start = timed.StartTime()
		} else {
			s.start = time.Now()
		}
		if mark := t.p.marks.Begin(s.mark, sc, name, s.start); mark != nil {
			s.mark, s.marked = mark, true
		}
	}
	if !sc.IsSampled() {
		inner.SetAttributes(attribute.Bool(wallprofile.UnsampledAttribute, true))
	}
	s.below = below{ctx, s}
	ctx = &s.below
	if trace.SpanFromContext(ctx) != trace.Span(s) {
		ctx = trace.ContextWithSpan(ctx, s) // OpenTelemetry does not find it by a key, or by another one
	}
	ctx = s.label(ctx, sc)
	done = true
	return ctx, s
}

// below is the context of a span: it does what trace.ContextWithSpan does, as long as OpenTelemetry has one key for the span
// of a context. In it the span is also found by a key of ours, where the context's span is another one. It is a part of the
// span, so that it takes no memory of its own.
type below struct {
	context.Context
	s *span
}

type spanKey struct{}

func (b *below) Value(key any) any {
	if key == (spanKey{}) || key == otelSpanKey {
		return b.s
	}
	return b.Context.Value(key)
}

// otelSpanKey is the key by which OpenTelemetry finds the span of a context.
var otelSpanKey = func() any {
	asked := keys{Context: context.Background()}
	trace.SpanFromContext(&asked)
	return asked.last
}()

// keys is a context that notes the key which was asked for last.
type keys struct {
	context.Context
	last any
}

func (k *keys) Value(key any) any {
	k.last = key
	return nil
}

// parentIn returns the nearest span of this package in the context that a span was started in. It is the context's span,
// which is all that is left in a context that was detached from its parent. Only where somebody wrapped that span, or
// started one with another provider below it, it is found by a key. A span without a parent has none here: to look for it
// would go through the whole context.
func parentIn(ctx context.Context, started trace.Span) *span {
	if known, ok := started.(interface{ Parent() trace.SpanContext }); ok && !known.Parent().IsValid() {
		return nil
	}
	if s, ok := trace.SpanFromContext(ctx).(Span); ok {
		return s.linked()
	}
	s, _ := ctx.Value(spanKey{}).(*span)
	return s
}

// label gives the goroutine the labels of the span's local root. A set of labels belongs to one span, so that
// the end can recognise them; if the goroutine already has those of the context, the span has no set and
// changes nothing.
func (s *span) label(ctx context.Context, sc trace.SpanContext) context.Context {
	before := goroutineLabels()
	switch root := s.root; {
	case root == s:
		s.identify(sc)
		ctx = root.set(ctx, sc)
	case labelOf(ctx, s.p.names.spanID) != root.labelID: // a context that was detached from the root's
		ctx = root.set(ctx, sc)
	default:
		pprof.SetGoroutineLabels(ctx)
		if goroutineLabels() == before {
			return ctx
		}
		ctx = pprof.WithLabels(ctx, pprof.Labels()) // a copy
		pprof.SetGoroutineLabels(ctx)
	}
	s.labels = labelled{own: goroutineLabels(), before: before}
	s.p.recent.add(s.labels)
	return ctx
}

// identify gives a local root its attribute, and the values of its labels.
func (s *span) identify(sc trace.SpanContext) {
	id, traceID := sc.SpanID(), sc.TraceID()
	var text [2 * (len(id) + len(traceID))]byte
	hex.Encode(text[:], id[:])
	hex.Encode(text[2*len(id):], traceID[:])
	all := string(text[:])
	s.id, s.traceID = all[:2*len(id)], all[2*len(id):]
	s.Span.SetAttributes(s.p.names.profileID.String(s.id))
	if sc.IsSampled() {
		s.labelID = s.id
	}
}

// set gives the context and the goroutine the labels of a local root. One that is not sampled has only its name as a label,
// unless it replaces the labels of another one.
func (s *span) set(ctx context.Context, sc trace.SpanContext) context.Context {
	names := &s.p.names
	labels := make([]string, 0, 6)
	if s.name != "" {
		labels = append(labels, names.spanName, s.name)
	}
	if sc.IsSampled() || labelOf(ctx, names.spanID) != "" {
		labels = append(labels, names.spanID, s.id, names.traceID, s.traceID)
	}
	ctx = pprof.WithLabels(ctx, pprof.Labels(labels...))
	pprof.SetGoroutineLabels(ctx)
	return ctx
}

// labelOf returns the value of a context's label, empty if there is none.
func labelOf(ctx context.Context, name string) string {
	value, _ := pprof.Label(ctx, name)
	return value
}

// span is a recorded span. It is in its context itself, so that a span which is taken from there is ended
// here, and so that the tracers of its TracerProvider are wrapped, too.
type span struct {
	trace.Span
	p      *provider
	root   *span     // the local root; itself, if it is one
	name   string    // at the start
	start  time.Time // the span's own, if it is marked
	mark   Mark      // of this span or of the nearest marked one above it, nil if there is none
	marked bool      // the mark is this span's
	labels labelled
	ended  atomic.Bool

	id, traceID string // of a root: as text
	labelID     string // of a root: id if it is a label, else empty

	below below
}

func (s *span) linked() *span       { return s }
func (s *span) Wrapped() trace.Span { return s.Span }

func (s *span) TracerProvider() trace.TracerProvider { return s.p }

// End ends the span once; further calls do nothing. It may be deferred: a panic that unwinds through it
// is recorded as the SDK records it, and continues.
func (s *span) End(options ...trace.SpanEndOption) {
	v := recover()
	if v != nil {
		defer panic(v)
	}
	if !s.ended.CompareAndSwap(false, true) {
		return
	}
	if s.labels.own != nil {
		s.p.recent.end(s.labels.own)
	}
	options = s.endMark(options)
	if v == nil {
		s.Span.End(options...)
	} else {
		s.endPanicking(v, options)
	}
	if s.labels.own != nil && goroutineLabels() == s.labels.own {
		setGoroutineLabels(s.p.recent.settle(s.labels.before))
	}
}

// endMark marks the end and returns the options to end the wrapped span with.
func (s *span) endMark(options []trace.SpanEndOption) (with []trace.SpanEndOption) {
	with = options
	if !s.marked {
		return with
	}
	defer s.p.ending.Recover()
	ending := false
	defer func() {
		if !ending {
			s.mark.End(s.name, time.Time{})
		}
	}()
	name := s.name
	if named, ok := s.Span.(interface{ Name() string }); ok {
		name = named.Name()
	}
	s.calls()
	var chosen time.Time
	if len(options) > 0 {
		config := trace.NewSpanEndConfig(options...)
		chosen = config.Timestamp()
	}
	ending = true
	at, profiled := s.mark.End(name, chosen)
	if at.IsZero() {
		return with
	}
	// The span ends at its mark: on a busy machine what lies between two readings of the clock can be a
	// garbage collection. A timestamp among the caller's options comes later and overrides this one. It is
	// the start and what passed since then, like the SDK's, so that setting the clock does not change the
	// duration.
	with = append([]trace.SpanEndOption{trace.WithTimestamp(s.start.Add(at.Sub(s.start)))}, options...)
	if profiled {
		s.Span.SetAttributes(attribute.String(wallprofile.ProfileIDAttribute, s.Span.SpanContext().SpanID().String()))
	}
	return with
}

// calls notes what a client span called, from its attributes if the SDK lets them be read.
func (s *span) calls() {
	readable, ok := s.Span.(interface {
		SpanKind() trace.SpanKind
		Attributes() []attribute.KeyValue
	})
	if !ok || readable.SpanKind() != trace.SpanKindClient {
		return
	}
	all := readable.Attributes()
	s.mark.Calls(wallprofile.CallOf(func(key string) string {
		for _, a := range all {
			if string(a.Key) == key {
				return a.Value.String()
			}
		}
		return ""
	}))
}

// endPanicking ends the wrapped span by a deferred call in a function that panics: that is how the SDK
// notices a panic. The SDK panics again, which ends here.
func (s *span) endPanicking(v any, options []trace.SpanEndOption) {
	defer func() { _ = recover() }()
	defer s.Span.End(options...)
	panic(v)
}
