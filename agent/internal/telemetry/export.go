package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploggrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/exporters/stdout/stdoutlog"
	"go.opentelemetry.io/otel/exporters/stdout/stdoutmetric"
	"go.opentelemetry.io/otel/exporters/stdout/stdouttrace"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"spanflame/agent/internal/guard"
)

// The exporters of a Signal.
const (
	ExporterOTLP    = "otlp"
	ExporterConsole = "console"
	ExporterNone    = "none"
)

// The protocols of a Signal whose exporter is OTLP.
const (
	ProtocolGRPC = "grpc"
	ProtocolHTTP = "http/protobuf"
)

// Signal configures how one signal is exported.
type Signal struct {
	Exporter string // ExporterOTLP, ExporterConsole or both, separated by a comma; or ExporterNone
	Endpoint string // full URL; for HTTP with the signal's path
	Protocol string // ProtocolGRPC or ProtocolHTTP
}

// Exporters are the names of the signal's exporters. The console is the first: the SDK's providers shut down one after
// the other, and an endpoint that does not answer takes all the time there is.
func (s Signal) Exporters() []string {
	if s.Exporter == ExporterNone {
		return nil
	}
	names := strings.Split(s.Exporter, ",")
	if i := slices.Index(names, ExporterConsole); i > 0 {
		names[0], names[i] = names[i], names[0]
	}
	return names
}

// The exporters read what is not set here (certificates, timeouts, compression) from the environment variables
// of the OpenTelemetry specification.

func spanExporter(ctx context.Context, name string, o Options) (sdktrace.SpanExporter, error) {
	switch s := o.Traces; {
	case name == ExporterConsole:
		return stdouttrace.New(stdouttrace.WithWriter(o.Stdout))
	case s.Protocol == ProtocolGRPC:
		return otlp(ctx, s, o, otlptracegrpc.WithEndpointURL, otlptracegrpc.WithHeaders, otlptracegrpc.New)
	default:
		return otlp(ctx, s, o, otlptracehttp.WithEndpointURL, otlptracehttp.WithHeaders, otlptracehttp.New)
	}
}

func metricExporter(ctx context.Context, name string, o Options) (sdkmetric.Exporter, error) {
	switch s := o.Metrics; {
	case name == ExporterConsole:
		return stdoutmetric.New(stdoutmetric.WithWriter(o.Stdout))
	case s.Protocol == ProtocolGRPC:
		return otlp(ctx, s, o, otlpmetricgrpc.WithEndpointURL, otlpmetricgrpc.WithHeaders, otlpmetricgrpc.New)
	default:
		return otlp(ctx, s, o, otlpmetrichttp.WithEndpointURL, otlpmetrichttp.WithHeaders, otlpmetrichttp.New)
	}
}

func logExporter(ctx context.Context, name string, o Options) (sdklog.Exporter, error) {
	switch s := o.Logs; {
	case name == ExporterConsole:
		return stdoutlog.New(stdoutlog.WithWriter(o.Stdout))
	case s.Protocol == ProtocolGRPC:
		return otlp(ctx, s, o, otlploggrpc.WithEndpointURL, otlploggrpc.WithHeaders, otlploggrpc.New)
	default:
		return otlp(ctx, s, o, otlploghttp.WithEndpointURL, otlploghttp.WithHeaders, otlploghttp.New)
	}
}

// otlp makes an OTLP exporter. It uses the headers of the environment if o has none.
func otlp[Option, Exporter any](ctx context.Context, s Signal, o Options, endpoint func(string) Option,
	headers func(map[string]string) Option, create func(context.Context, ...Option) (Exporter, error)) (Exporter, error) {
	options := []Option{endpoint(s.Endpoint)}
	if o.Headers != nil {
		options = append(options, headers(o.Headers))
	}
	return create(ctx, options...)
}

// reported marks an export error that has been logged.
type reported struct{ error }

func (r reported) Unwrap() error { return r.error }

// outage logs once that the exports of a signal fail, and once that they succeed again.
type outage struct {
	signal, endpoint string
	log              *slog.Logger
	stage            *guard.Stage

	lost atomic.Int64 // items of failed exports

	mu     sync.Mutex
	since  time.Time // of the first failure; zero while exports succeed
	before int64     // value of lost at that time
}

// errPanicked is the error of an export that panicked. The log has the stack.
var errPanicked = errors.New("the exporter panicked")

// export runs one export of n items and records its outcome.
func (o *outage) export(n int, f func() error) error {
	err := errPanicked
	o.stage.Try(func() { err = f() })
	return o.result(err, n)
}

// result records the outcome of one export of n items.
func (o *outage) result(err error, n int) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case err != nil:
		if o.since.IsZero() {
			o.since, o.before = time.Now(), o.lost.Load()
			o.log.Warn(o.signal+" export failing; lost items are counted (logged once per outage)",
				"endpoint", o.endpoint, "error", err.Error())
		}
		o.lost.Add(int64(n))
		return reported{err}
	case !o.since.IsZero():
		o.log.Info(o.signal+" export recovered",
			"endpoint", o.endpoint, "outage", time.Since(o.since).Round(time.Millisecond).String(), "lost", o.lost.Load()-o.before)
		o.since = time.Time{}
	}
	return nil
}

// summary returns an error with the losses of the current outage, or nil if there is no outage.
func (o *outage) summary() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() {
		return nil
	}
	return fmt.Errorf("%s export to %s failing since %s: %d lost", o.signal, o.endpoint, o.since.UTC().Format(time.RFC3339), o.lost.Load()-o.before)
}

type watchedSpans struct {
	sdktrace.SpanExporter
	outage *outage
}

func (w watchedSpans) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	return w.outage.export(len(spans), func() error { return w.SpanExporter.ExportSpans(ctx, spans) })
}

type watchedMetrics struct {
	sdkmetric.Exporter
	outage *outage
}

func (w watchedMetrics) Export(ctx context.Context, m *metricdata.ResourceMetrics) error {
	n := 0
	for _, scope := range m.ScopeMetrics {
		n += len(scope.Metrics)
	}
	return w.outage.export(n, func() error { return w.Exporter.Export(ctx, m) })
}

type watchedLogs struct {
	sdklog.Exporter
	outage *outage
}

func (w watchedLogs) Export(ctx context.Context, records []sdklog.Record) error {
	return w.outage.export(len(records), func() error { return w.Exporter.Export(ctx, records) })
}
