package viewer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/google/pprof/profile"

	"spanflame/internal/format"
	"spanflame/profiles"
	"spanflame/viewer/internal/pprofui"
	"spanflame/viewer/source"
)

// pprof serves pprof's pages for a flame graph that is not of one span.
func (s *server) pprof(w http.ResponseWriter, r *http.Request) error {
	spec := r.PathValue("spec")
	q, err := decodeSpec(spec)
	if err != nil {
		return err
	}
	kind := q.Get("kind")
	q.Del("kind")
	var b pprofui.Bar
	var read func(context.Context) (p, base *profile.Profile, err error)
	switch kind {
	case "name":
		if err := allow(q, "service", "name", "kind", "part", "last", "from", "to"); err != nil {
			return err
		}
		back := url.Values{}
		for name := range q {
			if name != "part" {
				back.Set(name, q.Get(name))
			}
		}
		b = pprofui.Bar{
			Back: "/name?" + back.Encode(), BackText: "back to the name",
			Title: fmt.Sprintf("%s of %s %s", q.Get("part"), q.Get("service"), q.Get("name")),
		}
		read = func(ctx context.Context) (*profile.Profile, *profile.Profile, error) { return s.namePair(ctx, q) }
	case "compare":
		c, err := s.parseComparison(q)
		if err != nil {
			return err
		}
		b = pprofui.Bar{Back: "/compare?" + q.Encode(), BackText: "back to the comparison", Title: c.title(s.zone)}
		read = func(ctx context.Context) (*profile.Profile, *profile.Profile, error) {
			p, base, _, err := s.comparisonPair(ctx, q, c)
			return p, base, err
		}
	case "profiles":
		if err := allow(q, profilesParameters...); err != nil {
			return err
		}
		b = pprofui.Bar{Back: "/profiles?" + q.Encode(), BackText: "back to the profiles", Title: q.Get("type") + " of " + q.Get("service")}
		read = func(ctx context.Context) (*profile.Profile, *profile.Profile, error) { return s.profilesPair(ctx, q) }
	case "memory":
		if err := allow(q, "service", "instance", "afrom", "ato", "bfrom", "bto"); err != nil {
			return err
		}
		b = pprofui.Bar{
			Back: "/memory?" + url.Values{"service": {q.Get("service")}, "instance": {q.Get("instance")}}.Encode(), BackText: "back to memory",
			Title: "growth of the memory of " + q.Get("service"),
		}
		read = func(ctx context.Context) (*profile.Profile, *profile.Profile, error) { return s.memoryPair(ctx, q) }
	default:
		return badRequest("The address of this flame graph is not whole.")
	}
	b.Title = format.Clean(b.Title, 200)
	m, err := s.mount(r.Context(), "spec "+spec, read)
	if err != nil {
		return err
	}
	return s.servePprof(w, r, m, b)
}

// spanPprof serves pprof's pages for the profile of exactly one span.
func (s *server) spanPprof(w http.ResponseWriter, r *http.Request) error {
	sp, t, err := s.spanOf(r, r.PathValue("type"))
	if err != nil {
		return err
	}
	sel := source.OfSpan(sp, t.Type)
	key := fmt.Sprintf("span %q", sel)
	m, err := s.mount(r.Context(), key, func(ctx context.Context) (*profile.Profile, *profile.Profile, error) {
		p, err := s.source.Profile(ctx, sel)
		return p, nil, err
	})
	if err != nil {
		return err
	}
	return s.servePprof(w, r, m, pprofui.Bar{
		Back: SpanPath(sp.TraceID, sp.ID), BackText: "back to the trace",
		Title: format.Clean(fmt.Sprintf("%s of %s %s, %s", t.Words, sp.Service, sp.Name, format.Duration(sp.Duration())), 200),
	})
}

// mount returns pprof's pages for the profiles that read returns, from the cache if they are there.
func (s *server) mount(ctx context.Context, key string, read func(context.Context) (p, base *profile.Profile, err error)) (*pprofui.UI, error) {
	if m, ok := s.mounts.get(key); ok {
		return m, nil
	}
	m, err := once(ctx, s, "mount "+key, func(ctx context.Context) (*pprofui.UI, error) {
		p, base, err := read(ctx)
		if err != nil {
			return nil, err
		}
		keep := light(p) && (base == nil || light(base))
		m, err := pprofui.New(p, base)
		if err == nil && keep {
			s.mounts.put(key, m)
		}
		return m, err
	})
	if errors.Is(err, profiles.ErrNone) {
		return nil, refusal{http.StatusNotFound, "There is no such profile, or nothing in it."}
	}
	return m, err
}

// servePprof serves one of pprof's pages. It counts as expensive work, which is limited.
func (s *server) servePprof(w http.ResponseWriter, r *http.Request, m *pprofui.UI, b pprofui.Bar) error {
	select {
	case s.heavy <- struct{}{}:
		defer func() { <-s.heavy }()
	case <-r.Context().Done():
		return context.Cause(r.Context())
	}
	err := m.Serve(w, r, "/"+r.PathValue("page"), b)
	if errors.Is(err, pprofui.ErrNoPage) {
		return refusal{http.StatusNotFound, "There is no such page of pprof here."}
	}
	return err
}
