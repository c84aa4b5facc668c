package incident

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"spanflame/agent/internal/setting"
	"spanflame/internal/incidentfile"
)

// Triggers are the reasons for which bundles are written that nobody requests. All are off by default.
type Triggers struct {
	CPU        float64       // the share of the CPUs that the process may use
	Latency    time.Duration // the 99th percentile of the time that goroutines wait for a CPU, of a second
	Memory     float64       // the share of the memory limit
	Goroutines int
	Signal     bool // SIGUSR1
	Alert      bool // what an Alertmanager sends
}

// triggers reads the value of each trigger.
var triggers = map[string]func(t *Triggers, text string) error{
	incidentfile.CPU: func(t *Triggers, text string) (err error) { t.CPU, err = setting.Share(text); return err },
	incidentfile.Latency: func(t *Triggers, text string) (err error) {
		t.Latency, err = setting.Duration(text)
		return err
	},
	incidentfile.Memory:     func(t *Triggers, text string) (err error) { t.Memory, err = setting.Share(text); return err },
	incidentfile.Goroutines: func(t *Triggers, text string) (err error) { t.Goroutines, err = setting.Whole(text); return err },
	incidentfile.Signal: func(t *Triggers, text string) error {
		if text != "SIGUSR1" || !SignalSupported {
			return errors.New("SIGUSR1, on a system that has it")
		}
		t.Signal = true
		return nil
	},
	incidentfile.Alert: func(t *Triggers, text string) error {
		if text != "on" {
			return errors.New("on")
		}
		t.Alert = true
		return nil
	},
}

// Allowed describes the pairs that ParseTriggers reads.
const Allowed = "pairs of cpu=90%, latency=50ms, memory=90%, goroutines=20000, signal=SIGUSR1 and alert=on, separated by commas"

// ParseTriggers reads triggers, by name. The error completes "want".
func ParseTriggers(pairs map[string]string) (t Triggers, err error) {
	for _, name := range slices.Sorted(maps.Keys(pairs)) {
		read := triggers[name]
		if read == nil {
			return Triggers{}, fmt.Errorf("%s; %q is none of them", Allowed, name)
		}
		if err := read(&t, pairs[name]); err != nil {
			return Triggers{}, fmt.Errorf("%s=%s: want %w", name, pairs[name], err)
		}
	}
	return t, nil
}

// A trigger fires once, and again only after its value has been below a part of the threshold for some samples.
const (
	calm      = 0.9
	calmAfter = 10
)

// fired is a trigger that fires, and what it saw.
type fired struct{ trigger, detail string }

// threshold is a trigger with a value.
type threshold struct {
	trigger string
	limit   float64
	value   func(sample) float64
	text    func(float64) string
	fired   bool
	calm    int // samples below
}

// watch looks for values above their thresholds.
type watch []*threshold

func newWatch(t Triggers) watch {
	percent := func(f float64) string { return strconv.FormatFloat(100*f, 'f', 0, 64) + " %" }
	seconds := func(f float64) string { return time.Duration(f * 1e9).Round(time.Microsecond).String() }
	whole := func(f float64) string { return strconv.FormatFloat(f, 'f', 0, 64) }
	column := func(c int) func(sample) float64 { return func(s sample) float64 { return s.values[c] } }
	all := watch{
		{trigger: incidentfile.CPU, limit: t.CPU, value: column(colCPU), text: percent},
		{trigger: incidentfile.Latency, limit: t.Latency.Seconds(), value: column(colLatency), text: seconds},
		{trigger: incidentfile.Goroutines, limit: float64(t.Goroutines), value: column(colGoroutines), text: whole},
		{trigger: incidentfile.Memory, limit: t.Memory, text: percent, value: func(s sample) float64 {
			if s.values[colLimit] == 0 {
				return 0
			}
			return s.values[colMemory] / s.values[colLimit]
		}},
	}
	return slices.DeleteFunc(all, func(t *threshold) bool { return t.limit == 0 })
}

// look returns the triggers that fire now.
func (w watch) look(s sample) (all []fired) {
	for _, t := range w {
		switch v := t.value(s); {
		case math.IsNaN(v):
		case v >= t.limit && !t.fired:
			t.fired, t.calm = true, 0
			all = append(all, fired{t.trigger, strings.Join([]string{t.text(v), "of at most", t.text(t.limit)}, " ")})
		case v < calm*t.limit && t.fired:
			if t.calm++; t.calm >= calmAfter {
				t.fired = false
			}
		default:
			t.calm = 0
		}
	}
	return all
}
