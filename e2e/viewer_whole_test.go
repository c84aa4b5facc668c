//go:build !compose

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/google/pprof/profile"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"spanflame/internal/record"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
	"spanflame/viewer"
)

// TestBrowserFollowsATraceAcrossServices is the way from the slow traces to what decided how long one took, in two services, by
// keyboard alone.
func TestBrowserFollowsATraceAcrossServices(t *testing.T) {
	dir := t.TempDir()
	saveAcrossServices(t, dir)
	b, home := browseDirectory(t, dir)
	b.open(home)
	b.toContent()
	b.tab(`main a[href^="/trace/"]`)
	b.enter("What decided how long it took")
	b.says("inventory POST /reserve", "waiting for a mutex in main.hold", "held by: POST /audit, another request: on the CPU in main.audit",
		"network, or the queue before POST /reserve")
	if scope := eval[int](b, `document.querySelectorAll("#path ~ table th[scope=col]").length`); scope != 5 {
		t.Errorf("the table has %d headers of columns", scope)
	}

	// The flame graph of the whole trace, a frame of the other service, and the span alone.
	b.toContent()
	b.tab(`a[href$="?whole=1#flame"]`)
	b.enter("span: POST /reserve of inventory")
	b.tab(`.flame a[aria-label^="main.audit: 800 ms, 80 %"]`)
	b.enter("Zoomed to")
	b.says("main.audit: 800 ms, 80 %", "span: POST /reserve of inventory")
	b.tab(`a[href*="?span="]:not([href*="type="]):not([title])`)
	b.enter("Flame graph of POST /checkout")

	call(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: 360, Height: 700, DeviceScaleFactor: 2, Mobile: true})
	b.open(home + viewer.TracePath(strings.Repeat("07", 16)) + "?whole=1")
	if width := eval[int](b, "document.documentElement.scrollWidth"); width > 360 {
		t.Errorf("the page is %d pixels wide on a phone of 360", width)
	}

	file := filepath.Join(t.TempDir(), "whole.pb.gz")
	if err := os.WriteFile(file, []byte(content(t, home+viewer.TracePath(strings.Repeat("07", 16))+"/whole.pb.gz")), 0o644); err != nil {
		t.Fatal(err)
	}
	if functions := top(t, file); len(functions) == 0 || functions[0] != "main.audit" {
		t.Errorf("go tool pprof -top has %q first", functions)
	}
}

// toContent follows the link that skips the navigation.
func (b *browser) toContent() {
	b.t.Helper()
	b.tab(`a.skip[href="#main"]`)
	b.do(chromedp.KeyEvent(kb.Enter))
}

// saveAcrossServices saves a trace of a second, of which the storefront waits 900 ms for the inventory.
func saveAcrossServices(t *testing.T, dir string) {
	t.Helper()
	start := time.Now().Add(-time.Minute).Truncate(time.Millisecond)
	trace := bytes.Repeat([]byte{7}, 16)
	span := func(id, parent byte, name string, kind tracepb.Span_SpanKind, took time.Duration) *tracepb.Span {
		s := &tracepb.Span{TraceId: trace, SpanId: bytes.Repeat([]byte{id}, 8), Name: name, Kind: kind,
			StartTimeUnixNano: uint64(start.UnixNano()), EndTimeUnixNano: uint64(start.Add(took).UnixNano()),
			Attributes: []*commonpb.KeyValue{{Key: wallprofile.ProfileIDAttribute, Value: text(fmt.Sprintf("%x", bytes.Repeat([]byte{id}, 8)))}}}
		if parent != 0 {
			s.ParentSpanId = bytes.Repeat([]byte{parent}, 8)
		}
		return s
	}
	const server, client = tracepb.Span_SPAN_KIND_SERVER, tracepb.Span_SPAN_KIND_CLIENT
	saveSpans(t, dir, "storefront", span(1, 0, "POST /checkout", server, time.Second), span(2, 1, "HTTP POST", client, 900*time.Millisecond))
	saveSpans(t, dir, "inventory", span(3, 2, "POST /reserve", server, 800*time.Millisecond))
	saveWall(t, dir, "storefront", start, 1, map[string]time.Duration{
		"span: POST /checkout;main.price": 100 * time.Millisecond,
		"span: POST /checkout;span: HTTP POST;main.reserve;net/http.(*persistConn).roundTrip;" + wallprofile.WaitSelect.Leaf() + ";" +
			wallprofile.WaitedForFrame("the answer of an HTTP call"): 900 * time.Millisecond,
	})
	saveWall(t, dir, "inventory", start, 3, map[string]time.Duration{
		"span: POST /reserve;main.hold;sync.(*Mutex).Lock;" + wallprofile.WaitMutex.Leaf() + ";" +
			wallprofile.CauseFrame(wallprofile.HeldBy, wallprofile.OtherRequest, "POST /audit") + ";main.audit": 800 * time.Millisecond,
	})
}

func text(v string) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: v}}
}

// saveSpans saves spans of a service, in a file of their own, as its agent does.
func saveSpans(t *testing.T, dir, service string, spans ...*tracepb.Span) {
	t.Helper()
	var line bytes.Buffer
	err := traces.Marshal(&line, []*tracepb.ResourceSpans{{
		Resource:   &resourcepb.Resource{Attributes: []*commonpb.KeyValue{{Key: "service.name", Value: text(service)}}},
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: spans}},
	}})
	dir = filepath.Join(dir, "traces", record.DirName(service))
	file := filepath.Join(dir, fmt.Sprintf("%x.jsonl", spans[0].SpanId))
	if err := errors.Join(err, os.MkdirAll(dir, 0o755), os.WriteFile(file, line.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// saveWall saves the wall-clock profile of a span as the agent of its service does.
func saveWall(t *testing.T, dir, service string, start time.Time, id byte, stacks map[string]time.Duration, comments ...string) {
	t.Helper()
	wall := &profile.ValueType{Type: "wall", Unit: "nanoseconds"}
	p := &profile.Profile{
		SampleType: []*profile.ValueType{wall}, PeriodType: wall, Period: 1,
		TimeNanos: start.UnixNano(), DurationNanos: int64(time.Second), Comments: comments,
	}
	for stack, took := range stacks {
		sample := &profile.Sample{
			Value: []int64{int64(took)}, Label: map[string][]string{wallprofile.SpanID: {fmt.Sprintf("%x", bytes.Repeat([]byte{id}, 8))}},
		}
		for _, name := range slices.Backward(strings.Split(stack, ";")) {
			f := &profile.Function{ID: uint64(len(p.Function) + 1), Name: name, SystemName: name, Filename: name}
			l := &profile.Location{ID: f.ID, Line: []profile.Line{{Function: f, Line: 1}}}
			p.Function, p.Location, sample.Location = append(p.Function, f), append(p.Location, l), append(sample.Location, l)
		}
		p.Sample = append(p.Sample, sample)
	}
	m := record.Meta{Service: service, Type: record.Wall, Start: start, End: start.Add(time.Second),
		Labels: map[string]string{wallprofile.SpanScope: wallprofile.ScopeRoot}}
	var b, file bytes.Buffer
	path := filepath.Join(dir, "profiles", filepath.FromSlash(m.SavedPath()))
	if err := errors.Join(p.Write(&b), record.Encode(&file, record.Record{Meta: m, Profile: b.Bytes()}),
		os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, file.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
}
