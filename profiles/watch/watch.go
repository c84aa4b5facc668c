// Package watch looks for regressions while a service runs: every few minutes it compares the newest windows of each service
// with those of the version before, and with those of the same hour a day and a week ago. The command "spanflame watch"
// uses it.
//
// What is compared is the share of a function in the CPU time, and in the bytes allocated, of its service: the load of a
// service changes all day, and with it the time of all functions. The statistics are those of package compare, at a rate of
// false discoveries that allows for looking at three comparisons of each type every few minutes for a month (see [Options]).
//
// It reads no files and does not use the network: a [Source] has the profiles.
package watch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/profiles"
	"spanflame/profiles/compare"
)

// Source has the profiles.
type Source interface {
	// Services returns the names of the services that have profiles between two times.
	Services(ctx context.Context, from, to time.Time) ([]string, error)
	// Versions returns the versions of a service between two times, with the times of their first and last windows, in any order.
	Versions(ctx context.Context, service string, from, to time.Time) ([]Version, error)
	// Series returns at most most windows of a type, evenly over the time, by time.
	Series(ctx context.Context, of Side, t record.Type, most int) iter.Seq2[profiles.Window, error]
}

// Version is a version of a service, and when it ran.
type Version struct {
	Name        string
	First, Last time.Time
}

// Side selects one side of a comparison. An empty version is any.
type Side struct {
	Service, Version string
	From, To         time.Time
}

// Options configure a Watcher. The zero value has the defaults.
type Options struct {
	// Every is the time between rounds, 5 minutes by default. Only New reads it, to choose Q.
	Every time.Duration
	// Recent is how long the newest windows reach back, 15 minutes by default.
	Recent time.Duration
	// Q is the rate of false discoveries of one comparison. The default allows one false alarm in a month for each service: the
	// rounds of a month, with three comparisons of two types each, share it.
	Q float64
	// Least is the smallest increase of a function's share, relative to that share, that is reported: 0.1 by default.
	Least float64
}

const (
	month    = 30 * 24 * time.Hour
	day      = 24 * time.Hour
	week     = 7 * day
	windows  = 64   // of a side, as many as the tests of package compare use
	least    = 8    // windows of a side, from which on their correlation is known
	minShare = 0.01 // of a function, in both sides
	// Most is the maximum number of regressions of one service: those with the largest increase are kept.
	Most = 20
	// keep is for how many rounds without it a regression remains.
	keep = 3
)

// The baselines.
const (
	VersionBefore = "the version before"
	DayAgo        = "a day ago"
	WeekAgo       = "a week ago"
)

// metrics are what is compared: the sample types of package compare, by the type of the profiles.
var metrics = []struct {
	profile record.Type
	name    string
}{{record.CPU, "cpu"}, {record.Memory, "alloc_space"}}

// Key identifies a regression.
type Key struct {
	Service  string `json:"service"`
	Metric   string `json:"metric"` // cpu or alloc_space
	Function string `json:"function"`
	Baseline string `json:"baseline"` // such as DayAgo
}

// Regression is a function that has a larger share than before.
type Regression struct {
	Key
	Before float64   `json:"share_before"` // of the service's CPU time, or of the bytes that it allocates, 0 to 1
	After  float64   `json:"share_after"`
	Q      float64   `json:"q"`
	Since  time.Time `json:"since"` // when it was found first

	Compared [2]Side `json:"-"` // before and after

	missed int // rounds without it
}

// Watcher finds regressions. Its methods may be called concurrently.
type Watcher struct {
	source  Source
	options Options

	mu       sync.Mutex
	found    map[Key]*Regression
	compared []string // in the last round
}

// New returns a watcher.
func New(source Source, o Options) (*Watcher, error) {
	o.Every, o.Recent, o.Least = cmp.Or(o.Every, 5*time.Minute), cmp.Or(o.Recent, 15*time.Minute), cmp.Or(o.Least, 0.1)
	if o.Every <= 0 || o.Recent <= 0 || o.Least <= 0 || o.Q < 0 || o.Q >= 1 {
		return nil, fmt.Errorf("watch: every %v, recent %v, at least +%v, q %v: want positive values, and a q below 1", o.Every, o.Recent, o.Least, o.Q)
	}
	if o.Q == 0 {
		o.Q = float64(o.Every) / float64(month) / 3 / float64(len(metrics))
	}
	return &Watcher{source: source, options: o, found: make(map[Key]*Regression)}, nil
}

// Round compares once, and returns the regressions that are new. Services that cannot be compared do not keep it from
// comparing others; their errors are joined.
func (w *Watcher) Round(ctx context.Context, now time.Time) (fresh []Regression, err error) {
	services, err := w.source.Services(ctx, now.Add(-w.options.Recent), now)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.compared = nil
	w.mu.Unlock()
	var failed []error
	seen := make(map[Key]Regression)
	for _, service := range services {
		of, err := w.service(ctx, service, now)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", service, err))
			w.keep(service, seen)
		}
		for _, r := range of {
			seen[r.Key] = r
		}
	}
	return w.merge(seen, now), errors.Join(failed...)
}

// Compared returns what the last round compared, such as "shop: cpu with a day ago". What has fewer than 8 windows on a side is not
// compared.
func (w *Watcher) Compared() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.compared)
}

// Found returns the regressions, those with the largest increase first.
func (w *Watcher) Found() []Regression {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make([]Regression, 0, len(w.found))
	for _, r := range w.found {
		all = append(all, *r)
	}
	slices.SortFunc(all, larger)
	return all
}

func larger(a, b Regression) int {
	return cmp.Or(
		cmp.Compare(b.After-b.Before, a.After-a.Before), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Function, b.Function),
		cmp.Compare(a.Metric, b.Metric), cmp.Compare(a.Baseline, b.Baseline),
	)
}

// keep takes over what was found of a service that could not be compared.
func (w *Watcher) keep(service string, seen map[Key]Regression) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, r := range w.found {
		if key.Service == service {
			seen[key] = *r
		}
	}
}

// merge adds what was seen in a round, and forgets what was not seen for some rounds. It returns what is new.
func (w *Watcher) merge(seen map[Key]Regression, now time.Time) (fresh []Regression) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, r := range w.found {
		if _, ok := seen[key]; ok {
			continue
		}
		if r.missed++; r.missed >= keep {
			delete(w.found, key)
		}
	}
	for key, r := range seen {
		r.Since, r.missed = now, 0
		if before, known := w.found[key]; known {
			r.Since = before.Since
		}
		w.found[key] = &r
	}
	left := make(map[string]int)
	for _, r := range slices.SortedFunc(maps.Values(w.found), func(a, b *Regression) int { return larger(*a, *b) }) {
		if left[r.Service]++; left[r.Service] > Most {
			delete(w.found, r.Key)
		} else if r.Since.Equal(now) {
			fresh = append(fresh, *r)
		}
	}
	return fresh
}

// service compares the newest windows of a service with each baseline.
func (w *Watcher) service(ctx context.Context, service string, now time.Time) (all []Regression, err error) {
	recent := Side{Service: service, From: now.Add(-w.options.Recent), To: now}
	versions, err := w.source.Versions(ctx, service, now.Add(-day), now)
	if err != nil {
		return nil, err
	}
	baselines := map[string][2]Side{
		DayAgo:  {{Service: service, From: recent.From.Add(-day - 45*time.Minute), To: now.Add(-day)}, recent},
		WeekAgo: {{Service: service, From: recent.From.Add(-week - 45*time.Minute), To: now.Add(-week)}, recent},
	}
	if len(versions) > 1 {
		// By when they began: in a deployment, instances of both run for a while.
		slices.SortFunc(versions, func(a, b Version) int { return cmp.Or(b.First.Compare(a.First), cmp.Compare(a.Name, b.Name)) })
		before, after := versions[1], recent
		after.Version = versions[0].Name
		baselines[VersionBefore] = [2]Side{{service, before.Name, before.Last.Add(-w.options.Recent), before.Last}, after}
	}
	var failed []error
	for _, baseline := range slices.Sorted(maps.Keys(baselines)) {
		for _, m := range metrics {
			found, compared, err := w.compare(ctx, baselines[baseline], m.profile, m.name)
			if err != nil {
				failed = append(failed, fmt.Errorf("%s, %s: %w", m.name, baseline, err))
			}
			if compared {
				w.mu.Lock()
				w.compared = append(w.compared, fmt.Sprintf("%s: %s with %s", service, m.name, baseline))
				w.mu.Unlock()
			}
			for _, r := range found {
				r.Key = Key{service, m.name, r.Function, baseline}
				all = append(all, r)
			}
		}
	}
	return all, errors.Join(failed...)
}

// compare returns the functions whose share grew. It compares nothing if there are too few windows on a side.
func (w *Watcher) compare(ctx context.Context, sides [2]Side, t record.Type, metric string) (grown []Regression, compared bool, err error) {
	var read [2][]profiles.Window
	totals := make(map[string]float64) // by window
	for i, side := range sides {
		for window, err := range w.source.Series(ctx, side, t, windows) {
			switch {
			case errors.Is(err, profiles.ErrNone):
				continue
			case err != nil:
				return nil, false, err
			}
			if total := totalOf(window.Profile, metric); total > 0 {
				totals[keyOf(window.Meta)] = total
				read[i] = append(read[i], window)
			}
		}
		if len(read[i]) < least {
			return nil, false, nil
		}
	}
	report, err := compare.Compare(ctx, each(read[0]), each(read[1]), compare.Options{
		Metrics: []string{metric}, Alpha: w.options.Q, MinShare: minShare, Normalization: compare.ByWork,
		Work: func(m record.Meta) (float64, error) { return totals[keyOf(m)], nil },
	})
	if err != nil {
		return nil, false, err
	}
	for _, c := range report.Metrics[0].Changed() {
		v := c.Cum
		if !v.Significant {
			v = c.Flat
		}
		before, after := float64(v.Before), float64(v.After)
		if v.Significant && after >= minShare && after > before*(1+w.options.Least) {
			grown = append(grown, Regression{Key: Key{Function: c.Name}, Before: before, After: after, Q: v.Q, Compared: sides})
		}
	}
	return grown, true, nil
}

func each(windows []profiles.Window) iter.Seq2[profiles.Window, error] {
	return func(yield func(profiles.Window, error) bool) {
		for _, w := range windows {
			if !yield(w, nil) {
				return
			}
		}
	}
}

// keyOf identifies a window among those of a service.
func keyOf(m record.Meta) string {
	return fmt.Sprint(m.Start.UnixNano(), m.Labels[record.InstanceLabel], m.Labels[record.VersionLabel])
}

// totalOf returns the total of a metric, 0 if the profile does not have it.
func totalOf(p *profile.Profile, metric string) float64 {
	value := profiles.SampleIndex(p, metric)
	if value < 0 {
		return 0
	}
	return math.Abs(float64(profiles.Total(p, value, nil)))
}
