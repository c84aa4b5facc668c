package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/viewer"
)

// storefront is the name of the service whose traces and profiles the demo shows.
const storefront = "storefront"

// arrival bounds how long the last trace and profile may take from the services to where they are read.
const arrival = 60 * time.Second

// slow is from which duration the agent captures a request, by default.
const slow = 100 * time.Millisecond

// pollTime is how often the demo looks whether something has arrived.
const pollTime = 200 * time.Millisecond

// slowTrace is a trace whose root has a wall-clock profile.
type slowTrace struct {
	spans     []traces.Span
	root      traces.Span
	diagnosis string // what most of its time went to
}

// wall selects the wall-clock profile of the trace's root.
func (t slowTrace) wall() viewer.Selection {
	return viewer.Selection{Service: t.root.Service, Type: record.Wall, From: t.root.Start, To: t.root.End, SpanIDs: []string{t.root.ID}}
}

// slowest is the slowest of the storefront's traces that began between from and to, whose name contains part and
// whose root has a wall-clock profile. It is ErrNone where there is none yet.
func (b *backend) slowest(ctx context.Context, part string, from, to time.Time) (slowTrace, error) {
	found, err := b.source.Search(ctx, viewer.Filter{Service: storefront, Name: part, Min: slow, From: from, To: to, Limit: 20})
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
			continue // its root has not arrived
		}
		t := slowTrace{spans: spans, root: spans[i]}
		p, err := b.profile(ctx, t.wall())
		switch {
		case errors.Is(err, profiles.ErrNone):
			continue
		case err != nil:
			return slowTrace{}, err
		}
		t.diagnosis = cmp.Or(profiles.Sentence(p, t.root.ID), profiles.Diagnose(p, t.root.Name, t.root.Duration()))
		return t, nil
	}
	return slowTrace{}, fmt.Errorf("a slow trace with its profile: %w", profiles.ErrNone)
}

// file is the saved profile that the trace's flame graph comes from, empty where profiles are in no files.
func (b *backend) file(ctx context.Context, t slowTrace) (string, error) {
	files, err := b.source.Files(ctx, t.wall())
	if err != nil {
		return "", err
	}
	for _, path := range files { // of windows that overlap: the span is in one of them
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

// profile is what was selected. One without samples is ErrNone, too.
func (b *backend) profile(ctx context.Context, s viewer.Selection) (*profile.Profile, error) {
	p, err := b.source.Profile(ctx, s)
	if err == nil && len(p.Sample) == 0 {
		err = profiles.ErrNone
	}
	return p, err
}

// spent is how much time the mistake took of the storefront between two times: 0 where no profile has it.
func (b *backend) spent(ctx context.Context, m mistake, from, to time.Time) (time.Duration, error) {
	p, err := b.profile(ctx, viewer.Selection{Service: storefront, Type: m.profile, From: from, To: to})
	if errors.Is(err, profiles.ErrNone) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	value := profiles.SampleIndex(p, m.sample)
	if value < 0 {
		return 0, fmt.Errorf("a %s profile of the %s has no %s", m.profile, storefront, m.sample)
	}
	return time.Duration(profiles.Total(p, value, func(s *profile.Sample) bool {
		return profiles.Calls(s, m.function) && (m.within == "" || profiles.Calls(s, m.within))
	})), nil
}

// eventually asks until there is an answer other than ErrNone, for as long as what was sent last may take to
// arrive.
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
