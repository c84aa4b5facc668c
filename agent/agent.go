package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/sdk/resource"

	"spanflame/agent/internal/admin"
	"spanflame/agent/internal/capture"
	"spanflame/agent/internal/deliver"
	"spanflame/agent/internal/guard"
	"spanflame/agent/internal/push"
	"spanflame/agent/internal/redact"
	"spanflame/agent/internal/spanlink"
	"spanflame/agent/internal/spool"
	"spanflame/agent/internal/telemetry"
	"spanflame/agent/internal/wall"
	"spanflame/internal/record"
)

// ErrRunning is returned by Start while another agent runs in the process.
var ErrRunning = errors.New("an agent is running in this process already: shut it down first")

// running is whether an agent runs: the runtime has one CPU profiler and one set of profile rates.
var running atomic.Bool

// lastWindows bounds how long a shutdown captures: far more than it takes, should a disk hang.
const lastWindows = 5 * time.Second

// Agent is a running agent.
type Agent struct {
	telemetry *telemetry.Telemetry
	guard     *guard.Guard // of everything the agent runs once telemetry has started
	capture   *capture.Capturer
	wall      *wall.Recorder    // nil where profiles go nowhere, and where slow spans are not captured
	busy      error             // why slow spans are not captured although they should be
	delivery  *deliver.Delivery // nil without a Pyroscope address
	saved     *saved            // nil where nothing is saved
	self      self
	admin     atomic.Pointer[admin.Server] // nil if it is off; its pages ask for the agent's problems
	restore   func()                       // puts the process's globals back

	once sync.Once
	done chan struct{} // closed when the shutdown has ended
	err  error         // of the shutdown; read after done
}

// Start begins to profile and observe the service. What cfg leaves out comes from the environment (see
// [Config]). The error names every setting that is wrong; a server that cannot be reached is not an error:
// it is said once in the log, and delivery goes on when it is back.
//
// ctx bounds the start alone, not the agent's life, which [Agent.Shutdown] ends.
func Start(ctx context.Context, cfg Config) (_ *Agent, err error) {
	env, err := ConfigFromEnv()
	if err != nil {
		return nil, fmt.Errorf("agent: environment: %w", err)
	}
	cfg = cfg.over(env)
	tracesChosen := cfg.Traces.Exporter != ""
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if !running.CompareAndSwap(false, true) {
		return nil, ErrRunning
	}
	a := &Agent{done: make(chan struct{}), restore: func() {}, guard: guard.New(nil)}
	defer func() {
		if err != nil {
			// What was started ends at once: nothing is worth waiting for. What earlier runs have spooled
			// stays where it is.
			ended, cancel := context.WithCancel(ctx)
			cancel()
			_ = a.shutdown(ended)
			err = fmt.Errorf("agent: %w", err)
		}
	}()

	if cfg.saves() {
		if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
			return nil, fmt.Errorf("the directory %q: %w", cfg.Dir, err)
		}
		a.saved = openSaved(cfg, a.guard)
	}
	if err := a.startTelemetry(ctx, cfg); err != nil {
		return nil, err
	}
	a.guard.LogTo(a.telemetry.Logger)
	if names := unknownVariables(); len(names) > 0 {
		a.telemetry.Logger.Warn("variables that nothing reads, most likely misspelt", "names", names)
	}
	if lost := cfg.lost(tracesChosen); lost != "" {
		a.telemetry.Logger.Warn(lost)
	}
	if err := a.startProfiles(cfg); err != nil {
		return nil, err
	}
	a.install()
	if cfg.AdminAddress != off {
		pages := admin.Options{
			Metrics:  promhttp.HandlerFor(a.telemetry.Scrape, promhttp.HandlerOpts{EnableOpenMetrics: true}),
			Problems: a.problems,
			Token:    cfg.AdminToken,
			Guard:    a.guard,
		}
		if cfg.AdminPages == adminAll {
			pages.CPUProfile = a.capture.CPUProfile
		}
		a.admin.Store(admin.Serve(admin.ServerOptions{
			Address: cfg.AdminAddress, Hosts: cfg.AdminHosts, Pages: admin.Handler(pages), Logger: a.telemetry.Logger,
		}))
	}
	a.sayStart(cfg)
	return a, nil
}

// sayStart says where everything goes.
func (a *Agent) sayStart(cfg Config) {
	var where []any
	for _, to := range []struct{ name, value string }{
		{"profiles", redact.URL(cfg.PyroscopeAddress)}, {"traces", redact.URL(cfg.Traces.Endpoint)}, {"admin", a.AdminAddr()},
	} {
		if to.value != "" {
			where = append(where, to.name, to.value)
		}
	}
	if cfg.saves() {
		where = append(where, "directory", cfg.Dir)
	}
	a.telemetry.Logger.Info("agent started", where...)
}

// startTelemetry sets up the OpenTelemetry SDK.
func (a *Agent) startTelemetry(ctx context.Context, cfg Config) error {
	sampler, err := cfg.sampler()
	if err != nil {
		return err
	}
	var attributes []attribute.KeyValue
	for _, k := range slices.Sorted(maps.Keys(cfg.ResourceAttributes)) {
		attributes = append(attributes, attribute.String(k, cfg.ResourceAttributes[k]))
	}
	res, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(), resource.WithProcessPID(), resource.WithProcessRuntimeVersion(),
		resource.WithAttributes(attributes...))
	if err != nil {
		return fmt.Errorf("resource attributes: %w", err)
	}
	var keys []attribute.Key
	for _, k := range identityKeys {
		keys = append(keys, attribute.Key(k))
	}
	opts := telemetry.Options{
		Resource:  res,
		Labels:    cfg.identity(),
		LabelKeys: keys,
		Traces:    telemetry.Signal(cfg.Traces),
		Metrics:   telemetry.Signal(cfg.Metrics),
		Logs:      telemetry.Signal(cfg.Logs),
		Headers:   cfg.OTLPHeaders,
		Sampler:   sampler,
		Stdout:    cfg.Stdout,
	}
	if a.saved != nil {
		opts.Saved, opts.SavedIn = a.saved.traces, cfg.Dir
	}
	a.telemetry, err = telemetry.Start(ctx, opts)
	return err
}

// identity are the labels that identify the service on all four signals.
func (c Config) identity() map[string]string {
	labels := map[string]string{}
	for _, k := range identityKeys {
		if v := c.ResourceAttributes[k]; v != "" {
			labels[labelName(k)] = v
		}
	}
	return labels
}

// startProfiles captures profiles, and delivers and saves them.
func (a *Agent) startProfiles(cfg Config) error {
	labels := cfg.identity()
	delete(labels, labelName(keyServiceName)) // every record has it by itself
	maps.Copy(labels, cfg.ProfileLabels)

	var emit []func(record.Record)
	if a.saved != nil {
		a.saved.startProfiles(cfg, a.guard, a.telemetry.Logger)
		emit = append(emit, a.saved.profiles.Put)
	}
	if cfg.PyroscopeAddress != "" {
		if err := a.startDelivery(cfg); err != nil {
			return err
		}
		// After the other: this one waits for the disk.
		emit = append(emit, a.delivery.Put)
	}
	var types []record.Type
	if len(emit) > 0 {
		types = cfg.recordTypes()
		if err := a.startWall(cfg, wall.Options{Labels: labels, Emit: toAll(emit)}); err != nil {
			return err
		}
	}
	emit = append(emit, a.self.look)
	a.setRates(cfg, types)
	var err error
	a.capture, err = capture.Start(capture.Options{
		Service: cfg.ServiceName, Labels: labels, Types: types, Window: cfg.Window, Emit: toAll(emit),
		Guard: a.guard, Logger: a.telemetry.Logger,
	})
	if err != nil {
		return err
	}
	return a.observe(a.meter())
}

// toAll hands each record to every sink.
func toAll(sinks []func(record.Record)) func(record.Record) {
	return func(r record.Record) {
		for _, sink := range sinks {
			sink(r)
		}
	}
}

// startDelivery pushes what is captured to Pyroscope.
func (a *Agent) startDelivery(cfg Config) error {
	client, err := push.New(push.Config{
		URL:               cfg.PyroscopeAddress,
		BasicAuthUser:     cfg.PyroscopeBasicAuthUser,
		BasicAuthPassword: cfg.PyroscopeBasicAuthPassword,
		BearerToken:       cfg.PyroscopeAuthToken,
		TenantID:          cfg.PyroscopeTenantID,
		Headers:           cfg.PyroscopeHeaders,
		CAFile:            cfg.PyroscopeCAFile,
		CertFile:          cfg.PyroscopeCertFile,
		KeyFile:           cfg.PyroscopeKeyFile,
	})
	if err != nil {
		return err
	}
	queue, err := spool.Open(spool.Options{
		Service: cfg.ServiceName, Dir: cfg.SpoolDir, MaxBytes: cfg.SpoolMaxBytes, MaxAge: cfg.SpoolMaxAge, Logger: a.telemetry.Logger,
	})
	if err != nil {
		client.Close()
		return err
	}
	a.delivery, err = deliver.Start(deliver.Options{
		Spool: queue, Client: client, Meter: a.meter(), Logger: a.telemetry.Logger, Guard: a.guard,
	})
	return err
}

// meter is for the agent's own metrics.
func (a *Agent) meter() metric.Meter { return a.telemetry.Metrics.Meter("spanflame/agent") }

// startWall captures slow spans, unless somebody else in the process has the flight recorder. The options say
// whose they are and where they go.
func (a *Agent) startWall(cfg Config, o wall.Options) error {
	if cfg.SlowSpan < 0 {
		return nil
	}
	o.Service, o.SlowSpan, o.RingBytes, o.CPUShare, o.Logger = cfg.ServiceName, cfg.SlowSpan, cfg.WallRingBytes, cfg.WallCPUShare, a.telemetry.Logger
	o.LogLines = cfg.SlowSpanLogs
	var err error
	a.wall, err = wall.Start(o)
	if errors.Is(err, wall.ErrBusy) {
		a.busy = fmt.Errorf("slow spans have no wall-clock profiles: %w", err)
		a.telemetry.Logger.Warn(a.busy.Error())
		return nil
	}
	return err
}

// setRates has the runtime record contention and blocking, where their profiles are captured.
func (a *Agent) setRates(cfg Config, types []record.Type) {
	restore := a.restore
	if slices.Contains(types, record.Mutex) {
		before := runtime.SetMutexProfileFraction(cfg.MutexProfileFraction)
		restore = chain(restore, func() { runtime.SetMutexProfileFraction(before) })
	}
	if slices.Contains(types, record.Block) {
		runtime.SetBlockProfileRate(int(cfg.BlockProfileRate.Nanoseconds()))
		restore = chain(restore, func() { runtime.SetBlockProfileRate(0) })
	}
	a.restore = restore
}

func chain(first, second func()) func() {
	return func() { first(); second() }
}

// install makes the agent's providers and its logger the process's own, until restore.
//
// The tracer provider has the samples taken inside a span carry its local root's span id, local root spans
// carry pyroscope.profile.id, from which Grafana links to the profile, and slow spans captured.
func (a *Agent) install() {
	tracing, metering, propagation, logger := otel.GetTracerProvider(), otel.GetMeterProvider(), otel.GetTextMapPropagator(), slog.Default()
	handler := otel.GetErrorHandler()
	// slog.SetDefault redirects package log too, and does not undo that for the logger it was given first.
	output, flags := log.Writer(), log.Flags()
	var marks spanlink.Marks
	if a.wall != nil {
		marks = a.wall
	}
	otel.SetTracerProvider(spanlink.NewTracerProvider(a.telemetry.Traces, marks))
	otel.SetMeterProvider(a.telemetry.Metrics)
	otel.SetTextMapPropagator(propagator())
	otel.SetErrorHandler(otel.ErrorHandlerFunc(a.telemetry.HandleError))
	slog.SetDefault(a.telemetry.Logger)
	a.restore = chain(a.restore, func() {
		otel.SetTracerProvider(tracing)
		otel.SetMeterProvider(metering)
		otel.SetTextMapPropagator(propagation)
		otel.SetErrorHandler(handler)
		slog.SetDefault(logger)
		log.SetOutput(output)
		log.SetFlags(flags)
	})
}

// AdminAddr is the address of the operator's listener, host:port; empty when it is off.
func (a *Agent) AdminAddr() string {
	server := a.admin.Load()
	if server == nil {
		return ""
	}
	return server.Addr()
}

// CPUProfile takes a CPU profile of length d, or until ctx is done, and writes it to w, gzip-compressed, as
// pprof.StartCPUProfile would. The runtime has one CPU profiler, and the agent holds it, so that
// pprof.StartCPUProfile itself fails while the agent captures CPU profiles; here the agent makes room and
// nothing is missing on either side. A profile that the service had started before is left alone: the agent
// resumes when it has ended, and counts the gap.
func (a *Agent) CPUProfile(ctx context.Context, w io.Writer, d time.Duration) error {
	if err := a.capture.CPUProfile(ctx, w, d); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	return nil
}

// The reasons of problems, on /status and as values of the metric spanflame.degraded's label reason.
const (
	reasonDelivery = "delivery" // profiles are not delivered, or not spooled on disk
	reasonSaving   = "saving"   // profiles or traces are not saved
	reasonWall     = "wall"     // slow spans have no wall-clock profiles
	reasonListener = "listener" // the operator's listener has no address
	reasonPanic    = "panic"    // a part of the agent panicked, and pauses
)

var problemReasons = []string{reasonDelivery, reasonSaving, reasonWall, reasonListener, reasonPanic}

// problems returns what does not work as it should.
func (a *Agent) problems() []admin.Problem {
	var found []admin.Problem
	add := func(reason string, messages ...string) {
		for _, m := range messages {
			found = append(found, admin.Problem{Reason: reason, Message: m})
		}
	}
	if a.delivery != nil {
		add(reasonDelivery, a.delivery.Degraded()...)
	}
	if a.saved != nil {
		add(reasonSaving, a.saved.degraded()...)
	}
	if a.busy != nil {
		add(reasonWall, a.busy.Error())
	}
	if server := a.admin.Load(); server != nil {
		if err := server.Err(); err != nil {
			add(reasonListener, err.Error())
		}
	}
	add(reasonPanic, a.guard.Degraded()...)
	return found
}

// Shutdown captures the last window of every profile, saves it, delivers what it can until ctx is done, and ends all
// that the agent started; what could not be delivered stays in the spool for the next start. It acts once;
// every caller waits for the end, until its own ctx is done. The error says what is incomplete.
func (a *Agent) Shutdown(ctx context.Context) error {
	a.once.Do(func() {
		go func() {
			defer close(a.done)
			a.err = a.shutdown(ctx)
		}()
	})
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
	}
	// All that the agent started gives up at the same deadline: a moment later it says what is left.
	late := time.NewTimer(150 * time.Millisecond)
	defer late.Stop()
	select {
	case <-a.done:
		return a.err
	case <-late.C:
		return fmt.Errorf("agent: shutdown: %w", context.Cause(ctx))
	}
}

func (a *Agent) shutdown(ctx context.Context) error {
	var wg sync.WaitGroup
	var captured, recorded, delivered, flushed, saved, served error
	// The last windows are waited for even when ctx is done: that takes no server, and what is not on the
	// disk at the end is lost.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWindows)
	defer cancel()
	if a.capture != nil {
		wg.Go(func() { captured = a.capture.Stop(last) })
	}
	if a.wall != nil {
		wg.Go(func() { recorded = a.wall.Stop(last) })
	}
	wg.Wait()
	// Profiles and the other signals go to different places: none waits for another.
	if a.delivery != nil {
		wg.Go(func() { delivered = a.delivery.Stop(ctx) })
	}
	if a.saved != nil {
		wg.Go(func() { saved = a.saved.closeProfiles(last) })
	}
	if a.telemetry != nil {
		wg.Go(func() { flushed = a.telemetry.Shutdown(ctx) })
	}
	wg.Wait()
	if a.saved != nil { // now that the last spans are in their file
		saved = errors.Join(saved, a.saved.closeTraces(context.WithoutCancel(ctx)))
	}
	if server := a.admin.Load(); server != nil {
		served = server.Shutdown(ctx)
	}
	a.restore()
	running.Store(false)
	return errors.Join(captured, recorded, delivered, flushed, saved, served)
}
