// Package telemetry sets up the OpenTelemetry SDK for a service: traces, metrics and logs, each to an OTLP
// endpoint, to the console or nowhere. It also saves traces and prints logs as JSON lines, and provides metrics
// for Prometheus to scrape. The agent is its only user. It sets nothing global.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

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

	"spanflame/agent/internal/guard"
	"spanflame/internal/redact"
)

// Options configures the destinations of the three signals.
type Options struct {
	Resource *resource.Resource

	// Labels are the resource's attributes that identify the service on every signal, by their label names
	// (service_name, service_version, …). They are added to each line of the JSON log.
	Labels map[string]string

	// LabelKeys are the keys of these attributes in Resource. They become labels of every Prometheus series.
	LabelKeys []attribute.Key

	Traces, Metrics, Logs Signal
	Headers               map[string]string // sent with every OTLP request; nil: those of the environment
	Sampler               sdktrace.Sampler
	Slow                  time.Duration                       // from which spans that are recorded but not sampled are saved; 0 for none
	Batches               []sdktrace.BatchSpanProcessorOption // of exported spans; take precedence over the environment

	Stdout io.Writer // receives the JSON log and signals whose exporter is the console; one Write at a time

	// Saved, if not nil, receives every batch of spans in one Write, as a line of OTLP JSON, in addition to
	// the destination in Traces. SavedIn names its location in the log. The caller closes it after Shutdown.
	Saved   io.Writer
	SavedIn string
}

// Telemetry is the running SDK. It owns the goroutines of its providers.
type Telemetry struct {
	Traces  *sdktrace.TracerProvider
	Metrics *sdkmetric.MeterProvider
	Logger  *slog.Logger        // JSON on Options.Stdout with trace_id and span_id, and the log exporter
	Scrape  prometheus.Gatherer // every metric, with exemplars

	saver   *saver // one of the processors of Traces; nil if spans are not saved
	logs    *sdklog.LoggerProvider
	local   *slog.Logger // JSON on Options.Stdout only, for messages about the exporters themselves
	guard   *guard.Guard
	outages []*outage // one for each exported signal
}

// Start sets up the SDK. It does not wait for any endpoint: an unreachable endpoint is logged once when the
// first export fails, and once when exports succeed again.
func Start(ctx context.Context, o Options) (_ *Telemetry, err error) {
	o.Stdout = OneAtATime(o.Stdout)
	t := &Telemetry{local: slog.New(newLogHandler(o.Stdout, o.Labels))}
	t.guard = guard.New(t.local)
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Shutdown(ctx))
		}
	}()

	tracing := []sdktrace.TracerProviderOption{sdktrace.WithResource(o.Resource), sdktrace.WithSampler(o.Sampler)}
	for _, name := range o.Traces.Exporters() {
		spans, err := spanExporter(ctx, name, o)
		if err != nil {
			return nil, fmt.Errorf("traces: %w", err)
		}
		tracing = append(tracing, sdktrace.WithBatcher(watchedSpans{spans, t.watchExporter("traces", name, o.Traces)}, o.Batches...))
	}
	if o.Saved != nil {
		if t.saver, err = newSaver(ctx, o.Saved, o.Slow, t.watch(savedTraces, Signal{Endpoint: o.SavedIn})); err != nil {
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
	for _, name := range o.Metrics.Exporters() {
		metrics, err := metricExporter(ctx, name, o)
		if err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
		reader := sdkmetric.NewPeriodicReader(watchedMetrics{metrics, t.watchExporter("metrics", name, o.Metrics)})
		metering = append(metering, sdkmetric.WithReader(reader))
	}
	t.Metrics = sdkmetric.NewMeterProvider(metering...)
	if err := runtime.Start(runtime.WithMeterProvider(t.Metrics)); err != nil {
		return nil, fmt.Errorf("metrics of the Go runtime: %w", err)
	}

	logging := []sdklog.LoggerProviderOption{sdklog.WithResource(o.Resource)}
	for _, name := range o.Logs.Exporters() {
		records, err := logExporter(ctx, name, o)
		if err != nil {
			return nil, fmt.Errorf("logs: %w", err)
		}
		logging = append(logging, sdklog.WithProcessor(sdklog.NewBatchProcessor(watchedLogs{records, t.watchExporter("logs", name, o.Logs)})))
	}
	if len(logging) == 1 {
		t.Logger = t.local
		return t, t.countLosses()
	}
	t.logs = sdklog.NewLoggerProvider(logging...)
	t.Logger = slog.New(slog.NewMultiHandler(
		newLogHandler(o.Stdout, o.Labels),
		otelslog.NewHandler("spanflame/agent", otelslog.WithLoggerProvider(t.logs)),
	))
	return t, t.countLosses()
}

// watchExporter tells the console from where else the signal goes: each has its losses.
func (t *Telemetry) watchExporter(signal, name string, s Signal) *outage {
	if name == ExporterConsole {
		return t.watch("console "+signal, Signal{Endpoint: name})
	}
	return t.watch(signal, s)
}

func (t *Telemetry) watch(signal string, s Signal) *outage {
	o := &outage{signal: signal, endpoint: redact.URL(s.Endpoint), log: t.local, stage: t.guard.Stage("export " + signal)}
	t.outages = append(t.outages, o)
	return o
}

// countLosses adds the metrics of items that could not be exported and of panics.
func (t *Telemetry) countLosses() error {
	meter := t.Metrics.Meter("spanflame/agent")
	lost, err := meter.Int64ObservableCounter("spanflame.telemetry.lost", metric.WithUnit("{item}"),
		metric.WithDescription("Spans, metrics and log records lost in failed exports, by signal."))
	if err != nil {
		return err
	}
	panics, err := meter.Int64ObservableCounter("spanflame.panics", metric.WithUnit("{panic}"), metric.WithDescription(guard.MetricDescription))
	if err != nil {
		return err
	}
	_, err = meter.RegisterCallback(func(_ context.Context, m metric.Observer) error {
		for _, o := range t.outages {
			m.ObserveInt64(lost, o.lost.Load(), metric.WithAttributes(attribute.String("signal", o.signal)))
		}
		for stage, n := range t.guard.Panics() {
			m.ObserveInt64(panics, n, metric.WithAttributes(attribute.String("stage", stage)))
		}
		return nil
	}, lost, panics)
	return err
}

// Failing describes the signals whose export is failing. Saved traces are not among them.
func (t *Telemetry) Failing() []string {
	var failing []string
	for _, o := range t.outages {
		if t.saver != nil && o == t.saver.outage {
			continue
		}
		if err := o.summary(); err != nil {
			failing = append(failing, err.Error())
		}
	}
	return failing
}

// OneAtATime returns a writer that serializes writes to w, which the logs and the console exporters share.
func OneAtATime(w io.Writer) io.Writer {
	if _, ok := w.(*oneAtATime); ok {
		return w
	}
	return &oneAtATime{w: w}
}

type oneAtATime struct {
	mu sync.Mutex
	w  io.Writer
}

func (o *oneAtATime) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.w.Write(b)
}

// Local returns the log that is not exported, for messages about exports.
func (t *Telemetry) Local() *slog.Logger { return t.local }

// HandleError is an OpenTelemetry error handler. It writes the SDK's errors to the JSON log, except those that
// are logged as part of an outage.
func (t *Telemetry) HandleError(err error) {
	if !errors.As(err, new(reported)) {
		t.local.Warn("OpenTelemetry", "error", err.Error())
	}
}

// Shutdown exports what is queued, until ctx is done, and shuts down the providers, all signals at the same time.
// The error says which signals could not be exported and how much of them was lost since their outage began.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	if ctx.Err() != nil { // the SDK's providers would return at once, and leave their goroutines running
		moment, cancel := context.WithTimeout(context.WithoutCancel(ctx), 50*time.Millisecond)
		defer cancel()
		ctx = moment
	}
	var wg sync.WaitGroup
	var saved, traces, metrics, logs error
	shutDown := func(err *error, f func(context.Context) error) {
		*err = errPanicked
		wg.Go(func() { t.guard.Stage("shutdown of telemetry").Try(func() { *err = f(ctx) }) })
	}
	if t.saver != nil {
		shutDown(&saved, t.saver.finish)
	}
	if t.Traces != nil {
		shutDown(&traces, t.Traces.Shutdown)
	}
	if t.Metrics != nil {
		shutDown(&metrics, t.Metrics.Shutdown)
	}
	if t.logs != nil {
		shutDown(&logs, t.logs.Shutdown)
	}
	wg.Wait()
	errs := []error{saved, traces, metrics, logs}
	for _, o := range t.outages {
		errs = append(errs, o.summary())
	}
	return errors.Join(errs...)
}
