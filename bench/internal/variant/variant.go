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
	runtimetrace "runtime/trace"
	"time"

	"github.com/felixge/fgprof"
	otelpyroscope "github.com/grafana/otel-profiling-go"
	"github.com/grafana/pyroscope-go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
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

	// The two modes of the wall profile, of which Wall chooses one.
	WallAlways = "spanflame with wall, always on"
	WallArmed  = "spanflame with wall, armed"

	FlightRecorder = "the runtime's flight recorder alone"
	FGProf         = "fgprof at 99 Hz"
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
	metrics *metric.ManualReader // nil if the variant has none
}

// Recording is what the wall profile has done so far.
type Recording struct {
	Mode               string
	Slow, Captured     float64 // slow spans
	Duration, Recorded float64 // of the captured ones: seconds
	Estimate           float64 // seconds of CPU that writing the trace has taken, by the agent's estimate
}

// Recording returns it; it is empty for a variant without.
func (r *Running) Recording() (rec Recording) {
	var all metricdata.ResourceMetrics
	if r.metrics == nil || r.metrics.Collect(context.Background(), &all) != nil {
		return rec
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			rec.add(m)
		}
	}
	return rec
}

func (rec *Recording) add(m metricdata.Metrics) {
	each(m.Data, func(attributes attribute.Set, value float64) {
		is := func(key, want string) bool {
			v, _ := attributes.Value(attribute.Key(key))
			return v.AsString() == want
		}
		switch m.Name {
		case "spanflame.wall.mode":
			if value == 1 {
				v, _ := attributes.Value("mode")
				rec.Mode = v.AsString()
			}
		case "spanflame.wall.slow_spans":
			rec.Slow += value
			if is("outcome", "captured") {
				rec.Captured += value
			}
		case "spanflame.wall.captured_time":
			rec.Duration = value
		case "spanflame.wall.recorded_time":
			rec.Recorded = value
		case "spanflame.wall.cpu_time":
			if is("activity", "writing") {
				rec.Estimate = value
			}
		}
	})
}

// each calls f for each point of a sum or gauge.
func each(data metricdata.Aggregation, f func(attribute.Set, float64)) {
	switch data := data.(type) {
	case metricdata.Sum[int64]:
		for _, p := range data.DataPoints {
			f(p.Attributes, float64(p.Value))
		}
	case metricdata.Sum[float64]:
		for _, p := range data.DataPoints {
			f(p.Attributes, p.Value)
		}
	case metricdata.Gauge[int64]:
		for _, p := range data.DataPoints {
			f(p.Attributes, float64(p.Value))
		}
	}
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
		return &Running{Tracing: sdktrace.NewTracerProvider(), stop: func() error { return nil }}, nil
	case Peer:
		return startPeer(sink, types)
	case NoWall:
		return startAgent(sink, types, -1, window, "")
	case Wall:
		return startAgent(sink, types, 0, window, "")
	case WallAlways:
		return startAgent(sink, types, 0, window, "always")
	case WallArmed:
		return startAgent(sink, types, 0, window, "armed")
	case FlightRecorder:
		flight := runtimetrace.NewFlightRecorder(runtimetrace.FlightRecorderConfig{MaxBytes: 8 << 20})
		stop := func() error { flight.Stop(); return nil }
		return &Running{Tracing: sdktrace.NewTracerProvider(), stop: stop}, flight.Start()
	case FGProf:
		return &Running{Tracing: sdktrace.NewTracerProvider(), stop: fgprof.Start(io.Discard, fgprof.FormatPprof)}, nil
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
	return &Running{Tracing: otelpyroscope.NewTracerProvider(sdktrace.NewTracerProvider()), stop: p.Stop}, nil
}

func startAgent(sink string, types []pyroscope.ProfileType, slow, window time.Duration, mode string) (*Running, error) {
	dir, err := os.MkdirTemp("", "spanflame-bench-")
	if err != nil {
		return nil, err
	}
	reader := metric.NewManualReader()
	a, err := agent.Start(context.Background(), agent.Config{
		ServiceName: "bench", PyroscopeAddress: sink, ProfileTypes: types, SlowSpan: slow, Window: window,
		SpoolDir: dir, AdminAddress: "off", Logger: slog.New(slog.DiscardHandler), WallMode: mode,
		MeterProvider: metric.NewMeterProvider(metric.WithReader(reader)),
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	stop := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return errors.Join(a.Shutdown(ctx), os.RemoveAll(dir))
	}
	return &Running{a.TracerProvider(sdktrace.NewTracerProvider()), stop, reader}, nil
}
