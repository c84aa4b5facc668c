package scrape

import (
	"context"
	"errors"
	"maps"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"spanflame/agent/internal/guard"
	"spanflame/internal/record"
)

// failureKey names a counter of failures.
type failureKey struct {
	typ    record.Type
	reason string
}

// counts are the numbers since the start. The zero value is ready for use.
type counts struct {
	mu       sync.Mutex
	profiles map[record.Type]int64
	bytes    map[record.Type]int64
	failures map[failureKey]int64
	restarts int64
}

func (c *counts) fetched(r record.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.profiles == nil {
		c.profiles, c.bytes = map[record.Type]int64{}, map[record.Type]int64{}
	}
	c.profiles[r.Type]++
	c.bytes[r.Type] += int64(len(r.Profile))
}

func (c *counts) failed(typ record.Type, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failures == nil {
		c.failures = map[failureKey]int64{}
	}
	c.failures[failureKey{typ, reason}]++
}

func (c *counts) restart() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.restarts++
}

// observe reports what the scraper does, until the registration ends.
func (s *Scraper) observe(meter metric.Meter) (metric.Registration, error) {
	profiles, err1 := meter.Int64ObservableCounter("spanflame.scrape.profiles", metric.WithUnit("{profile}"),
		metric.WithDescription("Profiles fetched, by type."))
	size, err2 := meter.Int64ObservableCounter("spanflame.scrape.profiles.size", metric.WithUnit("By"),
		metric.WithDescription("Compressed size of the profiles fetched, by type."))
	failures, err3 := meter.Int64ObservableCounter("spanflame.scrape.failures", metric.WithUnit("{profile}"),
		metric.WithDescription("Profiles that were due and not fetched, by type and reason."))
	restarts, err4 := meter.Int64ObservableCounter("spanflame.scrape.restarts", metric.WithUnit("{restart}"),
		metric.WithDescription("Restarts of targets that were recognised."))
	targets, err5 := meter.Int64ObservableGauge("spanflame.scrape.targets", metric.WithUnit("{target}"),
		metric.WithDescription("Targets, by state: up, or failing if the last request for any type failed."))
	panics, err6 := meter.Int64ObservableCounter("spanflame.panics", metric.WithUnit("{panic}"), metric.WithDescription(guard.MetricDescription))
	if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
		return nil, err
	}
	return meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s.counts.mu.Lock()
		fetched, bytes, failed, again := maps.Clone(s.counts.profiles), maps.Clone(s.counts.bytes), maps.Clone(s.counts.failures), s.counts.restarts
		s.counts.mu.Unlock()
		for typ, n := range fetched {
			attrs := metric.WithAttributes(attribute.String("type", string(typ)))
			o.ObserveInt64(profiles, n, attrs)
			o.ObserveInt64(size, bytes[typ], attrs)
		}
		for k, n := range failed {
			o.ObserveInt64(failures, n, metric.WithAttributes(attribute.String("type", string(k.typ)), attribute.String("reason", k.reason)))
		}
		o.ObserveInt64(restarts, again)
		states := map[string]int64{"up": 0, "failing": 0}
		s.mu.Lock()
		for _, t := range s.targets {
			if t.failing() != nil {
				states["failing"]++
			} else {
				states["up"]++
			}
		}
		s.mu.Unlock()
		for state, n := range states {
			o.ObserveInt64(targets, n, metric.WithAttributes(attribute.String("state", state)))
		}
		for stage, n := range s.guard.Panics() {
			o.ObserveInt64(panics, n, metric.WithAttributes(attribute.String("stage", stage)))
		}
		return nil
	}, profiles, size, failures, restarts, targets, panics)
}
