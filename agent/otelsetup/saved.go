package otelsetup

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/metric"

	"spanflame/agent"
	"spanflame/agent/internal/guard"
	"spanflame/agent/internal/save"
)

// savedTraces is where traces are saved: files next to the agent's profiles.
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
