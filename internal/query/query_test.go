package query

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
)

// answer serves one body and returns its server.
func answer(t *testing.T, status int, body string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestFlameGraph(t *testing.T) {
	// main has 10 of itself, calls a (30, of which b has 20) and c (60), with a gap of 5 before c; d has no
	// width and lies at the right edge.
	url := answer(t, 200, `{"flamegraph":{"names":["total","main","a","b","c","d"],"levels":[
		{"values":["0","105","0","0"]},
		{"values":["0","105","10","1"]},
		{"values":["0","30","10","2","5","60","60","4","10","0","0","5"]},
		{"values":["10","20","20","3"]}]}}`)
	root, err := NewPyroscope(url).SpanFlameGraph(t.Context(), Wall, Selector{"service_name": "svc"}, []string{"1"}, time.Now(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var stacks []string
	root.Walk(func(stack []string, f *Frame) { stacks = append(stacks, strings.Join(stack, ";")) })
	if want := []string{"total", "total;main", "total;main;a", "total;main;a;b", "total;main;c"}; !reflect.DeepEqual(stacks, want) {
		t.Errorf("stacks %v, want %v", stacks, want)
	}
	if root.Total != 105 || root.Find("a") != 105 || root.Find("b") != 20 || root.Find("nowhere") != 0 {
		t.Errorf("total %d, a %d, b %d", root.Total, root.Find("a"), root.Find("b"))
	}
}

func TestNothingThere(t *testing.T) {
	for _, body := range []string{`{}`, `{"flamegraph":{"names":["total"]}}`, `{"flamegraph":{"names":["total"],"levels":[{"values":["0","0","0","0"]}]}}`} {
		root, err := NewPyroscope(answer(t, 200, body)).FlameGraph(t.Context(), CPU, Selector{}, time.Now(), time.Now())
		if err != nil || root.Total != 0 {
			t.Errorf("%s: total %d, %v", body, root.Total, err)
		}
	}
	if spans, err := NewTempo(answer(t, 200, `{"trace":{}}`)).Trace(t.Context(), "1"); err != nil || len(spans) != 0 {
		t.Errorf("unknown trace: %v, %v", spans, err)
	}
}

func TestProfile(t *testing.T) {
	main := &profile.Function{ID: 1, Name: "main.main"}
	at := &profile.Location{ID: 1, Line: []profile.Line{{Function: main}}}
	sent := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "wall", Unit: "nanoseconds"}},
		Function:   []*profile.Function{main},
		Location:   []*profile.Location{at},
		Sample:     []*profile.Sample{{Location: []*profile.Location{at}, Value: []int64{7}}},
	}
	var b bytes.Buffer
	if err := sent.WriteUncompressed(&b); err != nil {
		t.Fatal(err)
	}
	start := time.UnixMilli(1_700_000_000_000)
	p, err := NewPyroscope(answer(t, 200, b.String())).Profile(t.Context(), Wall, Selector{"service_name": "svc"}, start, start)
	if err != nil || len(p.Sample) != 1 || p.Sample[0].Value[0] != 7 || p.Function[0].Name != "main.main" {
		t.Errorf("%v, %v", p, err)
	}
	if p, err = NewPyroscope(answer(t, 200, "")).Profile(t.Context(), Wall, Selector{}, start, start); err != nil || len(p.Sample) != 0 {
		t.Errorf("nothing there: %v, %v", p, err)
	}
	if _, err = NewPyroscope(answer(t, 200, "no profile")).Profile(t.Context(), Wall, Selector{}, start, start); err == nil {
		t.Error("what is no profile was read")
	}
}

func TestBadAnswers(t *testing.T) {
	for _, tt := range []struct {
		status int
		body   string
		says   string
	}{
		{500, "broken", `status 500: "broken"`},
		{200, "no JSON", "invalid character"},
		{200, `{"flamegraph":{"names":["total"],"levels":[{"values":["0","1","1"]}]}}`, "3 numbers too many"},
		{200, `{"flamegraph":{"names":["total"],"levels":[{"values":["0","1","1","7"]}]}}`, "name 7 of 1"},
		{200, `{"flamegraph":{"names":["total"],"levels":[{"values":["0","x","1","0"]}]}}`, `"x"`},
		{200, `{"flamegraph":{"names":["total"],"levels":[{"values":["0","1","1","0"]},{"values":["5","1","1","0"]}]}}`, "no parent"},
	} {
		_, err := NewPyroscope(answer(t, tt.status, tt.body)).FlameGraph(t.Context(), CPU, Selector{}, time.Now(), time.Now())
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%d %s: %v, want an error that says %q", tt.status, tt.body, err, tt.says)
		}
	}
}

func TestErrorsDoNotTellThePassword(t *testing.T) {
	for name, base := range map[string]string{"an answer": answer(t, 500, "broken"), "no server": "http://127.0.0.1:1"} {
		base = strings.Replace(base, "http://", "http://viewer:secret@", 1)
		_, err := NewTempo(base).Trace(t.Context(), "1")
		if err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "/api/v2/traces/1") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSearch(t *testing.T) {
	url := answer(t, 200, `{"traces":[
		{"traceID":"1f","rootServiceName":"svc","rootTraceName":"quick","startTimeUnixNano":"1000000000","durationMs":5},
		{"traceID":"2f","rootServiceName":"svc","rootTraceName":"slow","startTimeUnixNano":"2000000000","durationMs":50}]}`)
	found, err := NewTempo(url).Search(t.Context(), "{}", time.Unix(0, 0), time.Unix(9, 0), 10)
	if err != nil || len(found) != 2 {
		t.Fatalf("%v, %v", found, err)
	}
	if want := (TraceSummary{strings.Repeat("0", 30) + "2f", "svc", "slow", time.Unix(2, 0), 50 * time.Millisecond}); found[0] != want {
		t.Errorf("the slowest is %+v, want %+v", found[0], want)
	}
}

func TestSpans(t *testing.T) {
	url := answer(t, 200, `{"traces":[{"traceID":"2f","spanSets":[{"spans":[
		{"spanID":"a","name":"s","startTimeUnixNano":"2000000001","durationNanos":"7","attributes":[{"key":"service.name","value":{"stringValue":"svc"}}]}]}]}]}`)
	spans, err := NewTempo(url).Spans(t.Context(), "{}", time.Unix(0, 0), time.Unix(9, 0), 10)
	want := []Span{{
		TraceID: strings.Repeat("0", 30) + "2f", ID: "000000000000000a", Service: "svc", Name: "s", Start: time.Unix(2, 1), End: time.Unix(2, 8),
		Attributes: map[string]string{"service.name": "svc"},
	}}
	if err != nil || !reflect.DeepEqual(spans, want) {
		t.Errorf("%+v, %v, want %+v", spans, err, want)
	}
	for _, span := range []string{`{"spanID":"12345678901234567"}`, `{"spanID":"a","startTimeUnixNano":"x","durationNanos":"1"}`} {
		url := answer(t, 200, `{"traces":[{"traceID":"2f","spanSets":[{"spans":[`+span+`]}]}]}`)
		if spans, err := NewTempo(url).Spans(t.Context(), "{}", time.Now(), time.Now(), 1); err == nil {
			t.Errorf("%s: %v", span, spans)
		}
	}
}

func TestTrace(t *testing.T) {
	url := answer(t, 200, `{"trace":{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"svc"}}]},
		"scopeSpans":[{"spans":[
			{"traceId":"AAAAAAAAAAAAAAAAAAAAAQ==","spanId":"AAAAAAAAAAI=","parentSpanId":"AAAAAAAAAAE=","name":"child","startTimeUnixNano":"20","endTimeUnixNano":"30"},
			{"traceId":"AAAAAAAAAAAAAAAAAAAAAQ==","spanId":"AAAAAAAAAAE=","name":"root","startTimeUnixNano":"10","endTimeUnixNano":"40","attributes":[
				{"key":"n","value":{"intValue":"7"}},{"key":"b","value":{"boolValue":true}},{"key":"d","value":{"doubleValue":0.5}}]}]}]}]}}`)
	spans, err := NewTempo(url).Trace(t.Context(), "1")
	if err != nil || len(spans) != 2 {
		t.Fatalf("%v, %v", spans, err)
	}
	root, child := spans[0], spans[1]
	if root.ID != "0000000000000001" || root.ParentID != "" || child.ParentID != root.ID || child.Service != "svc" || root.Duration() != 30 {
		t.Errorf("spans %+v", spans)
	}
	if want := map[string]string{"n": "7", "b": "true", "d": "0.5"}; !reflect.DeepEqual(root.Attributes, want) {
		t.Errorf("attributes %v, want %v", root.Attributes, want)
	}
}

func FuzzFlameGraph(f *testing.F) {
	f.Add(`{"names":["total","a"],"levels":[{"values":["0","10","0","0"]},{"values":["0","10","10","1"]}]}`)
	f.Add(`{"names":["total"],"levels":[{"values":["0","9223372036854775807","0","0"]},{"values":["9223372036854775807","9223372036854775807","0","0"]}]}`)
	f.Fuzz(func(t *testing.T, graph string) {
		var levels struct {
			Names  []string
			Levels []struct{ Values []string }
		}
		if json.Unmarshal([]byte(graph), &levels) != nil {
			return
		}
		var parents []*Frame
		for i, l := range levels.Levels {
			frames, err := decodeLevel(l.Values, levels.Names)
			if err != nil {
				return
			}
			if i > 0 && adopt(parents, frames) != nil {
				return
			}
			parents = frames
		}
	})
}

func TestJaegersAnswers(t *testing.T) {
	ask := func(status int, body string) (spans []Span, err error) {
		return NewJaeger(answer(t, status, body)).Find(t.Context(), JaegerQuery{Service: "svc", From: time.Unix(0, 0), To: time.Unix(9, 0), Limit: 10})
	}
	span := func(name string, start int) string {
		return fmt.Sprintf(`{"traceId":"0102030405060708090a0b0c0d0e0f10","spanId":"0102030405060708","name":%q,`+
			`"startTimeUnixNano":"%d","endTimeUnixNano":"9"}`, name, start)
	}
	spans, err := ask(200, `{"result":{"resourceSpans":[{"scopeSpans":[{"spans":[`+span("second", 7)+","+span("first", 5)+`]}]}]}}`)
	if err != nil || len(spans) != 2 || spans[0].Name != "first" || spans[1].Name != "second" {
		t.Errorf("%v, %v", spans, err)
	}
	for _, none := range []struct {
		status int
		body   string
	}{{404, `{"error":{"httpCode":404,"message":"No traces found"}}`}, {200, `{}`}, {200, `{"result":{"resourceSpans":[]}}`}} {
		if spans, err := ask(none.status, none.body); err != nil || len(spans) > 0 {
			t.Errorf("%d %s: %v, %v", none.status, none.body, spans, err)
		}
	}
	for _, bad := range []struct {
		status int
		body   string
	}{{500, `{}`}, {200, `<html>`}, {200, `{"result":{"resourceSpans":7}}`}} {
		if spans, err := ask(bad.status, bad.body); err == nil {
			t.Errorf("%d %s: no error, but %v", bad.status, bad.body, spans)
		}
	}
}
