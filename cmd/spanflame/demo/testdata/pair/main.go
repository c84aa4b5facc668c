// Command pair runs one service of the workload with grafana/pyroscope-go and grafana/otel-profiling-go, in place of the
// agent. It has the command line of "spanflame workload" and writes its spans to standard output. Only tests use it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	otelpyroscope "github.com/grafana/otel-profiling-go"
	"github.com/grafana/pyroscope-go"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/stdout/stdouttrace"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"spanflame/workload"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[2:]); err != nil { // after "workload"
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	var cfg workload.Config
	flags := flag.NewFlagSet("workload", flag.ContinueOnError)
	role := flags.String("role", "", "")
	flags.StringVar(&cfg.Listen, "listen", "", "")
	flags.StringVar(&cfg.InventoryURL, "inventory-url", "", "")
	flags.StringVar(&cfg.Database, "database", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	cfg.Role = workload.Role(*role)
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stdout, nil)))

	spans, err := stdouttrace.New()
	if err != nil {
		return err
	}
	tracing := sdktrace.NewTracerProvider(sdktrace.WithBatcher(spans, sdktrace.WithMaxQueueSize(1<<20)))
	otel.SetTracerProvider(otelpyroscope.NewTracerProvider(tracing))
	otel.SetTextMapPropagator(propagation.TraceContext{})
	profiler, err := pyroscope.Start(pyroscope.Config{
		ApplicationName: *role,
		ServerAddress:   os.Getenv("PYROSCOPE_SERVER_ADDRESS"),
		UploadRate:      time.Second,
	})
	if err != nil {
		return err
	}
	defer func() {
		profiler.Flush(true)
		err = errors.Join(err, profiler.Stop(), tracing.Shutdown(context.WithoutCancel(ctx)))
	}()
	return workload.Run(ctx, cfg)
}
