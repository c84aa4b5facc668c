package push

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/google/pprof/profile"

	"spanflame/internal/pprofwire"
	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

// maxProfileBytes limits the size of a decompressed profile: sixteen times what the server accepts in one piece.
const maxProfileBytes = 64 << 20

// prepare returns the profile that is sent. One that the server could not decompress is an error here: the server
// would answer it with the same 500 as a failure of its own, and it would be sent again indefinitely.
func (c *Client) prepare(ctx context.Context, r record.Record, room int, ch *Changes) ([]byte, error) {
	raw, err := decompress(r.Profile)
	if err != nil {
		return nil, err
	}
	s, err := inspect(raw)
	if err != nil {
		return nil, err
	}
	if cumulative[r.Type] || !s.labelled {
		return r.Profile, nil
	}
	p, err := parse(raw)
	if err != nil {
		return nil, err
	}
	changed := c.labels.fit(p, room, ch)
	if hasTraceID(p) && !c.keepsTraceID(ctx) {
		ch.TraceIDs += dropTraceID(p)
		changed = true
	}
	if !changed {
		return r.Profile, nil
	}
	// Samples that differed in a label alone are one sample now.
	merged, err := profile.Merge([]*profile.Profile{p})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := merged.WriteUncompressed(&out); err != nil {
		return nil, err
	}
	return pprofwire.Gzip(out.Bytes()), nil
}

func decompress(b []byte) ([]byte, error) { return pprofwire.Gunzip(b, maxProfileBytes) }

// parse returns a valid profile: the library writes profiles that it would not read, and panics at some of them.
func parse(raw []byte) (*profile.Profile, error) {
	p, err := profile.ParseUncompressed(raw)
	if err != nil {
		return nil, err
	}
	return p, p.CheckValid()
}

// shape describes an uncompressed profile, without building it.
type shape struct {
	samples  int
	labelled bool // some sample has a label
}

func inspect(raw []byte) (shape, error) {
	var s shape
	if len(raw) == 0 {
		return s, errors.New("it is empty")
	}
	m := pprofwire.NewMessage(raw)
	for m.Next() {
		if m.Field != pprofwire.ProfileSample || !m.IsBytes() {
			continue
		}
		s.samples++
		sample := pprofwire.NewMessage(m.Bytes())
		for sample.Next() {
			s.labelled = s.labelled || sample.Field == pprofwire.SampleLabel
		}
		m.Fail(sample.Err())
	}
	return s, m.Err()
}

// fit changes the samples' string labels to follow the rules for series labels, which the server makes of them: it
// refuses the whole profile for one bad name. room is how many more labels a series may have. It reports whether it
// changed anything.
func (l *labelLimit) fit(p *profile.Profile, room int, ch *Changes) bool {
	keys := map[string]bool{}
	for _, s := range p.Sample {
		for k := range s.Label {
			keys[k] = true
		}
	}
	sent := map[string]string{} // label to the name it is sent under; absent if dropped
	taken := map[string]bool{}
	changed := false
	for _, k := range slices.SortedFunc(maps.Keys(keys), sampleLabelOrder) {
		name := labelName(k)
		link := isLink(k)
		switch {
		case link:
		case taken[name] || strings.HasPrefix(name, "__") || room <= 0 || !l.name(name):
			ch.note(&ch.Dropped, k)
			changed = true
			continue
		case name != k:
			ch.note(&ch.Renamed, k)
			changed = true
		}
		if !link {
			room--
		}
		sent[k], taken[name] = name, true
	}
	cutKeys, otherKeys := map[string]bool{}, map[string]bool{}
	for _, s := range p.Sample {
		fit := make(map[string][]string, len(s.Label))
		for k, values := range s.Label {
			name, ok := sent[k]
			if !ok {
				continue
			}
			fit[name] = values
			for i, v := range values {
				w := cut(strings.ToValidUTF8(v, "\uFFFD"), maxValueBytes)
				cutKeys[k] = cutKeys[k] || w != v
				if !isLink(k) {
					within := l.value(name, w)
					otherKeys[k] = otherKeys[k] || within != w
					w = within
				}
				values[i] = w
			}
		}
		s.Label = fit
	}
	for _, k := range slices.Sorted(maps.Keys(sent)) {
		if cutKeys[k] {
			ch.note(&ch.Cut, k)
			changed = true
		}
		if otherKeys[k] {
			ch.note(&ch.Other, k)
			changed = true
		}
	}
	return changed
}

func isLink(k string) bool {
	return k == wallprofile.SpanID || k == wallprofile.ProfileID || k == wallprofile.TraceID
}

// sampleLabelOrder sorts labels by who gets the room: those that link spans, then those whose names need no change.
func sampleLabelOrder(a, b string) int {
	rank := func(k string) int {
		switch {
		case isLink(k):
			return 0
		case labelName(k) == k:
			return 1
		}
		return 2
	}
	if d := rank(a) - rank(b); d != 0 {
		return d
	}
	return strings.Compare(a, b)
}

func hasTraceID(p *profile.Profile) bool {
	return slices.ContainsFunc(p.Sample, func(s *profile.Sample) bool { return len(s.Label[wallprofile.TraceID]) > 0 })
}

func dropTraceID(p *profile.Profile) (samples int) {
	for _, s := range p.Sample {
		if len(s.Label[wallprofile.TraceID]) > 0 {
			delete(s.Label, wallprofile.TraceID)
			samples++
		}
	}
	return samples
}
