package otelsetup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"spanflame/agent"
	"spanflame/agent/internal/guard"
	"spanflame/agent/internal/identity"
	"spanflame/agent/internal/save"
	"spanflame/agent/internal/telemetry"
)

// TraceSaver is a span processor that saves the spans of the service's own tracer provider as files next to the
// profiles of its agent, where "spanflame view" finds both. A service whose agent is not of this package uses it:
//
//	saver, err := otelsetup.NewTraceSaver(ctx, cfg) // with the agent's configuration
//	...
//	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(saver), ...)
//
// The service.name of the provider's resource must be the ServiceName of the agent, by which the viewer joins traces and
// profiles. If it differs, that is logged once. The provider shuts the saver down.
type TraceSaver struct {
	sdktrace.SpanProcessor
	service  string // of the agent
	log      *slog.Logger
	named    sync.Once
	files    *savedTraces
	observed metric.Registration
	taking   *guard.Stage // OnEnd runs on the service's goroutines

	once sync.Once
	err  error // of the shutdown
}

// NewTraceSaver begins to save in the directory of an agent with this configuration, which must have one. A directory
// that cannot be used is no error: that is logged once, and counted.
func NewTraceSaver(ctx context.Context, cfg agent.Config) (*TraceSaver, error) {
	cfg, err := cfg.Resolve()
	if err != nil {
		return nil, fmt.Errorf("otelsetup: %w", err)
	}
	if c := (Config{Agent: cfg}); !c.saves() {
		return nil, fmt.Errorf("otelsetup: Dir (SPANFLAME_DIR) %q: want a directory to save traces in", cfg.Dir)
	}
	g := guard.New(cfg.Logger)
	s := &TraceSaver{service: cfg.ServiceName, log: cfg.Logger, files: openTraces(cfg, g), taking: g.Stage("saving of a span")}
	if s.SpanProcessor, err = telemetry.NewSaver(ctx, s.files.file, cfg.SlowSpan, cfg.Dir, cfg.Logger, g); err != nil {
		return nil, errors.Join(fmt.Errorf("otelsetup: %w", err), s.files.close(ctx))
	}
	if s.observed, err = save.Observe(cfg.MeterProvider.Meter("spanflame/agent"), "traces", s.files.file.Stats); err != nil {
		return nil, errors.Join(fmt.Errorf("otelsetup: %w", err), s.SpanProcessor.Shutdown(ctx), s.files.close(ctx))
	}
	return s, nil
}

// OnEnd takes a span that ended, to be saved.
func (s *TraceSaver) OnEnd(span sdktrace.ReadOnlySpan) {
	defer s.taking.Recover()
	s.SpanProcessor.OnEnd(span)
	s.named.Do(func() {
		name, _ := span.Resource().Set().Value(identity.ServiceName)
		if name.AsString() != s.service {
			s.log.Warn("the service.name of the spans is not the agent's ServiceName, so the viewer does not find their profiles; "+
				"give the provider's resource the same name (logged once)", "service_name", s.service, "of_spans", name.AsString())
		}
	})
}

// Problems returns what does not work as it should, for the field Problems of [agent.Config].
func (s *TraceSaver) Problems() []agent.Problem { return s.files.problems() }

// Shutdown saves the waiting spans, even if ctx is done, and closes the file. Further calls do nothing.
func (s *TraceSaver) Shutdown(ctx context.Context) error {
	s.once.Do(func() {
		s.err = errors.Join(s.SpanProcessor.Shutdown(ctx), s.files.close(context.WithoutCancel(ctx)), s.observed.Unregister())
	})
	return s.err
}

// savedTraces saves traces in files next to the agent's profiles.
type savedTraces struct{ file *save.Traces }

func openTraces(cfg agent.Config, g *guard.Guard) *savedTraces {
	return &savedTraces{save.OpenTraces(save.Options{
		Dir: cfg.Dir, Service: cfg.ServiceName, MaxBytes: save.TracesShare(cfg.DirMaxBytes), MaxAge: cfg.DirMaxAge,
		FreePart: save.FreePart, Guard: g,
	})}
}

func (s *savedTraces) observe(provider metric.MeterProvider) error {
	_, err := save.Observe(provider.Meter("spanflame/agent"), "traces", s.file.Stats)
	return err
}

func (s *savedTraces) problems() []agent.Problem {
	if err := s.file.Stats().Degraded; err != nil {
		return []agent.Problem{{Reason: "saving", Message: fmt.Sprintf("traces are not saved as they should be: %v", err)}}
	}
	return nil
}

// close closes the file, once the telemetry has written its last spans.
func (s *savedTraces) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return s.file.Close(ctx)
}
