// Package variant starts the profilers that the benchmarks compare, in the measured process. Every variant traces
// with the same SDK and exports no spans, and every profiler pushes to a server that accepts everything, so that
// they differ in profiling only.
package variant

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"time"

	otelpyroscope "github.com/grafana/otel-profiling-go"
	"github.com/grafana/pyroscope-go"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"spanflame/agent"
)

// The variants.
const (
	None   = "none"                             // traces, no profiles
	Peer   = "pyroscope-go + otel-profiling-go" // the usual pair
	NoWall = "spanflame without wall"
	Wall   = "spanflame with wall"
)

// Sink starts a server on loopback that accepts and discards every push.
func Sink() *httptest.Server {
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/proto") // Pyroscope's answer: an empty message
	}))
}

// Running is a variant that was started.
type Running struct {
	Tracing trace.TracerProvider
	stop    func() error
}

// Stop ends the variant.
func (r *Running) Stop() error { return r.stop() }

// Start starts a variant that captures the given profile types, in windows of its default length, and pushes to the
// sink.
func Start(name, sink string, types []pyroscope.ProfileType) (*Running, error) {
	return StartWindow(name, sink, types, 0)
}

// StartWindow is Start with windows of a given length, which are of the agent alone.
func StartWindow(name, sink string, types []pyroscope.ProfileType, window time.Duration) (*Running, error) {
	switch name {
	case None:
		return &Running{sdktrace.NewTracerProvider(), func() error { return nil }}, nil
	case Peer:
		return startPeer(sink, types)
	case NoWall:
		return startAgent(sink, types, -1, window)
	case Wall:
		return startAgent(sink, types, 0, window)
	}
	return nil, fmt.Errorf("no variant %q", name)
}

// All are the profile types that both profilers know.
var All = []pyroscope.ProfileType{
	pyroscope.ProfileCPU, pyroscope.ProfileAllocObjects, pyroscope.ProfileAllocSpace, pyroscope.ProfileInuseObjects,
	pyroscope.ProfileInuseSpace, pyroscope.ProfileGoroutines, pyroscope.ProfileMutexCount, pyroscope.ProfileMutexDuration,
	pyroscope.ProfileBlockCount, pyroscope.ProfileBlockDuration,
}

func startPeer(sink string, types []pyroscope.ProfileType) (*Running, error) {
	// The agent's defaults.
	runtime.SetMutexProfileFraction(100)
	runtime.SetBlockProfileRate(int(100 * time.Microsecond))
	p, err := pyroscope.Start(pyroscope.Config{ApplicationName: "bench", ServerAddress: sink, ProfileTypes: types})
	if err != nil {
		return nil, err
	}
	return &Running{otelpyroscope.NewTracerProvider(sdktrace.NewTracerProvider()), p.Stop}, nil
}

func startAgent(sink string, types []pyroscope.ProfileType, slow, window time.Duration) (*Running, error) {
	dir, err := os.MkdirTemp("", "spanflame-bench-")
	if err != nil {
		return nil, err
	}
	a, err := agent.Start(context.Background(), agent.Config{
		ServiceName: "bench", PyroscopeAddress: sink, ProfileTypes: types, SlowSpan: slow, Window: window,
		SpoolDir: dir, AdminAddress: "off", Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &Running{a.TracerProvider(sdktrace.NewTracerProvider()), func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return errors.Join(a.Shutdown(ctx), os.RemoveAll(dir))
	}}, nil
}
