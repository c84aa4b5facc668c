package traces

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

func text(s string) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: s}}
}

func pair(k string, v *commonpb.AnyValue) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: k, Value: v}
}

func number(n int64) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: n}}
}

func id(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

const (
	traceID = "5b8efff798038103d269b633813fc60c"
	spanID  = "eee19b7ec3c1b174"
	above   = "eee19b7ec3c1b173"
)

// full is a batch with a root and a span that sets every field of Span.
func full() []*tracepb.ResourceSpans {
	all := []*commonpb.KeyValue{
		pair("s", text("<b>\u2028\"")), pair("i", number(-7)),
		pair("d", &commonpb.AnyValue{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: 0.5}}),
		pair("b", &commonpb.AnyValue{Value: &commonpb.AnyValue_BoolValue{BoolValue: true}}),
		pair("bytes", &commonpb.AnyValue{Value: &commonpb.AnyValue_BytesValue{BytesValue: []byte("abc")}}),
		pair("list", &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: &commonpb.ArrayValue{Values: []*commonpb.AnyValue{text("x"), number(2)}}}}),
		pair("map", &commonpb.AnyValue{Value: &commonpb.AnyValue_KvlistValue{
			KvlistValue: &commonpb.KeyValueList{Values: []*commonpb.KeyValue{pair("k", text("v")), pair("n", number(1))}},
		}}),
		pair("nothing", nil),
	}
	return []*tracepb.ResourceSpans{{
		Resource: &resourcepb.Resource{Attributes: []*commonpb.KeyValue{pair("service.name", text("storefront")), pair("pid", number(7))}},
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{
			{
				TraceId: id(traceID), SpanId: id(spanID), ParentSpanId: id(above), Name: "POST /reserve",
				Kind: tracepb.Span_SPAN_KIND_CLIENT, StartTimeUnixNano: 1_544_712_660_000_000_001, EndTimeUnixNano: 1_544_712_661_000_000_002,
				Attributes: all, Status: &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "no stock"},
				Events: []*tracepb.Span_Event{{
					Name: "exception", TimeUnixNano: 1_544_712_660_500_000_000,
					Attributes: []*commonpb.KeyValue{pair("exception.type", text("E"))},
				}},
				Links: []*tracepb.Span_Link{{TraceId: id(traceID), SpanId: id(above)}},
			},
			{TraceId: id(traceID), SpanId: id(above), Name: "root", StartTimeUnixNano: 5, EndTimeUnixNano: 4},
		}}},
	}}
}

// spans are those of full.
func spans() []Span {
	resource := map[string]string{"service.name": "storefront", "pid": "7"}
	return []Span{
		{
			TraceID: traceID, ID: spanID, ParentID: above, Service: "storefront", Name: "POST /reserve", Kind: "client",
			Start: time.Unix(1_544_712_660, 1).UTC(), End: time.Unix(1_544_712_661, 2).UTC(),
			Attributes: map[string]string{"s": "<b>\u2028\"", "i": "-7", "d": "0.5", "b": "true", "bytes": "YWJj", "list": "[x, 2]", "map": "{k: v, n: 1}"},
			Resource:   resource, Error: true, StatusMessage: "no stock",
			Events: []Event{{Name: "exception", Time: time.Unix(1_544_712_660, 500_000_000).UTC(), Attributes: map[string]string{"exception.type": "E"}}},
		},
		{
			TraceID: traceID, ID: above, Service: "storefront", Name: "root",
			Start: time.Unix(0, 5).UTC(), End: time.Unix(0, 5).UTC(), // its clock was set back
			Attributes: map[string]string{}, Resource: resource,
		},
	}
}

func line(t testing.TB, rs []*tracepb.ResourceSpans) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Marshal(&b, rs); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	rs := full()
	b := line(t, rs)
	if !proto.Equal(&tracepb.TracesData{ResourceSpans: rs}, &tracepb.TracesData{ResourceSpans: full()}) {
		t.Error("Marshal changed the spans that it was given")
	}
	if n := bytes.Count(b, []byte("\n")); n != 1 || b[len(b)-1] != '\n' {
		t.Errorf("%d newlines in %q, want one, at the end", n, b)
	}
	got, err := Unmarshal(b)
	if err != nil {
		t.Fatal(err)
	}
	if want := spans(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if d := got[0].Duration(); d != time.Second+1 {
		t.Errorf("duration %v, want 1.000000001s", d)
	}
}

// TestTheFormIsThatOfOTLP pins what sets OTLP JSON apart from the JSON of protobuf: ids in hexadecimal and
// enumerations as numbers.
func TestTheFormIsThatOfOTLP(t *testing.T) {
	var got struct {
		ResourceSpans []struct {
			ScopeSpans []struct {
				Spans []struct {
					TraceID, SpanID, ParentSpanID string
					StartTimeUnixNano             string
					Kind                          int
					Status                        struct{ Code int }
					Links                         []struct{ TraceID, SpanID string }
				}
			}
		}
	}
	if err := json.Unmarshal(line(t, full()), &got); err != nil {
		t.Fatal(err)
	}
	s := got.ResourceSpans[0].ScopeSpans[0].Spans[0]
	if s.TraceID != traceID || s.SpanID != spanID || s.ParentSpanID != above || s.Links[0].TraceID != traceID || s.Links[0].SpanID != above ||
		s.StartTimeUnixNano != "1544712660000000001" || s.Kind != 3 || s.Status.Code != 2 {
		t.Errorf("got %+v", s)
	}
	if s := got.ResourceSpans[0].ScopeSpans[0].Spans[1]; s.ParentSpanID != "" {
		t.Errorf("a root has the parent %q", s.ParentSpanID)
	}
}

func TestTempoWritesIDsInBase64(t *testing.T) {
	// As /api/v2/traces answers.
	got, err := Unmarshal([]byte(`{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"svc"}}]},
		"scopeSpans":[{"scope":{},"spans":[{"traceId":"W47/95gDgQPSabYzgT/GDA==","spanId":"7uGbfsPBsXQ=","parentSpanId":"7uGbfsPBsXM=",
		"name":"op","kind":"SPAN_KIND_SERVER","startTimeUnixNano":"1","endTimeUnixNano":"3","status":{"code":"STATUS_CODE_ERROR"},"unknown":1}]}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if s := got[0]; s.TraceID != traceID || s.ID != spanID || s.ParentID != above || s.Kind != "server" || !s.Error || s.Duration() != 2 {
		t.Errorf("got %+v", s)
	}
}

func TestDigitsCanBeLarge(t *testing.T) {
	got, err := Unmarshal(bytes.ReplaceAll(line(t, full()), []byte(traceID), []byte(strings.ToUpper(traceID))))
	if err != nil || got[0].TraceID != traceID {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestTextThatIsNotUTF8(t *testing.T) {
	rs := full()
	s := rs[0].ScopeSpans[0].Spans[0]
	s.Name, s.Events[0].Name = "a\xffb", "\xfe"
	s.Attributes[0].Value = text("c\xff")
	s.Attributes[6].Value.GetKvlistValue().Values[0].Key = "k\xff"
	got, err := Unmarshal(line(t, rs))
	if err != nil {
		t.Fatal(err)
	}
	if g := got[0]; g.Name != "a\uFFFDb" || g.Events[0].Name != "\uFFFD" || g.Attributes["s"] != "c\uFFFD" || g.Attributes["map"] != "{k\uFFFD: v, n: 1}" {
		t.Errorf("got %+v", g)
	}
	if s.Name != "a\xffb" {
		t.Error("Marshal changed the spans that it was given")
	}
}

func TestALineIsBounded(t *testing.T) {
	rs := full()
	rs[0].ScopeSpans[0].Spans[0].Name = strings.Repeat("x", MaxLine)
	var b bytes.Buffer
	if err := Marshal(&b, rs); !errors.Is(err, ErrTooLong) || b.Len() > 0 {
		t.Errorf("%v, and %d bytes written", err, b.Len())
	}
}

func TestUnmarshalRefuses(t *testing.T) {
	good := string(line(t, full()))
	for _, tt := range []struct{ name, old, new string }{
		{"half a line", good[len(good)/2:], ""},
		{"no JSON", "{", "<"},
		{"a short trace id", traceID, traceID[2:]},
		{"a trace id that is not hexadecimal", traceID, "zz" + traceID[2:]},
		{"no trace id", traceID, ""},
		{"a long span id", spanID, spanID + "00"},
		{"no span id", `"` + spanID + `"`, `""`},
		{"a time after pprof's and Go's", "1544712661000000002", "18446744073709551615"},
		{"an event after them", "1544712660500000000", "18446744073709551615"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bad := strings.ReplaceAll(good, tt.old, tt.new)
			if bad == good {
				t.Fatal("the case changes nothing")
			}
			if spans, err := Unmarshal([]byte(bad)); !errors.Is(err, ErrDamaged) {
				t.Errorf("got %v, %v, want ErrDamaged", spans, err)
			}
		})
	}
}

func FuzzUnmarshal(f *testing.F) {
	f.Add(line(f, full()))
	f.Add([]byte(`{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"W47/95gDgQPSabYzgT/GDA==","spanId":"7uGbfsPBsXQ="}]}]}]}`))
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"resourceSpans":[{"resource":{"attributes":[{"key":"a","value":{"arrayValue":{"values":[{"arrayValue":{}}]}}}]}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		spans, err := Unmarshal(b)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%v does not wrap ErrDamaged", err)
			}
			return
		}
		for _, s := range spans {
			if len(s.TraceID) != 32 || len(s.ID) != 16 || len(s.ParentID) != 0 && len(s.ParentID) != 16 || s.Duration() < 0 {
				t.Errorf("got %+v", s)
			}
			if _, err := hex.DecodeString(s.TraceID + s.ID + s.ParentID); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestOtherPrograms: the same span as other programs write it.
func TestOtherPrograms(t *testing.T) {
	const otlp = `{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}]},"SPANS":[{"scope":{},"spans":[` +
		`{"traceId":"IDS16","spanId":"ID8","parentSpanId":"UP8","name":"GET /","kind":"SPAN_KIND_SERVER","startTimeUnixNano":"1000000","endTimeUnixNano":"3000000",` +
		`"attributes":[{"key":"n","value":{"intValue":"7"}}],"status":{"code":"STATUS_CODE_ERROR"},"events":[{"timeUnixNano":"2000000","name":"e"}]}]}]}`
	hexIDs := strings.NewReplacer("IDS16", traceID, "ID8", spanID, "UP8", above, "SPANS", "scopeSpans").Replace(otlp)
	base64IDs := strings.NewReplacer("IDS16", base64.StdEncoding.EncodeToString(id(traceID)), "ID8", base64.StdEncoding.EncodeToString(id(spanID)),
		"UP8", base64.StdEncoding.EncodeToString(id(above)), "SPANS", "instrumentationLibrarySpans").Replace(otlp)
	jaeger := strings.NewReplacer("ID16", traceID, "ID8", spanID, "UP8", above).Replace(`{"data": [{
		"traceID": "ID16",
		"spans": [{
			"traceID": "ID16", "spanID": "ID8", "operationName": "GET /", "startTime": 1000, "duration": 2000, "processID": "p1",
			"references": [{"refType": "FOLLOWS_FROM", "traceID": "ID16", "spanID": "1"}, {"refType": "CHILD_OF", "traceID": "ID16", "spanID": "UP8"}],
			"tags": [{"key": "n", "value": 7}, {"key": "span.kind", "value": "server"}, {"key": "error", "value": true}],
			"logs": [{"timestamp": 2000, "fields": [{"key": "event", "value": "e"}]}]
		}],
		"processes": {"p1": {"serviceName": "shop", "tags": []}}
	}], "total": 0}`)
	for name, text := range map[string]string{
		"OTLP": `{"resourceSpans":[` + hexIDs + `]}`, "old OTLP": `{"resourceSpans":[` + base64IDs + `]}`,
		"with spaces": "{\n  \"resourceSpans\" : [" + hexIDs + "]}", "Tempo": `{"batches":[` + base64IDs + `]}`,
		"Tempo v2": `{"trace":{"resourceSpans":[` + hexIDs + `]}}`, "Jaeger's OTLP": `{"result":{"resourceSpans":[` + hexIDs + `]}}`, "Jaeger": jaeger,
	} {
		got, err := Unmarshal([]byte(text))
		if err != nil || len(got) != 1 {
			t.Errorf("%s: %v, %v", name, got, err)
			continue
		}
		s := got[0]
		if s.TraceID != traceID || s.ID != spanID || s.ParentID != above || s.Service != "shop" || s.Name != "GET /" || s.Kind != "server" || !s.Error ||
			s.Start.UnixNano() != 1e6 || s.Duration() != 2*time.Millisecond || s.Attributes["n"] != "7" || len(s.Events) != 1 || s.Events[0].Name != "e" ||
			s.Events[0].Time.UnixNano() != 2e6 || s.Resource["service.name"] != "shop" {
			t.Errorf("%s: %+v", name, s)
		}
	}
	short, err := Unmarshal([]byte(`{"data":[{"spans":[{"traceID":"ab","spanID":"C"}]}]}`))
	if err != nil || short[0].TraceID != strings.Repeat("0", 30)+"ab" || short[0].ID != strings.Repeat("0", 15)+"c" || short[0].ParentID != "" {
		t.Errorf("ids without their leading zeros: %+v, %v", short, err)
	}
	for _, bad := range []string{
		`{"data":[{"spans":[{"traceID":"xyz","spanID":"c"}]}]}`, `{"data":[{"spans":[{"traceID":"ab"}]}]}`, `{"data":{}}`, `[]`, `{"batches":7}`,
		`{"data":[{"spans":[{"traceID":"ab","spanID":"c","startTime":9223372036854775,"duration":9223372036854775}]}]}`,
		`{"data":[{"spans":[{"traceID":"ab","spanID":"c","startTime":-1}]}]}`,
	} {
		if got, err := Unmarshal([]byte(bad)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v, %v, want ErrDamaged", bad, got, err)
		}
	}
}

func TestAll(t *testing.T) {
	const file = "{\"a\": 1}\n\n  {\"b\":\n[2]}{}"
	var got []string
	for at, err := range All([]byte(file)) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, file[at.Offset:at.Offset+at.Length])
	}
	if want := []string{`{"a": 1}`, "{\"b\":\n[2]}", "{}"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	n := 0
	for _, err := range All([]byte(`{} {`)) {
		if n++; (err != nil) != (n == 2) || err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("value %d: %v", n, err)
		}
	}
}
