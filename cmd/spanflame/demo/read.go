package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"spanflame/viewer/source"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

// storefront is the service whose traces and profiles the demo shows.
const storefront = "storefront"

// arrival limits how long the demo waits for the last trace and profile.
const arrival = 60 * time.Second

// slow is the agent's default for the duration from which it captures a request.
const slow = 100 * time.Millisecond

// pollTime is the interval at which the demo checks for new data.
const pollTime = 200 * time.Millisecond

// slowTrace is a trace whose root has a wall-clock profile.
type slowTrace struct {
	spans     []traces.Span
	root      traces.Span
	diagnosis string // where most of its time went
}

// wall selects the wall-clock profile of the trace's root.
func (t slowTrace) wall() source.Selection {
	return source.Selection{Service: t.root.Service, Type: record.Wall, From: t.root.Start, To: t.root.End, SpanIDs: []string{t.root.ID}}
}

// slowest returns the slowest of the storefront's traces that began between from and to, whose name contains part
// and whose root has a wall-clock profile, or ErrNone if there is none yet.
func (b *backend) slowest(ctx context.Context, part string, from, to time.Time) (slowTrace, error) {
	found, err := b.source.Search(ctx, source.Filter{Service: storefront, Name: part, Min: slow, From: from, To: to, Limit: 20})
	if err != nil {
		return slowTrace{}, err
	}
	for _, summary := range found.Traces {
		spans, err := b.source.Trace(ctx, summary.TraceID)
		if err != nil {
			return slowTrace{}, err
		}
		i := slices.IndexFunc(spans, func(s traces.Span) bool { return s.ParentID == "" })
		if i < 0 {
			continue // its root has not arrived yet
		}
		t := slowTrace{spans: spans, root: spans[i]}
		p, err := b.profile(ctx, t.wall())
		switch {
		case errors.Is(err, profiles.ErrNone):
			continue
		case err != nil:
			return slowTrace{}, err
		}
		t.diagnosis = profiles.DiagnosisOf(p, t.root.ID, t.root.Name, t.root.Duration())
		return t, nil
	}
	return slowTrace{}, fmt.Errorf("a slow trace with its profile: %w", profiles.ErrNone)
}

// file returns the path of the saved profile of the trace's flame graph, or "" if profiles are not in files.
func (b *backend) file(ctx context.Context, t slowTrace) (string, error) {
	files, err := b.source.Files(ctx, t.wall())
	if err != nil {
		return "", err
	}
	for _, path := range files { // of windows that overlap, one contains the span
		w, err := profiles.ReadFile(path)
		if err != nil {
			return "", err
		}
		if len(profiles.ByLabel(w.Profile, wallprofile.SpanID, t.root.ID).Sample) > 0 {
			return path, nil
		}
	}
	return "", nil
}

// profile returns the selected profile, or ErrNone if it has no samples.
func (b *backend) profile(ctx context.Context, s source.Selection) (*profile.Profile, error) {
	p, err := b.source.Profile(ctx, s)
	if err == nil && len(p.Sample) == 0 {
		err = profiles.ErrNone
	}
	return p, err
}

// spent returns how much time the fault took in its service between two times, or 0 if no profile contains it.
func (b *backend) spent(ctx context.Context, f fault, from, to time.Time) (time.Duration, error) {
	p, err := b.profile(ctx, source.Selection{Service: f.Fault.Service, Type: f.profile, From: from, To: to})
	if errors.Is(err, profiles.ErrNone) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	value := profiles.SampleIndex(p, f.sample)
	if value < 0 {
		return 0, fmt.Errorf("a %s profile of the %s has no %s", f.profile, f.Fault.Service, f.sample)
	}
	return time.Duration(profiles.Total(profiles.Own(p), value, func(s *profile.Sample) bool {
		return profiles.Calls(s, f.Fault.Function) && (f.within == "" || profiles.Calls(s, f.within))
	})), nil
}

// eventually calls ask until its error is not ErrNone, for at most arrival.
func eventually[T any](ctx context.Context, ask func() (T, error)) (T, error) {
	late := time.NewTimer(arrival)
	defer late.Stop()
	tick := time.NewTicker(pollTime)
	defer tick.Stop()
	for {
		answer, err := ask()
		if !errors.Is(err, profiles.ErrNone) {
			return answer, err
		}
		select {
		case <-tick.C:
		case <-late.C:
			return answer, fmt.Errorf("not there after %v: %w", arrival, err)
		case <-ctx.Done():
			return answer, context.Cause(ctx)
		}
	}
}
