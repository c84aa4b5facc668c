package agent

import (
	"log/slog"
	"testing"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"spanflame/agent/internal/guard"
)

func TestAPanicInTheMetricsDoesNotReachTheReader(t *testing.T) {
	a := &Agent{guard: guard.New(slog.New(slog.DiscardHandler))} // without anything to read metrics from
	reader := sdkmetric.NewManualReader()
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter("test")
	if _, err := a.observe(meter); err != nil {
		t.Fatal(err)
	}
	if err := reader.Collect(t.Context(), &metricdata.ResourceMetrics{}); err != nil {
		t.Error(err)
	}
	if n := a.guard.Panics()["metrics"]; n != 1 {
		t.Errorf("%d panics of the stage metrics, want 1", n)
	}
}
