// Package incident keeps what the agent knows of the last minutes, and writes it into one file when something goes wrong or
// somebody asks: an incident bundle, a zip that needs no program of this module to be read. The agent starts one [Keeper],
// passes it every captured record and diagnosis, and serves its bundles at the operator's listener. It captures no profile
// itself, and it is not for data that must not be lost: what a bundle cannot have, it lists.
package incident

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"spanflame/agent/internal/guard"
	"spanflame/agent/internal/memlimit"
	"spanflame/internal/incidentfile"
	"spanflame/internal/record"
)

// Options configures a Keeper.
type Options struct {
	Service, Instance, Version string

	// Dir is the directory below which bundles are kept, in incidents/SERVICE; empty if they are only sent to whoever
	// requests one.
	Dir      string
	Max      int           // bundles
	MaxBytes int64         // of all together
	MaxAge   time.Duration // older ones are removed
	Every    time.Duration // at most one bundle in this time that nobody requested

	Triggers Triggers

	// Trace writes the flight recorder's ring.
	Trace func(io.Writer) error
	// EndWindows ends the windows of all profiles, whose records the keeper then has got, with a label for the trigger.
	EndWindows func(ctx context.Context, trigger string) error
	// Settle returns when the keeper has got the slow requests that have ended.
	Settle func(context.Context) error

	Settings [][2]string // of the agent, by name, without secrets

	Guard  *guard.Guard // recovers panics
	Logger *slog.Logger
}

// Limits of what is kept in memory.
const (
	keptWindows   = 2       // profiles of each type
	maxProfile    = 4 << 20 // bytes of a profile; larger ones are not kept
	keptWall      = 64      // profiles of slow spans
	keptWallBytes = 4 << 20
	keptSlow      = 200 // slow requests
)

// patience limits the time until the windows have ended and the requests that were slow just before are known. On a machine
// that has CPU time to spare it takes a fraction of a second.
const patience = 10 * time.Second

// ErrBusy is returned while another bundle is being written.
var ErrBusy = errors.New("another incident bundle is being written: try again when it is there")

// ErrClosed is returned after the agent's shutdown.
var ErrClosed = errors.New("the agent has shut down")

// Slow is a slow request, as it was diagnosed.
type Slow struct {
	Start           time.Time
	Duration        time.Duration
	TraceID, SpanID string
	Name            string
	Diagnosis       string
}

// Keeper keeps the last minutes. Its methods can be called concurrently. It owns one goroutine, and another one while it
// writes a bundle that nobody requested.
type Keeper struct {
	o      Options
	store  *store // nil without a directory
	stage  *guard.Stage
	memory *memlimit.Meter

	making  chan struct{}   // full while a bundle is being made
	ending  context.Context // until Close
	end     context.CancelFunc
	running sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	windows   map[record.Type][]record.Record
	wall      []record.Record
	wallBytes int
	tooLarge  map[record.Type]bool // whether the last profile was
	slow      []Slow
	samples   []sample
	automatic time.Time // of the last bundle that nobody requested
	failed    error     // of the last bundle
	counts    map[Count]int64
}

// Count names a counter of bundles: by their trigger, and what became of them.
type Count struct{ Trigger, Outcome string }

// The outcomes.
const (
	Written    = "written"
	Failed     = "failed"
	Suppressed = "suppressed" // because of another one, or too soon after it
)

// New returns a keeper, which Start starts.
func New(o Options) *Keeper {
	k := &Keeper{
		o: o, stage: o.Guard.Stage("incident bundles"), memory: memlimit.New(),
		making:  make(chan struct{}, 1),
		windows: map[record.Type][]record.Record{}, tooLarge: map[record.Type]bool{}, counts: map[Count]int64{},
	}
	k.ending, k.end = context.WithCancel(context.Background())
	if o.Dir != "" {
		k.store = &store{base: o.Dir, service: o.Service, max: o.Max, maxBytes: o.MaxBytes, maxAge: o.MaxAge}
	}
	return k
}

// Start begins to take samples and to look for triggers. It removes what an earlier process left unfinished.
func (k *Keeper) Start() {
	signalled, forget := (<-chan os.Signal)(nil), func() {}
	if k.o.Triggers.Signal {
		signalled, forget = signals()
	}
	k.running.Go(func() {
		defer forget()
		k.stage.Keep(k.ending.Done(), func() { k.run(signalled) })
	})
}

// Put keeps a record if it is among the last of its type.
func (k *Keeper) Put(r record.Record) {
	k.mu.Lock()
	defer k.mu.Unlock()
	size := len(r.Profile) + len(r.Comments)
	if k.tooLarge[r.Type] = size > maxProfile; k.tooLarge[r.Type] {
		return
	}
	if r.Type != record.Wall {
		k.windows[r.Type] = last(append(k.windows[r.Type], r), keptWindows)
		return
	}
	k.wall = append(k.wall, r)
	k.wallBytes += size
	for len(k.wall) > keptWall || k.wallBytes > keptWallBytes {
		k.wallBytes -= len(k.wall[0].Profile) + len(k.wall[0].Comments)
		k.wall[0] = record.Record{}
		k.wall = k.wall[1:]
	}
}

// Diagnosed keeps a slow request.
func (k *Keeper) Diagnosed(s Slow) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.slow = last(append(k.slow, s), keptSlow)
}

// last returns at most the last n, in an array of their own if it was much larger.
func last[T any](s []T, n int) []T {
	if len(s) <= n {
		return s
	}
	clear(s[:len(s)-n])
	return s[len(s)-n:]
}

// run takes samples, and looks whether one is a reason for a bundle.
func (k *Keeper) run(signalled <-chan os.Signal) {
	k.clean(true)
	ticks, hours := time.NewTicker(sampleEvery), time.NewTicker(time.Hour)
	defer ticks.Stop()
	defer hours.Stop()
	sampler, watch := newSampler(k.memory), newWatch(k.o.Triggers)
	for {
		select {
		case <-k.ending.Done():
			return
		case <-signalled:
			if !k.trigger(incidentfile.Signal, "SIGUSR1") {
				k.o.Logger.Info("no incident bundle is written for the signal: one was written a short time ago, or is being written, or none are kept",
					"every", k.o.Every.String())
			}
		case <-hours.C:
			k.clean(false)
		case <-ticks.C:
			s := sampler.next(time.Now()) // not the tick's own time: this goroutine may be late
			k.mu.Lock()
			k.samples = last(append(k.samples, s), keptSamples)
			k.mu.Unlock()
			for _, f := range watch.look(s) {
				_ = k.trigger(f.trigger, f.detail)
			}
		}
	}
}

// clean removes unfinished and old bundles. At the start it also notes when the last one was written that nobody requested, so
// that a service that crashes again and again does not write one each time.
func (k *Keeper) clean(start bool) {
	if k.store == nil {
		return
	}
	unfinished, err := k.store.clean(time.Now())
	if err != nil {
		k.o.Logger.Warn("incident bundles cannot be removed", "directory", k.store.path(), "error", err)
	}
	if unfinished > 0 {
		k.o.Logger.Info("removed incident bundles that were not finished, because the process was killed", "bundles", unfinished)
	}
	if !start {
		return
	}
	ids, err := k.store.newest()
	if err != nil {
		return // the next bundle says so
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, id := range ids {
		if id.Trigger != incidentfile.Request && id.At.Before(time.Now()) {
			k.automatic = id.At
			return
		}
	}
}

// trigger makes a bundle that nobody requested, unless there was one a short time ago. It reports whether it does.
func (k *Keeper) trigger(trigger, detail string) bool {
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return false
	}
	if k.store == nil || now.Sub(k.automatic) < k.o.Every && !k.automatic.IsZero() || !k.reserve() {
		k.counts[Count{trigger, Suppressed}]++
		return false
	}
	k.automatic = now
	k.running.Go(func() {
		defer k.release()
		k.stage.Try(func() { // also if the service's logger panics
			_, _, _ = k.make(context.Background(), now, trigger, detail) // which logs and counts the error
		})
	})
	return true
}

func (k *Keeper) reserve() bool {
	select {
	case k.making <- struct{}{}:
		return true
	default:
		return false
	}
}

func (k *Keeper) release() { <-k.making }

// Request makes a bundle now, for a person, who must close it.
func (k *Keeper) Request(ctx context.Context) (id string, bundle io.ReadCloser, err error) {
	k.mu.Lock()
	if k.closed {
		k.mu.Unlock()
		return "", nil, ErrClosed
	}
	if !k.reserve() {
		k.counts[Count{incidentfile.Request, Suppressed}]++
		k.mu.Unlock()
		return "", nil, ErrBusy
	}
	k.running.Add(1)
	k.mu.Unlock()
	defer k.running.Done()
	defer k.release()
	return k.make(ctx, time.Now(), incidentfile.Request, "")
}

// Alert makes a bundle because of what an Alertmanager has sent. It returns what it does about it.
func (k *Keeper) Alert(body io.Reader) (string, error) {
	if !k.o.Triggers.Alert {
		return "", errors.New("alerts write no bundles: set SPANFLAME_INCIDENT_TRIGGERS=alert=on")
	}
	names, err := firing(body, k.o.Service)
	switch {
	case err != nil:
		return "", err
	case names == "":
		return "no alert fires for this service", nil
	}
	if !k.trigger(incidentfile.Alert, names) {
		return "received, and no bundle is written: one was in the last " + k.o.Every.String() + ", or is being written, or none are kept", nil
	}
	return "received; a bundle is being written", nil
}

// IDs returns the bundles that are kept, newest first.
func (k *Keeper) IDs() (ids []string, err error) {
	if k.store == nil {
		return nil, nil
	}
	all, err := k.store.newest()
	for _, id := range all {
		ids = append(ids, id.String())
	}
	return ids, err
}

// Open opens a bundle that is kept.
func (k *Keeper) Open(id string) (io.ReadCloser, error) {
	parsed, err := incidentfile.ParseID(id)
	if err != nil {
		return nil, err
	}
	if k.store == nil {
		return nil, os.ErrNotExist
	}
	return k.store.read(parsed)
}

// make makes a bundle, keeps it, and logs and counts what becomes of it.
func (k *Keeper) make(ctx context.Context, at time.Time, trigger, detail string) (string, io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(k.ending, cancel)() // at the service's end, without what would have to be waited for
	id := incidentfile.NewID(at, trigger)
	err := errors.New("the agent panicked: see its log")
	var b io.ReadCloser
	size := int64(0)
	k.stage.Try(func() {
		c := &collector{k: k, about: incidentfile.Incident{
			ID: id.String(), Service: k.o.Service, Instance: k.o.Instance, Version: k.o.Version, Trigger: trigger, Detail: detail, At: id.At,
		}}
		b, size, err = k.put(id, func(w io.Writer) error { return c.write(ctx, w) })
	})
	k.mu.Lock()
	outcome := Written
	if err != nil {
		outcome = Failed
	}
	k.counts[Count{trigger, outcome}]++
	k.failed = err
	k.mu.Unlock()
	if err != nil {
		k.o.Logger.Warn("an incident bundle cannot be written", "trigger", trigger, "detail", detail, "error", err)
		return "", nil, fmt.Errorf("write an incident bundle: %w", err)
	}
	args := []any{"trigger", trigger, "detail", detail, "id", id.String(), "bytes", size, "took", time.Since(at).Round(time.Millisecond).String()}
	if k.store != nil {
		args = append(args, "directory", k.store.path())
	}
	k.o.Logger.Info("incident bundle written", args...)
	return id.String(), b, nil
}

// put writes a bundle to the directory, or to memory if there is none. It returns one that was requested.
func (k *Keeper) put(id incidentfile.ID, fill func(io.Writer) error) (io.ReadCloser, int64, error) {
	if k.store == nil {
		var b bytes.Buffer
		if err := fill(&limited{&b, k.o.MaxBytes}); err != nil {
			return nil, 0, err
		}
		return io.NopCloser(&b), int64(b.Len()), nil
	}
	size, err := k.store.write(id, fill)
	if err == nil {
		if err := k.store.trim(time.Now(), id); err != nil {
			k.o.Logger.Warn("incident bundles cannot be removed", "directory", k.store.path(), "error", err)
		}
	}
	if err != nil || id.Trigger != incidentfile.Request {
		return nil, size, err
	}
	f, err := k.store.read(id)
	if err != nil {
		return nil, size, err
	}
	return f, size, nil
}

// Stats has the counts since the start.
type Stats struct {
	Counts map[Count]int64
	Failed error // why the last bundle could not be written, nil if it was
}

// Stats returns the counts since the start.
func (k *Keeper) Stats() Stats {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := Stats{Counts: map[Count]int64{}, Failed: k.failed}
	for c, n := range k.counts {
		s.Counts[c] = n
	}
	return s
}

// Close ends what was started, and waits for a bundle that is being written until ctx is done.
func (k *Keeper) Close(ctx context.Context) error {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.end()
	done := make(chan struct{})
	go func() {
		k.running.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("an incident bundle is not finished: %w", context.Cause(ctx))
	}
}
