package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"spanflame/agent/internal/admin"
	"spanflame/agent/internal/capture"
	"spanflame/agent/internal/deliver"
	"spanflame/agent/internal/ending"
	"spanflame/agent/internal/guard"
	"spanflame/agent/internal/identity"
	"spanflame/agent/internal/incident"
	"spanflame/agent/internal/instance"
	"spanflame/agent/internal/lastrun"
	"spanflame/agent/internal/push"
	"spanflame/agent/internal/save"
	"spanflame/agent/internal/spanlink"
	"spanflame/agent/internal/spool"
	"spanflame/agent/internal/wall"
	"spanflame/internal/record"
	"spanflame/internal/redact"
)

// ErrRunning is returned by Start while another agent runs in the process.
var ErrRunning = errors.New("an agent is running in this process already: shut it down first")

// ErrNotRecording is returned by [Agent.WriteTrace] while the agent does not trace the process.
var ErrNotRecording = wall.ErrNotRecording

// running reports whether an agent runs: the runtime has one CPU profiler and one set of profile rates.
var running atomic.Bool

// lastWindows limits how long a shutdown captures: far more than it needs, in case a disk hangs.
const lastWindows = 5 * time.Second

// Agent is a running agent.
type Agent struct {
	cfg      Config  // complete
	ignored  []error // of variables
	guard    *guard.Guard
	instance *instance.Instance // nil if the configuration names one, or profiles go nowhere
	capture  *capture.Capturer
	slow     slowSpans
	saved    *save.Profiles    // nil if nothing is saved
	deliver  *deliver.Delivery // nil if profiles are not sent
	incident *incident.Keeper  // nil if nobody can have its bundles
	run      *lastrun.Run      // nil if nothing is kept of it
	self     self
	metrics  []metric.Registration
	pages    http.Handler
	admin    atomic.Pointer[admin.Server] // nil if it is off; its pages ask for the agent's problems
	restore  func()                       // sets the runtime's rates to what they were

	stopped  *ending.Once // of the capture
	finished *ending.Once // of everything
}

// Start begins to profile the service. Fields of cfg that are not set come from the environment (see [Config]). The
// error names every field that is wrong. A variable that is wrong is no error unless [Config.Strict] is set, nor is an
// unreachable server: it is logged once, and delivery continues when the server is back.
//
// ctx limits the start only, not the agent's life, which [Agent.Shutdown] ends.
func Start(ctx context.Context, cfg Config) (_ *Agent, err error) {
	cfg, ignored, err := cfg.resolve()
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if !running.CompareAndSwap(false, true) {
		return nil, ErrRunning
	}
	a := &Agent{cfg: cfg, ignored: ignored, guard: guard.New(cfg.Logger), stopped: ending.New(), finished: ending.New(), restore: func() {}}
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

	if a.instance, err = instance.Identify(cfg.ResourceAttributes, cfg.ServiceName, cfg.kept()...); err != nil {
		cfg.Logger.Warn(instance.Shared, "error", err)
	}
	for _, err := range ignored {
		cfg.Logger.Warn("environment variable ignored", "error", err.Error())
	}
	if names := unknownVariables(); len(names) > 0 {
		cfg.Logger.Warn("unknown environment variables, probably misspelt", "names", names)
	}
	if lost := cfg.lost(); lost != "" {
		cfg.Logger.Warn(lost)
	}
	if err := a.startProfiles(); err != nil {
		return nil, err
	}
	pages := admin.Options{Metrics: cfg.MetricsHandler, Problems: a.problems, Recording: a.slow.mode, Token: cfg.AdminToken, Guard: a.guard}
	if cfg.AdminPages == adminAll {
		pages.CPUProfile, pages.Incidents = a.capture.CPUProfile, a.incident
	}
	a.pages = admin.Handler(pages)
	if cfg.AdminAddress != off {
		a.admin.Store(admin.Serve(admin.ServerOptions{Address: cfg.AdminAddress, Hosts: cfg.AdminHosts, Pages: a.pages, Logger: cfg.Logger}))
	}
	a.logStart()
	return a, nil
}

// logStart logs where everything is sent and saved.
func (a *Agent) logStart() {
	var where []any
	if a.cfg.Delivers() {
		where = append(where, "profiles", redact.URL(a.cfg.destination()))
	}
	if addr := a.AdminAddr(); addr != "" {
		where = append(where, "admin", addr)
	}
	if a.cfg.saves() {
		where = append(where, "directory", a.cfg.Dir)
	}
	a.cfg.Logger.Info("agent started", where...)
}

// startProfiles captures profiles, and delivers and saves them.
func (a *Agent) startProfiles() error {
	cfg := a.cfg
	labels := identity.Labels(cfg.ResourceAttributes)
	delete(labels, identity.Label(identity.ServiceName)) // every record has it by itself
	maps.Copy(labels, cfg.ProfileLabels)

	var emit []func(record.Record)
	if cfg.saves() {
		a.saved = save.OpenProfiles(save.Options{
			Dir: cfg.Dir, Service: cfg.ServiceName, MaxBytes: cfg.DirMaxBytes - save.TracesShare(cfg.DirMaxBytes), MaxAge: cfg.DirMaxAge,
			FreePart: save.FreePart, Guard: a.guard,
		}, cfg.Logger)
		emit = append(emit, a.saved.Put)
	}
	if cfg.Delivers() {
		if err := a.startDelivery(); err != nil {
			return err
		}
		// After the other: this one waits for the disk.
		emit = append(emit, a.deliver.Put)
	}
	var types []record.Type
	if len(emit) > 0 {
		types = cfg.recordTypes()
	}
	a.keepRun(labels, toAll(slices.Clone(emit)))
	if err := a.keepIncidents(&emit); err != nil {
		return err
	}
	if len(types) > 0 && cfg.SlowSpan >= 0 {
		a.slow.options = &wall.Options{
			Service: cfg.ServiceName, Labels: labels, SlowSpan: cfg.SlowSpan, RingBytes: cfg.WallRingBytes, CPUShare: cfg.WallCPUShare,
			Mode: wallModes[cfg.WallMode], Emit: toAll(emit), Diagnosed: a.diagnosed, LogLines: cfg.SlowSpanLogs, Guard: a.guard, Logger: cfg.Logger,
		}
	}
	emit = append(emit, a.self.look)
	a.setRates(types)
	var err error
	a.capture, err = capture.Start(capture.Options{
		Service: cfg.ServiceName, Labels: labels, Types: types, Window: cfg.Window, Emit: toAll(emit),
		Instance: cfg.ServiceName + "@" + cfg.ResourceAttributes[identity.ServiceInstance],
		Guard:    a.guard, Logger: cfg.Logger,
	})
	if err != nil {
		return err
	}
	if a.incident != nil {
		a.incident.Start()
	}
	return a.startMetrics()
}

// keepIncidents keeps what incident bundles need, unless nobody could have one. It adds to those who receive records.
func (a *Agent) keepIncidents(emit *[]func(record.Record)) error {
	cfg := a.cfg
	triggers, err := incident.ParseTriggers(cfg.IncidentTriggers)
	if err != nil || cfg.AdminPages != adminAll && triggers == (incident.Triggers{}) {
		return err
	}
	dir := ""
	if dirs := cfg.kept(); len(dirs) > 0 {
		dir = dirs[len(dirs)-1] // of the two, that which people read
	}
	if dir == "" && triggers != (incident.Triggers{}) {
		cfg.Logger.Warn("no incident bundles are written by themselves, as there is no directory for them; set SPANFLAME_DIR or SPANFLAME_SPOOL_DIR")
	}
	a.incident = incident.New(incident.Options{
		Service: cfg.ServiceName, Instance: cfg.ResourceAttributes[identity.ServiceInstance], Version: cfg.ServiceVersion,
		Dir: dir, Max: cfg.IncidentMaxCount, MaxBytes: cfg.IncidentMaxBytes, MaxAge: cfg.IncidentMaxAge, Every: cfg.IncidentInterval,
		Triggers: triggers, Trace: a.WriteTrace, Settle: a.slow.settle, Settings: settings.Values(&cfg), Guard: a.guard, Logger: cfg.Logger,
		EndWindows: func(ctx context.Context, trigger string) error {
			return a.capture.EndWindows(ctx, map[string]string{record.IncidentLabel: trigger})
		},
	})
	*emit = slices.Insert(*emit, 0, a.incident.Put)
	return nil
}

// keepRun keeps what the next start needs to report how this run ended, and reports the one before.
func (a *Agent) keepRun(labels map[string]string, emit func(record.Record)) {
	cfg := a.cfg
	dirs := cfg.kept()
	if len(dirs) == 0 || dirs[0] == "" || cfg.LastRun == off {
		return
	}
	var err error
	a.run, err = lastrun.Start(lastrun.Options{
		Dir: dirs[0], Service: cfg.ServiceName, Labels: labels, Emit: emit, Crashes: cfg.LastRun == lastCrashes, Guard: a.guard, Logger: cfg.Logger,
	})
	if err != nil {
		cfg.Logger.Warn("the next start will not know how this run ends", "directory", dirs[0], "error", err)
	}
}

// diagnosed keeps a slow request for incident bundles.
func (a *Agent) diagnosed(d wall.Diagnosis) {
	if a.incident != nil {
		a.incident.Diagnosed(incident.Slow{
			Start: d.Start, Duration: d.Duration, TraceID: d.TraceID, SpanID: d.SpanID, Name: d.Name, Diagnosis: d.Text,
		})
	}
}

// toAll passes each record to every sink.
func toAll(sinks []func(record.Record)) func(record.Record) {
	return func(r record.Record) {
		for _, sink := range sinks {
			sink(r)
		}
	}
}

// Server returns where and how profiles are sent, for package scrape, which sends them like an agent.
func (c Config) Server() push.Config {
	if c.exporter() == exporterOTLP {
		return push.Config{
			Protocol: push.Protocol(c.ProfilesProtocol),
			URL:      c.destination(),
			Headers:  c.ProfilesHeaders,
			CAFile:   c.ProfilesCAFile,
			CertFile: c.ProfilesCertFile,
			KeyFile:  c.ProfilesKeyFile,
		}
	}
	return push.Config{
		URL:               c.destination(),
		BasicAuthUser:     c.PyroscopeBasicAuthUser,
		BasicAuthPassword: c.PyroscopeBasicAuthPassword,
		BearerToken:       c.PyroscopeAuthToken,
		TenantID:          c.PyroscopeTenantID,
		Headers:           c.PyroscopeHeaders,
		CAFile:            c.PyroscopeCAFile,
		CertFile:          c.PyroscopeCertFile,
		KeyFile:           c.PyroscopeKeyFile,
	}
}

// startDelivery sends captured profiles to the server.
func (a *Agent) startDelivery() (err error) {
	cfg := a.cfg
	a.deliver, err = deliver.Open(cfg.Server(), spool.Options{
		Service: cfg.ServiceName, Dir: cfg.SpoolDir, MaxBytes: cfg.SpoolMaxBytes, MaxAge: cfg.SpoolMaxAge, Logger: cfg.Logger,
	}, deliver.Options{Meter: a.meter(), Logger: cfg.Logger, Guard: a.guard})
	return err
}

// meter returns the meter of the agent's own metrics.
func (a *Agent) meter() metric.Meter { return a.cfg.MeterProvider.Meter("spanflame/agent") }

// startMetrics reports what the agent does.
func (a *Agent) startMetrics() error {
	own, err := a.observe(a.meter())
	if err != nil {
		return err
	}
	a.metrics = append(a.metrics, own)
	if a.saved == nil {
		return nil
	}
	files, err := save.Observe(a.meter(), "profiles", a.saved.Stats)
	if err != nil {
		return err
	}
	a.metrics = append(a.metrics, files)
	return nil
}

// setRates has the runtime record contention and blocking, if their profiles are captured.
func (a *Agent) setRates(types []record.Type) {
	var restore []func()
	if slices.Contains(types, record.Mutex) {
		before := runtime.SetMutexProfileFraction(a.cfg.MutexProfileFraction)
		restore = append(restore, func() {
			if runtime.SetMutexProfileFraction(-1) == a.cfg.MutexProfileFraction { // else the service has set it since
				runtime.SetMutexProfileFraction(before)
			}
		})
	}
	if slices.Contains(types, record.Block) {
		runtime.SetBlockProfileRate(int(a.cfg.BlockProfileRate.Nanoseconds()))
		restore = append(restore, func() { runtime.SetBlockProfileRate(0) })
	}
	a.restore = func() {
		for _, f := range restore {
			f()
		}
	}
}

// slowSpans starts the recorder of wall-clock profiles with the first provider of spans: without spans it would cost
// and find nothing.
type slowSpans struct {
	options *wall.Options // nil if there are no wall-clock profiles

	mu       sync.Mutex
	stopped  bool
	recorder *wall.Recorder // nil until it is started
	err      error          // why there are no wall-clock profiles
}

// marks starts the recorder, unless it runs, and returns it for the spans. It is nil if there is none.
func (s *slowSpans) marks() spanlink.Marks {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.options == nil || s.stopped || s.err != nil {
		return nil
	}
	if s.recorder == nil {
		recorder, err := wall.Start(*s.options)
		if err != nil {
			s.err = withoutWall(err)
			s.options.Logger.Warn(s.err.Error())
			return nil
		}
		s.recorder = recorder
	}
	return s.recorder
}

// running returns the recorder, nil if there is none, and why slow spans have no wall-clock profiles if they should.
func (s *slowSpans) running() (*wall.Recorder, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.recorder == nil || s.recorder.Err() == nil {
		return s.recorder, s.err
	}
	return s.recorder, withoutWall(s.recorder.Err())
}

func withoutWall(err error) error {
	return fmt.Errorf("slow spans have no wall-clock profiles: %w", err)
}

// mode describes when slow spans are recorded, empty if they are not.
func (s *slowSpans) mode() string {
	recorder, _ := s.running()
	if recorder == nil {
		return ""
	}
	stats := recorder.Stats()
	changes := uint64(0)
	for _, n := range stats.Entered {
		changes += n
	}
	return fmt.Sprintf("%s, mode changes: %d", stats.Mode, changes)
}

// settle returns when the slow spans that have ended were emitted.
func (s *slowSpans) settle(ctx context.Context) error {
	recorder, _ := s.running()
	if recorder == nil {
		return nil
	}
	return recorder.Settle(ctx)
}

// stop ends the recorder, if there is one. No other starts from then on.
func (s *slowSpans) stop(ctx context.Context) error {
	s.mu.Lock()
	s.stopped = true
	recorder := s.recorder
	s.mu.Unlock()
	if recorder == nil {
		return nil
	}
	return recorder.Stop(ctx)
}

// TracerProvider wraps the service's own provider of spans, and returns the provider to use instead:
//
//	otel.SetTracerProvider(a.TracerProvider(provider))
//
// Through it, samples that the CPU profile takes inside a span have the labels span_id and span_name of its local root
// span, local root spans have the attribute pyroscope.profile.id, by which Grafana links to their profile, and slow
// spans get wall-clock profiles. The wrapped provider samples, processes and exports the spans as before.
//
// It is a wrapper rather than a span processor because a processor cannot do three of these things: it does not see the
// context that Start returns, in which a span's labels must be for the goroutines that the span starts; an ended span
// accepts no attribute, and only at its end is it known whether a child span was long enough for a profile of its own;
// and the time of a span's end must be that of its mark in the execution trace, for the profile to have exactly the
// span's duration.
//
// The provider may be used after the agent's shutdown: spans then have labels, and no wall-clock profiles.
func (a *Agent) TracerProvider(provider trace.TracerProvider) trace.TracerProvider {
	return spanlink.NewTracerProvider(provider, a.slow.marks(), a.guard)
}

// Handler returns the pages of the operator's listener, to be mounted in a server of the service: /debug/pprof/,
// /debug/fgprof, /metrics (if [Config.MetricsHandler] is set), /healthz, /readyz and /status. Anybody who can connect to
// the server can read the process's profiles, unless [Config.AdminToken] is set; the server must check the names of hosts.
// A profile takes as long as the request says, which the
// server's WriteTimeout must allow.
func (a *Agent) Handler() http.Handler { return a.pages }

// AdminAddr returns the address of the operator's listener, host:port; empty when it is off.
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

// WriteTrace writes the execution trace of the last seconds to w, as "go tool trace" reads it. The runtime has one flight
// recorder, and the agent holds it, so that [runtime/trace.FlightRecorder] of the service itself fails to start: this is what its
// WriteTo would write. It may be called at any time, also at several at once, and while [runtime/trace.Start] runs; slow spans lose
// nothing by it. How much the ring has depends on [Config.WallRingBytes], up to ten seconds.
//
// The recorder runs from the first call of [Agent.TracerProvider] on. The error is [ErrNotRecording] while it does not,
// as may be the case unless [Config.WallMode] is always.
func (a *Agent) WriteTrace(w io.Writer) error {
	recorder, err := a.slow.running()
	switch {
	case err != nil:
	case recorder == nil:
		err = fmt.Errorf("%w: the service has not called TracerProvider, or wall-clock profiles are off", ErrNotRecording)
	default:
		_, err = recorder.WriteTo(w)
	}
	if err != nil {
		return fmt.Errorf("agent: write the trace: %w", err)
	}
	return nil
}

// The reasons of problems, on /status and as values of the metric spanflame.degraded's label reason.
const (
	reasonDelivery = "delivery" // profiles are not delivered, or not spooled on disk
	reasonSaving   = "saving"   // profiles or traces are not saved
	reasonWall     = "wall"     // slow spans have no wall-clock profiles
	reasonIncident = "incident" // the last incident bundle could not be written
	reasonListener = "listener" // the operator's listener has no address
	reasonSetting  = "setting"  // an environment variable is ignored
	reasonPanic    = "panic"    // a part of the agent panicked, and pauses
)

var problemReasons = []string{reasonDelivery, reasonSaving, reasonWall, reasonIncident, reasonListener, reasonSetting, reasonPanic}

// problems returns what does not work as it should.
func (a *Agent) problems() []Problem {
	var found []Problem
	add := func(reason string, messages ...string) {
		for _, m := range messages {
			found = append(found, Problem{Reason: reason, Message: m})
		}
	}
	for _, err := range a.ignored {
		add(reasonSetting, "environment variable ignored: "+err.Error())
	}
	if a.deliver != nil {
		add(reasonDelivery, a.deliver.Degraded()...)
	}
	if a.saved != nil {
		if err := a.saved.Stats().Degraded; err != nil {
			add(reasonSaving, fmt.Sprintf("profiles are not saved as they should be: %v", err))
		}
	}
	if _, err := a.slow.running(); err != nil {
		add(reasonWall, err.Error())
	}
	if a.incident != nil {
		if err := a.incident.Stats().Failed; err != nil {
			add(reasonIncident, fmt.Sprintf("the last incident bundle could not be written: %v", err))
		}
	}
	if server := a.admin.Load(); server != nil {
		if err := server.Err(); err != nil {
			add(reasonListener, err.Error())
		}
	}
	add(reasonPanic, a.guard.Degraded()...)
	if a.cfg.Problems != nil {
		found = append(found, a.cfg.Problems()...)
	}
	return found
}

// StopCapture captures the last window of every profile and ends the capture. [Agent.Shutdown] does that first; a
// service calls StopCapture itself to shut down its own OpenTelemetry providers, with the last of the agent's metrics,
// while Shutdown delivers. It acts once; every caller waits for the end, until its own ctx is done.
func (a *Agent) StopCapture(ctx context.Context) error {
	return a.stopped.Do(ctx, 0, "agent: stop the capture", func() error {
		// The last windows are waited for even when ctx is done: that needs no server, and what is not on the
		// disk at the end is lost.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWindows)
		defer cancel()
		var captured, recorded error
		var wg sync.WaitGroup
		if a.capture != nil {
			wg.Go(func() { captured = a.capture.Stop(last) })
		}
		wg.Go(func() { recorded = a.slow.stop(last) })
		wg.Wait()
		return errors.Join(captured, recorded)
	})
}

// Shutdown captures the last window of every profile, saves it, delivers what it can until ctx is done, and ends all
// that the agent started; what could not be delivered stays in the spool for the next start. It acts once;
// every caller waits for the end, until its own ctx is done. The error lists what is incomplete.
func (a *Agent) Shutdown(ctx context.Context) error {
	// All that the agent started gives up at the same deadline: a moment later the error lists what is left.
	return a.finished.Do(ctx, 150*time.Millisecond, "agent: shutdown", func() error { return a.shutdown(ctx) })
}

func (a *Agent) shutdown(ctx context.Context) error {
	var bundled, kept error
	if a.incident != nil {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWindows)
		bundled = a.incident.Close(limit)
		cancel()
	}
	if a.run != nil {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWindows)
		kept = a.run.Close(limit)
		cancel()
	}
	captured := a.StopCapture(context.WithoutCancel(ctx)) // which limits its own time
	var wg sync.WaitGroup
	var delivered, saved, served, observed error
	if a.deliver != nil {
		wg.Go(func() { delivered = a.deliver.Stop(ctx) })
	}
	if a.saved != nil {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWindows)
		defer cancel()
		wg.Go(func() { saved = a.saved.Close(last) })
	}
	wg.Wait()
	if server := a.admin.Load(); server != nil {
		served = server.Shutdown(ctx)
	}
	for _, m := range a.metrics {
		observed = errors.Join(observed, m.Unregister())
	}
	a.restore()
	a.instance.Release()
	running.Store(false)
	return errors.Join(bundled, kept, captured, delivered, saved, served, observed)
}
