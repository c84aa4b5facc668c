package deliver

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"spanflame/agent/internal/push"
)

// labelChange is a way in which labels of a profile are sent differently from how they were captured.
type labelChange struct {
	name string // in the metric
	why  string // in the log
	of   func(push.Changes) int
}

var labelChangeKinds = []labelChange{
	{"dropped", "profile labels are left out: a series has at most 30, and names must differ and must not begin with two underscores",
		func(c push.Changes) int { return c.Dropped }},
	{"renamed", "profile labels are renamed: a name has letters, digits and underscores, and does not begin with a digit",
		func(c push.Changes) int { return c.Renamed }},
	{"cut", "values of profile labels are cut: a value has at most 2048 bytes of UTF-8",
		func(c push.Changes) int { return c.Cut }},
	{"other", fmt.Sprintf("values of profile labels are sent as %q: each value makes a series on the server, so a process sends at most %d values of a label",
		push.OtherValue, push.MaxLabelValues), func(c push.Changes) int { return c.Other }},
}

// labelChanges counts the profiles whose labels could not be delivered unchanged, and logs each kind of change once.
// The zero value is ready to use.
type labelChanges struct {
	mu       sync.Mutex
	profiles map[string]int64 // by labelChange.name
}

// note counts one delivered profile.
func (l *labelChanges) note(log *slog.Logger, c push.Changes) {
	if !c.Any() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.profiles == nil {
		l.profiles = map[string]int64{}
	}
	for _, k := range labelChangeKinds {
		if k.of(c) == 0 {
			continue
		}
		l.profiles[k.name]++
		if l.profiles[k.name] == 1 {
			log.Warn(k.why+" (logged once, counted in spanflame.push.profiles.changed)", "changed", k.name, "labels", c.Names)
		}
	}
}

// observe reports the counts, until the registration ends.
func (l *labelChanges) observe(meter metric.Meter) (metric.Registration, error) {
	changed, err := meter.Int64ObservableCounter("spanflame.push.profiles.changed", metric.WithUnit("{profile}"),
		metric.WithDescription("Profiles delivered with changed labels, by change."))
	if err != nil {
		return nil, err
	}
	return meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		for name, n := range l.profiles {
			o.ObserveInt64(changed, n, metric.WithAttributes(attribute.String("change", name)))
		}
		return nil
	}, changed)
}
