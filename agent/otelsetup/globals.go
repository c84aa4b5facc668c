package otelsetup

import (
	"context"
	"io"
	"log"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"spanflame/agent"
	"spanflame/agent/internal/guard"
	"spanflame/agent/internal/telemetry"
)

// checkEvery is the interval at which the agent checks that the process's tracer provider is still its own.
const checkEvery = 10 * time.Second

// globals are the values that the set-up installs in the process, until restore. Each is a pointer or wrapped into one, so that it
// can be compared with what is set later.
type globals struct {
	tracing    trace.TracerProvider // set by install
	metering   metric.MeterProvider
	propagator propagation.TextMapPropagator
	telemetry  atomic.Pointer[telemetry.Telemetry] // nil before it is started
	wrong      bool                                // whether a variable is that the SDK reads
	local      atomic.Pointer[slog.Logger]         // for what is about the SDK itself
	logger     *slog.Logger                        // of the agent
	setLogger  bool                                // whether it becomes slog's default

	undo []func() // each sets one back, if it is still the agent's

	installed atomic.Bool
	replaced  atomic.Bool // the service has set another tracer provider
	stop      chan struct{}
	checks    sync.WaitGroup
}

// newGlobals sets what must be there before the SDK: what reports its errors and logs its messages.
func newGlobals(cfg Config) *globals {
	wrong := checkSDK()
	if _, err := ConfigFromEnv(); err != nil && strings.Contains(err.Error(), "OTEL_") { // which the SDK reads, too
		wrong = append(wrong, err)
	}
	g := &globals{propagator: &propagator{cfg.propagator()}, wrong: len(wrong) > 0, stop: make(chan struct{})}
	g.local.Store(slog.New(slog.NewJSONHandler(cfg.Stdout, nil)))
	replace(g, otel.GetErrorHandler, otel.SetErrorHandler, otel.ErrorHandler(g))
	log := &sdkLog{g: g, least: sdkLevel()}
	before := sdkLogger.Swap(log)
	otel.SetLogger(logr.FromSlogHandler(log))
	g.undo = append(g.undo, func() {
		if before != nil && sdkLogger.CompareAndSwap(log, before) {
			otel.SetLogger(logr.FromSlogHandler(before))
		}
	})
	return g
}

// sdkLogger is the log of the SDK that was set last: the SDK does not tell.
var sdkLogger atomic.Pointer[sdkLog]

// Handle logs an error of the SDK.
func (g *globals) Handle(err error) {
	if t := g.telemetry.Load(); t != nil {
		t.HandleError(err)
		return
	}
	if !g.repeated(err.Error()) {
		g.local.Load().Warn("OpenTelemetry", "error", err.Error())
	}
}

// repeated reports whether a message from before the SDK's start is about a variable that the agent has a warning for. The
// message does not always name the variable, and shows the values of headers, which are secret.
func (g *globals) repeated(message string) bool {
	return g.telemetry.Load() == nil && (g.wrong || strings.Contains(strings.ToLower(message), "header"))
}

// logTo returns the agent's logger: the given one, or slog's default if the service has set it, or else that of the
// telemetry, which is then to be slog's default.
func (g *globals) logTo(given *slog.Logger, t *telemetry.Telemetry) *slog.Logger {
	g.telemetry.Store(t)
	g.local.Store(t.Local())
	g.metering = t.Metrics
	switch {
	case given != nil:
		g.logger = given
	case !isStandard(slog.Default()):
		g.logger = slog.Default()
	default:
		g.logger, g.setLogger = t.Logger, true
	}
	return g.logger
}

// isStandard reports whether nobody has set the logger: slog has no other way to tell. A logger of the service's may
// mask secrets or add fields, which the agent's own would not.
func isStandard(l *slog.Logger) bool {
	return reflect.TypeOf(l.Handler()).String() == "*slog.defaultHandler"
}

// propagator is W3C trace context and baggage, as a pointer.
type propagator struct{ propagation.TextMapPropagator }

// sdkLog is the log of the SDK's own messages, whose levels are those that it gives them.
type sdkLog struct {
	slog.Handler // of WithAttrs and WithGroup; nil: the local log's at the time
	g            *globals
	least        slog.Level
}

// level returns the level for one of logr: 1 is a warning of the SDK, 4 information and 8 for debugging.
func level(l slog.Level) slog.Level {
	switch {
	case l >= slog.LevelError:
		return slog.LevelError
	case l >= -1:
		return slog.LevelWarn
	case l >= -4:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

func (h *sdkLog) inner() slog.Handler {
	if h.Handler != nil {
		return h.Handler
	}
	return h.g.local.Load().Handler()
}

func (h *sdkLog) Enabled(_ context.Context, l slog.Level) bool { return level(l) >= h.least }

func (h *sdkLog) Handle(ctx context.Context, r slog.Record) error {
	if h.g.repeated(r.Message) {
		return nil
	}
	r = r.Clone()
	r.Level = level(r.Level)
	r.Message = "OpenTelemetry: " + r.Message
	return h.inner().Handle(ctx, r)
}

func (h *sdkLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &sdkLog{h.inner().WithAttrs(attrs), h.g, h.least}
}

func (h *sdkLog) WithGroup(name string) slog.Handler {
	return &sdkLog{h.inner().WithGroup(name), h.g, h.least}
}

// install makes the globals the process's own. The tracer provider is the agent's wrapper. The stage is of the check.
func (g *globals) install(tracing trace.TracerProvider, stage *guard.Stage) {
	g.tracing = tracing
	replace(g, otel.GetTracerProvider, otel.SetTracerProvider, g.tracing)
	replace(g, otel.GetMeterProvider, otel.SetMeterProvider, g.metering)
	replace(g, otel.GetTextMapPropagator, otel.SetTextMapPropagator, g.propagator)
	if g.setLogger {
		g.installLogger()
	}
	g.installed.Store(true)
	g.checks.Go(func() { g.check(stage) })
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
func (g *globals) check(stage *guard.Stage) {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		select {
		case <-g.stop:
			return
		case <-tick.C:
			stage.Try(func() { g.lookForAnother() })
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
