// Package scrape profiles services that cannot be changed: it fetches the profiles that package net/http/pprof serves, in
// windows, and delivers and saves them as an agent does, by the same settings. The command "spanflame scrape" uses it. It is
// not for services that can add package agent, whose profiles are linked to spans.
package scrape

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"

	"spanflame/agent"
	"spanflame/agent/internal/admin"
	"spanflame/agent/internal/deliver"
	"spanflame/agent/internal/guard"
	"spanflame/agent/internal/save"
	"spanflame/agent/internal/spool"
	"spanflame/internal/record"
	"spanflame/internal/redact"
)

// Config configures what is scraped, and what happens to it.
type Config struct {
	// Agent has the settings that are an agent's, too: where profiles are delivered and saved, the length of a window, labels
	// of all profiles, the listener and the logger. Its ServiceName is that of the scraper, not of the services.
	Agent agent.Config

	Targets []Target // that are always scraped

	// Files name targets as Prometheus does for its file_sd_configs, in JSON or YAML. They are read again when they change.
	Files []string

	// Types are the profiles to fetch, by the names that net/http/pprof gives them. Default: profile (of the CPU), heap,
	// goroutine, mutex and block.
	Types []string

	User     string // of basic authentication, for all targets
	Password string
	Token    string // a bearer token for all targets, instead of user and password
	CAFile   string // a PEM file with the authorities to trust, in place of the system's

	// Timeout limits a request, in addition to the time for which a CPU profile is taken. Default: 10 s.
	Timeout time.Duration
}

// Target is a process that serves its profiles.
type Target struct {
	// URL is where the profiles are, such as http://10.0.0.7:6060/debug/pprof; without a path, they are in /debug/pprof.
	URL string

	Service string            // the service's name; empty is the host with its port
	Labels  map[string]string // of its profiles; service_instance_id is the host with its port, unless it is set
}

const (
	defaultPath    = "/debug/pprof"
	defaultTimeout = 10 * time.Second

	// reread is the time between two looks at the files.
	reread = 5 * time.Second

	// maxServices limits the services, each of which has a part of the directory of its own.
	maxServices = 1000

	// lastWindows limits how long the end waits for the last windows.
	lastWindows = 5 * time.Second
)

// complete returns the target with its defaults, and with labels that it does not have itself. The error has its address
// without secrets.
func (t Target) complete(labels map[string]string) (Target, error) {
	failed := func(err error) (Target, error) { return Target{}, fmt.Errorf("target %q: %w", redact.URL(t.URL), err) }
	u, err := url.Parse(t.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return failed(errors.New("want the address of a target like http://10.0.0.7:6060, without a query"))
	}
	if strings.Trim(u.Path, "/") == "" {
		u.Path = defaultPath
	}
	u.Path = strings.TrimRight(u.Path, "/")
	t.URL = u.String()
	if t.Service == "" {
		t.Service = u.Host
	}
	all := maps.Clone(labels)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, t.Labels)
	if t.Labels[record.InstanceLabel] == "" {
		all[record.InstanceLabel] = u.Host
	}
	t.Labels = all
	now := time.Now()
	if err := (record.Meta{Service: t.Service, Type: record.CPU, Start: now, End: now, Labels: all}).Validate(); err != nil {
		return failed(err)
	}
	return t, nil
}

// key identifies a target: one with another name or label is another.
func (t Target) key() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q%q", t.URL, t.Service)
	for _, name := range slices.Sorted(maps.Keys(t.Labels)) {
		fmt.Fprintf(&b, "%q%q", name, t.Labels[name])
	}
	return b.String()
}

// Scraper scrapes until it is shut down. It owns its goroutines.
type Scraper struct {
	cfg    Config
	fixed  []Target // complete
	log    *slog.Logger
	guard  *guard.Guard
	stage  *guard.Stage
	client client
	types  []kind
	parse  chan struct{} // capacity: how many profiles are read at a time

	deliver *deliver.Delivery // nil if profiles are not sent
	pages   *admin.Server     // nil if it is off
	metrics metric.Registration
	counts  counts

	stop    context.Context // done: the targets take their last windows and end
	cancel  context.CancelFunc
	last    context.Context // done: their last requests are cancelled
	giveUp  context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	targets map[string]*target
	using   map[string]int            // by service, targets that have not ended
	saved   map[string]*save.Profiles // by service
	closed  bool
	files   map[string]file // by path
	refused int             // targets, since there are too many services
}

// Start begins to scrape. Targets that do not answer are no error: that is logged once for each, and counted.
func Start(cfg Config) (_ *Scraper, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("scrape: %w", err)
		}
	}()
	if cfg.Agent, err = cfg.Agent.Resolve(); err != nil {
		return nil, err
	}
	if cfg.Timeout < 0 {
		return nil, fmt.Errorf("timeout %v: want more than 0", cfg.Timeout)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	for _, name := range cfg.Files {
		if _, err := filepath.Match(name, ""); err != nil && isPattern(name) {
			return nil, fmt.Errorf("file %q: %w", name, err)
		}
	}
	s := &Scraper{
		cfg: cfg, log: cfg.Agent.Logger, guard: guard.New(cfg.Agent.Logger), parse: make(chan struct{}, parsers),
		targets: map[string]*target{}, using: map[string]int{}, saved: map[string]*save.Profiles{}, files: map[string]file{},
	}
	s.stage = s.guard.Stage("scrape")
	if s.types, err = kinds(cfg.Types); err != nil {
		return nil, err
	}
	for _, t := range cfg.Targets {
		complete, err := t.complete(cfg.Agent.ProfileLabels)
		if err != nil {
			return nil, err
		}
		s.fixed = append(s.fixed, complete)
	}
	if s.client, err = newClient(cfg); err != nil {
		return nil, err
	}
	meter := cfg.Agent.MeterProvider.Meter("spanflame/agent/scrape")
	if s.metrics, err = s.observe(meter); err != nil {
		return nil, err
	}
	if cfg.Agent.Delivers() {
		if err := s.startDelivery(meter); err != nil {
			return nil, errors.Join(err, s.metrics.Unregister())
		}
	}
	if cfg.Agent.AdminAddress != off {
		s.pages = admin.Serve(admin.ServerOptions{
			Address: cfg.Agent.AdminAddress, Hosts: cfg.Agent.AdminHosts, Logger: s.log,
			Pages: admin.Handler(admin.Options{Metrics: cfg.Agent.MetricsHandler, Problems: s.problems, Token: cfg.Agent.AdminToken, Guard: s.guard}),
		})
	}
	s.stop, s.cancel = context.WithCancel(context.Background())
	s.last, s.giveUp = context.WithCancel(context.Background())
	s.look()
	s.running.Go(func() {
		s.stage.Keep(s.stop.Done(), func() {
			for sleep(s.stop, time.Now().Add(reread)) {
				s.look()
			}
		})
	})
	return s, nil
}

const off = "off"

func (s *Scraper) startDelivery(meter metric.Meter) (err error) {
	cfg := s.cfg.Agent
	s.deliver, err = deliver.Open(cfg.Server(), spool.Options{
		Service: cfg.ServiceName, AnyService: true, Dir: cfg.SpoolDir, MaxBytes: cfg.SpoolMaxBytes, MaxAge: cfg.SpoolMaxAge, Logger: s.log,
	}, deliver.Options{Meter: meter, Logger: s.log, Guard: s.guard})
	return err
}

// look starts to scrape the targets that are new, and ends the others.
func (s *Scraper) look() {
	wanted, services, refused := map[string]Target{}, map[string]bool{}, 0
	for _, t := range slices.Concat(s.fixed, s.read()) {
		if !services[t.Service] && len(services) == maxServices {
			refused++
			continue
		}
		services[t.Service] = true
		wanted[t.key()] = t
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused = refused
	if s.stop.Err() != nil {
		return
	}
	for key, t := range s.targets {
		if _, ok := wanted[key]; !ok {
			t.cancel()
			delete(s.targets, key)
		}
	}
	for key, t := range wanted {
		if s.targets[key] == nil {
			s.targets[key] = s.scrape(t)
		}
	}
}

// emit hands over a profile of a target.
func (s *Scraper) emit(r record.Record) {
	s.counts.fetched(r)
	if saved := s.saver(r.Service); saved != nil {
		saved.Put(r)
	}
	if s.deliver != nil {
		s.deliver.Put(r) // after the other: this one waits for the disk
	}
}

// saver returns what saves the profiles of a service, nil if they are not saved.
func (s *Scraper) saver(service string) *save.Profiles {
	dir := s.cfg.Agent.Dir
	if dir == "" || dir == off {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.saved[service]; p != nil || s.closed {
		return p
	}
	p := save.OpenProfiles(save.Options{
		Dir: dir, Service: service, MaxBytes: s.cfg.Agent.DirMaxBytes, MaxAge: s.cfg.Agent.DirMaxAge, FreePart: save.FreePart, Guard: s.guard,
	}, s.log)
	s.saved[service] = p
	return p
}

// ended closes what saves the profiles of a service, after the last of its targets has ended.
func (s *Scraper) ended(service string) {
	s.mu.Lock()
	s.using[service]--
	if s.using[service] > 0 || s.stop.Err() != nil { // at the end of the scraper it closes them itself
		s.mu.Unlock()
		return
	}
	saved := s.saved[service]
	delete(s.using, service)
	delete(s.saved, service)
	s.mu.Unlock()
	if saved == nil {
		return
	}
	if err := saved.Close(s.last); err != nil {
		s.log.Warn("profiles of a service without targets are not saved in full", "service", service, "error", err)
	}
}

// problems returns what does not work as it should.
func (s *Scraper) problems() []agent.Problem {
	var found []agent.Problem
	if s.deliver != nil {
		for _, m := range s.deliver.Degraded() {
			found = append(found, agent.Problem{Reason: "delivery", Message: m})
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for service, p := range s.saved {
		if err := p.Stats().Degraded; err != nil {
			found = append(found, agent.Problem{Reason: "saving", Message: fmt.Sprintf("profiles of %s are not saved as they should be: %v", service, err)})
		}
	}
	if s.refused > 0 {
		found = append(found, agent.Problem{Reason: "setting", Message: fmt.Sprintf(
			"%d targets are not scraped: at most %d services can be; give targets of one service the same service_name", s.refused, maxServices)})
	}
	for name, f := range s.files {
		if f.err != nil {
			found = append(found, agent.Problem{Reason: "setting", Message: fmt.Sprintf("targets are those of an earlier state of %s: %v", name, f.err)})
		}
	}
	for _, t := range s.targets {
		if err := t.failing(); err != nil {
			found = append(found, agent.Problem{Reason: "scrape", Message: fmt.Sprintf("%s: %v", t.shown, err)})
		}
	}
	slices.SortFunc(found, func(a, b agent.Problem) int { return strings.Compare(a.Reason+a.Message, b.Reason+b.Message) })
	return found
}

// Shutdown takes the last windows of all targets, without waiting for CPU profiles to be complete, delivers and saves them
// until ctx is done, and ends all that was started. What could not be delivered stays in the spool for the next start. It is
// called once. The error lists what is incomplete.
func (s *Scraper) Shutdown(ctx context.Context) error {
	s.cancel()
	ended := time.AfterFunc(lastWindows, s.giveUp)
	done := make(chan struct{})
	go func() {
		s.running.Wait()
		close(done)
	}()
	var errs []error
	select {
	case <-done:
	case <-ctx.Done(): // a file or a disk may not answer
		errs = append(errs, errors.New("the last windows of the targets are not complete"))
	}
	ended.Stop()
	s.giveUp()
	s.mu.Lock()
	s.closed = true
	saved := maps.Clone(s.saved)
	s.mu.Unlock()
	for _, service := range slices.Sorted(maps.Keys(saved)) {
		errs = append(errs, saved[service].Close(ctx))
	}
	if s.deliver != nil {
		errs = append(errs, s.deliver.Stop(ctx))
	}
	if s.pages != nil {
		errs = append(errs, s.pages.Shutdown(ctx))
	}
	s.client.http.CloseIdleConnections()
	if err := errors.Join(append(errs, s.metrics.Unregister())...); err != nil {
		return fmt.Errorf("scrape: shutdown: %w", err)
	}
	return nil
}

// Addr returns the address of the listener; it is empty if there is none.
func (s *Scraper) Addr() string {
	if s.pages == nil {
		return ""
	}
	return s.pages.Addr()
}

// sleep waits until a time, and reports whether ctx is not done.
func sleep(ctx context.Context, until time.Time) bool {
	t := time.NewTimer(time.Until(until))
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
