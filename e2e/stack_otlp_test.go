//go:build stack

package e2e

import "testing"

// profilesByCollector runs a workload whose profiles go through the Collector, with the other signals. Pyroscope has of them
// what it has of the same profiles by its own protocol.
func (p native) profilesByCollector(t *testing.T) {
	const scenario = "collector"
	saved := t.TempDir()
	services, err := startWorkload(t.Context(), scenario, "OTEL_PROFILES_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+p.stack.Collector().OTLPGRPC,
		"OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=", "SPANFLAME_DIR="+saved, "PYROSCOPE_LABELS=scenario="+scenario)
	if err != nil {
		t.Fatal(err)
	}
	busy(t, services, 2*window)
	stop(t, services.Stop)
	if problem := undelivered(t, services); problem != "" {
		t.Fatal(problem)
	}
	storedAsPushed(t, p.pyroscope, p.stack.Pyroscope().URL, scenario, saved)
}
