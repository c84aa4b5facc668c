package profiles

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/google/pprof/profile"

	"spanflame/internal/wallprofile"
)

// WithoutDamaged leaves out unusable files, and calls report for each of them.
func WithoutDamaged(windows iter.Seq2[Window, error], report func(Damaged)) iter.Seq2[Window, error] {
	return func(yield func(Window, error) bool) {
		for w, err := range windows {
			if d, ok := errors.AsType[Damaged](err); ok {
				report(d)
				continue
			}
			if !yield(w, err) {
				return
			}
		}
	}
}

// SpanIDs returns the IDs of the spans that samples of a profile name.
func SpanIDs(p *profile.Profile) map[string]bool {
	ids := make(map[string]bool)
	for _, s := range p.Sample {
		for _, id := range s.Label[wallprofile.SpanID] {
			ids[id] = true
		}
	}
	return ids
}

// OfSpans reduces each profile to the samples of the spans, and leaves out profiles without such samples.
func OfSpans(windows iter.Seq2[Window, error], spanIDs ...string) iter.Seq2[Window, error] {
	return func(yield func(Window, error) bool) {
		for w, err := range windows {
			if err == nil {
				if w.Profile = ByLabel(w.Profile, wallprofile.SpanID, spanIDs...); len(w.Profile.Sample) == 0 {
					continue
				}
			}
			if !yield(w, err) {
				return
			}
		}
	}
}

// Span returns the samples of spans, merged from the profiles that match the query, which must be of one type. The error
// is ErrNone if there are no such samples. Unusable files are skipped; the error names them if nothing was found.
func (d *Dir) Span(ctx context.Context, q Query, spanIDs ...string) (*profile.Profile, error) {
	var damage error
	windows := WithoutDamaged(d.Windows(ctx, q), func(d Damaged) { damage = errors.Join(damage, d) })
	p, err := Merge(ctx, OfSpans(windows, spanIDs...))
	if errors.Is(err, ErrNone) {
		err = errors.Join(fmt.Errorf("span %q: %w", spanIDs, ErrNone), damage)
	}
	return p, err
}

// ByLabel returns a profile of the samples whose label with this name has one of the values. If the label is the span's
// ID, comments about other spans are left out. The result shares nothing with p that writing either of them would change.
// While ByLabel runs, p may be read but not written: google/pprof stores numbers in a profile that it writes.
func ByLabel(p *profile.Profile, name string, values ...string) *profile.Profile {
	q := &profile.Profile{
		DefaultSampleType: p.DefaultSampleType, Period: p.Period,
		Mapping: p.Mapping, Location: p.Location, Function: p.Function,
		Comments: slices.Clone(p.Comments), DocURL: p.DocURL, DropFrames: p.DropFrames, KeepFrames: p.KeepFrames,
		TimeNanos: p.TimeNanos, DurationNanos: p.DurationNanos,
	}
	for _, st := range p.SampleType {
		q.SampleType = append(q.SampleType, &profile.ValueType{Type: st.Type, Unit: st.Unit})
	}
	if pt := p.PeriodType; pt != nil {
		q.PeriodType = &profile.ValueType{Type: pt.Type, Unit: pt.Unit}
	}
	wanted := make(map[string]bool, len(values))
	for _, v := range values {
		wanted[v] = true
	}
	if name == wallprofile.SpanID {
		q.Comments = slices.DeleteFunc(q.Comments, func(c string) bool {
			id, _, ofSpan := wallprofile.ParseComment(c)
			return ofSpan && !wanted[id]
		})
	}
	for _, s := range p.Sample {
		if slices.ContainsFunc(s.Label[name], func(v string) bool { return wanted[v] }) {
			q.Sample = append(q.Sample, s)
		}
	}
	return q.Compact() // has samples, locations and functions of its own
}
