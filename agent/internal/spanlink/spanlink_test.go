package spanlink

import (
	"context"
	"errors"
	"maps"
	"runtime/pprof"
	"slices"
	"sync"
	"testing"
	"time"

	otelpyroscope "github.com/grafana/otel-profiling-go"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"spanflame/internal/wallprofile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// marks counts what is marked, and calls a span worth a profile from a millisecond on.
type marks struct {
	mu     sync.Mutex
	begun  []string
	ended  []string
	parent []bool    // there was a mark above
	calls  []string  // their frames
	chosen time.Time // the last end that was chosen
	at     time.Time // of the last end
}

type mark struct {
	m     *marks
	start time.Time
}

func (m *marks) Begin(parent Mark, _ trace.SpanContext, name string, start time.Time) Mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.begun = append(m.begun, name)
	m.parent = append(m.parent, parent != nil)
	return &mark{m, start}
}

func (k *mark) Calls(c wallprofile.Call) {
	k.m.mu.Lock()
	defer k.m.mu.Unlock()
	k.m.calls = append(k.m.calls, c.Frame())
}

func (k *mark) End(name string, chosen time.Time) (time.Time, bool) {
	k.m.mu.Lock()
	defer k.m.mu.Unlock()
	k.m.ended = append(k.m.ended, name)
	k.m.chosen = chosen
	k.m.at = time.Now()
	return k.m.at, k.m.at.Sub(k.start) >= time.Millisecond
}

func setup(t *testing.T, sampler sdktrace.Sampler) (trace.Tracer, *tracetest.SpanRecorder, *marks) {
	t.Helper()
	recorder := tracetest.NewSpanRecorder()
	sdk := sdktrace.NewTracerProvider(sdktrace.WithSampler(sampler), sdktrace.WithSpanProcessor(recorder))
	t.Cleanup(func() { _ = sdk.Shutdown(context.Background()) })
	t.Cleanup(func() { setGoroutineLabels(nil) })
	m := &marks{}
	return NewTracerProvider(sdk, m, nil).Tracer("test"), recorder, m
}

// label sets a label on this goroutine as an application might, and returns its set.
func label(value string) labels {
	pprof.SetGoroutineLabels(pprof.WithLabels(context.Background(), pprof.Labels("tenant", value)))
	return goroutineLabels()
}

func attr(s sdktrace.ReadOnlySpan, key attribute.Key) string {
	for _, kv := range s.Attributes() {
		if kv.Key == key {
			return kv.Value.AsString()
		}
	}
	return ""
}

// on runs f on a goroutine that was there before the span: one that has no labels of it.
func on(f func()) {
	saved := goroutineLabels()
	setGoroutineLabels(nil)
	var done sync.WaitGroup
	done.Go(f)
	setGoroutineLabels(saved)
	done.Wait()
}

func TestSpanLabelsItsGoroutine(t *testing.T) {
	tracer, recorder, m := setup(t, sdktrace.AlwaysSample())
	before := label("acme")
	ctx, root := tracer.Start(context.Background(), "root")
	id := root.SpanContext().SpanID().String()
	if goroutineLabels() == before {
		t.Error("the span does not label its goroutine")
	}
	if got, _ := pprof.Label(ctx, "span_id"); got != id {
		t.Errorf("span_id in the context is %q, the span is %s", got, id)
	}
	inRoot := goroutineLabels()
	_, child := tracer.Start(ctx, "child")
	if goroutineLabels() != inRoot {
		t.Error("a child replaces the labels that its goroutine has from the root")
	}
	child.SetName("GET /child/{id}")
	time.Sleep(2 * time.Millisecond)
	child.End()
	if goroutineLabels() != inRoot {
		t.Error("the child's end does not restore its parent's labels")
	}
	_, quick := tracer.Start(ctx, "quick")
	quick.End()
	root.End()
	if goroutineLabels() != before {
		t.Error("the span's end does not restore the labels that the application had set outside of the context")
	}
	ended := recorder.Ended()
	for _, s := range ended {
		want := s.SpanContext().SpanID().String()
		if s.Name() == "quick" && s.EndTime().Sub(s.StartTime()) < time.Millisecond {
			want = ""
		}
		if got := attr(s, wallprofile.ProfileIDAttribute); got != want {
			t.Errorf("%s has %s = %q, want %q", s.Name(), wallprofile.ProfileIDAttribute, got, want)
		}
	}
	if len(m.begun) != 3 || m.parent[0] || !m.parent[1] || !m.parent[2] || m.ended[0] != "GET /child/{id}" || m.ended[2] != "root" {
		t.Errorf("marks: %+v", m)
	}
}

// labelsIn are the labels in a context, by name.
func labelsIn(ctx context.Context) map[string]string {
	all := map[string]string{}
	pprof.ForLabels(ctx, func(key, value string) bool {
		all[key] = value
		return true
	})
	return all
}

// TestLabelsAreThePeers: the labels and the attribute are those of otel-profiling-go, which Pyroscope and Grafana know.
// All labels are those of the local root.
func TestLabelsAreThePeers(t *testing.T) {
	tracer, recorder, _ := setup(t, sdktrace.AlwaysSample())
	ctx, root := tracer.Start(pprof.WithLabels(context.Background(), pprof.Labels("tenant", "acme")), "root")
	inChild, child := tracer.Start(ctx, "child")
	child.End()
	root.End()

	sdk := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	defer func() { _ = sdk.Shutdown(context.Background()) }()
	peer := otelpyroscope.NewTracerProvider(sdk).Tracer("test")
	peerCtx, peerRoot := peer.Start(pprof.WithLabels(context.Background(), pprof.Labels("tenant", "acme")), "root")
	peerChildCtx, peerChild := peer.Start(peerCtx, "child")
	peerChild.End()
	peerRoot.End()

	for i, both := range [][2]map[string]string{{labelsIn(ctx), labelsIn(peerCtx)}, {labelsIn(inChild), labelsIn(peerChildCtx)}} {
		for which, s := range []trace.Span{root, peerRoot} {
			sc := s.SpanContext()
			want := map[string]string{"tenant": "acme", "span_name": "root", "span_id": sc.SpanID().String(), "trace_id": sc.TraceID().String()}
			if got := both[which]; !maps.Equal(got, want) {
				t.Errorf("span %d, provider %d: labels are %v, want %v", i, which, got, want)
			}
		}
	}
	for i, s := range recorder.Ended() {
		if s.Name() == "child" && s.EndTime().Sub(s.StartTime()) >= time.Millisecond {
			continue // it was held up, and is long enough for a profile of its own
		}
		want := ""
		if s.Name() == "root" {
			want = s.SpanContext().SpanID().String()
		}
		if got := attr(s, wallprofile.ProfileIDAttribute); got != want {
			t.Errorf("span %d, %s, has %s = %q, want %q", i, s.Name(), wallprofile.ProfileIDAttribute, got, want)
		}
	}
}

// recordOnly has all spans recorded, and none exported.
type recordOnly struct{}

func (recordOnly) ShouldSample(sdktrace.SamplingParameters) sdktrace.SamplingResult {
	return sdktrace.SamplingResult{Decision: sdktrace.RecordOnly}
}
func (recordOnly) Description() string { return "record only" }

// TestLabelsOfUnusualSpans: which labels there are is as with otel-profiling-go, also of a span that is not sampled or has no
// name.
func TestLabelsOfUnusualSpans(t *testing.T) {
	for _, sampler := range []sdktrace.Sampler{recordOnly{}, sdktrace.AlwaysSample()} {
		tracer, _, _ := setup(t, sampler)
		sdk := sdktrace.NewTracerProvider(sdktrace.WithSampler(sampler))
		defer func() { _ = sdk.Shutdown(context.Background()) }()
		for _, name := range []string{"root", ""} {
			ctx, root := tracer.Start(context.Background(), name)
			root.End()
			peerCtx, peer := otelpyroscope.NewTracerProvider(sdk).Tracer("test").Start(context.Background(), name)
			peer.End()
			got, want := labelsIn(ctx), labelsIn(peerCtx)
			if !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want))) {
				t.Errorf("%s, %q: labels %v, want those of %v", sampler.Description(), name, got, want)
			}
		}
	}
}

// TestLabelsAreOfOneSpan: in a context with the labels of another request, a span that is not sampled has all of its own, and so
// has its child.
func TestLabelsAreOfOneSpan(t *testing.T) {
	sampled, _, _ := setup(t, sdktrace.AlwaysSample())
	tracer, _, _ := setup(t, recordOnly{})
	other, _ := sampled.Start(context.Background(), "other")
	want := func(ctx context.Context, root trace.Span) {
		t.Helper()
		sc := root.SpanContext()
		want := map[string]string{"span_name": "root", "span_id": sc.SpanID().String(), "trace_id": sc.TraceID().String()}
		if got := labelsIn(ctx); !maps.Equal(got, want) {
			t.Errorf("labels %v, want %v", got, want)
		}
	}
	ctx, root := tracer.Start(trace.ContextWithSpan(other, nil), "root", trace.WithNewRoot())
	want(ctx, root)
	child, _ := tracer.Start(ctx, "child")
	want(child, root)
	_, plain := tracer.Start(context.Background(), "root")
	child, _ = tracer.Start(trace.ContextWithSpan(other, plain), "child")
	want(child, plain)
}

// TestChildOnAnotherGoroutine: a child span labels the goroutine that starts it. A goroutine that ends the span of another
// one keeps its own labels.
func TestChildOnAnotherGoroutine(t *testing.T) {
	tracer, _, _ := setup(t, sdktrace.AlwaysSample())
	setGoroutineLabels(nil)
	ctx, root := tracer.Start(context.Background(), "root")
	inRoot := goroutineLabels()
	var before, in, after, endedElsewhere labels
	var second trace.Span
	on(func() {
		before = label("worker")
		_, first := tracer.Start(ctx, "first")
		in = goroutineLabels()
		first.End()
		after = goroutineLabels()
		_, second = tracer.Start(ctx, "second")
	})
	if in == before || in == inRoot || after != before {
		t.Errorf("the worker had %p, in the child %p, after it %p; the root %p", before, in, after, inRoot)
	}
	second.End()
	if endedElsewhere = goroutineLabels(); endedElsewhere != inRoot {
		t.Error("the root's goroutine loses its labels to a child that started elsewhere")
	}
	root.End()
}

// TestNewRootInsideASpan: a span of another trace is a local root of its own in every context.
func TestNewRootInsideASpan(t *testing.T) {
	tracer, recorder, _ := setup(t, sdktrace.AlwaysSample())
	ctx, outer := tracer.Start(context.Background(), "outer")
	inOuter := goroutineLabels()
	ctx, inner := tracer.Start(ctx, "inner", trace.WithNewRoot())
	if got := labelsIn(ctx); got["span_id"] != inner.SpanContext().SpanID().String() || got["span_name"] != "inner" {
		t.Errorf("the labels are %v", got)
	}
	inner.End()
	if goroutineLabels() != inOuter {
		t.Error("the end of the inner root does not restore the outer one's labels")
	}
	outer.End()
	for _, s := range recorder.Ended() {
		if got := attr(s, wallprofile.ProfileIDAttribute); got != s.SpanContext().SpanID().String() {
			t.Errorf("%s has %s = %q", s.Name(), wallprofile.ProfileIDAttribute, got)
		}
	}
}

func TestUnsampledSpanIsLeftAlone(t *testing.T) {
	tracer, _, m := setup(t, sdktrace.NeverSample())
	before := label("acme")
	ctx, s := tracer.Start(context.Background(), "unsampled")
	if goroutineLabels() != before {
		t.Error("an unsampled span labels its goroutine")
	}
	if _, ok := pprof.Label(ctx, "span_name"); ok {
		t.Error("an unsampled span has labels in its context")
	}
	if _, wrapped := s.(*span); wrapped {
		t.Error("an unsampled span is wrapped")
	}
	s.End()
	if len(m.begun) != 0 || goroutineLabels() != before {
		t.Errorf("marks: %+v", m)
	}
}

func TestEndOnAnotherGoroutine(t *testing.T) {
	tracer, _, _ := setup(t, sdktrace.AlwaysSample())
	before := label("starter")
	_, s := tracer.Start(context.Background(), "hop")
	var had, has labels
	on(func() {
		had = label("ender")
		s.End()
		has = goroutineLabels()
	})
	if had != has {
		t.Error("the goroutine that ends a span loses its own labels")
	}
	// Nobody can take the labels from the starter but the starter. Its next span does.
	_, next := tracer.Start(context.Background(), "next")
	next.End()
	if goroutineLabels() != before {
		t.Error("the starter keeps the labels of a span that has ended elsewhere beyond its next span")
	}
}

func TestEndOnAGoroutineOfTheSpan(t *testing.T) {
	tracer, _, _ := setup(t, sdktrace.AlwaysSample())
	before := label("starter")
	_, s := tracer.Start(context.Background(), "hop")
	var has labels
	var worker sync.WaitGroup
	worker.Go(func() {
		s.End()
		has = goroutineLabels()
	})
	worker.Wait()
	if has != before {
		t.Error("the goroutine that a span had started and that ended it keeps its labels")
	}
	_, next := tracer.Start(context.Background(), "next")
	next.End()
	if goroutineLabels() != before {
		t.Error("the starter keeps the labels of a span that has ended elsewhere beyond its next span")
	}
}

func TestWorkerOutlivesItsSpan(t *testing.T) {
	tracer, _, _ := setup(t, sdktrace.AlwaysSample())
	setGoroutineLabels(nil)
	_, first := tracer.Start(context.Background(), "first")
	jobs := make(chan struct{})
	var worker sync.WaitGroup
	var in, after labels
	worker.Go(func() {
		<-jobs
		_, second := tracer.Start(context.Background(), "second")
		in = goroutineLabels()
		second.End()
		after = goroutineLabels()
	})
	first.End()
	close(jobs)
	worker.Wait()
	if in == nil || after != nil {
		t.Errorf("in the second span %p, after it %p", in, after)
	}
}

func TestOverlappingSpans(t *testing.T) {
	tracer, _, _ := setup(t, sdktrace.AlwaysSample())
	before := label("acme")
	ctx, root := tracer.Start(context.Background(), "root")
	_, a := tracer.Start(ctx, "a")
	_, b := tracer.Start(ctx, "b")
	inB := goroutineLabels()
	a.End()
	if goroutineLabels() != inB {
		t.Error("the end of a changes the labels of b, which still runs")
	}
	root.End()
	b.End()
	if goroutineLabels() != before {
		t.Error("labels stay after the last of three overlapping spans")
	}
}

// TestEndsAtItsMark: the span that is exported and its wall-clock profile have one end, whatever the mark set off.
func TestEndsAtItsMark(t *testing.T) {
	tracer, recorder, m := setup(t, sdktrace.AlwaysSample())
	_, s := tracer.Start(context.Background(), "marked")
	s.End()
	span := recorder.Ended()[0]
	if got, want := span.EndTime().Sub(span.StartTime()), m.at.Sub(span.StartTime()); got != want {
		t.Errorf("the span took %v, %v to its mark", got, want)
	}
	said := time.Now().Add(-time.Hour)
	_, s = tracer.Start(context.Background(), "told")
	s.End(trace.WithTimestamp(said))
	if got := recorder.Ended()[1].EndTime(); !got.Equal(said) || !m.chosen.Equal(said) {
		t.Errorf("the span ends at %v and its mark at %v, though the caller chose %v", got, m.chosen, said)
	}
}

func TestEndTwice(t *testing.T) {
	tracer, recorder, m := setup(t, sdktrace.AlwaysSample())
	_, s := tracer.Start(context.Background(), "twice")
	s.End()
	own := label("next request")
	s.End()
	if goroutineLabels() != own || len(m.ended) != 1 || len(recorder.Ended()) != 1 {
		t.Errorf("the second End did something: %+v, %d spans", m, len(recorder.Ended()))
	}
}

func TestPanicUnwindsThroughSpan(t *testing.T) {
	tracer, recorder, m := setup(t, sdktrace.AlwaysSample())
	before := label("acme")
	boom := errors.New("boom")
	func() {
		defer func() {
			if v := recover(); v != boom {
				t.Errorf("recovered %v", v)
			}
		}()
		ctx, root := tracer.Start(context.Background(), "root")
		defer root.End()
		_, child := tracer.Start(ctx, "child")
		defer child.End()
		panic(boom)
	}()
	if goroutineLabels() != before {
		t.Error("labels stay after a panic")
	}
	if len(m.ended) != 2 {
		t.Errorf("marks: %+v", m)
	}
	for _, s := range recorder.Ended() {
		if len(s.Events()) != 1 || s.Events()[0].Name != "exception" {
			t.Errorf("%s has events %v, want the panic", s.Name(), s.Events())
		}
	}
}

// The span in a context is the wrapped span, and its provider makes wrapped spans.
func TestSpanFromContext(t *testing.T) {
	tracer, _, m := setup(t, sdktrace.AlwaysSample())
	ctx, s := tracer.Start(context.Background(), "root")
	same := trace.SpanFromContext(ctx)
	if same != s {
		t.Error("the context has another span")
	}
	_, child := same.TracerProvider().Tracer("library").Start(ctx, "child")
	child.End()
	same.End()
	if len(m.begun) != 2 || len(m.ended) != 2 {
		t.Errorf("marks: %+v", m)
	}
}

func TestWithoutMarks(t *testing.T) {
	sdk := sdktrace.NewTracerProvider()
	defer func() { _ = sdk.Shutdown(context.Background()) }()
	before := goroutineLabels()
	_, s := NewTracerProvider(sdk, nil, nil).Tracer("test").Start(context.Background(), "labels only")
	if goroutineLabels() == before {
		t.Error("no labels")
	}
	s.End()
	if goroutineLabels() != before {
		t.Error("labels stay")
	}
}

// Work that is detached from its request keeps the span alone: context.Background() with the request's span. Its spans are
// children of that span all the same, and its goroutine gets the labels.
func TestDetachedContext(t *testing.T) {
	tracer, recorder, m := setup(t, sdktrace.AlwaysSample())
	setGoroutineLabels(nil)
	ctx, root := tracer.Start(context.Background(), "root")
	on(func() {
		ctx, child := tracer.Start(trace.ContextWithSpan(context.Background(), trace.SpanFromContext(ctx)), "detached")
		_, grandchild := tracer.Start(ctx, "below")
		want := map[string]string{
			"span_name": "root", "span_id": root.SpanContext().SpanID().String(), "trace_id": root.SpanContext().TraceID().String(),
		}
		if got := labelsIn(ctx); !maps.Equal(got, want) {
			t.Errorf("the labels are %v, want %v", got, want)
		}
		grandchild.End()
		child.End()
		if goroutineLabels() != nil {
			t.Error("the labels stay")
		}
	})
	root.End()
	if !slices.Equal(m.parent, []bool{false, true, true}) {
		t.Errorf("of %q these had a mark above: %v", m.begun, m.parent)
	}
	for _, s := range recorder.Ended() {
		if s.Name() == "detached" && attr(s, wallprofile.ProfileIDAttribute) != "" && s.EndTime().Sub(s.StartTime()) < time.Millisecond {
			t.Error("a detached child is taken for a local root")
		}
	}
}

// wrappedSpan is what another library makes of ours.
type wrappedSpan struct{ trace.Span }

// If another library wraps our spans, its own span is in the context, and the parent is found nevertheless.
func TestParentBelowAnotherWrapper(t *testing.T) {
	tracer, _, m := setup(t, sdktrace.AlwaysSample())
	ctx, root := tracer.Start(context.Background(), "root")
	ctx = trace.ContextWithSpan(ctx, wrappedSpan{root})
	_, child := tracer.Start(ctx, "child")
	child.End()
	root.End()
	if !slices.Equal(m.parent, []bool{false, true}) {
		t.Errorf("of %q these had a mark above: %v", m.begun, m.parent)
	}
}

// Labels that the host sets by pprof.Do inside a span, around it and between its spans survive them.
func TestLabelsOfTheHost(t *testing.T) {
	tracer, _, _ := setup(t, sdktrace.AlwaysSample())
	setGoroutineLabels(nil)
	pprof.Do(context.Background(), pprof.Labels("tenant", "acme"), func(ctx context.Context) {
		outside := goroutineLabels()
		ctx, root := tracer.Start(ctx, "root")
		inRoot := goroutineLabels()
		pprof.Do(ctx, pprof.Labels("step", "pricing"), func(ctx context.Context) {
			inside := goroutineLabels()
			ctx, child := tracer.Start(ctx, "child")
			if got := labelsIn(ctx); got["tenant"] != "acme" || got["step"] != "pricing" || got["span_name"] != "root" {
				t.Errorf("in the child the labels are %v", got)
			}
			if goroutineLabels() != inside {
				t.Error("a child replaces the labels of pprof.Do")
			}
			child.End()
			if goroutineLabels() != inside {
				t.Error("the child's end does not leave the labels of pprof.Do")
			}
		})
		if goroutineLabels() != inRoot {
			t.Error("pprof.Do does not end in the root's labels")
		}
		root.End()
		if goroutineLabels() != outside {
			t.Error("the root's end does not restore the labels of pprof.Do")
		}
	})
	if goroutineLabels() != nil {
		t.Error("labels stay")
	}
}

// Only client spans call somebody; what the others have of the same attributes is about their callers.
func TestCalls(t *testing.T) {
	tracer, _, marks := setup(t, sdktrace.AlwaysSample())
	for _, kind := range []trace.SpanKind{trace.SpanKindServer, trace.SpanKindInternal, trace.SpanKindClient} {
		_, s := tracer.Start(context.Background(), "span", trace.WithSpanKind(kind), trace.WithAttributes(
			attribute.String("http.request.method", "GET"), attribute.String("server.address", "first")))
		s.SetAttributes(attribute.String("server.address", "inventory"), attribute.Int("server.port", 80))
		s.End()
	}
	if want := []string{"HTTP call: GET inventory:80"}; !slices.Equal(marks.calls, want) {
		t.Errorf("calls %q, want %q", marks.calls, want)
	}
}
