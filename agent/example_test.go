package agent_test

import (
	"context"
	"log"
	"log/slog"
	"net/http"
	"time"

	"go.opentelemetry.io/otel"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"spanflame/agent"
)

// Profiles alone: no OpenTelemetry SDK, no exporter and no Prometheus client are linked.
func Example() {
	a, err := agent.Start(context.Background(), agent.Config{ServiceName: "checkout"})
	if err != nil {
		log.Fatal(err) // names the setting that is wrong; an unreachable server is not an error
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := a.Shutdown(ctx); err != nil { // captures and delivers the last window of every profile
			log.Print(err) // what could not be delivered, and where it is
		}
	}()
}

// With an OpenTelemetry set-up of the service's own: the agent wraps the tracer provider and sets nothing global. Its
// metrics, its log and its pages are part of what the service has.
func ExampleAgent_TracerProvider() {
	traces := sdktrace.NewTracerProvider() // with the service's processors and exporters
	metrics := sdkmetric.NewMeterProvider()
	internal := http.NewServeMux() // of the service's internal server

	a, err := agent.Start(context.Background(), agent.Config{
		ServiceName:   "checkout",
		Logger:        slog.Default(),
		MeterProvider: metrics,
		AdminAddress:  "off",
	})
	if err != nil {
		log.Fatal(err)
	}
	otel.SetTracerProvider(a.TracerProvider(traces))
	internal.Handle("/profiler/", http.StripPrefix("/profiler", a.Handler()))
}
