// Command service is a small service with an OpenTelemetry set-up of its own, to which the agent was added: it has its
// own tracer provider, meter provider, slog handler and router, and sets nothing global. Run it in the root of the
// checkout, and look at the profiles of its slow requests:
//
//	go run ./examples/service
//	curl http://127.0.0.1:8090/quotes/tea http://127.0.0.1:8090/forecast/tea http://127.0.0.1:8090/basket
//	go run ./cmd/spanflame view data/quotes/saved
//
// The service asks three suppliers for the price of a product at the same time, keeps the answers in SQLite, and
// computes a forecast from them. It and the test next to it show how the agent joins an existing service. Its shop makes
// the mistakes that services make, and another test writes what the diagnoses say of them into examples/README.md. It is
// not a template for a service: it plays the other services itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/go-chi/chi/v5"
	"go.opentelemetry.io/otel/exporters/stdout/stdouttrace"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.40.0"

	"spanflame/agent"
	"spanflame/agent/otelsetup"
)

// serviceName is the service's name on every signal.
const serviceName = "quotes"

// stopTime limits how long the service may take to stop, and then to flush its signals.
const stopTime = 10 * time.Second

// setup has the choices of the host. The test has other exporters than main.
type setup struct {
	dir     string // holds the database and the saved profiles
	spans   sdktrace.SpanExporter
	metrics sdkmetric.Reader
	logs    slog.Handler
}

func main() {
	listen := flag.String("listen", "127.0.0.1:8090", "address to listen on")
	dir := flag.String("dir", "data/quotes", "directory of the database and of the saved profiles")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := start(ctx, *listen, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "service:", err)
		os.Exit(1)
	}
}

// start runs the service with spans on standard output and log lines on standard error.
func start(ctx context.Context, listen, dir string) error {
	spans, err := stdouttrace.New()
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	return run(ctx, ln, setup{
		dir: dir, spans: spans, metrics: sdkmetric.NewManualReader(), logs: slog.NewTextHandler(os.Stderr, nil),
	})
}

// run serves on ln until ctx ends, and returns when every signal is flushed.
func run(ctx context.Context, ln net.Listener, o setup) (err error) {
	logger := slog.New(o.logs)
	attributes := resource.NewSchemaless(semconv.ServiceName(serviceName))
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithResource(attributes), sdkmetric.WithReader(o.metrics))
	defer func() { err = errors.Join(err, ended(meters.Shutdown)) }()
	cfg := agent.Config{
		ServiceName: serviceName, Dir: filepath.Join(o.dir, "saved"), AdminAddress: "off", Logger: logger, MeterProvider: meters,
	}
	saver, err := otelsetup.NewTraceSaver(ctx, cfg)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	traces := sdktrace.NewTracerProvider(sdktrace.WithResource(attributes), sdktrace.WithBatcher(o.spans), sdktrace.WithSpanProcessor(saver))
	defer func() { err = errors.Join(err, ended(traces.Shutdown)) }()
	profiler, err := agent.Start(ctx, cfg)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	defer func() { err = errors.Join(err, ended(profiler.Shutdown)) }()

	s, err := newService(ctx, instruments{profiler.TracerProvider(traces), meters, logger}, "http://"+ln.Addr().String(), o.dir)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	defer func() { err = errors.Join(err, s.close()) }()
	router := chi.NewRouter()
	router.Mount("/", s.routes())
	router.Mount("/profiler", http.StripPrefix("/profiler", profiler.Handler()))

	server := &http.Server{Handler: router, ReadHeaderTimeout: stopTime}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
		return ended(server.Shutdown)
	}
}

// ended calls a function that stops something, with stopTime to do so.
func ended(stop func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	return stop(ctx)
}
