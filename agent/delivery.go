package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
// profile, which takes it up to half a second.
const senders = 4

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

	down  atomic.Pointer[outage] // nil while the server takes profiles
	probe chan *prober           // holds the prober while no sender has it
}

// outage is a time in which the server takes no profiles.
type outage struct {
	since  time.Time
	reason string    // of the last attempt
	until  time.Time // the server asked to be left alone until then
}

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
		if d.down.Load() == nil {
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
		d.log.Warn("a profile was refused and set aside", "type", item.Record.Type, "start", item.Record.Start, "status", r.Status, "reason", r.Reason)
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
	down := d.down.Load()
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
	if d.down.Load() == nil {
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

// failed notes that the server did not take a profile; the first time it is said.
func (d *delivery) failed(r push.Result) {
	if d.send.Err() != nil {
		return // broken off by the shutdown
	}
	now := time.Now()
	next := &outage{since: now, reason: r.Reason, until: now.Add(r.RetryAfter)}
	for {
		down := d.down.Load()
		if down != nil {
			next.since = down.since
		}
		if d.down.CompareAndSwap(down, next) {
			if down == nil {
				d.log.Warn("profiles cannot be delivered: the service goes on, they wait in the spool, and this is not said again until they can",
					"status", r.Status, "reason", r.Reason)
			}
			return
		}
	}
}

func (d *delivery) up() {
	if down := d.down.Swap(nil); down != nil {
		s := d.spool.Stats()
		d.log.Info("profiles are delivered again", "outage", time.Since(down.since).Round(time.Millisecond).String(), "waiting", s.Items, "bytes", s.Bytes)
	}
}

func (d *delivery) degraded() []string {
	var words []string
	if down := d.down.Load(); down != nil {
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
