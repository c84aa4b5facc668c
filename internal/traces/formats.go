package traces

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"strings"
	"time"
)

// All yields the JSON values of a file with the place of each, be they lines or one document. It ends at the first error,
// which wraps ErrDamaged.
func All(file []byte) iter.Seq2[Place, error] {
	return func(yield func(Place, error) bool) {
		d := json.NewDecoder(bytes.NewReader(file))
		for d.More() {
			var value json.RawMessage
			if err := d.Decode(&value); err != nil {
				yield(Place{}, fmt.Errorf("%w: %v", ErrDamaged, err))
				return
			}
			end := int(d.InputOffset())
			if !yield(Place{end - len(value), len(value)}, nil) {
				return
			}
		}
	}
}

// Place is where a JSON value is in a file, in bytes.
type Place struct{ Offset, Length int }

// envelope has the keys under which other programs write spans.
type envelope struct {
	Batches json.RawMessage `json:"batches"` // Tempo's name of resourceSpans
	Trace   json.RawMessage `json:"trace"`   // Tempo
	Result  json.RawMessage `json:"result"`  // Jaeger's API for OTLP
	Data    json.RawMessage `json:"data"`    // Jaeger
}

var (
	// otlpStart begins most lines: those of the agent, the Collector and the SDKs.
	otlpStart = []byte(`{"resourceSpans"`)
	// oldSpans is OTLP's name of newSpans until 2022, which Tempo's older API has.
	oldSpans, newSpans = []byte(`"instrumentationLibrarySpans"`), []byte(`"scopeSpans"`)
)

// unwrap returns OTLP JSON from what may be in an envelope, or the traces of Jaeger.
func unwrap(text []byte) (otlp []byte, of []jaegerTrace, err error) {
	if !bytes.HasPrefix(text, otlpStart) {
		var e envelope
		if err := json.Unmarshal(text, &e); err != nil {
			return nil, nil, err
		}
		switch {
		case e.Data != nil:
			err = json.Unmarshal(e.Data, &of)
			return nil, of, err
		case e.Trace != nil:
			return unwrap(e.Trace)
		case e.Result != nil:
			return unwrap(e.Result)
		case e.Batches != nil:
			text = append(append([]byte(`{"resourceSpans":`), e.Batches...), '}')
		}
	}
	if bytes.Contains(text, oldSpans) { // most lines are not copied
		text = bytes.ReplaceAll(text, oldSpans, newSpans)
	}
	return text, nil, nil
}

// jaegerTrace is a trace in the JSON of Jaeger's API and pages.
type jaegerTrace struct {
	TraceID   string                   `json:"traceID"`
	Spans     []jaegerSpan             `json:"spans"`
	Processes map[string]jaegerProcess `json:"processes"`
}

type jaegerProcess struct {
	ServiceName string      `json:"serviceName"`
	Tags        []jaegerTag `json:"tags"`
}

// jaegerSpan has times in microseconds.
type jaegerSpan struct {
	TraceID       string `json:"traceID"`
	SpanID        string `json:"spanID"`
	ParentSpanID  string `json:"parentSpanID"` // of older versions
	OperationName string `json:"operationName"`
	References    []struct {
		RefType string `json:"refType"`
		TraceID string `json:"traceID"`
		SpanID  string `json:"spanID"`
	} `json:"references"`
	StartTime int64       `json:"startTime"`
	Duration  int64       `json:"duration"`
	Tags      []jaegerTag `json:"tags"`
	Logs      []struct {
		Timestamp int64       `json:"timestamp"`
		Fields    []jaegerTag `json:"fields"`
	} `json:"logs"`
	ProcessID string         `json:"processID"`
	Process   *jaegerProcess `json:"process"`
}

type jaegerTag struct {
	Key   string          `json:"key"`
	Value json.RawMessage `json:"value"`
}

// text returns a tag's value, a text without its quotes.
func (t jaegerTag) text() string {
	var s string
	if json.Unmarshal(t.Value, &s) == nil {
		return s
	}
	return string(t.Value)
}

func texts(tags []jaegerTag) map[string]string {
	m := make(map[string]string, len(tags))
	for _, t := range tags {
		m[t.Key] = t.text()
	}
	return m
}

// latestMicros is the last microsecond that a time of 64 bits in nanoseconds has.
const latestMicros = 1<<63/1000 - 1

// spans returns the spans of a trace of Jaeger.
func (t jaegerTrace) spans() ([]Span, error) {
	var all []Span
	for _, s := range t.Spans {
		process := t.Processes[s.ProcessID]
		if s.Process != nil {
			process = *s.Process
		}
		out := Span{Service: process.ServiceName, Name: s.OperationName, Attributes: texts(s.Tags), Resource: texts(process.Tags)}
		out.Resource["service.name"] = process.ServiceName
		parent := s.ParentSpanID
		for _, r := range s.References {
			if r.RefType == "CHILD_OF" && (r.TraceID == s.TraceID || r.TraceID == "") {
				parent = r.SpanID
			}
		}
		var errs [3]error
		out.TraceID, errs[0] = jaegerID(cmp.Or(s.TraceID, t.TraceID), traceIDBytes)
		out.ID, errs[1] = jaegerID(s.SpanID, spanIDBytes)
		if parent != "" {
			out.ParentID, errs[2] = jaegerID(parent, spanIDBytes)
		}
		for _, err := range errs {
			if err != nil {
				return nil, fmt.Errorf("span %q: %w", s.OperationName, err)
			}
		}
		if s.StartTime < 0 || s.Duration < 0 || s.StartTime > latestMicros-s.Duration {
			return nil, fmt.Errorf("span %q: its times do not fit into 64 bits", s.OperationName)
		}
		out.Start = time.UnixMicro(s.StartTime).UTC()
		out.End = time.UnixMicro(s.StartTime + s.Duration).UTC()
		out.Kind, out.Error = out.Attributes["span.kind"], out.Attributes["error"] == "true"
		out.StatusMessage = out.Attributes["otel.status_description"]
		for _, l := range s.Logs {
			e := Event{Time: time.UnixMicro(min(max(l.Timestamp, 0), latestMicros)).UTC(), Attributes: texts(l.Fields)}
			e.Name = e.Attributes["event"]
			delete(e.Attributes, "event")
			out.Events = append(out.Events, e)
		}
		all = append(all, out)
	}
	return all, nil
}

// jaegerID returns an id of n bytes, of which Jaeger leaves out leading zeros.
func jaegerID(id string, n int) (string, error) {
	id = strings.ToLower(id)
	if len(id) == 0 || len(id) > 2*n || strings.Trim(id, "0123456789abcdef") != "" {
		return "", fmt.Errorf("the id %.40q is not up to %d hexadecimal digits", id, 2*n)
	}
	return strings.Repeat("0", 2*n-len(id)) + id, nil
}
