package wall

import (
	"bytes"
	"maps"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/pprofwire"
	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

// maxRecordSamples limits the samples of spans that share a record. It keeps records small enough for a
// server; the receiver splits the record of a single span that is larger.
const maxRecordSamples = 4_000

// scopes are those of all records, each of which has spans of one.
var scopes = [...]string{wallprofile.ScopeRoot, wallprofile.ScopeChild, wallprofile.ScopeFast}

// maxSpread is how far the starts of the spans in one record may lie apart: Pyroscope finds a span's samples
// by the record's start, which Grafana looks for within half a minute of the span.
const maxSpread = 10 * time.Second

// builder makes a pprof profile of accounts.
type builder struct {
	p         *profile.Profile
	locations map[frame]*profile.Location
}

func newBuilder() *builder {
	return &builder{
		p: &profile.Profile{
			SampleType:        []*profile.ValueType{{Type: "wall", Unit: "nanoseconds"}, {Type: wallprofile.OthersType, Unit: "nanoseconds"}},
			DefaultSampleType: "wall",
			PeriodType:        &profile.ValueType{Type: "wall", Unit: "nanoseconds"},
			Period:            1,
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
	var top []*profile.Location
	for _, s := range a.span.steps() {
		top = b.step(top, s)
	}
	labels := map[string][]string{wallprofile.SpanID: {a.span.id.String()}}
	for _, s := range a.samples {
		var at []*profile.Location
		for c := s.below; c != nil; c = c.above {
			if c.stack != nil {
				at = b.stack(at, c.state, c.stack)
			}
			at = append(at, b.location(frame{function: c.label}))
		}
		at = b.stack(at, s.state, s.stack)
		for p := s.at; p != nil; p = p.above {
			at = b.step(at, p.step)
		}
		value := []int64{s.ns, 0}
		if s.other {
			at = append(at, b.location(frame{function: wallprofile.Others}))
			value = []int64{0, s.ns}
		}
		at = append(at, top...)
		b.p.Sample = append(b.p.Sample, &profile.Sample{Location: at, Value: value, Label: labels})
	}
}

// encoder turns accounts into records. Spans of one capture share a record if possible: each record is a
// request of its own to the server.
type encoder struct {
	service string
	labels  map[string]string
	zip     pprofwire.Gzipper
	message bytes.Buffer // the latest profile, uncompressed
	emit    func(record.Record)
	open    map[string]*openRecord    // by scope
	used    map[string]map[int64]bool // by scope, the milliseconds at which records start
}

// openRecord is a record that is being built.
type openRecord struct {
	*builder
	first, last time.Time // the earliest and the latest start of its spans
	end         time.Time // of the span that ended last
	comments    []string
}

// stack appends a goroutine's state, and below it what it was for, and its stack.
func (b *builder) stack(to []*profile.Location, state wallprofile.State, at *stack) []*profile.Location {
	if leaf := state.Leaf(); leaf != "" {
		if what := wallprofile.WaitedFor(leaf, at.functions()); what != "" {
			to = append(to, b.location(frame{function: wallprofile.WaitedForFrame(what)}))
		}
		to = append(to, b.location(frame{function: leaf}))
	}
	for _, f := range at.frames {
		to = append(to, b.location(f))
	}
	return to
}

// step appends a span, and below it what it called.
func (b *builder) step(to []*profile.Location, s step) []*profile.Location {
	if s.call != "" {
		to = append(to, b.location(frame{function: s.call}))
	}
	return append(to, b.location(frame{function: wallprofile.SpanPrefix + s.name}))
}

func newEncoder(o Options) *encoder {
	return &encoder{
		service: o.Service, labels: maps.Clone(o.Labels), emit: o.Emit,
		open: make(map[string]*openRecord),
		used: map[string]map[int64]bool{wallprofile.ScopeRoot: {}, wallprofile.ScopeChild: {}, wallprofile.ScopeFast: {}},
	}
}

// add adds an account to the scope's open record. It returns how many records it had to emit for that.
func (x *encoder) add(scope string, a account) (emitted int) {
	a.samples = fold(a)
	start := a.span.start
	if b := x.open[scope]; b != nil {
		first, last := earlier(b.first, start), later(b.last, start)
		if last.Sub(first) > maxSpread || len(b.p.Sample)+len(a.samples) > maxRecordSamples {
			emitted = x.flush(scope)
		}
	}
	b := x.open[scope]
	if b == nil {
		b = &openRecord{builder: newBuilder(), first: start, last: start}
		x.open[scope] = b
	}
	b.add(a)
	if a.comment != "" {
		b.comments = append(b.comments, a.comment)
	}
	b.first, b.last = earlier(b.first, start), later(b.last, start)
	b.end = later(b.end, start.Add(a.duration))
	return emitted
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// flush emits the scope's open record, if there is one, and returns how many it emitted.
func (x *encoder) flush(scope string) (emitted int) {
	b := x.open[scope]
	if b == nil {
		return 0
	}
	delete(x.open, scope)
	start := x.stamp(scope, b.first, len(b.p.Sample))
	b.end = later(b.end, start) // the start may have been moved beyond the end
	b.p.TimeNanos, b.p.DurationNanos = start.UnixNano(), int64(b.end.Sub(start))
	x.message.Reset()
	_ = b.p.WriteUncompressed(&x.message) // to memory, which does not fail
	labels := make(map[string]string, len(x.labels)+1)
	maps.Copy(labels, x.labels)
	labels[wallprofile.SpanScope] = scope
	x.emit(record.Record{
		Meta:     record.Meta{Service: x.service, Type: record.Wall, Start: start, End: b.end, Labels: labels},
		Profile:  x.zip.Gzip(x.message.Bytes()),
		Comments: x.comments(b.comments),
	})
	return 1
}

// comments returns the comments as a gzip member to append to the latest profile: a message that continues the profile's
// table of strings.
func (x *encoder) comments(all []string) []byte {
	if len(all) == 0 {
		return nil
	}
	next := uint64(0)
	for m := pprofwire.NewMessage(x.message.Bytes()); m.Next(); {
		if m.Field == pprofwire.ProfileString {
			next++
		}
	}
	var more pprofwire.Encoder
	for i, c := range all {
		more.Text(pprofwire.ProfileString, c)
		more.Element(pprofwire.ProfileComment, next+uint64(i))
	}
	return x.zip.Gzip(more)
}

// stamp returns when a record starts: with its first span, or as few milliseconds later as are needed to be the
// only one of its series there. Pyroscope treats profiles of one series and millisecond as copies of one another
// and keeps a single one. Large records get room for the parts that they may be split into.
func (x *encoder) stamp(scope string, start time.Time, samples int) time.Time {
	used := x.used[scope]
	if len(used) > 10_000 {
		clear(used) // so long ago that nothing starts there any more
	}
	for used[start.UnixMilli()] {
		start = start.Add(time.Millisecond)
	}
	for part := range 1 + samples/500 {
		used[start.UnixMilli()+int64(part)] = true
	}
	return start
}
