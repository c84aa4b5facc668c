package agent

import (
	"log/slog"
	"testing"
	"time"

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

// TestTimeWithoutCPUSamplesIsReported: between two windows the runtime takes no samples, which a metric says.
func TestTimeWithoutCPUSamplesIsReported(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	cfg := quiet(t)
	cfg.Dir, cfg.Window, cfg.MeterProvider = t.TempDir(), time.Second, sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	a, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer shutdown(t, a)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no time between two windows is reported within a minute")
		}
		var collected metricdata.ResourceMetrics
		if err := reader.Collect(t.Context(), &collected); err != nil {
			t.Fatal(err)
		}
		for _, scope := range collected.ScopeMetrics {
			for _, m := range scope.Metrics {
				if sum, ok := m.Data.(metricdata.Sum[float64]); ok && m.Name == "spanflame.cpu_profile.rotation_gap" && sum.DataPoints[0].Value > 0 {
					return
				}
			}
		}
	}
}
