// Package traces is how spans lie in files: one line of OTLP JSON for each batch, which the OpenTelemetry
// Collector's otlpjsonfile receiver reads as well. The agent writes such lines; the viewer, the demo and the
// end-to-end tests read them, and the JSON of other SDKs, of Tempo's API, which differs in how it writes ids, and
// of Jaeger. The package knows no directory, no server and no SDK.
package traces

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// MaxLine bounds a line, in bytes: Marshal writes no longer one and readers pass over those that are.
const MaxLine = 16 << 20

// Errors that callers branch on.
var (
	// ErrTooLong says that the spans do not fit into one line of MaxLine bytes.
	ErrTooLong = errors.New("traces: the line is too long")
	// ErrDamaged says that a line is not OTLP JSON, or not all of it.
	ErrDamaged = errors.New("traces: damaged line")
)

// Span is one span of a trace.
type Span struct {
	TraceID       string // 32 hex digits
	ID, ParentID  string // 16 hex digits; a root's ParentID is ""
	Service, Name string
	Kind          string // internal, server, client, producer or consumer; "" where it is not said
	Start, End    time.Time
	Attributes    map[string]string // as text
	Resource      map[string]string // of what emitted the span; shared by the spans of one batch
	Error         bool
	StatusMessage string
	Events        []Event
}

// Duration returns the time from the span's start to its end; it is never negative.
func (s Span) Duration() time.Duration { return s.End.Sub(s.Start) }

// Event is something that happened at one moment of a span.
type Event struct {
	Name       string
	Time       time.Time
	Attributes map[string]string
}

// The lengths of ids in bytes.
const (
	traceIDBytes = 16
	spanIDBytes  = 8
)

// hexAsBytes returns the bytes whose base64 is the hexadecimal form of id. OTLP JSON wants hex where plain
// protobuf JSON has base64; hexadecimal digits are base64 digits too, and the ids' 32 and 16 of them need no
// padding, so protojson reads and writes hex ids when it is given these bytes.
func hexAsBytes(id []byte) []byte {
	b, err := base64.StdEncoding.DecodeString(hex.EncodeToString(id))
	if err != nil {
		return nil // an id of a length that no id has
	}
	return b
}

// idString is the inverse, for ids of n bytes: what protojson read is either an id (from base64, as Tempo
// writes it) or what hexAsBytes returns, which is half as long again. A missing ID is "".
func idString(b []byte, n int) (string, error) {
	switch len(b) {
	case 0:
		return "", nil
	case n:
		return hex.EncodeToString(b), nil
	case n * 2 * 3 / 4:
		s := strings.ToLower(base64.StdEncoding.EncodeToString(b))
		if _, err := hex.DecodeString(s); err == nil {
			return s, nil
		}
	}
	return "", fmt.Errorf("an id is neither %d hexadecimal digits nor the base64 of %d bytes", 2*n, n)
}

// Marshal writes the spans as one line with its newline, in one call of w.Write. Text that is not UTF-8, which
// JSON cannot hold, has U+FFFD where it is wrong. The spans are not changed.
func Marshal(w io.Writer, rs []*tracepb.ResourceSpans) error {
	data := proto.CloneOf(&tracepb.TracesData{ResourceSpans: rs})
	for _, rs := range data.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				s.TraceId, s.SpanId, s.ParentSpanId = hexAsBytes(s.TraceId), hexAsBytes(s.SpanId), hexAsBytes(s.ParentSpanId)
				for _, l := range s.Links {
					l.TraceId, l.SpanId = hexAsBytes(l.TraceId), hexAsBytes(l.SpanId)
				}
			}
		}
	}
	opts := protojson.MarshalOptions{UseEnumNumbers: true}
	b, err := opts.Marshal(data)
	if err != nil {
		toUTF8(data.ProtoReflect())
		if b, err = opts.Marshal(data); err != nil {
			return fmt.Errorf("traces: %w", err)
		}
	}
	var line bytes.Buffer
	if err := json.Compact(&line, b); err != nil { // protojson spaces its output at random
		return fmt.Errorf("traces: %w", err)
	}
	line.WriteByte('\n')
	if line.Len() > MaxLine {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLong, line.Len(), MaxLine)
	}
	_, err = w.Write(line.Bytes())
	return err
}

// toUTF8 mends every text in m that is not UTF-8.
func toUTF8(m protoreflect.Message) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsList() && fd.Message() != nil:
			for i := range v.List().Len() {
				toUTF8(v.List().Get(i).Message())
			}
		case fd.IsList() || fd.IsMap(): // OTLP has no lists of text and no maps
		case fd.Message() != nil:
			toUTF8(v.Message())
		case fd.Kind() == protoreflect.StringKind:
			m.Set(fd, protoreflect.ValueOfString(strings.ToValidUTF8(v.String(), "\uFFFD")))
		}
		return true
	})
}

// Unmarshal reads one line, or a document of OTLP JSON, of Tempo's API or of Jaeger. The error wraps ErrDamaged.
func Unmarshal(line []byte) ([]Span, error) {
	otlp, of, err := unwrap(line)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrDamaged, err)
	}
	var spans []Span
	for _, t := range of {
		some, err := t.spans()
		if err != nil {
			return nil, fmt.Errorf("%w: %v", ErrDamaged, err)
		}
		spans = append(spans, some...)
	}
	if of != nil {
		return spans, nil
	}
	var data tracepb.TracesData
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(otlp, &data); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrDamaged, err)
	}
	for _, rs := range data.GetResourceSpans() {
		resource := attributes(rs.GetResource().GetAttributes())
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				span, err := newSpan(s, resource)
				if err != nil {
					return nil, fmt.Errorf("%w: span %q: %v", ErrDamaged, s.GetName(), err)
				}
				spans = append(spans, span)
			}
		}
	}
	return spans, nil
}

func newSpan(s *tracepb.Span, resource map[string]string) (Span, error) {
	out := Span{
		Service:       resource["service.name"],
		Name:          s.GetName(),
		Kind:          kinds[s.GetKind()],
		Attributes:    attributes(s.GetAttributes()),
		Resource:      resource,
		Error:         s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR,
		StatusMessage: s.GetStatus().GetMessage(),
	}
	var errs [5]error
	out.TraceID, errs[0] = idString(s.GetTraceId(), traceIDBytes)
	out.ID, errs[1] = idString(s.GetSpanId(), spanIDBytes)
	out.ParentID, errs[2] = idString(s.GetParentSpanId(), spanIDBytes)
	out.Start, errs[3] = moment(s.GetStartTimeUnixNano())
	out.End, errs[4] = moment(s.GetEndTimeUnixNano())
	if err := errors.Join(errs[:]...); err != nil {
		return Span{}, err
	}
	if out.TraceID == "" || out.ID == "" {
		return Span{}, errors.New("it has no trace id or no span id")
	}
	if out.End.Before(out.Start) {
		out.End = out.Start // the clock was set back meanwhile, or the end is not known
	}
	for _, e := range s.GetEvents() {
		at, err := moment(e.GetTimeUnixNano())
		if err != nil {
			return Span{}, err
		}
		out.Events = append(out.Events, Event{Name: e.GetName(), Time: at, Attributes: attributes(e.GetAttributes())})
	}
	return out, nil
}

var kinds = map[tracepb.Span_SpanKind]string{
	tracepb.Span_SPAN_KIND_INTERNAL: "internal",
	tracepb.Span_SPAN_KIND_SERVER:   "server",
	tracepb.Span_SPAN_KIND_CLIENT:   "client",
	tracepb.Span_SPAN_KIND_PRODUCER: "producer",
	tracepb.Span_SPAN_KIND_CONSUMER: "consumer",
}

func moment(ns uint64) (time.Time, error) {
	if ns > math.MaxInt64 {
		return time.Time{}, fmt.Errorf("the time %d ns is after the year 2262", ns)
	}
	return time.Unix(0, int64(ns)).UTC(), nil
}

// attributes are kvs as text.
func attributes(kvs []*commonpb.KeyValue) map[string]string {
	m := make(map[string]string, len(kvs))
	for _, kv := range kvs {
		if kv.GetValue() != nil {
			m[kv.GetKey()] = string(appendValue(nil, kv.GetValue()))
		}
	}
	return m
}

// appendValue appends a value as text: lists as [a, b], maps as {k: v, l: w}, bytes in base64.
func appendValue(b []byte, v *commonpb.AnyValue) []byte {
	switch v := v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return append(b, v.StringValue...)
	case *commonpb.AnyValue_IntValue:
		return strconv.AppendInt(b, v.IntValue, 10)
	case *commonpb.AnyValue_DoubleValue:
		return strconv.AppendFloat(b, v.DoubleValue, 'g', -1, 64)
	case *commonpb.AnyValue_BoolValue:
		return strconv.AppendBool(b, v.BoolValue)
	case *commonpb.AnyValue_BytesValue:
		return base64.StdEncoding.AppendEncode(b, v.BytesValue)
	case *commonpb.AnyValue_ArrayValue:
		b = append(b, '[')
		for i, item := range v.ArrayValue.GetValues() {
			if i > 0 {
				b = append(b, ", "...)
			}
			b = appendValue(b, item)
		}
		return append(b, ']')
	case *commonpb.AnyValue_KvlistValue:
		b = append(b, '{')
		for i, kv := range v.KvlistValue.GetValues() {
			if i > 0 {
				b = append(b, ", "...)
			}
			b = append(append(b, kv.GetKey()...), ": "...)
			b = appendValue(b, kv.GetValue())
		}
		return append(b, '}')
	}
	return b
}
