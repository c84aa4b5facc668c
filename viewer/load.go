package viewer

import (
	"context"
	"fmt"
	"slices"

	"spanflame/viewer/source"

	"github.com/google/pprof/profile"

	"spanflame/profiles"
)

// load returns a profile, which is shared and must not be changed. A profile that many ask for at the same time is read
// once.
func (s *server) load(ctx context.Context, from source.Source, sel source.Selection) (*profile.Profile, error) {
	slices.Sort(sel.SpanIDs)
	key := fmt.Sprintf("%p %q", from, sel)
	if p, ok := s.profiles.get(key); ok {
		return p, nil
	}
	return once(ctx, s, "profile "+key, func(ctx context.Context) (*profile.Profile, error) {
		p, err := from.Profile(ctx, sel)
		if err != nil {
			return nil, err
		}
		if profiles.DefaultSampleIndex(p) < 0 {
			return nil, profiles.ErrNone
		}
		if light(p) {
			s.profiles.put(key, p)
		}
		return p, nil
	})
}

// light reports whether a profile is small enough to be kept.
func light(p *profile.Profile) bool { return len(p.Sample) <= keptSamples }

// once does expensive work once for all who ask for it at the same time. It continues if the first of them goes away, within
// the time of a request.
func once[T any](ctx context.Context, s *server, key string, do func(context.Context) (T, error)) (T, error) {
	done := s.loading.DoChan(key, func() (result any, err error) {
		// A profile comes from elsewhere: a panic in reading it must not end the process.
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("%v", p)
			}
		}()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTime)
		defer cancel()
		select {
		case s.heavy <- struct{}{}:
			defer func() { <-s.heavy }()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		return do(ctx)
	})
	var none T
	select {
	case result := <-done:
		if result.Err != nil {
			return none, result.Err
		}
		return result.Val.(T), nil
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
}
