package agent

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"spanflame/agent/internal/push"
)

// labelChange is a way in which the labels of a profile are not sent as they are.
type labelChange struct {
	name string // as the metric has it
	why  string // as the log has it
	of   func(push.Changes) int
}

var labelChangeKinds = []labelChange{
	{"dropped", "profile labels are left out: a series has at most 30, and names must differ and not begin with two underscores", func(c push.Changes) int { return c.Dropped }},
	{"renamed", "profile labels are renamed: a name has letters, digits and underscores, and does not begin with a digit", func(c push.Changes) int { return c.Renamed }},
	{"cut", "values of profile labels are cut: a value has at most 2048 bytes, in UTF-8", func(c push.Changes) int { return c.Cut }},
	{"other", fmt.Sprintf("values of profile labels are sent as %q: the server makes a series of each, so a process sends %d different ones of a label", push.OtherValue, push.MaxLabelValues), func(c push.Changes) int { return c.Other }},
}

// labelChanges counts the profiles whose labels could not be delivered as they were, and tells the log of each
// way once. The zero value is ready for use.
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
			log.Warn(k.why+"; this is said once and counted", "changed", k.name, "labels", c.Names)
		}
	}
}

// observe reports the counts.
func (l *labelChanges) observe(meter metric.Meter) error {
	_, err := meter.Int64ObservableCounter("spanflame.push.profiles.changed", metric.WithUnit("{profile}"),
		metric.WithDescription("Profiles delivered with labels that are not as they were, by change."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			l.mu.Lock()
			defer l.mu.Unlock()
			for name, n := range l.profiles {
				o.Observe(n, metric.WithAttributes(attribute.String("change", name)))
			}
			return nil
		}))
	return err
}
