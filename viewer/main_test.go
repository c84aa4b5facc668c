package viewer

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"html"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"

	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// began is when everything in the tests' directories began.
var began = time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)

// saved is a directory as agents save to it.
type saved struct {
	t        testing.TB
	dir      string
	comments []string // of the profiles that are saved next
}

func newSaved(t testing.TB) saved { return saved{t: t, dir: t.TempDir()} }

// id is an id of n bytes that belongs to a name.
func id(name string, n int) []byte {
	sum := sha256.Sum256([]byte(name))
	return sum[:n]
}

func traceID(name string) string { return hex.EncodeToString(id(name, 16)) }
func spanID(name string) string  { return hex.EncodeToString(id(name, 8)) }

// span is a span of the trace "t" unless it says another. Its ids are those of its names.
type span struct {
	trace, id, parent, service, name string
	start, took                      time.Duration // since began
	profiled, failed                 bool
	attributes                       map[string]string
}

func text(v string) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: v}}
}

// asLine is spans as a line of a file, one batch each.
func asLine(t testing.TB, spans ...span) []byte {
	t.Helper()
	var rs []*tracepb.ResourceSpans
	for _, s := range spans {
		if s.trace == "" {
			s.trace = "t"
		}
		p := &tracepb.Span{
			TraceId: id(s.trace, 16), SpanId: id(s.id, 8), Name: s.name, Kind: tracepb.Span_SPAN_KIND_SERVER, Status: &tracepb.Status{},
			StartTimeUnixNano: uint64(began.Add(s.start).UnixNano()), EndTimeUnixNano: uint64(began.Add(s.start + s.took).UnixNano()),
		}
		if s.parent != "" {
			p.ParentSpanId = id(s.parent, 8)
		}
		if s.failed {
			p.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: s.name + " failed"}
			p.Events = []*tracepb.Span_Event{
				{Name: s.name + " event", TimeUnixNano: p.StartTimeUnixNano, Attributes: []*commonpb.KeyValue{{Key: s.name, Value: text(s.name)}}},
			}
		}
		if s.profiled {
			p.Attributes = append(p.Attributes, &commonpb.KeyValue{Key: wallprofile.ProfileIDAttribute, Value: text(spanID(s.id))})
		}
		for _, k := range slices.Sorted(maps.Keys(s.attributes)) {
			p.Attributes = append(p.Attributes, &commonpb.KeyValue{Key: k, Value: text(s.attributes[k])})
		}
		rs = append(rs, &tracepb.ResourceSpans{
			Resource:   &resourcepb.Resource{Attributes: []*commonpb.KeyValue{{Key: "service.name", Value: text(s.service)}}},
			ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{p}}},
		})
	}
	var b bytes.Buffer
	if err := traces.Marshal(&b, rs); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// traceFile is the path of a file of traces.
func (d saved) traceFile(service, name string) string {
	d.t.Helper()
	dir := filepath.Join(d.dir, "traces", record.DirName(service))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		d.t.Fatal(err)
	}
	return filepath.Join(dir, name+".jsonl")
}

// write appends to a file.
func (d saved) write(path string, b []byte) {
	d.t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		d.t.Fatal(err)
	}
	if _, err := f.Write(b); err != nil {
		d.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		d.t.Fatal(err)
	}
}

// spans saves spans in one line of a file of their own.
func (d saved) spans(spans ...span) {
	d.t.Helper()
	d.write(d.traceFile(spans[0].service, spans[0].id), asLine(d.t, spans...))
}

// sample is a stack, outermost first, with its value.
type sample struct {
	stack string // functions, joined by ;
	value int64
	span  string
}

// pprofOf is a profile.
func pprofOf(start time.Time, took time.Duration, valueType, unit string, comments []string, samples ...sample) *profile.Profile {
	p := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: valueType, Unit: unit}}, TimeNanos: start.UnixNano(), DurationNanos: int64(took),
		PeriodType: &profile.ValueType{Type: valueType, Unit: unit}, Period: 1, Comments: comments,
	}
	at := make(map[string]*profile.Location)
	for _, s := range samples {
		ps := &profile.Sample{Value: []int64{s.value}}
		if s.span != "" {
			ps.Label = map[string][]string{"span_id": {spanID(s.span)}}
		}
		for _, name := range slices.Backward(strings.Split(s.stack, ";")) {
			if at[name] == nil {
				f := &profile.Function{ID: uint64(len(at) + 1), Name: name, SystemName: name, Filename: "/etc/passwd"}
				at[name] = &profile.Location{ID: f.ID, Line: []profile.Line{{Function: f, Line: 1}}}
				p.Function, p.Location = append(p.Function, f), append(p.Location, at[name])
			}
			ps.Location = append(ps.Location, at[name])
		}
		p.Sample = append(p.Sample, ps)
	}
	return p
}

// profile saves a profile.
func (d saved) profile(m record.Meta, valueType, unit string, samples ...sample) {
	d.t.Helper()
	p := pprofOf(m.Start, m.End.Sub(m.Start), valueType, unit, d.comments, samples...)
	var b, file bytes.Buffer
	if err := p.Write(&b); err != nil {
		d.t.Fatal(err)
	}
	if err := record.Encode(&file, record.Record{Meta: m, Profile: b.Bytes()}); err != nil {
		d.t.Fatal(err)
	}
	path := filepath.Join(d.dir, "profiles", filepath.FromSlash(m.SavedPath()))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", file.Bytes(), 0o644); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		d.t.Fatal(err)
	}
}

// wall saves a wall-clock profile of spans.
func (d saved) wall(service string, start, took time.Duration, samples ...sample) {
	d.t.Helper()
	d.profile(record.Meta{
		Service: service, Type: record.Wall, Start: began.Add(start), End: began.Add(start + took), Labels: map[string]string{"span_scope": "root"},
	}, "wall", "nanoseconds", samples...)
}

// open opens the directory.
func (d saved) open() *Directory {
	d.t.Helper()
	dir, err := OpenDirectory(d.dir)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		if err := dir.Close(); err != nil {
			d.t.Error(err)
		}
	})
	return dir
}

// pages are the pages over a source. Whatever they log fails the test.
func pages(t testing.TB, source Source, o Options) http.Handler {
	t.Helper()
	o.Log = slog.New(slog.NewTextHandler(failing{t}, nil))
	h, err := New(source, o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

type failing struct{ t testing.TB }

func (f failing) Write(b []byte) (int, error) {
	f.t.Errorf("logged: %s", b)
	return len(b), nil
}

var _ io.Writer = failing{}

// get asks for a page.
func get(h http.Handler, path string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, "http://localhost"+path, nil)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// page asks for a page that there is.
func page(t testing.TB, h http.Handler, path string) string {
	t.Helper()
	w := get(h, path)
	if w.Code != http.StatusOK {
		t.Fatalf("%s: status %d: %s", path, w.Code, w.Body)
	}
	return w.Body.String()
}

// shows fails unless the page has all of the parts.
func shows(t testing.TB, page string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(page, part) {
			t.Errorf("%q is not in the page:\n%s", part, page)
		}
	}
}

// regexpOf is the first group of an expression in a page, as an address.
func regexpOf(t testing.TB, page, expression string) string {
	t.Helper()
	m := regexp.MustCompile(expression).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("no %s in the page:\n%s", expression, page)
	}
	address, _, _ := strings.Cut(html.UnescapeString(m[1]), "#")
	return address
}

// shop saves one slow request across two services: the lock that it waits for, 80 ms of CPU, and the time of
// another goroutine.
func shop(t testing.TB) saved {
	d := newSaved(t)
	d.spans(
		span{
			id: "root", service: "storefront", name: "POST /checkout", took: 600 * time.Millisecond, profiled: true,
			attributes: map[string]string{"http.route": "/checkout"},
		},
		span{id: "pricing", parent: "root", service: "storefront", name: "pricing", start: 10 * time.Millisecond, took: 500 * time.Millisecond, profiled: true},
		span{id: "short", parent: "root", service: "storefront", name: "save", start: 580 * time.Millisecond, took: time.Millisecond},
	)
	d.spans(
		span{
			id: "inventory", parent: "root", service: "inventory", name: "POST /reserve", start: 520 * time.Millisecond,
			took: 50 * time.Millisecond, profiled: true, failed: true,
		},
	)
	d.wall("storefront", 0, 600*time.Millisecond,
		sample{"span: POST /checkout;span: pricing;main.(*Cart).Price;sync.(*Mutex).Lock;[waiting: mutex]", 450e6, "root"},
		sample{"span: POST /checkout;span: pricing;main.(*Cart).Price;main.discount", 80e6, "root"},
		sample{"span: POST /checkout;net/http.(*Client).Do;[waiting: select]", 70e6, "root"},
		sample{"span: POST /checkout;[other goroutines working for this span];main.prefetch;[waiting: network]", 300e6, "root"},
	)
	d.profile(record.Meta{Service: "storefront", Type: record.CPU, Start: began.Add(-5 * time.Second), End: began.Add(10 * time.Second)}, "cpu", "nanoseconds",
		sample{"main.(*Cart).Price;main.discount", 80e6, "root"}, sample{"main.elsewhere", 90e6, "another"})
	for i := range 4 {
		start := began.Add(time.Duration(i) * 15 * time.Second)
		d.profile(record.Meta{Service: "storefront", Type: record.Memory, Start: start, End: start.Add(15 * time.Second)}, "inuse_space", "bytes",
			sample{"main.main;main.steady", 10 << 20, ""}, sample{"main.main;main.leak", int64(i) << 20, ""})
	}
	return d
}

func rootPath() string { return TracePath(traceID("t")) }

func wallPath() string { return fmt.Sprintf("%s/span/%s/wall", rootPath(), spanID("root")) }
