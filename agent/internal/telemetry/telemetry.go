// Package telemetry sets up the OpenTelemetry SDK for a service: traces, metrics and logs, each to an OTLP
// endpoint, to the console or nowhere, and besides that traces and logs as JSON lines and metrics for
// Prometheus to scrape. The agent is its only user. It installs nothing globally.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/contrib/bridges/otelslog"
	"go.opentelemetry.io/contrib/instrumentation/runtime"
	"go.opentelemetry.io/otel/attribute"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"spanflame/agent/internal/redact"
)

// Options says where the three signals go.
type Options struct {
	Resource *resource.Resource

	// Labels are the resource's attributes that identify the service on every signal, by their label names
	// (service_name, service_version, …). They stand on each line of the JSON log.
	Labels map[string]string

	// LabelKeys are the keys of the same attributes in Resource. They become labels of every Prometheus
	// series.
	LabelKeys []attribute.Key

	Traces, Metrics, Logs Signal
	Headers               map[string]string // sent with every OTLP request; nil: what the environment says
	Sampler               sdktrace.Sampler

	Stdout io.Writer // receives the JSON log, and signals whose exporter is the console; one Write at a time

	// Saved, where it is not nil, has every batch of spans in one Write, as a line of OTLP JSON, besides what
	// Traces says. SavedIn is where that is, for the log. It stays the caller's to close, after Shutdown.
	Saved   io.Writer
	SavedIn string
}

// Telemetry is the running SDK. It owns the goroutines of its providers.
type Telemetry struct {
	Traces  *sdktrace.TracerProvider
	Metrics *sdkmetric.MeterProvider
	Logger  *slog.Logger        // JSON on Options.Stdout with trace_id and span_id, and the log exporter
	Scrape  prometheus.Gatherer // every metric, with exemplars

	saver   *saver // nil where spans are not saved; one of the processors of Traces
	logs    *sdklog.LoggerProvider
	local   *slog.Logger // JSON on Options.Stdout only: for what is said about the exporters themselves
	outages []*outage    // one for each signal that is exported
}

// Start sets the SDK up. It does not wait for any endpoint: one that cannot be reached is reported in the
// log when the first export fails, once, and again when it is back.
func Start(ctx context.Context, o Options) (_ *Telemetry, err error) {
	o.Stdout = &oneAtATime{w: o.Stdout}
	t := &Telemetry{local: slog.New(newLogHandler(o.Stdout, o.Labels))}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Shutdown(ctx))
		}
	}()

	spans, err := spanExporter(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	tracing := []sdktrace.TracerProviderOption{sdktrace.WithResource(o.Resource), sdktrace.WithSampler(o.Sampler)}
	if spans != nil {
		tracing = append(tracing, sdktrace.WithBatcher(watchedSpans{spans, t.watch("traces", o.Traces)}))
	}
	if o.Saved != nil {
		if t.saver, err = newSaver(ctx, o.Saved, t.watch("saved traces", Signal{Endpoint: o.SavedIn})); err != nil {
			return nil, fmt.Errorf("saved traces: %w", err)
		}
		tracing = append(tracing, sdktrace.WithSpanProcessor(t.saver))
	}
	t.Traces = sdktrace.NewTracerProvider(tracing...)

	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	t.Scrape = registry
	scrape, err := otelprom.New(
		otelprom.WithRegisterer(registry),
		otelprom.WithResourceAsConstantLabels(attribute.NewAllowKeysFilter(o.LabelKeys...)),
	)
	if err != nil {
		return nil, fmt.Errorf("metrics: Prometheus endpoint: %w", err)
	}
	metering := []sdkmetric.Option{sdkmetric.WithResource(o.Resource), sdkmetric.WithReader(scrape)}
	metrics, err := metricExporter(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	if metrics != nil {
		metering = append(metering, sdkmetric.WithReader(sdkmetric.NewPeriodicReader(watchedMetrics{metrics, t.watch("metrics", o.Metrics)})))
	}
	t.Metrics = sdkmetric.NewMeterProvider(metering...)
	if err := runtime.Start(runtime.WithMeterProvider(t.Metrics)); err != nil {
		return nil, fmt.Errorf("metrics of the Go runtime: %w", err)
	}

	records, err := logExporter(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("logs: %w", err)
	}
	if records == nil {
		t.Logger = t.local
		return t, t.countLosses()
	}
	t.logs = sdklog.NewLoggerProvider(
		sdklog.WithResource(o.Resource),
		sdklog.WithProcessor(sdklog.NewBatchProcessor(watchedLogs{records, t.watch("logs", o.Logs)})),
	)
	t.Logger = slog.New(slog.NewMultiHandler(
		newLogHandler(o.Stdout, o.Labels),
		otelslog.NewHandler("spanflame/agent", otelslog.WithLoggerProvider(t.logs)),
	))
	return t, t.countLosses()
}

func (t *Telemetry) watch(signal string, s Signal) *outage {
	o := &outage{signal: signal, endpoint: redact.URL(s.Endpoint), log: t.local}
	t.outages = append(t.outages, o)
	return o
}

// countLosses has the metrics tell how much of each signal could not be exported.
func (t *Telemetry) countLosses() error {
	_, err := t.Metrics.Meter("spanflame/agent").Int64ObservableCounter("spanflame.telemetry.lost", metric.WithUnit("{item}"),
		metric.WithDescription("Spans, metrics and log records in exports that failed, by signal."),
		metric.WithInt64Callback(func(_ context.Context, m metric.Int64Observer) error {
			for _, o := range t.outages {
				m.Observe(o.lost.Load(), metric.WithAttributes(attribute.String("signal", o.signal)))
			}
			return nil
		}))
	return err
}

// oneAtATime passes on one Write at a time: the log and the console exporters share a writer.
type oneAtATime struct {
	mu sync.Mutex
	w  io.Writer
}

func (o *oneAtATime) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.w.Write(b)
}

// HandleError is an OpenTelemetry error handler: what the SDK has to say goes to the JSON log, unless it was
// said there already.
func (t *Telemetry) HandleError(err error) {
	if !errors.As(err, new(reported)) {
		t.local.Warn("OpenTelemetry", "error", err.Error())
	}
}

// Shutdown sends what is still to be sent, until ctx is done, and ends the providers. The signals go their own
// ways: none waits for another. The error says what could not be sent, and how much that was since the
// endpoint was last there.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	var wg sync.WaitGroup
	var saved, traces, metrics, logs error
	if t.saver != nil {
		wg.Go(func() { saved = t.saver.finish(ctx) })
	}
	if t.Traces != nil {
		wg.Go(func() { traces = t.Traces.Shutdown(ctx) })
	}
	if t.Metrics != nil {
		wg.Go(func() { metrics = t.Metrics.Shutdown(ctx) })
	}
	if t.logs != nil {
		wg.Go(func() { logs = t.logs.Shutdown(ctx) })
	}
	wg.Wait()
	errs := []error{saved, traces, metrics, logs}
	for _, o := range t.outages {
		errs = append(errs, o.summary())
	}
	return errors.Join(errs...)
}
