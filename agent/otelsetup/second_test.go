package otelsetup_test

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"

	"spanflame/agent"
	"spanflame/agent/otelsetup"
)

// syncBuffer is a buffer for concurrent writers.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// A start that is refused leaves the messages of the SDK to the agent that runs.
func TestRefusedStartLeavesTheSDKsLog(t *testing.T) {
	var first, second syncBuffer
	config := func(out *syncBuffer) otelsetup.Config {
		return otelsetup.Config{Stdout: out, Agent: agent.Config{ServiceName: "shop", Dir: t.TempDir(), AdminAddress: "off"}}
	}
	a, err := otelsetup.Start(t.Context(), config(&first))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := otelsetup.Start(t.Context(), config(&second)); !errors.Is(err, agent.ErrRunning) {
		t.Errorf("got %v, want ErrRunning", err)
	}
	m := otel.Meter("twice")
	for _, unit := range []string{"a", "b"} {
		if _, err := m.Int64Counter("count", metric.WithUnit(unit)); err != nil {
			t.Error(err)
		}
	}
	if err := a.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if !strings.Contains(first.String(), "duplicate") || strings.Contains(second.String(), "duplicate") {
		t.Errorf("the SDK's message about the duplicate is not where it belongs:\nfirst: %s\nsecond: %s", first.String(), second.String())
	}
}
