package deliver

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// observeSpool reports what happens to the profiles in the spool, until the registration ends.
func (d *Delivery) observeSpool(meter metric.Meter) (metric.Registration, error) {
	var errs []error
	var all []metric.Observable
	made := func(i metric.Observable, err error) {
		all, errs = append(all, i), append(errs, err)
	}
	profiles, err := meter.Int64ObservableCounter("spanflame.spool.profiles", metric.WithUnit("{profile}"),
		metric.WithDescription("Profiles in the spool, by event, reason and type."))
	made(profiles, err)
	size, err := meter.Int64ObservableCounter("spanflame.spool.profiles.size", metric.WithUnit("By"),
		metric.WithDescription("Size of profiles in the spool, by event, reason and type."))
	made(size, err)
	gauge := func(name, unit, description string) metric.Int64ObservableGauge {
		g, err := meter.Int64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(description))
		made(g, err)
		return g
	}
	waiting := gauge("spanflame.spool.waiting", "{profile}", "Profiles waiting for delivery.")
	waitingSize := gauge("spanflame.spool.waiting.size", "By", "Size of the profiles waiting for delivery.")
	inMemory := gauge("spanflame.spool.waiting.memory", "{profile}", "Profiles waiting in memory because they cannot be written to disk.")
	inMemorySize := gauge("spanflame.spool.waiting.memory.size", "By", "Size of the profiles waiting in memory.")
	aside := gauge("spanflame.spool.set_aside.size", "By", "Size of the files set aside in the spool.")
	oldest, err := meter.Float64ObservableGauge("spanflame.spool.oldest.age", metric.WithUnit("s"),
		metric.WithDescription("Age of the oldest profile waiting for delivery."))
	made(oldest, err)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s := d.spool.Stats()
		for k, n := range s.Counts {
			attrs := metric.WithAttributes(attribute.String("event", string(k.Event)), attribute.String("reason", k.Reason), attribute.String("type", string(k.Type)))
			o.ObserveInt64(profiles, int64(n.Items), attrs)
			o.ObserveInt64(size, n.Bytes, attrs)
		}
		o.ObserveInt64(waiting, int64(s.Items))
		o.ObserveInt64(waitingSize, s.Bytes)
		o.ObserveInt64(inMemory, int64(s.MemoryItems))
		o.ObserveInt64(inMemorySize, s.MemoryBytes)
		o.ObserveInt64(aside, s.SetAsideBytes)
		var age float64
		if !s.Oldest.IsZero() {
			age = time.Since(s.Oldest).Seconds()
		}
		o.ObserveFloat64(oldest, age)
		return nil
	}, all...)
}
