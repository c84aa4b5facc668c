// Package load drives the workload, or any other service, with an open loop: every request is due at a time of a fixed schedule, and its
// latency is measured from that time, regardless of what the server or the generator were doing meanwhile. A server that
// stalls for a second therefore makes every request slow that was due in that second, not only the one that was
// waiting (no coordinated omission). "spanflame load", the demo and tests use it. It makes load that is worth
// profiling; it is not a tool for measuring the capacity of a cluster.
package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"spanflame/internal/redact"
)

const (
	maxRate     = 100_000 // requests per second
	maxRequests = 1e9     // of one run
	maxAnswer   = 1 << 20 // bytes read of one response
)

// Config configures a run. The zero value of every field but Target is its documented default.
type Config struct {
	Target      string        // base URL of the service, http or https
	Rate        float64       // requests per second over all endpoints; default 10
	Duration    time.Duration // length of the schedule; default 10 s
	Mix         Mix           // default DefaultMix
	Concurrency int           // requests in flight at most; one that is due above it is shed; default 256
	Timeout     time.Duration // of one request; default 30 s
	Client      *http.Client  // default one of its own, with enough idle connections for Concurrency

	// Progress, when set, is called about every Interval (default 1 s) during the run, never concurrently.
	Progress func(Snapshot)
	Interval time.Duration
}

// Validate reports the first setting that cannot work, with its value and what is allowed.
func (c Config) Validate() error {
	u, err := url.Parse(c.Target)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("target %q: must be http://host:port or https://host:port", redact.URL(c.Target))
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("target %q: must have no query and no fragment; the mix names the endpoints", redact.URL(c.Target))
	}
	if !(c.Rate >= 0 && c.Rate <= maxRate) { // written so that NaN is refused
		return fmt.Errorf("rate %v: must be above 0 and at most %d requests per second", c.Rate, maxRate)
	}
	for name, d := range map[string]time.Duration{"duration": c.Duration, "timeout": c.Timeout, "interval": c.Interval} {
		if d < 0 {
			return fmt.Errorf("%s %v: must not be negative", name, d)
		}
	}
	if c.Concurrency < 0 {
		return fmt.Errorf("concurrency %d: must not be negative", c.Concurrency)
	}
	c = c.withDefaults()
	if n := c.Rate * c.Duration.Seconds(); n > maxRequests {
		return fmt.Errorf("rate %v for %v is %.0f requests: at most %.0f are allowed", c.Rate, c.Duration, n, maxRequests)
	}
	return c.Mix.validate()
}

func (c Config) withDefaults() Config {
	if c.Rate == 0 {
		c.Rate = 10
	}
	if c.Duration == 0 {
		c.Duration = 10 * time.Second
	}
	if len(c.Mix) == 0 {
		c.Mix = DefaultMix()
	}
	if c.Concurrency == 0 {
		c.Concurrency = 256
	}
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second
	}
	if c.Interval == 0 {
		c.Interval = time.Second
	}
	return c
}

// Snapshot is the progress of a run.
type Snapshot struct {
	Elapsed  time.Duration
	Duration time.Duration // of the schedule
	Due      int64         // requests in the schedule
	Sent     int64
	Finished int64 // answered or failed
	Failed   int64
	Shed     int64
	InFlight int64
}

// run is one run of the generator.
type run struct {
	cfg       Config
	client    *http.Client
	start     time.Time
	due       int64
	endpoints []*measured // one for each entry of the mix
	slots     chan struct{}

	sent, finished, failed, shed atomic.Int64
}

// Run drives the target until the schedule is over and every request is answered, has failed or has timed out. When
// ctx ends, it stops sending, abandons the requests in flight and reports the results so far. An error means that
// nothing was sent; failed requests are in the report.
func Run(ctx context.Context, cfg Config) (Report, error) {
	if err := cfg.Validate(); err != nil {
		return Report{}, err
	}
	cfg = cfg.withDefaults()
	r := &run{
		cfg:    cfg,
		client: cfg.Client,
		due:    int64(math.Round(cfg.Rate * cfg.Duration.Seconds())),
		slots:  make(chan struct{}, cfg.Concurrency),
	}
	if r.client == nil {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.MaxIdleConns = cfg.Concurrency
		transport.MaxIdleConnsPerHost = cfg.Concurrency
		defer transport.CloseIdleConnections()
		r.client = &http.Client{Transport: transport}
	}
	for _, share := range cfg.Mix {
		r.endpoints = append(r.endpoints, newMeasured(share.Endpoint))
	}
	r.start = time.Now()
	stopProgress := r.reportProgress()
	r.drive(ctx)
	stopProgress()
	return r.report(), nil
}

// reportProgress calls the configured function regularly, until stop is called, which waits for the last call.
func (r *run) reportProgress() (stop func()) {
	if r.cfg.Progress == nil {
		return func() {}
	}
	stopped := make(chan struct{})
	var reporting sync.WaitGroup
	reporting.Go(func() {
		tick := time.NewTicker(r.cfg.Interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				r.cfg.Progress(r.snapshot())
			case <-stopped:
				return
			}
		}
	})
	return func() { close(stopped); reporting.Wait() }
}

func (r *run) snapshot() Snapshot {
	// finished is read before sent, so that the difference is never negative.
	finished := r.finished.Load()
	sent := r.sent.Load()
	return Snapshot{
		Elapsed:  time.Since(r.start),
		Duration: r.cfg.Duration,
		Due:      r.due,
		Sent:     sent,
		Finished: finished,
		Failed:   r.failed.Load(),
		Shed:     r.shed.Load(),
		InFlight: sent - finished,
	}
}

// drive sends every request when it is due and waits for the answers.
func (r *run) drive(ctx context.Context) {
	var flying sync.WaitGroup
	defer flying.Wait()
	next := r.cfg.Mix.picker()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := range r.due {
		intended := r.start.Add(time.Duration(float64(i) / r.cfg.Rate * float64(time.Second)))
		if wait := time.Until(intended); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return
		}
		endpoint := r.endpoints[next()]
		select {
		case r.slots <- struct{}{}:
		default:
			endpoint.shed.Add(1)
			r.shed.Add(1)
			continue
		}
		r.sent.Add(1)
		flying.Go(func() {
			failure, err := r.send(ctx, endpoint.Endpoint)
			latency := time.Since(intended)
			<-r.slots
			switch {
			case err != nil && ctx.Err() != nil:
				endpoint.abandoned.Add(1)
			default:
				endpoint.record(latency, failure)
				if failure != "" {
					r.failed.Add(1)
				}
			}
			r.finished.Add(1)
		})
	}
}

// send makes one request. It returns a failure as one word or a status code, or "" for success. The error is set if
// no complete answer arrived.
func (r *run) send(ctx context.Context, e Endpoint) (failure string, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	req, err := e.request(ctx, r.cfg.Target)
	if err != nil {
		return "request", err
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return classify(err), err
	}
	defer resp.Body.Close()
	// Reading the answer to its end makes the connection available for the next request.
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer)); err != nil {
		return classify(err), err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return fmt.Sprint(resp.StatusCode), nil
	}
	return "", nil
}

// classify returns one of three words for a failed exchange, so that the report stays small.
func classify(err error) string {
	var op *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.As(err, &op) && op.Op == "dial":
		return "connect"
	}
	return "broken"
}
