package wall

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"
	"github.com/klauspost/compress/gzip"

	"spanflame/internal/record"
)

// Pyroscope refuses profiles of more than 16,000 samples or more than a burst of 2 MB.
const (
	maxSamples = 15_000
	maxEncoded = 1_900_000 // bytes, before compression
)

// spread is how far the starts of children in one record may lie apart: Pyroscope finds a span's samples
// by the record's start, which Grafana looks for within half a minute of the span.
const spread = 10 * time.Second

const (
	spanFrame   = "span: "
	othersFrame = "[other goroutines working for this span]"

	scopeLabel = "span_scope" // of a record: scopeRoot or scopeChild
	scopeRoot  = "root"
	scopeChild = "child"
)

// account is a span's finished profile: its samples, and what they sum to.
type account struct {
	span     *span
	duration time.Duration
	covered  time.Duration // own time that is recorded
	samples  []sample
}

type sample struct {
	entry
	other bool // on another goroutine than the span's own
	ns    int64
}

// account sums up a span that has ended.
func (s *span) account() account {
	l := &s.conv
	a := account{span: s, duration: l.to.Sub(l.from)}
	if l.lost {
		a.duration = s.duration()
	}
	owned := s.owned()
	type key struct {
		at    *path
		stack *stack
		state state
		other bool
	}
	sums := make(map[key]int64)
	for k, ns := range l.now {
		own := owned(k.seg)
		if !own && k.at == nil && k.seg.lane == l.lane {
			continue // the starter, after the span had left it
		}
		sums[key{k.at, k.stack, k.state, !own}] += ns
		if own {
			a.covered += time.Duration(ns)
		}
	}
	for k, ns := range sums {
		a.samples = append(a.samples, sample{entry{at: k.at, stack: k.stack, state: k.state}, k.other, ns})
	}
	slices.SortFunc(a.samples, func(x, y sample) int { return cmp.Compare(y.ns, x.ns) })
	if rest := a.duration - a.covered; rest > 0 {
		why := notRecorded
		if l.moved && !l.lost {
			why = elsewhere
			a.covered = a.duration
		}
		a.samples = append(a.samples, sample{entry{stack: noStack, state: why}, false, int64(rest)})
	}
	return a
}

// names is the path of spans from the local root to s.
func (s *span) names() []string {
	var names []string
	for p := s; p != nil; p = p.parent {
		names = append(names, p.currentName())
	}
	slices.Reverse(names)
	return names
}

// builder makes a pprof profile of accounts.
type builder struct {
	p         *profile.Profile
	locations map[frame]*profile.Location
}

func newBuilder(start time.Time, d time.Duration) *builder {
	return &builder{
		p: &profile.Profile{
			SampleType:        []*profile.ValueType{{Type: "wall", Unit: "nanoseconds"}},
			DefaultSampleType: "wall",
			PeriodType:        &profile.ValueType{Type: "wall", Unit: "nanoseconds"},
			Period:            1,
			TimeNanos:         start.UnixNano(),
			DurationNanos:     int64(d),
		},
		locations: make(map[frame]*profile.Location),
	}
}

func (b *builder) location(f frame) *profile.Location {
	if l, ok := b.locations[f]; ok {
		return l
	}
	id := uint64(len(b.p.Location) + 1)
	fn := &profile.Function{ID: id, Name: f.function, SystemName: f.function, Filename: f.file}
	l := &profile.Location{ID: id, Line: []profile.Line{{Function: fn, Line: f.line}}}
	b.p.Function = append(b.p.Function, fn)
	b.p.Location = append(b.p.Location, l)
	b.locations[f] = l
	return l
}

// add adds an account; stacks of pprof begin at the leaf.
func (b *builder) add(a account) {
	var top []*profile.Location // outermost first
	for _, name := range a.span.names() {
		top = append(top, b.location(frame{function: spanFrame + name}))
	}
	labels := map[string][]string{"span_id": {a.span.id.String()}}
	for _, s := range a.samples {
		var at []*profile.Location
		if leaf := s.state.leaf(); leaf != "" {
			at = append(at, b.location(frame{function: leaf}))
		}
		for _, f := range s.stack.frames {
			at = append(at, b.location(f))
		}
		for p := s.at; p != nil; p = p.above {
			at = append(at, b.location(frame{function: spanFrame + p.name}))
		}
		if s.other {
			at = append(at, b.location(frame{function: othersFrame}))
		}
		for _, l := range slices.Backward(top) {
			at = append(at, l)
		}
		b.p.Sample = append(b.p.Sample, &profile.Sample{Location: at, Value: []int64{s.ns}, Label: labels})
	}
}

// encoder turns profiles into records.
type encoder struct {
	service string
	labels  map[string]string
	zip     *gzip.Writer
	emit    func(record.Record)
}

func newEncoder(o Options) *encoder {
	zip, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	if err != nil {
		panic(err) // only for a level that does not exist
	}
	return &encoder{service: o.Service, labels: maps.Clone(o.Labels), zip: zip, emit: o.Emit}
}

// root emits the record of a root span and returns how many profiles it became.
func (x *encoder) root(a account) (int, error) {
	b := newBuilder(a.span.start, a.duration)
	b.add(a)
	return x.encode(b.p, scopeRoot)
}

// children emits the child spans of one root in as few records as their starts allow.
func (x *encoder) children(spans []account) (int, error) {
	slices.SortFunc(spans, func(p, q account) int { return p.span.start.Compare(q.span.start) })
	n := 0
	for len(spans) > 0 {
		start, end := spans[0].span.start, time.Time{}
		b := newBuilder(start, 0)
		i := 0
		for ; i < len(spans) && spans[i].span.start.Sub(start) <= spread; i++ {
			b.add(spans[i])
			if e := spans[i].span.start.Add(spans[i].duration); e.After(end) {
				end = e
			}
		}
		b.p.DurationNanos = int64(end.Sub(start))
		spans = spans[i:]
		m, err := x.encode(b.p, scopeChild)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// encode emits a profile, in halves if it is too large for a server.
func (x *encoder) encode(p *profile.Profile, scope string) (int, error) {
	var raw bytes.Buffer
	if len(p.Sample) <= maxSamples {
		if err := p.WriteUncompressed(&raw); err != nil {
			return 0, fmt.Errorf("encoding a profile of %d samples: %w", len(p.Sample), err)
		}
	}
	if len(p.Sample) > maxSamples || raw.Len() > maxEncoded && len(p.Sample) > 1 {
		half := len(p.Sample) / 2
		first, second := part(p, p.Sample[:half]), part(p, p.Sample[half:])
		n, err := x.encode(first, scope)
		if err != nil {
			return n, err
		}
		m, err := x.encode(second, scope)
		return n + m, err
	}
	var out bytes.Buffer
	x.zip.Reset(&out)
	if _, err := x.zip.Write(raw.Bytes()); err != nil {
		return 0, fmt.Errorf("compressing a profile of %d bytes: %w", raw.Len(), err)
	}
	if err := x.zip.Close(); err != nil {
		return 0, fmt.Errorf("compressing a profile of %d bytes: %w", raw.Len(), err)
	}
	labels := make(map[string]string, len(x.labels)+1)
	maps.Copy(labels, x.labels)
	labels[scopeLabel] = scope
	start := time.Unix(0, p.TimeNanos)
	x.emit(record.Record{
		Meta: record.Meta{
			Service: x.service,
			Type:    record.Wall,
			Start:   start,
			End:     start.Add(time.Duration(p.DurationNanos)),
			Labels:  labels,
		},
		Profile: out.Bytes(),
	})
	return 1, nil
}

// part is a profile with some of p's samples and only what these need.
func part(p *profile.Profile, samples []*profile.Sample) *profile.Profile {
	q := &profile.Profile{
		SampleType:        p.SampleType,
		DefaultSampleType: p.DefaultSampleType,
		PeriodType:        p.PeriodType,
		Period:            p.Period,
		TimeNanos:         p.TimeNanos,
		DurationNanos:     p.DurationNanos,
		Sample:            samples,
	}
	seen := make(map[*profile.Location]bool)
	for _, s := range samples {
		for _, l := range s.Location {
			if !seen[l] {
				seen[l] = true
				q.Location = append(q.Location, l)
				q.Function = append(q.Function, l.Line[0].Function)
			}
		}
	}
	return q
}

// short is a function's name without the directory of its package's path.
func short(function string) string {
	return function[strings.LastIndexByte(function, '/')+1:]
}
