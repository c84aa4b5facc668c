package agent

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"spanflame/agent/internal/guard"
	"spanflame/agent/internal/wall"
)

// observe reports what the agent itself does, until the registration ends. The names here are those of OpenTelemetry;
// on a Prometheus endpoint they have underscores for dots, the unit, and _total at the end of a counter.
func (a *Agent) observe(meter metric.Meter) (metric.Registration, error) {
	m := instruments{meter: meter}
	captured := m.counter("spanflame.profiles.captured", "{profile}", "Profiles captured, by type.")
	capturedSize := m.counter("spanflame.profiles.captured.size", "By", "Compressed size of the profiles captured, by type.")
	captureTime := m.seconds("spanflame.capture.duration", "Time spent capturing profiles, by type.")
	skipped := m.counter("spanflame.profiles.skipped", "{profile}", "Profiles that were due but not captured, by type and reason.")
	summed := m.counter("spanflame.profiles.summed_stacks", "{stack}", "Stacks beyond the limit of a profile, which have one sample together, by type.")
	gap := m.seconds("spanflame.cpu_profile.gap", "Time without a CPU profile because the service was taking one itself.")
	rotation := m.seconds("spanflame.cpu_profile.rotation_gap", "Time without a CPU profile between the end of a window and the start of the next.")

	slow := m.counter("spanflame.wall.slow_spans", "{span}", "Slow local root spans, by the outcome of capturing their wall-clock profile.")
	partial := m.counter("spanflame.wall.partial_spans", "{span}", "Slow spans whose wall-clock profile lacks a part that was not recorded.")
	fast := m.counter("spanflame.wall.fast_spans", "{span}", "Fast local root spans chosen to compare slow ones with, by the outcome of capturing them.")
	children := m.counter("spanflame.wall.skipped_children", "{span}", "Child spans without a wall-clock profile of their own, by reason.")
	goroutines := m.counter("spanflame.wall.skipped_goroutines", "{goroutine}",
		"Goroutines started by a span whose work was not followed because there were too many.")
	notFollowed := m.counter("spanflame.wall.not_followed", "{part}", "Parts of waits in wall-clock profiles without who caused them, by reason.")
	parts := m.counter("spanflame.wall.skipped_trace", "{part}", "Parts of the execution trace missing from wall-clock profiles, by reason.")
	unended := m.counter("spanflame.wall.unended_spans", "{span}", "Spans that the service never ended, by their name and that of their local root.")
	mode := m.gauge("spanflame.wall.mode", "{mode}", "When the recording of slow spans runs: 1 for the mode that it is in, else 0.")
	entered := m.counter("spanflame.wall.mode_changes", "{change}", "Changes of the mode of recording, by the mode that was entered.")
	length := m.seconds("spanflame.wall.captured_time", "Duration of the captured slow spans together.")
	known := m.seconds("spanflame.wall.recorded_time", "The part of the captured slow spans' duration that was recorded.")
	trace := m.counter("spanflame.wall.trace.size", "By", "Size of the execution trace converted for wall-clock profiles.")
	wallCPU := m.seconds("spanflame.wall.cpu_time", "CPU time spent on wall-clock profiles, by activity. Writing the execution trace is an estimate.")

	bundles := m.counter("spanflame.incidents", "{bundle}", "Incident bundles, by trigger and outcome.")

	ended := m.counter("spanflame.last_run.ended", "{run}", "Runs found at the start that had ended without a shutdown, by reason.")
	last := m.counter("spanflame.last_run.profiles", "{profile}", "Profiles taken near the memory limit for the next start, by outcome.")

	ownCPU := m.seconds("spanflame.agent.cpu_time", "CPU time of the agent's own code, according to the CPU profiles.")
	ownHeap := m.gauge("spanflame.agent.heap", "By", "Memory in use that the agent's own code allocated, according to the memory profiles.")
	panics := m.counter("spanflame.panics", "{panic}", guard.MetricDescription)
	degraded := m.gauge("spanflame.degraded", "{problem}", "Whether something does not work as it should, by reason: 1 if so, else 0. /status has the details.")
	if m.err != nil {
		return nil, m.err
	}

	observe := func(o metric.Observer) {
		c := a.capture.Stats()
		for t, n := range c.Captured {
			attrs := metric.WithAttributes(attribute.String("type", string(t)))
			o.ObserveInt64(captured, n.Profiles, attrs)
			o.ObserveInt64(capturedSize, n.Bytes, attrs)
			o.ObserveFloat64(captureTime, n.Elapsed.Seconds(), attrs)
		}
		for s, n := range c.Skipped {
			o.ObserveInt64(skipped, n, metric.WithAttributes(attribute.String("type", string(s.Type)), attribute.String("reason", s.Reason)))
		}
		for t, n := range c.Summed {
			o.ObserveInt64(summed, n, metric.WithAttributes(attribute.String("type", string(t))))
		}
		o.ObserveFloat64(gap, c.CPUGap.Seconds())
		o.ObserveFloat64(rotation, c.CPURotation.Seconds())
		o.ObserveFloat64(ownCPU, a.self.cpuTime().Seconds())
		o.ObserveInt64(ownHeap, a.self.heap.Load())
		if a.incident != nil {
			for k, n := range a.incident.Stats().Counts {
				o.ObserveInt64(bundles, n, metric.WithAttributes(attribute.String("trigger", k.Trigger), attribute.String("outcome", k.Outcome)))
			}
		}
		if a.run != nil {
			s := a.run.Stats()
			for why, n := range s.Ended {
				o.ObserveInt64(ended, n, reason(why))
			}
			o.ObserveInt64(last, s.Profiles-s.Failed, metric.WithAttributes(attribute.String("outcome", "kept")))
			o.ObserveInt64(last, s.Failed, metric.WithAttributes(attribute.String("outcome", "failed")))
		}
		for stage, n := range a.guard.Panics() {
			o.ObserveInt64(panics, n, metric.WithAttributes(attribute.String("stage", stage)))
		}
		current := map[string]int64{}
		for _, name := range problemReasons {
			current[name] = 0
		}
		for _, p := range a.problems() {
			current[p.Reason] = 1
		}
		for name, n := range current {
			o.ObserveInt64(degraded, n, reason(name))
		}
		recorder, _ := a.slow.running()
		if recorder == nil {
			return
		}
		w := recorder.Stats()
		for outcome, n := range spansByOutcome(w) {
			o.ObserveInt64(slow, int64(n), metric.WithAttributes(attribute.String("outcome", outcome)))
		}
		o.ObserveInt64(partial, int64(w.Partial))
		o.ObserveInt64(fast, int64(w.Fast), metric.WithAttributes(attribute.String("outcome", "captured")))
		o.ObserveInt64(fast, int64(w.FastLost), metric.WithAttributes(attribute.String("outcome", "lost")))
		o.ObserveInt64(children, int64(w.SkippedChildren), reason("as root"))
		o.ObserveInt64(children, int64(w.DroppedChildren), reason("too many spans"))
		o.ObserveInt64(goroutines, int64(w.SkippedGoroutines))
		for why, n := range w.NotFollowed {
			o.ObserveInt64(notFollowed, int64(n), reason(why))
		}
		o.ObserveInt64(parts, int64(w.SkippedGenerations), reason("over budget"))
		o.ObserveInt64(parts, int64(w.Unreadable), reason("not readable"))
		for name, n := range w.NeverEnded {
			o.ObserveInt64(unended, int64(n), metric.WithAttributes(attribute.String("span", name.Span), attribute.String("root", name.Root)))
		}
		for is := range wall.NumModes {
			attrs, current := metric.WithAttributes(attribute.String("mode", is.String())), int64(0)
			if is == w.Mode {
				current = 1
			}
			o.ObserveInt64(mode, current, attrs)
			o.ObserveInt64(entered, int64(w.Entered[is]), attrs)
		}
		o.ObserveFloat64(length, w.Duration.Seconds())
		o.ObserveFloat64(known, w.Recorded.Seconds())
		o.ObserveInt64(trace, int64(w.Bytes))
		o.ObserveFloat64(wallCPU, w.Written.Seconds(), metric.WithAttributes(attribute.String("activity", "writing")))
		o.ObserveFloat64(wallCPU, (w.CPU - w.Written).Seconds(), metric.WithAttributes(attribute.String("activity", "reading")))
	}
	stage := a.guard.Stage("metrics")
	return meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		stage.Try(func() { observe(o) })
		return nil
	}, m.all...)
}

func reason(why string) metric.ObserveOption {
	return metric.WithAttributes(attribute.String("reason", why))
}

// spansByOutcome returns how many slow spans there were, by outcome.
func spansByOutcome(s wall.Stats) map[string]uint64 {
	return map[string]uint64{
		"captured":       s.Captured,
		"over budget":    s.SkippedBudget,
		"recorder busy":  s.SkippedBusy,
		"not in window":  s.SkippedWindow,
		"queue full":     s.SkippedQueue,
		"shut down":      s.SkippedStop,
		"panic":          s.SkippedPanic,
		"never ended":    s.Unended,
		"crowded":        s.Crowded,
		"too many spans": s.DroppedRoots,
	}
}

// instruments creates instruments until one fails.
type instruments struct {
	meter metric.Meter
	all   []metric.Observable
	err   error
}

func made[T metric.Observable](m *instruments, instrument T, err error) T {
	if m.err == nil {
		m.err = err
	}
	m.all = append(m.all, instrument)
	return instrument
}

func (m *instruments) counter(name, unit, description string) metric.Int64ObservableCounter {
	i, err := m.meter.Int64ObservableCounter(name, metric.WithUnit(unit), metric.WithDescription(description))
	return made(m, i, err)
}

func (m *instruments) seconds(name, description string) metric.Float64ObservableCounter {
	i, err := m.meter.Float64ObservableCounter(name, metric.WithUnit("s"), metric.WithDescription(description))
	return made(m, i, err)
}

func (m *instruments) gauge(name, unit, description string) metric.Int64ObservableGauge {
	i, err := m.meter.Int64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(description))
	return made(m, i, err)
}
