package wall

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	oteltrace "go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recording is a Recorder and what it emitted.
type recording struct {
	*Recorder
	t *testing.T

	mu        sync.Mutex
	records   []record.Record
	diagnoses []Diagnosis
	log       bytes.Buffer
}

// startRecorder starts a recorder that captures everything from 20 ms on and may use all the CPU it needs.
func startRecorder(t *testing.T, change func(*Options)) *recording {
	t.Helper()
	rec := &recording{t: t}
	o := Options{
		Service:  "shop",
		Labels:   map[string]string{"region": "here"},
		SlowSpan: 20 * time.Millisecond,
		CPUShare: 1,
		Emit: func(r record.Record) {
			rec.mu.Lock()
			defer rec.mu.Unlock()
			rec.records = append(rec.records, r)
		},
		Diagnosed: func(d Diagnosis) {
			rec.mu.Lock()
			defer rec.mu.Unlock()
			rec.diagnoses = append(rec.diagnoses, d)
		},
		Logger: slog.New(slog.NewTextHandler(&rec.log, nil)),
	}
	if change != nil {
		change(&o)
	}
	r, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	rec.Recorder = r
	t.Cleanup(rec.finish)
	return rec
}

// finish stops the recorder, after which everything has been emitted.
func (rec *recording) finish() {
	rec.t.Helper()
	if err := rec.Stop(context.Background()); err != nil {
		rec.t.Errorf("Stop: %v", err)
	}
}

// testSpan is a span as package spanlink would mark it.
type testSpan struct {
	mark Mark
	id   oteltrace.SpanID
	name string

	// The marks lie between outer and inner at each end, so a profile is known to have at least inner and at
	// most outer, however long the goroutine was kept from running in between. What lies before the first
	// mark counts twice in outer: the clock that tells it is read after that mark.
	outerFrom, innerFrom time.Time
	inner, outer         time.Duration
	once                 sync.Once
}

type markKey struct{}

func (rec *recording) begin(ctx context.Context, name string) (context.Context, *testSpan) {
	s := &testSpan{name: name, outerFrom: time.Now()}
	binary.LittleEndian.PutUint64(s.id[:], rand.Uint64()|1)
	trace := oteltrace.SpanContextFromContext(ctx).TraceID()
	if !trace.IsValid() {
		binary.LittleEndian.PutUint64(trace[:], rand.Uint64()|1)
	}
	sc := oteltrace.NewSpanContext(oteltrace.SpanContextConfig{TraceID: trace, SpanID: s.id, TraceFlags: oteltrace.FlagsSampled})
	ctx = oteltrace.ContextWithSpanContext(ctx, sc)
	parent, _ := ctx.Value(markKey{}).(Mark)
	s.mark = rec.Begin(parent, sc, name, s.outerFrom)
	s.innerFrom = time.Now()
	if s.mark != nil {
		ctx = context.WithValue(ctx, markKey{}, s.mark)
	}
	return ctx, s
}

func (s *testSpan) end() {
	s.once.Do(func() {
		s.inner = time.Since(s.innerFrom)
		if s.mark != nil {
			s.mark.End(s.name, time.Time{})
		}
		s.outer = time.Since(s.outerFrom) + s.innerFrom.Sub(s.outerFrom)
	})
}

// flame is the profile of one span, put together from all records that have it.
type flame struct {
	total  int64
	own    int64
	others int64
	leaves map[string]int64 // own time by leaf frame
	stacks map[string]int64 // time by stack without causes, outermost first, joined by ";"
	whole  map[string]int64 // time by stack with causes
	meta   record.Meta
}

// flame returns the profile of a span, nil if there is none.
func (rec *recording) flame(id oteltrace.SpanID) *flame {
	rec.t.Helper()
	return rec.flames()[id.String()]
}

// flames returns all profiles by span id.
func (rec *recording) flames() map[string]*flame {
	rec.t.Helper()
	rec.mu.Lock()
	defer rec.mu.Unlock()
	all := map[string]*flame{}
	for _, r := range rec.records {
		p, err := profile.ParseData(r.Profile)
		if err != nil {
			rec.t.Fatalf("record of %v: %v", r.Meta, err)
		}
		if len(p.SampleType) != 2 || p.SampleType[0].Type != "wall" || p.SampleType[1].Type != "others" || p.DefaultSampleType != "wall" ||
			p.SampleType[0].Unit != "nanoseconds" || p.TimeNanos != r.Start.UnixNano() {
			rec.t.Fatalf("profile is %v at %d, record at %v", p.SampleType, p.TimeNanos, r.Start)
		}
		for _, s := range p.Sample {
			if len(s.Label["span_id"]) != 1 {
				rec.t.Fatalf("a sample has the span ids %v", s.Label["span_id"])
			}
			id := s.Label["span_id"][0]
			f := all[id]
			if f == nil {
				f = &flame{leaves: map[string]int64{}, stacks: map[string]int64{}, whole: map[string]int64{}, meta: r.Meta}
				all[id] = f
			}
			var names []string
			for i := len(s.Location) - 1; i >= 0; i-- {
				names = append(names, s.Location[i].Line[0].Function.Name)
			}
			ns := s.Value[0] + s.Value[1]
			if i := slices.Index(names, wallprofile.Others); i >= 0 && s.Value[0] != 0 || i < 0 && s.Value[1] != 0 {
				rec.t.Errorf("the values %v of %q mix the span's own time with that of other goroutines", s.Value, names)
			}
			f.whole[strings.Join(names, ";")] += ns
			if i := slices.IndexFunc(names, wallprofile.IsCause); i >= 0 {
				names = names[:i]
			}
			joined := strings.Join(names, ";")
			f.total += ns
			f.stacks[joined] += ns
			if strings.Contains(joined, wallprofile.Others) {
				f.others += ns
				continue
			}
			f.own += ns
			f.leaves[names[len(names)-1]] += ns
		}
	}
	return all
}

// largest is the stack with the most own time.
func (f *flame) largest() string {
	best, most := "", int64(0)
	for s, ns := range f.stacks {
		if ns > most && !strings.Contains(s, wallprofile.Others) {
			best, most = s, ns
		}
	}
	return best
}

// sumOf is the time of the stacks that contain all parts.
func (f *flame) sumOf(parts ...string) int64 {
	var sum int64
next:
	for s, ns := range f.stacks {
		for _, p := range parts {
			if !strings.Contains(s, p) {
				continue next
			}
		}
		sum += ns
	}
	return sum
}

// clockStep is the step of the trace's clock, twice: a duration has two ends.
const clockStep = 128 * time.Nanosecond

// exact fails unless the own time is the span's duration.
func (rec *recording) exact(s *testSpan) *flame {
	rec.t.Helper()
	f := rec.flame(s.id)
	if f == nil {
		rec.t.Fatalf("%s of %v has no profile; %+v", s.name, s.outer, rec.Stats())
	}
	if !s.has(f.own) {
		rec.t.Errorf("%s: own time is %v, the span took from %v to %v\n%s", s.name, time.Duration(f.own), s.inner, s.outer, f)
	}
	return f
}

// has reports whether the time can be the span's duration.
func (s *testSpan) has(ns int64) bool {
	return time.Duration(ns) >= s.inner-clockStep && time.Duration(ns) <= s.outer+clockStep
}

func (f *flame) String() string {
	var b strings.Builder
	for s, ns := range f.stacks {
		b.WriteString(time.Duration(ns).String() + " " + s + "\n")
	}
	return b.String()
}

var discard = slog.New(slog.DiscardHandler)
