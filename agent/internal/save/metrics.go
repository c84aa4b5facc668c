package save

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// Observe reports what happens to the files of one kind, "profiles" or "traces", until the registration ends.
func Observe(meter metric.Meter, kind string, stats func() Stats) (metric.Registration, error) {
	files, err := meter.Int64ObservableCounter("spanflame.saved.files", metric.WithUnit("{file}"),
		metric.WithDescription("Files in the directory of saved profiles and traces, by kind, event and reason."))
	if err != nil {
		return nil, err
	}
	size, err := meter.Int64ObservableCounter("spanflame.saved.files.size", metric.WithUnit("By"),
		metric.WithDescription("Size of files in the directory of saved profiles and traces, by kind, event and reason."))
	if err != nil {
		return nil, err
	}
	used, err := meter.Int64ObservableGauge("spanflame.saved.used", metric.WithUnit("By"),
		metric.WithDescription("Size of the saved files that exist, by kind."))
	if err != nil {
		return nil, err
	}
	of := attribute.String("kind", kind)
	return meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s := stats()
		for k, n := range s.Counts {
			attrs := metric.WithAttributes(of, attribute.String("event", string(k.Event)), attribute.String("reason", k.Reason))
			o.ObserveInt64(files, int64(n.Items), attrs)
			o.ObserveInt64(size, n.Bytes, attrs)
		}
		o.ObserveInt64(used, s.Bytes, metric.WithAttributes(of))
		return nil
	}, files, size, used)
}
