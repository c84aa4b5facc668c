package spanlink

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"spanflame/agent/internal/guard"
	"spanflame/internal/wallprofile"
)

// planted panics at one of the places where this package's work for a span can: in the marks, in the labels, and in what
// it asks the wrapped span.
type planted struct {
	at   string
	open int // marks that have begun and not ended
}

func (p *planted) plant(at string) {
	if p.at == at {
		panic("planted in " + at)
	}
}

func (p *planted) Begin(Mark, trace.SpanContext, string, time.Time) Mark {
	p.plant("Begin")
	p.open++
	return plantedMark{p}
}

type plantedMark struct{ p *planted }

func (m plantedMark) Calls(wallprofile.Call) { m.p.plant("Calls") }

func (m plantedMark) End(string, time.Time) (time.Time, bool) {
	m.p.open--
	m.p.plant("End")
	return time.Now(), true
}

// plantedProvider's spans are the SDK's, but for the plants.
type plantedProvider struct {
	trace.TracerProvider
	p *planted
}

func (p plantedProvider) Tracer(name string, options ...trace.TracerOption) trace.Tracer {
	return plantedTracer{p.TracerProvider.Tracer(name, options...), p.p}
}

type plantedTracer struct {
	trace.Tracer
	p *planted
}

func (t plantedTracer) Start(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	ctx, s := t.Tracer.Start(ctx, name, options...)
	return ctx, plantedSpan{s, t.p}
}

type plantedSpan struct {
	trace.Span
	p *planted
}

func (s plantedSpan) SetAttributes(attributes ...attribute.KeyValue) {
	s.p.plant("SetAttributes")
	s.Span.SetAttributes(attributes...)
}

func (s plantedSpan) Name() string {
	s.p.plant("Name")
	return s.Span.(sdktrace.ReadOnlySpan).Name()
}

func (s plantedSpan) SpanKind() trace.SpanKind { return trace.SpanKindClient }

func (s plantedSpan) Attributes() []attribute.KeyValue {
	s.p.plant("Attributes")
	return nil
}

// A panic in what the package does for a span stays below it: the span is started and ended as without the package, the
// goroutine has its own labels afterwards, and the panic is counted, and logged once.
func TestAPanicDoesNotReachTheService(t *testing.T) {
	for at, stage := range map[string]string{
		"Begin": "start of a span", "SetAttributes": "start of a span", "End": "end of a span", "Name": "end of a span",
		"Attributes": "end of a span", "Calls": "end of a span",
	} {
		t.Run(at, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				g := guard.New(slog.New(slog.NewTextHandler(&log, nil)))
				recorder := tracetest.NewSpanRecorder()
				sdk := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
				p := &planted{at: at}
				tracer := NewTracerProvider(plantedProvider{sdk, p}, p, g).Tracer("test")
				t.Cleanup(func() { setGoroutineLabels(nil) })
				before := label("acme")
				request := func() {
					ctx, root := tracer.Start(context.Background(), "root")
					_, child := tracer.Start(ctx, "child")
					child.End()
					root.End()
				}
				request()
				request()
				if goroutineLabels() != before {
					t.Error("the goroutine has other labels than before the spans")
				}
				if p.open != 0 {
					t.Errorf("%d marks have no end", p.open)
				}
				ended := recorder.Ended()
				if len(ended) != 4 || ended[0].Parent().SpanID() != ended[1].SpanContext().SpanID() {
					t.Errorf("ended spans %v, want two roots with a child each", ended)
				}
				if g.Panics()[stage] == 0 || len(g.Panics()) != 1 {
					t.Errorf("panics %v, want those of the stage %q", g.Panics(), stage)
				}
				if n := strings.Count(log.String(), "planted in "+at); n != 1 {
					t.Errorf("the panic is in the log %d times, want once:\n%s", n, log.String())
				}
				if stack := "spanlink.(*planted).plant"; !strings.Contains(log.String(), stack) {
					t.Errorf("the log has no stack with %s:\n%s", stack, log.String())
				}

				p.at = ""
				time.Sleep(time.Hour)
				request()
				if len(g.Degraded()) != 0 {
					t.Errorf("degraded after the repair: %q", g.Degraded())
				}
				if ended := recorder.Ended(); attr(ended[len(ended)-1], "pyroscope.profile.id") == "" {
					t.Error("a span after the repair has no link")
				}
			})
		})
	}
}

// A panic of the service passes through a span that a function ended which is deferred itself.
func TestAPanicOfTheServiceIsItsOwn(t *testing.T) {
	tracer, _, _ := setup(t, sdktrace.AlwaysSample())
	defer func() {
		if v := recover(); v != "the service's" {
			t.Errorf("recovered %v, want the service's panic", v)
		}
	}()
	_, s := tracer.Start(context.Background(), "root")
	defer func() {
		s.End()
		_, another := tracer.Start(context.Background(), "another")
		another.End()
	}()
	panic("the service's")
}
