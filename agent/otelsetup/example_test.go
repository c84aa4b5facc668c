package otelsetup_test

import (
	"context"
	"errors"
	"log"
	"net/http"
	"os/signal"
	"syscall"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"

	"spanflame/agent"
	"spanflame/agent/otelsetup"
)

// Everything by one call. Servers and credentials come from the environment: PYROSCOPE_SERVER_ADDRESS,
// OTEL_EXPORTER_OTLP_ENDPOINT and so on.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	a, err := otelsetup.Start(ctx, otelsetup.Config{Agent: agent.Config{ServiceName: "checkout"}})
	if err != nil {
		log.Fatal(err) // names the setting that is wrong; an unreachable server is not an error
	}

	server := &http.Server{Addr: "127.0.0.1:8080", Handler: otelhttp.NewHandler(http.DefaultServeMux, "checkout")}
	context.AfterFunc(ctx, func() { _ = server.Shutdown(context.Background()) })
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Print(err)
	}

	ending, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := a.Shutdown(ending); err != nil { // captures and delivers the last window of every profile
		log.Print(err) // what could not be delivered, and where it is
	}
}
