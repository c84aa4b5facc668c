// Package deliver sends the records of the spool to the server, through outages and restarts: it decides when to
// send, when to wait and what to set aside, and logs each outage once. Packages agent and scrape use it. Package spool
// keeps the records, package push sends one of them once; deliver has neither disk nor network code of its own.
package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"spanflame/agent/internal/guard"
	"spanflame/agent/internal/push"
	"spanflame/agent/internal/spool"
	"spanflame/internal/record"
)

// senders is the number of records that are sent at the same time. Pyroscope answers a push after it has stored the profile, which
// takes up to half a second; after an outage there is much to catch up with.
const senders = 8

// outageAfter is the number of sends in a row that must fail before the server counts as down. An occasional failure
// costs its sender a pause and delays no other.
const outageAfter = 4

// logAfter is the number of sends in a row that must fail before the outage is logged: a failure that passes by itself is
// not worth a line.
const logAfter = outageAfter + 2

// lastAttempts is the number of sends in a row that must fail during a shutdown before it leaves the records that are on
// disk to the next start.
const lastAttempts = 3

// lastPause is the longest pause that a server can ask for during a shutdown whose records are all on disk.
const lastPause = time.Second

// maxRefused is the number of times that the server may fail one record, while it accepts others, before the record is set
// aside. The pauses between the attempts begin with refusedPause and double up to maxRefusedPause: about a
// quarter of an hour in all.
const (
	maxRefused      = 20
	refusedPause    = time.Second
	maxRefusedPause = time.Minute
)

// Client sends one record once. The delivery closes it when it ends.
type Client interface {
	Push(context.Context, record.Record) push.Result
	Close()
}

var _ Client = (*push.Client)(nil)

// Options of a delivery. All are required. The delivery owns the spool and the client: it closes both.
type Options struct {
	Spool  *spool.Spool
	Client Client
	Meter  metric.Meter // for spanflame.push.* and spanflame.spool.*
	Logger *slog.Logger
	Guard  *guard.Guard // has the stages "spool", "push" and "delivery"
}

// Delivery sends the spool's records, oldest first, each until the server has answered. While the server accepts
// none, one sender tries and the others wait. It owns its goroutines.
type Delivery struct {
	spool  *spool.Spool
	client Client
	log    *slog.Logger
	stages struct{ spool, push, delivery *guard.Stage }
	took   metric.Float64Histogram // seconds of each send

	drain   context.Context // done: no record will follow, what is spooled is sent and then the senders end
	closing context.CancelFunc
	send    context.Context // done: the sends in flight are cancelled and the senders end
	cancel  context.CancelFunc
	senders sync.WaitGroup

	failing atomic.Pointer[failures] // nil while the server accepts profiles
	probe   chan *prober             // holds the prober while no sender has it

	changes  labelChanges
	observed []metric.Registration // of changes and of the spool

	mu     sync.Mutex // guards outage
	outage *outage    // logged, and its end is not logged yet; nil if there is none
}

// failures is a series of failed sends without a success between them.
type failures struct {
	since  time.Time
	count  int
	reason string    // of the last one
	until  time.Time // the server asked for a pause until then; zero if it did not
	before progress  // when the series began
}

// outage reports whether the series is long enough for the server to count as down.
func (f *failures) outage() bool { return f.count >= outageAfter }

// progress has the numbers of records delivered and dropped since the start.
type progress struct{ delivered, dropped spool.Count }

func progressOf(s spool.Stats) progress {
	return progress{delivered: s.Sum(spool.Delivered), dropped: s.Sum(spool.Dropped)}
}

// outage is a series of failures that was logged. It lasts until all that waited meanwhile is delivered: a server
// that is reachable now and then is one outage, and two lines in the log.
type outage struct {
	since  time.Time
	until  time.Time // when the server answered again; zero before that
	before progress
}

// prober is held by the one sender that tries a server that is down.
type prober struct {
	wait  backoff.ExponentialBackOff
	tries int // in a row, since the shutdown began
}

// Open opens the spool and the client of a server, and begins to deliver.
func Open(server push.Config, queue spool.Options, o Options) (_ *Delivery, err error) {
	client, err := push.New(server)
	if err != nil {
		return nil, err
	}
	if o.Spool, err = spool.Open(queue); err != nil {
		client.Close()
		return nil, err
	}
	o.Client = client
	return Start(o)
}

// Start begins to deliver. It fails only if the meter refuses an instrument, and closes the spool and the client then.
func Start(o Options) (*Delivery, error) {
	d := &Delivery{spool: o.Spool, client: o.Client, log: o.Logger, probe: make(chan *prober, 1)}
	d.stages.spool, d.stages.push, d.stages.delivery = o.Guard.Stage("spool"), o.Guard.Stage("push"), o.Guard.Stage("delivery")
	if err := d.instruments(o.Meter); err != nil {
		o.Client.Close()
		return nil, errors.Join(err, o.Spool.Close())
	}
	d.drain, d.closing = context.WithCancel(context.Background())
	d.send, d.cancel = context.WithCancel(context.Background())
	d.probe <- &prober{wait: backoff.ExponentialBackOff{
		InitialInterval: 500 * time.Millisecond, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: 30 * time.Second,
	}}
	for range senders {
		d.senders.Go(func() { d.stages.delivery.Keep(d.drain.Done(), d.run) })
	}
	return d, nil
}

func (d *Delivery) instruments(m metric.Meter) (err error) {
	d.took, err = m.Float64Histogram("spanflame.push.duration", metric.WithUnit("s"),
		metric.WithDescription("Time from sending a profile to the server's answer, by outcome."))
	if err != nil {
		return err
	}
	for _, observe := range []func(metric.Meter) (metric.Registration, error){d.changes.observe, d.observeSpool} {
		r, err := observe(m)
		if err != nil {
			return err
		}
		d.observed = append(d.observed, r)
	}
	return nil
}

// Put splits a record below the server's limits and spools the parts. It waits for the disk, not for the server.
func (d *Delivery) Put(r record.Record) { d.stages.spool.Try(func() { d.put(r) }) }

func (d *Delivery) put(r record.Record) {
	parts, err := push.Split(r, push.Limits{})
	if err != nil {
		// A profile that cannot be split is spooled as it is: the server's answer says what is wrong with it,
		// and the profile is set aside with that reason.
		parts = []record.Record{r}
	}
	for _, p := range parts {
		d.spool.Put(p)
	}
}

// run is one sender.
func (d *Delivery) run() {
	for d.send.Err() == nil {
		if d.down() == nil {
			if !d.one() {
				return
			}
			continue
		}
		select {
		case p := <-d.probe:
			if !d.tryWith(p) {
				return
			}
		case <-d.send.Done():
		}
	}
}

// tryWith is try, after which another sender can have the prober.
func (d *Delivery) tryWith(p *prober) (more bool) {
	defer func() { d.probe <- p }()
	return d.try(p)
}

// one sends the oldest record. It returns false when there is none and none will follow.
func (d *Delivery) one() bool {
	item, err := d.spool.Next(d.drain)
	if err != nil {
		return false // drained, or closed
	}
	begun := time.Now()
	r := d.push(item.Record)
	d.took.Record(context.Background(), time.Since(begun).Seconds(), metric.WithAttributes(attribute.Stringer("outcome", r.Outcome)))
	switch r.Outcome {
	case push.Accepted:
		d.spool.Done(item)
		d.changes.note(d.log, r.Changes)
		d.up()
	case push.Permanent, push.TooOld:
		d.spool.SetAside(item, r.Outcome.String(), r.Reason)
		d.up() // a refusal is an answer, too
	case push.Throttled, push.Transient:
		d.refused(item, r)
	}
	return true
}

// push sends one record. One that makes the agent panic is treated like one that the server fails.
func (d *Delivery) push(r record.Record) (result push.Result) {
	result = push.Result{Outcome: push.Transient, Reason: "the agent panicked as it sent the profile: see its log"}
	d.stages.push.Try(func() { result = d.client.Push(d.send, r) })
	return result
}

// refused decides about a record that the server did not accept now. A server that accepts nothing counts as down.
// One that has just accepted another record may fail on this one: it is larger than the server accepts at a time, or
// the server has an error with it. At the head of the queue such a record would be refused indefinitely and keep the
// others waiting, so it is tried again apart from them, with growing pauses.
func (d *Delivery) refused(item *spool.Item, r push.Result) {
	alone := d.failing.Load() == nil && d.drain.Err() == nil
	again := item.Tries > 0
	if alone {
		item.Tries++
	}
	switch {
	case item.Tries == 0:
		d.spool.Release(item)
	case alone && item.Tries == maxRefused:
		d.spool.SetAside(item, r.Outcome.String(), fmt.Sprintf("refused %d times while others were accepted, the last time with: %s", maxRefused, r.Reason))
	default:
		d.spool.Postpone(item, max(r.RetryAfter, min(refusedPause<<(item.Tries-1), maxRefusedPause)))
	}
	if !alone || !again {
		d.failed(r)
	}
}

// try is one attempt on a server that is down, and the pause after it if it still is. It returns false when
// the sender is to end.
func (d *Delivery) try(p *prober) bool {
	down := d.down()
	if down == nil {
		return true // another sender had an answer meanwhile
	}
	closing := d.drain.Done()
	if p.tries > 0 {
		closing = nil // the first attempt of the shutdown is made at once, further ones are not
	}
	t := time.NewTimer(max(p.wait.NextBackOff(), time.Until(down.until)))
	defer t.Stop()
	select {
	case <-t.C:
	case <-closing:
		if time.Until(down.until) > lastPause && d.safe() {
			d.cancel()
			return false
		}
	case <-d.send.Done():
		return false
	}
	if !d.one() {
		return false
	}
	if d.down() == nil {
		p.wait.Reset()
		p.tries = 0
		return true
	}
	if d.drain.Err() != nil {
		if p.tries == 0 {
			p.wait.Reset() // a long outage has made the pauses long: a shutdown has no time for them
		}
		p.tries++
		if down = d.down(); down != nil && d.safe() && (p.tries >= lastAttempts || time.Until(down.until) > lastPause) {
			d.cancel()
		}
	}
	return true
}

// safe reports whether every record is on disk, so that the next start has what this one does not send.
func (d *Delivery) safe() bool { return d.spool.Stats().MemoryItems == 0 }

// down returns the failures for which only one sender tries the server, nil if there are none: an outage, a server
// that asked for a pause, or any failure after the shutdown has begun.
func (d *Delivery) down() *failures {
	f := d.failing.Load()
	if f == nil || !f.outage() && f.until.IsZero() && d.drain.Err() == nil {
		return nil
	}
	return f
}

// failed notes that the server did not accept a profile. It logs an outage when that lasts. Before that it pauses the
// sender.
func (d *Delivery) failed(r push.Result) {
	if d.send.Err() != nil {
		return // cancelled by the shutdown
	}
	now := time.Now()
	next := &failures{reason: r.Reason}
	if r.RetryAfter > 0 {
		next.until = now.Add(r.RetryAfter)
	}
	for {
		before := d.failing.Load()
		if before == nil {
			next.since, next.count, next.before = now, 1, progressOf(d.spool.Stats())
		} else {
			next.since, next.count, next.before = before.since, before.count+1, before.before
		}
		if d.failing.CompareAndSwap(before, next) {
			break
		}
	}
	if next.count == logAfter {
		d.logOutage(next, r)
	}
	if d.down() == nil {
		d.pause()
	}
}

// pause keeps one sender from meeting the same failure again at once.
func (d *Delivery) pause() {
	t := time.NewTimer(100*time.Millisecond + rand.N(200*time.Millisecond))
	defer t.Stop()
	select {
	case <-t.C:
	case <-d.drain.Done():
	}
}

// logOutage logs an outage, unless one was logged that has not ended.
func (d *Delivery) logOutage(f *failures, r push.Result) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.outage != nil {
		return
	}
	d.outage = &outage{since: f.since, before: f.before}
	d.log.Warn("profile delivery failing; profiles are spooled and will be retried (logged once per outage)",
		"status", r.Status, "reason", r.Reason)
}

// up notes that the server has answered. The end of an outage is logged when no profile waits any more, so that one
// line can report all that was delivered.
func (d *Delivery) up() {
	ended := d.failing.Swap(nil)
	d.mu.Lock()
	defer d.mu.Unlock()
	o := d.outage
	if o == nil {
		return
	}
	now := time.Now()
	if o.until.IsZero() || ended != nil && ended.outage() {
		o.until = now
	}
	s := d.spool.Stats()
	if s.Items > 0 {
		return
	}
	p := progressOf(s)
	d.log.Info("profile delivery recovered; no profile is waiting", "outage", o.until.Sub(o.since).Round(time.Millisecond).String(),
		"caught_up_after", now.Sub(o.until).Round(time.Millisecond).String(),
		"profiles", p.delivered.Items-o.before.delivered.Items, "bytes", p.delivered.Bytes-o.before.delivered.Bytes,
		"dropped", p.dropped.Items-o.before.dropped.Items)
	d.outage = nil
}

// Stats returns the state of the spool.
func (d *Delivery) Stats() spool.Stats { return d.spool.Stats() }

// Degraded returns a line for each thing that does not work: the server, and the spool's disk.
func (d *Delivery) Degraded() []string {
	var words []string
	if down := d.down(); down != nil {
		words = append(words, fmt.Sprintf("profile delivery failing since %s: %s", down.since.UTC().Format(time.RFC3339), down.reason))
	}
	if s := d.spool.Stats(); s.Degraded != nil {
		words = append(words, s.Degraded.Error())
	}
	return words
}

// Stop sends the spooled records until ctx is done, or until sends fail while every record is safe on disk, and closes the
// spool and the client. The error has the number of records left. A record that is put later is counted as dropped.
func (d *Delivery) Stop(ctx context.Context) error {
	d.closing()
	stop := context.AfterFunc(ctx, d.cancel)
	d.senders.Wait()
	stop()
	d.cancel()
	held := d.spool.Stats()
	err := d.spool.Close() // brings what is in memory to disk, if it can
	d.client.Close()
	for _, r := range d.observed {
		err = errors.Join(err, r.Unregister())
	}
	left := d.spool.Stats()
	if left.Items > 0 {
		err = errors.Join(err, fmt.Errorf("%d profiles (%d bytes) are not delivered; they stay in %s for the next start", left.Items, left.Bytes, held.Dir))
	}
	if lost := held.Items - left.Items; lost > 0 {
		err = errors.Join(err, fmt.Errorf("%d profiles (%d bytes) are lost: neither the server nor the disk accepted them", lost, held.Bytes-left.Bytes))
	}
	return err
}
