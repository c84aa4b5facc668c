// Package otlpwire encodes profiles as requests of OTLP, OpenTelemetry's protocol, and reads the answers. The agent's push
// uses it. It sends nothing, and traces, metrics and logs are not for it: those have the exporters of OpenTelemetry's SDK.
//
// The protocol's profiles are in development, and their messages change between releases: this is the form of
// opentelemetry-proto 1.10. A server of another release may accept a request and read nothing from it.
//
// OpenTelemetry's generated types are not used: a service that sends profiles would link the protobuf runtime for them.
package otlpwire

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"maps"
	"slices"

	"github.com/google/pprof/profile"

	"spanflame/internal/pprofwire"
	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

// Where profiles are sent: below the base URL with HTTP, and the full method with gRPC.
const (
	Path   = "/v1development/profiles"
	Method = "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export"
)

// Field numbers, by message.
const (
	requestResource   pprofwire.Number = 1 // ExportProfilesServiceRequest
	requestDictionary pprofwire.Number = 2

	responsePartial pprofwire.Number = 1 // ExportProfilesServiceResponse

	statusMessage pprofwire.Number = 2 // google.rpc.Status

	partialRejected pprofwire.Number = 1 // ExportProfilesPartialSuccess
	partialMessage  pprofwire.Number = 2

	resourceResource pprofwire.Number = 1 // ResourceProfiles
	resourceScope    pprofwire.Number = 2

	resourceAttribute pprofwire.Number = 1 // Resource

	scopeScope   pprofwire.Number = 1 // ScopeProfiles
	scopeProfile pprofwire.Number = 2

	scopeName pprofwire.Number = 1 // InstrumentationScope

	keyValueKey   pprofwire.Number = 1 // KeyValue
	keyValueValue pprofwire.Number = 2

	anyString pprofwire.Number = 1 // AnyValue

	dictionaryMapping   pprofwire.Number = 1 // ProfilesDictionary
	dictionaryLocation  pprofwire.Number = 2
	dictionaryFunction  pprofwire.Number = 3
	dictionaryLink      pprofwire.Number = 4
	dictionaryString    pprofwire.Number = 5
	dictionaryAttribute pprofwire.Number = 6
	dictionaryStack     pprofwire.Number = 7

	profileSampleType pprofwire.Number = 1 // Profile
	profileSample     pprofwire.Number = 2
	profileTime       pprofwire.Number = 3
	profileDuration   pprofwire.Number = 4
	profilePeriodType pprofwire.Number = 5
	profilePeriod     pprofwire.Number = 6
	profileID         pprofwire.Number = 7

	linkTrace pprofwire.Number = 1 // Link
	linkSpan  pprofwire.Number = 2

	valueTypeType pprofwire.Number = 1 // ValueType
	valueTypeUnit pprofwire.Number = 2

	sampleStack      pprofwire.Number = 1 // Sample
	sampleAttributes pprofwire.Number = 2
	sampleLink       pprofwire.Number = 3
	sampleValues     pprofwire.Number = 4

	mappingStart  pprofwire.Number = 1 // Mapping
	mappingLimit  pprofwire.Number = 2
	mappingOffset pprofwire.Number = 3
	mappingFile   pprofwire.Number = 4

	stackLocations pprofwire.Number = 1 // Stack

	locationMapping pprofwire.Number = 1 // Location
	locationAddress pprofwire.Number = 2
	locationLine    pprofwire.Number = 3

	lineFunction pprofwire.Number = 1 // Line
	lineLine     pprofwire.Number = 2
	lineColumn   pprofwire.Number = 3

	functionName   pprofwire.Number = 1 // Function
	functionSystem pprofwire.Number = 2
	functionFile   pprofwire.Number = 3
	functionStart  pprofwire.Number = 4

	attributeKey   pprofwire.Number = 1 // KeyValueAndUnit
	attributeValue pprofwire.Number = 2
)

// Attribute is an attribute of the resource. Its value is text: Pyroscope makes labels of nothing else.
type Attribute struct{ Name, Value string }

// scope is the name of the instrumentation scope.
const scope = "spanflame"

// Request returns an ExportProfilesServiceRequest of a record's profile. OTLP has one type of sample in each profile, so
// there is one for each of p's.
//
// Pyroscope names a profile after its period type, so that type is the record's. CPU profiles are an exception: it reads
// them as counts of samples of a period of CPU time, which is what their samples are. One without counts or without a period
// type is an error: the request would be accepted, and have nothing.
func Request(resource []Attribute, typ record.Type, p *profile.Profile) ([]byte, error) {
	if typ == record.CPU && (p.PeriodType == nil || !slices.ContainsFunc(p.SampleType, isCount)) {
		return nil, errors.New("a CPU profile without counts of samples of a period cannot be sent by OTLP")
	}
	d := newDictionary()
	samples := make([]sample, len(p.Sample))
	for i, s := range p.Sample {
		samples[i] = d.sample(s)
	}
	var profiles, one, part pprofwire.Encoder
	part.Text(scopeName, scope)
	profiles.Bytes(scopeScope, part)
	for i, t := range p.SampleType {
		period := profile.ValueType{Type: string(typ), Unit: t.Unit}
		if p.PeriodType != nil {
			period.Unit = p.PeriodType.Unit
		}
		if typ == record.CPU {
			if !isCount(t) {
				continue
			}
			period = *p.PeriodType
		}
		one = d.valueType(one[:0], profileSampleType, *t)
		for _, s := range samples {
			if s.values[i] == 0 {
				continue
			}
			part = append(part[:0], s.head...)
			part.Bytes(sampleValues, binary.AppendUvarint(nil, uint64(s.values[i])))
			one.Bytes(profileSample, part)
		}
		one.Fixed(profileTime, uint64(p.TimeNanos))
		one.Number(profileDuration, uint64(p.DurationNanos))
		one = d.valueType(one, profilePeriodType, period)
		one.Number(profilePeriod, uint64(max(1, p.Period))) // without one, Pyroscope finds no name
		id := sha256.Sum256(one)
		one.Bytes(profileID, id[:16]) // the same again if the profile is sent again
		profiles.Bytes(scopeProfile, one)
	}
	var of, request pprofwire.Encoder
	part = part[:0]
	for _, a := range resource {
		one = one[:0]
		one.Text(keyValueKey, a.Name)
		one = text(one, keyValueValue, a.Value)
		part.Bytes(resourceAttribute, one)
	}
	of.Bytes(resourceResource, part)
	of.Bytes(resourceScope, profiles)
	request.Bytes(requestResource, of)
	request.Bytes(requestDictionary, d.encode())
	return request, nil
}

func isCount(t *profile.ValueType) bool { return t.Unit == "count" }

// text appends an AnyValue that is text.
func text(to pprofwire.Encoder, field pprofwire.Number, value string) pprofwire.Encoder {
	var b pprofwire.Encoder
	b.Text(anyString, value)
	to.Bytes(field, b)
	return to
}

// sample is a sample of all sample types.
type sample struct {
	head   pprofwire.Encoder // the fields of the Sample, without values
	values []int64
}

// table has each of its messages once. The first is empty: the number 0 stands for none.
type table struct {
	field   pprofwire.Number
	numbers map[string]uint64
	encoded pprofwire.Encoder
}

func newTable(field pprofwire.Number) *table {
	t := &table{field: field, numbers: map[string]uint64{}}
	t.add(nil)
	return t
}

// add returns the number of a message, which is a part of the table from then on.
func (t *table) add(message []byte) uint64 {
	n, ok := t.numbers[string(message)]
	if !ok {
		n = uint64(len(t.numbers))
		t.numbers[string(message)] = n
		t.encoded.Bytes(t.field, message)
	}
	return n
}

// dictionary has what the profiles of a request share.
type dictionary struct {
	mappings, locations, functions, links, strings, attributes, stacks *table

	// The numbers of what has been added, since pprof shares its objects.
	located map[*profile.Location]uint64
}

func newDictionary() *dictionary {
	return &dictionary{
		mappings: newTable(dictionaryMapping), locations: newTable(dictionaryLocation), functions: newTable(dictionaryFunction),
		links: newTable(dictionaryLink), strings: newTable(dictionaryString), attributes: newTable(dictionaryAttribute),
		stacks: newTable(dictionaryStack), located: map[*profile.Location]uint64{},
	}
}

func (d *dictionary) encode() []byte {
	return slices.Concat(d.mappings.encoded, d.locations.encoded, d.functions.encoded, d.links.encoded, d.strings.encoded,
		d.attributes.encoded, d.stacks.encoded)
}

func (d *dictionary) str(s string) uint64 { return d.strings.add([]byte(s)) }

func (d *dictionary) valueType(to pprofwire.Encoder, field pprofwire.Number, t profile.ValueType) pprofwire.Encoder {
	var b pprofwire.Encoder
	b.Number(valueTypeType, d.str(t.Type))
	b.Number(valueTypeUnit, d.str(t.Unit))
	to.Bytes(field, b)
	return to
}

func (d *dictionary) sample(s *profile.Sample) sample {
	var b pprofwire.Encoder
	var stack, attributes []byte
	for _, l := range s.Location {
		stack = binary.AppendUvarint(stack, d.location(l))
	}
	if len(stack) > 0 {
		var locations pprofwire.Encoder
		locations.Bytes(stackLocations, stack)
		b.Number(sampleStack, d.stacks.add(locations))
	}
	link, linked := d.link(s)
	for _, name := range slices.Sorted(maps.Keys(s.Label)) {
		if linked && (name == wallprofile.SpanID || name == wallprofile.TraceID) {
			continue
		}
		for _, value := range s.Label[name] {
			attributes = binary.AppendUvarint(attributes, d.attribute(name, value))
		}
	}
	if len(attributes) > 0 {
		b.Bytes(sampleAttributes, attributes)
	}
	b.Number(sampleLink, link)
	return sample{b, s.Value}
}

// link returns the number of the link to the sample's span. A sample without one, or with something else in its place,
// has none.
func (d *dictionary) link(s *profile.Sample) (number uint64, ok bool) {
	id := func(label string, size int) []byte {
		if len(s.Label[label]) != 1 {
			return nil
		}
		if b, err := hex.DecodeString(s.Label[label][0]); err == nil && len(b) == size {
			return b
		}
		return nil
	}
	span, trace := id(wallprofile.SpanID, 8), id(wallprofile.TraceID, 16)
	if span == nil || trace == nil && len(s.Label[wallprofile.TraceID]) > 0 {
		return 0, false
	}
	var b pprofwire.Encoder
	if trace != nil {
		b.Bytes(linkTrace, trace)
	}
	b.Bytes(linkSpan, span)
	return d.links.add(b), true
}

func (d *dictionary) attribute(name, value string) uint64 {
	var b pprofwire.Encoder
	b.Number(attributeKey, d.str(name))
	return d.attributes.add(text(b, attributeValue, value))
}

func (d *dictionary) location(l *profile.Location) uint64 {
	if n, ok := d.located[l]; ok {
		return n
	}
	var b, line pprofwire.Encoder
	if m := l.Mapping; m != nil {
		var mapping pprofwire.Encoder
		mapping.Number(mappingStart, m.Start)
		mapping.Number(mappingLimit, m.Limit)
		mapping.Number(mappingOffset, m.Offset)
		mapping.Number(mappingFile, d.str(m.File))
		b.Number(locationMapping, d.mappings.add(mapping))
	}
	b.Number(locationAddress, l.Address)
	for _, x := range l.Line {
		line = line[:0]
		if f := x.Function; f != nil {
			var function pprofwire.Encoder
			function.Number(functionName, d.str(f.Name))
			function.Number(functionSystem, d.str(f.SystemName))
			function.Number(functionFile, d.str(f.Filename))
			function.Number(functionStart, uint64(f.StartLine))
			line.Number(lineFunction, d.functions.add(function))
		}
		line.Number(lineLine, uint64(x.Line))
		line.Number(lineColumn, uint64(x.Column))
		b.Bytes(locationLine, line)
	}
	n := d.locations.add(b)
	d.located[l] = n
	return n
}

// Rejected reads an ExportProfilesServiceResponse: how many of the request's profiles the server did not accept, and why.
// An empty answer accepts all.
func Rejected(answer []byte) (profiles int64, why string, err error) {
	m := pprofwire.NewMessage(answer)
	for m.Next() {
		if m.Field != responsePartial {
			continue
		}
		partial := pprofwire.NewMessage(m.Bytes())
		for partial.Next() {
			switch partial.Field {
			case partialRejected:
				profiles = int64(partial.Varint())
			case partialMessage:
				why = string(partial.Bytes())
			}
		}
		m.Fail(partial.Err())
	}
	return profiles, why, m.Err()
}

// Message returns the text of a google.rpc.Status, with which a server of OTLP over HTTP answers if it fails; the answer as
// it is if it is none.
func Message(answer []byte) string {
	var text string
	m := pprofwire.NewMessage(answer)
	for m.Next() {
		if m.Field == statusMessage {
			text = string(m.Bytes())
		}
	}
	if m.Err() != nil {
		return string(answer)
	}
	return text
}
