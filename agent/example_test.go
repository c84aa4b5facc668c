package agent_test

import (
	"context"
	"log"
	"net/http"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"

	"spanflame/agent"
)

// A service adds the agent with one call. Servers and credentials come from the environment:
// PYROSCOPE_SERVER_ADDRESS, OTEL_EXPORTER_OTLP_ENDPOINT and so on.
func Example() {
	a, err := agent.Start(context.Background(), agent.Config{ServiceName: "checkout"})
	if err != nil {
		log.Fatal(err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := a.Shutdown(ctx); err != nil {
			log.Print(err) // what is not delivered yet, and where it waits
		}
	}()
	handler := otelhttp.NewHandler(http.DefaultServeMux, "checkout")
	log.Print(http.ListenAndServe("127.0.0.1:8080", handler))
}
