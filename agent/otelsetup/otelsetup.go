// Package otelsetup profiles and observes a service by one call. It starts the agent of package agent, sets up the
// OpenTelemetry SDK with exporters for traces, metrics and logs, and makes both the process's own:
//
//	a, err := otelsetup.Start(ctx, otelsetup.Config{Agent: agent.Config{ServiceName: "checkout"}})
//	if err != nil {
//		return err
//	}
//	defer func() {
//		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
//		defer cancel()
//		a.Shutdown(ctx)
//	}()
//
// Services without an OpenTelemetry set-up use it. It is not for those that have one, which add the agent alone, and
// not for libraries, which use the OpenTelemetry API alone.
//
// # Without a server
//
// Where no server for profiles is set, profiles and traces are saved in the user's cache directory,
// up to a gigabyte for each service and for a week: "spanflame view" shows them. The agent's Dir names another
// directory, also with a server, or turns that off.
//
// # Global state
//
// Start sets the OpenTelemetry globals (tracer and meter provider, propagator, error handler), and slog's default logger
// where the service has not set one. Shutdown sets each back to what it was, unless the service has set another
// meanwhile. While the agent runs, a tracer provider that replaces the agent's is logged once and shown as degraded:
// spans of another provider have no profiles.
//
// OpenTelemetry's API binds a tracer or an instrument that was made before the first provider was set to that provider
// for good, and there is no way to read the logger of its SDK, which stays the agent's. So a process that starts the
// agent again must get its tracers and meters again, too.
package otelsetup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/sdk/resource"

	"spanflame/agent"
	"spanflame/agent/internal/ending"
	"spanflame/agent/internal/guard"
	"spanflame/agent/internal/identity"
	"spanflame/agent/internal/instance"
	"spanflame/agent/internal/telemetry"
	"spanflame/agent/sdkview"
)

// Agent is a running agent with its OpenTelemetry set-up.
type Agent struct {
	*agent.Agent
	telemetry *telemetry.Telemetry
	guard     *guard.Guard
	ignored   []error      // of variables
	saved     *savedTraces // nil if traces are not saved
	globals   *globals
	instance  *instance.Instance // nil if the configuration names one, or profiles go nowhere

	finished *ending.Once
}

// Start begins to profile and observe the service. Fields of cfg that are not set come from the environment (see
// [Config]). The error names every setting that is wrong; an unreachable server is not an error: it is logged once, and
// delivery continues when the server is back. It is [agent.ErrRunning] while another agent runs in the process.
//
// ctx limits the start only, not the agent's life, which [Agent.Shutdown] ends.
func Start(ctx context.Context, cfg Config) (_ *Agent, err error) {
	given := cfg.Agent
	cfg, tracesChosen, ignored, err := cfg.resolve()
	if err != nil {
		return nil, fmt.Errorf("otelsetup: %w", err)
	}
	cfg.Stdout = telemetry.OneAtATime(cfg.Stdout) // shared by the log from before the SDK's start, and that of the telemetry
	a := &Agent{guard: guard.New(nil), ignored: ignored, globals: newGlobals(cfg), finished: ending.New()}
	defer func() {
		if err != nil {
			// What was started ends at once: nothing is worth waiting for.
			ended, cancel := context.WithCancel(ctx)
			cancel()
			_ = a.shutdown(ended)
		}
	}()
	given.ProfilesEndpoint, given.ProfilesProtocol, given.ProfilesHeaders = cfg.Agent.ProfilesEndpoint, cfg.Agent.ProfilesProtocol, cfg.Agent.ProfilesHeaders
	shared := a.identify(cfg, &given)
	if err := a.startTelemetry(ctx, cfg); err != nil {
		return nil, fmt.Errorf("otelsetup: %w", err)
	}
	given.Logger = a.globals.logTo(given.Logger, a.telemetry)
	if given.MeterProvider == nil {
		given.MeterProvider = kept{a.telemetry.Metrics}
	}
	if given.MetricsHandler == nil {
		given.MetricsHandler = promhttp.HandlerFor(a.telemetry.Scrape, promhttp.HandlerOpts{EnableOpenMetrics: true})
	}
	a.guard.LogTo(given.Logger)
	given.Problems = func() []agent.Problem {
		found := a.problems()
		if cfg.Agent.Problems != nil {
			found = append(found, cfg.Agent.Problems()...)
		}
		return found
	}
	if a.Agent, err = agent.Start(ctx, given); err != nil {
		return nil, err
	}
	log := given.Logger
	if shared != nil {
		log.Warn(instance.Shared, "error", shared)
	}
	for _, err := range ignored {
		log.Warn("environment variable ignored", "error", err.Error())
	}
	if cfg.SDKDisabled {
		log.Info("OTEL_SDK_DISABLED is set: there are no traces, metrics and logs; profiles are captured")
	}
	if a.saved == nil && !tracesChosen && cfg.Traces.Exporter == telemetry.ExporterNone {
		log.Warn("traces are discarded: there is no destination for them; " +
			"set OTEL_EXPORTER_OTLP_ENDPOINT, or SPANFLAME_DIR to a directory, or OTEL_TRACES_EXPORTER to none if none are wanted")
	}
	if !a.globals.setLogger && cfg.Logs.Exporter != telemetry.ExporterNone {
		log.Warn("log lines are not exported: the service has set a logger of its own, which is kept")
	}
	if to := cfg.destinations(); len(to) > 0 {
		log.Info("telemetry started", to...)
	}
	a.globals.install(sdkview.TracerProvider(a.TracerProvider(a.telemetry.Traces)), a.guard.Stage("check of the globals"))
	return a, nil
}

// identify gives the process an identity of its own on all signals: the one of the telemetry is the agent's, too. The
// error has the reason why another process may have the same.
func (a *Agent) identify(cfg Config, given *agent.Config) (err error) {
	var dirs []string
	if cfg.Agent.ProfilesExporter != telemetry.ExporterNone {
		dirs = append(dirs, cfg.Agent.SpoolDir)
	}
	if cfg.saves() {
		dirs = append(dirs, cfg.Agent.Dir)
	}
	a.instance, err = instance.Identify(cfg.Agent.ResourceAttributes, cfg.Agent.ServiceName, dirs...)
	if id := cfg.Agent.ResourceAttributes[identity.ServiceInstance]; id != "" {
		attributes := maps.Clone(given.ResourceAttributes)
		if attributes == nil {
			attributes = map[string]string{}
		}
		attributes[identity.ServiceInstance] = id
		given.ResourceAttributes = attributes
	}
	return err
}

// startTelemetry sets up the OpenTelemetry SDK.
func (a *Agent) startTelemetry(ctx context.Context, cfg Config) error {
	var attributes []attribute.KeyValue
	for _, k := range slices.Sorted(maps.Keys(cfg.Agent.ResourceAttributes)) {
		attributes = append(attributes, attribute.String(k, cfg.Agent.ResourceAttributes[k]))
	}
	res, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(), resource.WithProcessPID(), resource.WithProcessRuntimeVersion(),
		resource.WithAttributes(attributes...))
	if err != nil {
		return fmt.Errorf("resource attributes: %w", err)
	}
	var keys []attribute.Key
	for _, k := range identity.Keys {
		keys = append(keys, attribute.Key(k))
	}
	opts := telemetry.Options{
		Resource:  res,
		Labels:    identity.Labels(cfg.Agent.ResourceAttributes),
		LabelKeys: keys,
		Traces:    telemetry.Signal(cfg.Traces),
		Metrics:   telemetry.Signal(cfg.Metrics),
		Logs:      telemetry.Signal(cfg.Logs),
		Headers:   cfg.OTLPHeaders,
		Sampler:   cfg.sampler(),
		Batches:   batchOptions(),
		Stdout:    cfg.Stdout,
	}
	if cfg.Agent.SlowSpan >= 0 && !cfg.SDKDisabled {
		opts.Sampler, opts.Slow = Sampler(opts.Sampler), cfg.Agent.SlowSpan
	}
	if cfg.saves() && !cfg.SDKDisabled {
		a.saved = openTraces(cfg.Agent, a.guard)
		opts.Saved, opts.SavedIn = a.saved.file, cfg.Agent.Dir
	}
	if a.telemetry, err = telemetry.Start(ctx, opts); err != nil {
		return err
	}
	if a.saved != nil {
		return a.saved.observe(a.telemetry.Metrics)
	}
	return nil
}

// problems returns what does not work as it should of the set-up.
func (a *Agent) problems() []agent.Problem {
	found := a.globals.problems()
	for _, err := range a.ignored {
		found = append(found, agent.Problem{Reason: "setting", Message: "environment variable ignored: " + err.Error()})
	}
	if a.saved != nil {
		found = append(found, a.saved.problems()...)
	}
	for _, message := range a.telemetry.Failing() {
		found = append(found, agent.Problem{Reason: "telemetry", Message: message})
	}
	for _, message := range a.guard.Degraded() {
		found = append(found, agent.Problem{Reason: "panic", Message: message})
	}
	return found
}

// Shutdown captures the last window of every profile, saves it, delivers it and the last spans, metrics and log lines
// until ctx is done, and ends all that the agent started; profiles that could not be delivered stay in the spool for the
// next start. It acts once; every caller waits for the end, until its own ctx is done. The error lists what is incomplete.
func (a *Agent) Shutdown(ctx context.Context) error {
	// All that the agent started gives up at the same deadline: a moment later the error lists what is left.
	return a.finished.Do(ctx, 200*time.Millisecond, "otelsetup: shutdown", func() error { return a.shutdown(ctx) })
}

func (a *Agent) shutdown(ctx context.Context) error {
	var wg sync.WaitGroup
	var profiles, flushed, saved error
	if a.Agent != nil {
		// The last metrics and log lines are those of the last windows. The error is Shutdown's too.
		_ = a.StopCapture(context.WithoutCancel(ctx))
		// Profiles and the other signals have different destinations: none waits for another.
		wg.Go(func() { profiles = a.Agent.Shutdown(ctx) })
	}
	if a.telemetry != nil {
		wg.Go(func() { flushed = a.telemetry.Shutdown(ctx) })
	}
	wg.Wait()
	if a.saved != nil { // now that the last spans are in their file
		saved = a.saved.close(context.WithoutCancel(ctx))
	}
	a.globals.restore()
	a.instance.Release()
	return errors.Join(profiles, flushed, saved)
}

// kept is a meter provider whose callbacks stay until it is shut down. The agent ends its own when it has delivered the
// last profiles, which may be before the last export of metrics.
type kept struct{ metric.MeterProvider }

func (k kept) Meter(name string, options ...metric.MeterOption) metric.Meter {
	return keptMeter{k.MeterProvider.Meter(name, options...)}
}

type keptMeter struct{ metric.Meter }

func (m keptMeter) RegisterCallback(f metric.Callback, instruments ...metric.Observable) (metric.Registration, error) {
	r, err := m.Meter.RegisterCallback(f, instruments...)
	if err != nil {
		return nil, err
	}
	return keptRegistration{r}, nil
}

type keptRegistration struct{ metric.Registration }

func (keptRegistration) Unregister() error { return nil }
