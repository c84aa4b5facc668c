package agent_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"runtime/trace"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	exptrace "golang.org/x/exp/trace"

	"spanflame/agent"
)

// hasTask checks that a trace can be read to its end, and that it has a task of that type.
func hasTask(t *testing.T, what string, from io.Reader, typ string) {
	t.Helper()
	events, err := exptrace.NewReader(from)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	found := false
	for {
		e, err := events.ReadEvent()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		found = found || e.Kind() == exptrace.EventTaskBegin && e.Task().Type == typ
	}
	if !found {
		t.Errorf("%s has no task %q", what, typ)
	}
}

// TestServiceTracesItself: the runtime has one flight recorder, which a service may want for itself before the agent starts,
// while it runs, and afterwards, besides execution traces of its own and of the operator's listener.
func TestServiceTracesItself(t *testing.T) {
	task := func(typ string) { _, task := trace.NewTask(context.Background(), typ); task.End() }
	own := trace.NewFlightRecorder(trace.FlightRecorderConfig{})
	start := func(mode string) *agent.Agent {
		a, err := agent.Start(t.Context(), agent.Config{
			ServiceName: "svc", Dir: t.TempDir(), SpoolDir: t.TempDir(), AdminAddress: "127.0.0.1:0", WallMode: mode,
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.WriteTrace(io.Discard); !errors.Is(err, agent.ErrNotRecording) {
			t.Errorf("before there are spans: %v", err)
		}
		a.TracerProvider(sdktrace.NewTracerProvider())
		return a
	}
	end := func(a *agent.Agent) {
		http.DefaultClient.CloseIdleConnections()
		if err := a.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}

	// The service has the recorder: its own works as before, and the agent says why it has none.
	if err := own.Start(); err != nil {
		t.Fatal(err)
	}
	a := start("always")
	if err := a.WriteTrace(io.Discard); err == nil || errors.Is(err, agent.ErrNotRecording) {
		t.Errorf("while the service records: %v", err)
	}
	task("own")
	var b bytes.Buffer
	if _, err := own.WriteTo(&b); err != nil {
		t.Error(err)
	}
	hasTask(t, "the service's recorder", &b, "own")
	end(a)
	own.Stop()

	// The agent has it: the service reads the agent's, also while traces are taken.
	a = start("always")
	if err := own.Start(); err == nil {
		own.Stop()
		t.Error("the service can start a recorder next to the agent's: the documentation says otherwise")
	}
	resp, err := http.Get("http://" + a.AdminAddr() + "/debug/pprof/trace?seconds=1")
	if err != nil {
		t.Fatal(err)
	}
	task("listener")
	read := func(what, typ string) {
		t.Helper()
		var b bytes.Buffer
		if err := a.WriteTrace(&b); err != nil {
			t.Error(err)
		}
		hasTask(t, what, &b, typ)
	}
	read("the agent's recorder, while the listener traces", "listener")
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Error(err)
	}
	resp.Body.Close()
	var traced bytes.Buffer
	if err := trace.Start(&traced); err != nil {
		t.Fatal(err)
	}
	task("traced")
	read("the agent's recorder, while the service traces", "traced")
	task("later")
	trace.Stop()
	hasTask(t, "the service's trace", &traced, "later")
	read("the agent's recorder, after the trace", "later")
	end(a)

	if err := a.WriteTrace(io.Discard); !errors.Is(err, agent.ErrNotRecording) {
		t.Errorf("after the shutdown: %v", err)
	}
	if err := own.Start(); err != nil {
		t.Errorf("the service's recorder after the shutdown: %v", err)
	}
	own.Stop()
}
