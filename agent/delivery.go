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

// delivery takes records from the spool, oldest first, and sends each until the server has answered it.
// While the server takes none, one sender tries and the others wait. It owns its goroutines, the spool and
// the client.
type delivery struct {
	spool  *spool.Spool
	client *push.Client
	log    *slog.Logger
	took   metric.Float64Histogram // seconds of each send

	drain   context.Context // done: no record will follow, what is spooled is sent and then the senders end
	closing context.CancelFunc
	send    context.Context // done: the sends in flight are cancelled and the senders end
	cancel  context.CancelFunc
	senders sync.WaitGroup

	trouble atomic.Pointer[trouble] // nil while the server takes profiles
	probe   chan *prober            // holds the prober while no sender has it
}

// trouble is a row of failed sends with no answer between them.
type trouble struct {
	since  time.Time
	fails  int
	reason string    // of the last one
	until  time.Time // the server asked to be left alone until then; zero if it did not
}

// outage says whether the row is long enough to be one.
func (t *trouble) outage() bool { return t.fails >= outageAfter }

// prober is what the one sender has that tries a server that is down.
type prober struct {
	wait  backoff.ExponentialBackOff
	tries int // in a row, since the shutdown began
}

// startDelivery takes over the spool and the client.
func startDelivery(s *spool.Spool, c *push.Client, took metric.Float64Histogram, log *slog.Logger) *delivery {
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
		d.up()
	case push.Permanent, push.TooOld:
		if err := d.spool.SetAside(item, r.Outcome.String(), r.Reason); err != nil {
			d.log.Error("a refused profile could not be set aside", "error", err)
		}
		d.up() // an answer, if not the one that was hoped for
	case push.Throttled, push.Transient:
		d.spool.Release(item)
		d.failed(r)
	}
	return true
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
		next.since, next.fails = now, 1
		if before != nil {
			next.since, next.fails = before.since, before.fails+1
		}
		if d.trouble.CompareAndSwap(before, next) {
			break
		}
	}
	if next.fails == sayAfter {
		d.log.Warn("profiles cannot be delivered: the service goes on, they wait in the spool, and this is not said again until they can",
			"status", r.Status, "reason", r.Reason)
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

// up notes that the server has answered.
func (d *delivery) up() {
	if before := d.trouble.Swap(nil); before != nil && before.fails >= sayAfter {
		s := d.spool.Stats()
		d.log.Info("profiles are delivered again", "outage", time.Since(before.since).Round(time.Millisecond).String(), "waiting", s.Items, "bytes", s.Bytes)
	}
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
