package agent

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"spanflame/agent/internal/guard"
	"spanflame/agent/internal/save"
)

// tracesShare is the part of the directory's bound that traces have; profiles have the rest.
const tracesShare = 4

// saved is the directory that profiles and traces are saved in. It owns both rings.
type saved struct {
	traces   *save.Traces
	profiles *save.Profiles // nil until there is a log to write to
}

// openSaved begins with the traces: the log that the profiles' ring needs comes from the telemetry, which
// needs the traces' ring.
func openSaved(cfg Config, g *guard.Guard) *saved {
	return &saved{traces: save.OpenTraces(save.Options{
		Dir: cfg.Dir, Service: cfg.ServiceName, MaxBytes: cfg.DirMaxBytes / tracesShare, MaxAge: cfg.DirMaxAge, Guard: g,
	})}
}

func (s *saved) startProfiles(cfg Config, g *guard.Guard, log *slog.Logger) {
	s.profiles = save.OpenProfiles(save.Options{
		Dir: cfg.Dir, Service: cfg.ServiceName, MaxBytes: cfg.DirMaxBytes - cfg.DirMaxBytes/tracesShare, MaxAge: cfg.DirMaxAge, Guard: g,
	}, log)
}

func (s *saved) degraded() []string {
	var words []string
	for what, stats := range s.stats() {
		if stats.Degraded != nil {
			words = append(words, fmt.Sprintf("%s are not saved as they should be: %v", what, stats.Degraded))
		}
	}
	return words
}

// stats are those of both rings, by what they hold.
func (s *saved) stats() map[string]save.Stats {
	return map[string]save.Stats{"profiles": s.profiles.Stats(), "traces": s.traces.Stats()}
}

// closeProfiles writes what still waits, until ctx is done.
func (s *saved) closeProfiles(ctx context.Context) error {
	if s.profiles == nil {
		return nil
	}
	return s.profiles.Close(ctx)
}

// closeTraces closes the file of traces, once the telemetry has written its last.
func (s *saved) closeTraces(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return s.traces.Close(ctx)
}
