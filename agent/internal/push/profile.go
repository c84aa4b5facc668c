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

// maxProfileBytes bounds what is decompressed: sixteen times what the server takes in one piece.
const maxProfileBytes = 64 << 20

// prepare returns the profile as it is sent. What the server could not even unpack is an error here, for
// it would answer such a profile with the same 500 as a fault of its own, and be asked for ever.
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
	changed := c.bound.fit(p, room, ch)
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

// parse returns a profile that is whole: the library writes what it would not take, and panics at some of it.
func parse(raw []byte) (*profile.Profile, error) {
	p, err := profile.ParseUncompressed(raw)
	if err != nil {
		return nil, err
	}
	return p, p.CheckValid()
}

// shape is what can be learned of an uncompressed profile without building it.
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

// fit brings the samples' string labels under the rules for series labels, which the server makes of them:
// one bad name refuses the whole profile. room is how many more labels a series may have. It reports whether
// anything changed.
func (b *bound) fit(p *profile.Profile, room int, ch *Changes) bool {
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
		beside := isLink(k)
		switch {
		case beside:
		case taken[name] || strings.HasPrefix(name, "__") || room <= 0 || !b.name(name):
			ch.note(&ch.Dropped, k)
			changed = true
			continue
		case name != k:
			ch.note(&ch.Renamed, k)
			changed = true
		}
		if !beside {
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
					within := b.value(name, w)
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

// sampleLabelOrder is who gets the room: first what links spans, then names that are right as they are.
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
