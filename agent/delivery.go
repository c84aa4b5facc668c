package agent

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

	"spanflame/agent/internal/push"
	"spanflame/agent/internal/spool"
	"spanflame/internal/record"
)

// senders is how many records are under way at once. Pyroscope answers a push when it has stored the
// profile, which takes it up to half a second; after an outage there is much to catch up with.
const senders = 8

// outageAfter is how many sends in a row must fail before the server counts as down. A failure now and then
// costs its sender a pause and holds up no other.
const outageAfter = 4

// sayAfter is how many must fail before the log says so: it is for people, who need not hear of what passes
// by itself.
const sayAfter = outageAfter + 2

// lastAttempts is how often in a row a shutdown finds the server not taking profiles before it leaves what
// is safe on disk to the next start.
const lastAttempts = 3

// maxRefused is how often the server may fail one record, while it takes others, before the record is set
// aside. The pauses between are refusedPause at first and double each time, up to maxRefusedPause: about a
// quarter of an hour in all.
const (
	maxRefused      = 20
	refusedPause    = time.Second
	maxRefusedPause = time.Minute
)

// client sends one record once. The delivery closes it in the end.
type client interface {
	Push(context.Context, record.Record) push.Result
	Close()
}

var _ client = (*push.Client)(nil)

// delivery takes records from the spool, oldest first, and sends each until the server has answered it.
// While the server takes none, one sender tries and the others wait. It owns its goroutines, the spool and
// the client.
type delivery struct {
	spool  *spool.Spool
	client client
	log    *slog.Logger
	took   metric.Float64Histogram // seconds of each send

	drain   context.Context // done: no record will follow, what is spooled is sent and then the senders end
	closing context.CancelFunc
	send    context.Context // done: the sends in flight are cancelled and the senders end
	cancel  context.CancelFunc
	senders sync.WaitGroup

	trouble atomic.Pointer[trouble] // nil while the server takes profiles
	probe   chan *prober            // holds the prober while no sender has it

	changes labelChanges

	mu     sync.Mutex // guards outage
	outage *outage    // what the log has been told of and not yet of its end
}

// trouble is a row of failed sends with no answer between them.
type trouble struct {
	since  time.Time
	fails  int
	reason string    // of the last one
	until  time.Time // the server asked to be left alone until then; zero if it did not
	before progress  // when it began
}

// outage says whether the row is long enough to be one.
func (t *trouble) outage() bool { return t.fails >= outageAfter }

// progress is what has become of records since the start.
type progress struct{ delivered, dropped spool.Count }

func progressOf(s spool.Stats) progress {
	return progress{delivered: s.Sum(spool.Delivered), dropped: s.Sum(spool.Dropped)}
}

// outage is a row of failures that was said in the log. It lasts until all that waited meanwhile has gone: a
// server that comes and goes is one outage, and two lines.
type outage struct {
	since  time.Time
	until  time.Time // when the server answered again; zero before that
	before progress
}

// prober is what the one sender has that tries a server that is down.
type prober struct {
	wait  backoff.ExponentialBackOff
	tries int // in a row, since the shutdown began
}

// startDelivery takes over the spool and the client.
func startDelivery(s *spool.Spool, c client, took metric.Float64Histogram, log *slog.Logger) *delivery {
	d := &delivery{spool: s, client: c, took: took, log: log, probe: make(chan *prober, 1)}
	d.drain, d.closing = context.WithCancel(context.Background())
	d.send, d.cancel = context.WithCancel(context.Background())
	d.probe <- &prober{wait: backoff.ExponentialBackOff{
		InitialInterval: 500 * time.Millisecond, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: 30 * time.Second,
	}}
	for range senders {
		d.senders.Go(d.run)
	}
	return d
}

// put splits a record below the server's limits and spools the parts.
func (d *delivery) put(r record.Record) {
	parts, err := push.Split(r, push.Limits{})
	if err != nil {
		// A profile that cannot be split is spooled as it is: the server says what is wrong with it, and it
		// is set aside with that reason.
		parts = []record.Record{r}
	}
	for _, p := range parts {
		d.spool.Put(p)
	}
}

// run is one sender.
func (d *delivery) run() {
	for d.send.Err() == nil {
		if d.down() == nil {
			if !d.one() {
				return
			}
			continue
		}
		select {
		case p := <-d.probe:
			more := d.try(p)
			d.probe <- p
			if !more {
				return
			}
		case <-d.send.Done():
		}
	}
}

// one sends the oldest record. It returns false when there is none and none will follow.
func (d *delivery) one() bool {
	item, err := d.spool.Next(d.drain)
	if err != nil {
		return false // drained, or closed
	}
	begun := time.Now()
	r := d.client.Push(d.send, item.Record)
	d.took.Record(context.Background(), time.Since(begun).Seconds(), metric.WithAttributes(attribute.Stringer("outcome", r.Outcome)))
	switch r.Outcome {
	case push.Accepted:
		d.spool.Done(item)
		d.changes.note(d.log, r.Changes)
		d.up()
	case push.Permanent, push.TooOld:
		d.spool.SetAside(item, r.Outcome.String(), r.Reason)
		d.up() // an answer, if not the one that was hoped for
	case push.Throttled, push.Transient:
		d.refused(item, r)
	}
	return true
}

// refused deals with a record that the server did not take now. A server that takes nothing counts as down. One
// that has just taken another record may have something against this one: more than it takes at a time, or
// something that it stumbles over. At the head of the queue such a record would be refused for ever and keep
// the others waiting, so it is tried again apart from them, ever later.
func (d *delivery) refused(item *spool.Item, r push.Result) {
	alone := d.trouble.Load() == nil && d.drain.Err() == nil
	again := item.Tries > 0
	if alone {
		item.Tries++
	}
	switch {
	case item.Tries == 0:
		d.spool.Release(item)
	case alone && item.Tries == maxRefused:
		d.spool.SetAside(item, r.Outcome.String(), fmt.Sprintf("refused %d times while others were taken, the last time with: %s", maxRefused, r.Reason))
	default:
		d.spool.Postpone(item, max(r.RetryAfter, min(refusedPause<<(item.Tries-1), maxRefusedPause)))
	}
	if !alone || !again {
		d.failed(r)
	}
}

// try is one attempt on a server that is down, and the pause after it if it still is. It returns false when
// the sender is to end.
func (d *delivery) try(p *prober) bool {
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
			p.wait.Reset() // a long outage has made the pauses long: there is no time for such now
		}
		p.tries++
		if p.tries >= lastAttempts && d.spool.Stats().MemoryItems == 0 {
			d.cancel()
		}
	}
	return true
}

// down is the trouble for which the senders leave the server to one of them, nil if there is none: an outage,
// a server that asked to be left alone, or any failure once the shutdown has begun and the end is near.
func (d *delivery) down() *trouble {
	t := d.trouble.Load()
	if t == nil || !t.outage() && t.until.IsZero() && d.drain.Err() == nil {
		return nil
	}
	return t
}

// failed notes that the server did not take a profile. It says so when that lasts, and has the sender pause
// until the server counts as down.
func (d *delivery) failed(r push.Result) {
	if d.send.Err() != nil {
		return // broken off by the shutdown
	}
	now := time.Now()
	next := &trouble{reason: r.Reason}
	if r.RetryAfter > 0 {
		next.until = now.Add(r.RetryAfter)
	}
	for {
		before := d.trouble.Load()
		if before == nil {
			next.since, next.fails, next.before = now, 1, progressOf(d.spool.Stats())
		} else {
			next.since, next.fails, next.before = before.since, before.fails+1, before.before
		}
		if d.trouble.CompareAndSwap(before, next) {
			break
		}
	}
	if next.fails == sayAfter {
		d.say(next, r)
	}
	if d.down() == nil {
		d.pause()
	}
}

// pause keeps one sender from meeting the same failure again at once.
func (d *delivery) pause() {
	t := time.NewTimer(100*time.Millisecond + rand.N(200*time.Millisecond))
	defer t.Stop()
	select {
	case <-t.C:
	case <-d.drain.Done():
	}
}

// say tells the log of an outage, unless it has been told of one that is not over.
func (d *delivery) say(t *trouble, r push.Result) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.outage != nil {
		return
	}
	d.outage = &outage{since: t.since, before: t.before}
	d.log.Warn("profiles cannot be delivered: the service goes on, they wait in the spool, and this is not said again until they can",
		"status", r.Status, "reason", r.Reason)
}

// up notes that the server has answered. The end of an outage is said when nothing waits any more, so that the
// one line can give all that was delivered.
func (d *delivery) up() {
	ended := d.trouble.Swap(nil)
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
	d.log.Info("profiles are delivered again, and none waits", "outage", o.until.Sub(o.since).Round(time.Millisecond).String(),
		"caught_up_after", now.Sub(o.until).Round(time.Millisecond).String(),
		"profiles", p.delivered.Items-o.before.delivered.Items, "bytes", p.delivered.Bytes-o.before.delivered.Bytes,
		"dropped", p.dropped.Items-o.before.dropped.Items)
	d.outage = nil
}

func (d *delivery) degraded() []string {
	var words []string
	if down := d.down(); down != nil {
		words = append(words, fmt.Sprintf("profiles are not delivered since %s: %s", down.since.UTC().Format(time.RFC3339), down.reason))
	}
	if s := d.spool.Stats(); s.Degraded != nil {
		words = append(words, s.Degraded.Error())
	}
	return words
}

// stop sends what is spooled until ctx is done, or until a send fails while everything is safe on disk.
// The error says how much is left.
func (d *delivery) stop(ctx context.Context) error {
	d.closing()
	stop := context.AfterFunc(ctx, d.cancel)
	d.senders.Wait()
	stop()
	d.cancel()
	held := d.spool.Stats()
	err := d.spool.Close() // brings what is in memory to disk, if it can
	d.client.Close()
	left := d.spool.Stats()
	if left.Items > 0 {
		err = errors.Join(err, fmt.Errorf("%d profiles (%d bytes) are not delivered yet and wait in %s for the next start", left.Items, left.Bytes, held.Dir))
	}
	if lost := held.Items - left.Items; lost > 0 {
		err = errors.Join(err, fmt.Errorf("%d profiles (%d bytes) are lost: neither the server nor the disk took them", lost, held.Bytes-left.Bytes))
	}
	return err
}
