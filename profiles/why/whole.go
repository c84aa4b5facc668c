package why

import (
	"fmt"
	"strings"

	"github.com/google/pprof/profile"

	"spanflame/internal/wallprofile"
)

// Size returns how many samples the trace has at most.
func (t *Trace) Size() int { return len(t.pieces) }

// Profile returns the wall-clock profile of the whole trace. It sums to the duration of the span that the trace began with.
// Each sample has the ID of its request as a label. The profile shares nothing with those that were read.
func (t *Trace) Profile() *profile.Profile {
	wall := func() *profile.ValueType { return &profile.ValueType{Type: "wall", Unit: "nanoseconds"} }
	b := builder{
		p: &profile.Profile{
			SampleType: []*profile.ValueType{wall()}, DefaultSampleType: "wall", PeriodType: wall(), Period: 1,
			TimeNanos: t.of.Start.UnixNano(), DurationNanos: int64(t.of.Duration()),
		},
		copies: make(map[*profile.Location]*profile.Location), locations: make(map[string]*profile.Location),
		functions: make(map[profile.Function]*profile.Function), samples: make(map[string]*profile.Sample),
	}
	if t.diagnosis != "" {
		b.p.Comments = []string{wallprofile.Comment(t.main, t.diagnosis)}
	}
	for _, p := range t.pieces {
		b.add(p)
	}
	return b.p
}

// builder makes one profile of stacks from several. The same stack of the same request is one sample.
type builder struct {
	p         *profile.Profile
	copies    map[*profile.Location]*profile.Location
	locations map[string]*profile.Location
	functions map[profile.Function]*profile.Function
	samples   map[string]*profile.Sample
}

func (b *builder) add(p piece) {
	if p.took == 0 {
		return
	}
	key := []byte(p.of.ID)
	stack := make([]*profile.Location, len(p.stack))
	for i, l := range p.stack {
		stack[i] = b.location(l)
		key = fmt.Appendf(key, " %d", stack[i].ID)
	}
	s := b.samples[string(key)]
	if s == nil {
		s = &profile.Sample{Location: stack, Value: []int64{0}, Label: map[string][]string{wallprofile.SpanID: {p.of.ID}}}
		b.samples[string(key)] = s
		b.p.Sample = append(b.p.Sample, s)
	}
	s.Value[0] += p.took
}

// location returns the location of the profile that has the same functions and lines.
func (b *builder) location(l *profile.Location) *profile.Location {
	if own := b.copies[l]; own != nil {
		return own
	}
	lines := make([]profile.Line, 0, len(l.Line))
	var key strings.Builder
	for _, line := range l.Line {
		if line.Function == nil {
			continue
		}
		line.Function = b.function(line.Function)
		lines = append(lines, line)
		fmt.Fprintf(&key, "%d %d,", line.Function.ID, line.Line)
	}
	own := b.locations[key.String()]
	if own == nil {
		own = &profile.Location{ID: uint64(len(b.p.Location) + 1), Line: lines}
		b.locations[key.String()] = own
		b.p.Location = append(b.p.Location, own)
	}
	b.copies[l] = own
	return own
}

func (b *builder) function(f *profile.Function) *profile.Function {
	key := profile.Function{Name: f.Name, SystemName: f.SystemName, Filename: f.Filename, StartLine: f.StartLine}
	own := b.functions[key]
	if own == nil {
		own = &key
		b.functions[key] = own
		b.p.Function = append(b.p.Function, own)
		own.ID = uint64(len(b.p.Function))
	}
	return own
}
