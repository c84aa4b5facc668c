package otelsetup

import (
	"io"
	"log"
	"log/slog"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"spanflame/agent"
	"spanflame/agent/internal/telemetry"
)

// checkEvery is how often the agent checks that the process's tracer provider is still its own.
const checkEvery = 10 * time.Second

// globals are what the set-up makes the process's own, until restore. Each is a pointer or wrapped into one, so that it
// can be compared with what is set later.
type globals struct {
	tracing    trace.TracerProvider // set by install
	metering   metric.MeterProvider
	propagator propagation.TextMapPropagator
	errors     otel.ErrorHandler
	logger     *slog.Logger // of the agent
	setLogger  bool         // whether it becomes slog's default

	undo []func() // each sets one back, if it is still the agent's

	installed atomic.Bool
	replaced  atomic.Bool // the service has set another tracer provider
	stop      chan struct{}
	checks    sync.WaitGroup
}

func newGlobals(t *telemetry.Telemetry) *globals {
	g := &globals{
		metering:   t.Metrics,
		propagator: &propagator{propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})},
		errors:     &errorHandler{t.HandleError},
		logger:     t.Logger,
		setLogger:  true,
		stop:       make(chan struct{}),
	}
	if !isStandard(slog.Default()) {
		g.logger = slog.Default()
		g.keepLogger()
	}
	return g
}

// keepLogger leaves slog's default logger as it is.
func (g *globals) keepLogger() { g.setLogger = false }

// isStandard reports whether nobody has set the logger: slog has no other way to tell. A logger of the service's may
// mask secrets or add fields, which the agent's own would not.
func isStandard(l *slog.Logger) bool {
	return reflect.TypeOf(l.Handler()).String() == "*slog.defaultHandler"
}

// propagator is W3C trace context and baggage, as a pointer.
type propagator struct{ propagation.TextMapPropagator }

// errorHandler logs what the SDK reports, as a pointer.
type errorHandler struct{ handle func(error) }

func (h *errorHandler) Handle(err error) { h.handle(err) }

// install makes the globals the process's own. The tracer provider is the agent's wrapper.
func (g *globals) install(tracing trace.TracerProvider) {
	g.tracing = tracing
	replace(g, otel.GetTracerProvider, otel.SetTracerProvider, g.tracing)
	replace(g, otel.GetMeterProvider, otel.SetMeterProvider, g.metering)
	replace(g, otel.GetTextMapPropagator, otel.SetTextMapPropagator, g.propagator)
	replace(g, otel.GetErrorHandler, otel.SetErrorHandler, g.errors)
	if g.setLogger {
		g.installLogger()
	}
	g.installed.Store(true)
	g.checks.Go(g.check)
}

// replace sets a global and remembers how to set it back.
func replace[T any](g *globals, get func() T, set func(T), value T) {
	before := get()
	set(value)
	g.undo = append(g.undo, func() {
		if any(get()) == any(value) {
			set(before)
		}
	})
}

// installLogger sets slog's default logger. That redirects package log, too, and setting the standard logger again does
// not undo it.
func (g *globals) installLogger() {
	output, flags := log.Writer(), log.Flags()
	replace(g, slog.Default, slog.SetDefault, g.logger)
	redirected := log.Writer()
	redirectedFlags := log.Flags()
	g.undo = append(g.undo, func() {
		if sameWriter(log.Writer(), redirected) {
			log.SetOutput(output)
			if log.Flags() == redirectedFlags {
				log.SetFlags(flags)
			}
		}
	})
}

// sameWriter compares two writers, of which the second is a pointer.
func sameWriter(a, b io.Writer) bool {
	return reflect.TypeOf(a) == reflect.TypeOf(b) && a == b
}

// check logs once that the service has set a tracer provider of its own.
func (g *globals) check() {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		select {
		case <-g.stop:
			return
		case <-tick.C:
			g.lookForAnother()
		}
	}
}

const otherProvider = "the process's tracer provider is no longer the agent's: its spans have no profiles and are not exported by the agent; " +
	"set the provider that the agent's TracerProvider method returns for it"

func (g *globals) lookForAnother() bool {
	another := any(otel.GetTracerProvider()) != any(g.tracing)
	if another && g.replaced.CompareAndSwap(false, true) {
		g.logger.Warn(otherProvider)
	}
	return another
}

func (g *globals) problems() []agent.Problem {
	if g.installed.Load() && g.lookForAnother() {
		return []agent.Problem{{Reason: "tracer provider", Message: otherProvider}}
	}
	return nil
}

// restore sets the globals back to what they were, except those that the service has set since.
func (g *globals) restore() {
	close(g.stop)
	g.checks.Wait()
	for _, undo := range g.undo {
		undo()
	}
}
