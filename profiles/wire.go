package profiles

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// This file reads a profile from its wire form into tables of numbers, in which strings, functions and
// locations are indices. google/pprof's own form has an object for each of these and maps for each sample's
// labels: for adding up thousands of profiles that is most of the cost.

// Field numbers of profile.proto.
const (
	profileSampleType    = 1
	profileSample        = 2
	profileMapping       = 3
	profileLocation      = 4
	profileFunction      = 5
	profileString        = 6
	profileDropFrames    = 7
	profileKeepFrames    = 8
	profileTime          = 9
	profileDuration      = 10
	profilePeriodType    = 11
	profilePeriod        = 12
	profileComment       = 13
	profileDefaultSample = 14
	profileDocURL        = 15

	valueTypeType = 1
	valueTypeUnit = 2

	sampleLocation = 1
	sampleValue    = 2
	sampleLabel    = 3

	labelKey    = 1
	labelString = 2
	labelNumber = 3
	labelUnit   = 4

	mappingID      = 1
	mappingStart   = 2
	mappingLimit   = 3
	mappingOffset  = 4
	mappingFile    = 5
	mappingBuildID = 6
	mappingFlags   = 7 // the first of four

	locationID      = 1
	locationMapping = 2
	locationAddress = 3
	locationLine    = 4
	locationFolded  = 5

	lineFunction = 1
	lineLine     = 2
	lineColumn   = 3

	functionID     = 1
	functionName   = 2
	functionSystem = 3
	functionFile   = 4
	functionStart  = 5
)

var errWireType = errors.New("a field has another wire type than profile.proto gives it")

// message steps through the fields of a protobuf message. The first error ends it and stays.
type message struct {
	rest   []byte
	field  protowire.Number
	typ    protowire.Type
	number uint64 // of a varint field
	body   []byte // of a field of bytes
	err    error
}

// next steps to the next field. Those of fixed size, which profile.proto does not have, are unknown ones, or of the
// wrong type.
func (m *message) next() bool {
	if len(m.rest) == 0 || m.err != nil {
		return false
	}
	var n int
	if tag := m.rest[0]; 1<<3 <= tag && tag < 0x80 { // as nearly all are
		m.field, m.typ, n = protowire.Number(tag>>3), protowire.Type(tag&7), 1
	} else {
		m.field, m.typ, n = protowire.ConsumeTag(m.rest)
	}
	if n < 0 {
		return m.fail(protowire.ParseError(n))
	}
	m.rest = m.rest[n:]
	switch m.typ {
	case protowire.VarintType:
		m.number, n = protowire.ConsumeVarint(m.rest)
	case protowire.BytesType:
		m.body, n = protowire.ConsumeBytes(m.rest)
	case protowire.Fixed32Type, protowire.Fixed64Type:
		m.body = nil
		n = protowire.ConsumeFieldValue(m.field, m.typ, m.rest)
	default:
		return m.fail(errWireType)
	}
	if n < 0 {
		return m.fail(protowire.ParseError(n))
	}
	m.rest = m.rest[n:]
	return true
}

func (m *message) fail(err error) bool {
	if m.err == nil {
		m.err = err
	}
	return false
}

// varint is the field's number.
func (m *message) varint() uint64 {
	if m.typ != protowire.VarintType {
		m.fail(errWireType)
	}
	return m.number
}

// bytes is the field's content.
func (m *message) bytes() []byte {
	if m.typ != protowire.BytesType {
		m.fail(errWireType)
		return nil
	}
	return m.body
}

// varints appends the field's numbers, packed or single.
func (m *message) varints(to []uint64) []uint64 {
	if m.typ == protowire.VarintType {
		return append(to, m.number)
	}
	for b := m.bytes(); len(b) > 0; {
		if b[0] < 0x80 { // most are small
			to, b = append(to, uint64(b[0])), b[1:]
			continue
		}
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			m.fail(protowire.ParseError(n))
			return to
		}
		to, b = append(to, v), b[n:]
	}
	return to
}

// A table holds a profile in its wire form: numbers that are called str index strings, those called fn, mapping
// and loc the slices of these names. Slices of samples lie one behind the other in common ones.
// A table is used for one profile after the other, to save allocations.
type table struct {
	strings   [][]byte // of the profile's bytes
	types     []valueType
	functions []function
	mappings  []mapping
	locations []location
	lines     []line // of all locations
	samples   []sampleEnds
	locs      []uint32 // of all samples
	values    []int64  // of all samples, len(types) each
	labels    []label  // of all samples

	dropFrames, keepFrames, defaultSample, docURL uint64 // str
	time, duration, period                        int64
	periodType                                    valueType
	comments                                      []uint64 // str

	functionIDs, mappingIDs, locationIDs index
	bodies                               bodies
	ids, vals                            []uint64 // of the sample that is being read
}

// bodies are the messages that refer to others, which may come behind them.
type bodies struct{ functions, mappings, locations, samples [][]byte }

type valueType struct{ typ, unit uint64 } // str

type function struct {
	name, system, file uint64 // str
	start              uint64 // line
}

type mapping struct {
	start, limit, offset uint64
	file, buildID        uint64  // str
	flags                [4]bool // has functions, file names, line numbers, inline frames
}

type location struct {
	mapping int // -1 for none
	address uint64
	folded  bool
	lines   int // up to here, from where those of the location before it end
}

type line struct {
	fn           uint32
	line, column uint64
}

// sampleEnds is where in locs and labels a sample's end; they begin where those of the sample before it end.
type sampleEnds struct{ locs, labels int }

type label struct {
	key, str uint64 // str
	number   uint64
	unit     uint64 // str
}

// index finds where in a slice the element with an ID is. IDs are any number but 0; small ones, which are
// usual, are looked up in a slice.
type index struct {
	small []uint32 // position + 1, by ID
	large map[uint64]uint32
}

func (x *index) reset(n int) {
	if cap(x.small) < n+1 {
		x.small = make([]uint32, n+1)
	}
	x.small = x.small[:n+1]
	clear(x.small)
	clear(x.large)
}

func (x *index) put(id uint64, position int) error {
	if id == 0 {
		return errors.New("an ID is 0")
	}
	if _, ok := x.get(id); ok {
		return fmt.Errorf("two have the ID %d", id)
	}
	if id < uint64(len(x.small)) {
		x.small[id] = uint32(position) + 1
		return nil
	}
	if x.large == nil {
		x.large = make(map[uint64]uint32)
	}
	x.large[id] = uint32(position) + 1
	return nil
}

func (x *index) get(id uint64) (uint32, bool) {
	if id < uint64(len(x.small)) {
		at := x.small[id]
		return at - 1, at != 0
	}
	at, ok := x.large[id]
	return at - 1, ok
}

// decode reads a profile, and checks all that google/pprof's Profile.CheckValid does. The table refers to data.
func (t *table) decode(data []byte) error {
	*t = table{
		strings: t.strings[:0], types: t.types[:0], functions: t.functions[:0], mappings: t.mappings[:0],
		locations: t.locations[:0], lines: t.lines[:0], samples: t.samples[:0], locs: t.locs[:0],
		values: t.values[:0], labels: t.labels[:0], comments: t.comments[:0],
		functionIDs: t.functionIDs, mappingIDs: t.mappingIDs, locationIDs: t.locationIDs,
		bodies: bodies{t.bodies.functions[:0], t.bodies.mappings[:0], t.bodies.locations[:0], t.bodies.samples[:0]},
		ids:    t.ids, vals: t.vals,
	}
	m := message{rest: data}
	for m.next() {
		switch m.field {
		case profileSampleType:
			t.types = append(t.types, decodeValueType(&m))
		case profileSample:
			t.bodies.samples = append(t.bodies.samples, m.bytes())
		case profileMapping:
			t.bodies.mappings = append(t.bodies.mappings, m.bytes())
		case profileLocation:
			t.bodies.locations = append(t.bodies.locations, m.bytes())
		case profileFunction:
			t.bodies.functions = append(t.bodies.functions, m.bytes())
		case profileString:
			t.strings = append(t.strings, m.bytes())
		case profileDropFrames:
			t.dropFrames = m.varint()
		case profileKeepFrames:
			t.keepFrames = m.varint()
		case profileTime:
			if t.time != 0 {
				m.fail(errors.New("it is several profiles, one behind the other"))
			}
			t.time = int64(m.varint())
		case profileDuration:
			t.duration = int64(m.varint())
		case profilePeriodType:
			t.periodType = decodeValueType(&m)
		case profilePeriod:
			t.period = int64(m.varint())
		case profileComment:
			t.comments = m.varints(t.comments)
		case profileDefaultSample:
			t.defaultSample = m.varint()
		case profileDocURL:
			t.docURL = m.varint()
		}
	}
	if m.err != nil {
		return m.err
	}
	if len(t.strings) == 0 || len(t.strings[0]) > 0 {
		return errors.New("the first string is not the empty one")
	}
	t.functionIDs.reset(len(t.bodies.functions))
	t.mappingIDs.reset(len(t.bodies.mappings))
	t.locationIDs.reset(len(t.bodies.locations))
	for _, part := range []struct {
		bodies [][]byte
		read   func([]byte) error
	}{
		{t.bodies.functions, t.function}, {t.bodies.mappings, t.mapping},
		{t.bodies.locations, t.location}, {t.bodies.samples, t.sample},
	} {
		for _, body := range part.bodies {
			if err := part.read(body); err != nil {
				return err
			}
		}
	}
	return t.checkStrings()
}

// checkStrings checks the numbers of strings that were not checked where they were read.
func (t *table) checkStrings() error {
	all := append([]uint64{t.dropFrames, t.keepFrames, t.defaultSample, t.docURL, t.periodType.typ, t.periodType.unit}, t.comments...)
	for _, st := range t.types {
		all = append(all, st.typ, st.unit)
	}
	return t.check(all...)
}

func (t *table) check(strs ...uint64) error {
	for _, s := range strs {
		if s >= uint64(len(t.strings)) {
			return fmt.Errorf("string %d of %d", s, len(t.strings))
		}
	}
	return nil
}

func decodeValueType(m *message) (v valueType) {
	sub := message{rest: m.bytes()}
	for sub.next() {
		switch sub.field {
		case valueTypeType:
			v.typ = sub.varint()
		case valueTypeUnit:
			v.unit = sub.varint()
		}
	}
	m.fail(sub.err)
	return v
}

func (t *table) function(b []byte) error {
	var f function
	var id uint64
	m := message{rest: b}
	for m.next() {
		switch m.field {
		case functionID:
			id = m.varint()
		case functionName:
			f.name = m.varint()
		case functionSystem:
			f.system = m.varint()
		case functionFile:
			f.file = m.varint()
		case functionStart:
			f.start = m.varint()
		}
	}
	err := errors.Join(m.err, t.functionIDs.put(id, len(t.functions)), t.check(f.name, f.system, f.file))
	if err != nil {
		return fmt.Errorf("function %d: %w", id, err)
	}
	t.functions = append(t.functions, f)
	return nil
}

func (t *table) mapping(b []byte) error {
	var x mapping
	var id uint64
	m := message{rest: b}
	for m.next() {
		switch m.field {
		case mappingID:
			id = m.varint()
		case mappingStart:
			x.start = m.varint()
		case mappingLimit:
			x.limit = m.varint()
		case mappingOffset:
			x.offset = m.varint()
		case mappingFile:
			x.file = m.varint()
		case mappingBuildID:
			x.buildID = m.varint()
		case mappingFlags, mappingFlags + 1, mappingFlags + 2, mappingFlags + 3:
			x.flags[m.field-mappingFlags] = m.varint() != 0
		}
	}
	if err := errors.Join(m.err, t.mappingIDs.put(id, len(t.mappings)), t.check(x.file, x.buildID)); err != nil {
		return fmt.Errorf("mapping %d: %w", id, err)
	}
	t.mappings = append(t.mappings, x)
	return nil
}

func (t *table) location(b []byte) error {
	x := location{mapping: -1}
	var id uint64
	m := message{rest: b}
	for m.next() {
		switch m.field {
		case locationID:
			id = m.varint()
		case locationMapping:
			x.mapping = -1
			if at, ok := t.mappingIDs.get(m.varint()); ok { // a mapping that is missing counts as none
				x.mapping = int(at)
			}
		case locationAddress:
			x.address = m.varint()
		case locationLine:
			m.fail(t.line(m.bytes()))
		case locationFolded:
			x.folded = m.varint() != 0
		}
	}
	if err := errors.Join(m.err, t.locationIDs.put(id, len(t.locations))); err != nil {
		return fmt.Errorf("location %d: %w", id, err)
	}
	x.lines = len(t.lines)
	t.locations = append(t.locations, x)
	return nil
}

func (t *table) line(b []byte) error {
	var x line
	var id uint64
	m := message{rest: b}
	for m.next() {
		switch m.field {
		case lineFunction:
			id = m.varint()
		case lineLine:
			x.line = m.varint()
		case lineColumn:
			x.column = m.varint()
		}
	}
	fn, ok := t.functionIDs.get(id)
	if m.err == nil && !ok {
		return fmt.Errorf("there is no function %d", id)
	}
	x.fn = fn
	t.lines = append(t.lines, x)
	return m.err
}

func (t *table) sample(b []byte) error {
	t.ids, t.vals = t.ids[:0], t.vals[:0]
	m := message{rest: b}
	for m.next() {
		switch m.field {
		case sampleLocation:
			t.ids = m.varints(t.ids)
		case sampleValue:
			t.vals = m.varints(t.vals)
		case sampleLabel:
			m.fail(t.label(m.bytes()))
		}
	}
	if m.err != nil {
		return fmt.Errorf("sample %d: %w", len(t.samples)+1, m.err)
	}
	if len(t.vals) != len(t.types) || len(t.types) == 0 {
		return fmt.Errorf("sample %d has %d values, want one for each of %d types", len(t.samples)+1, len(t.vals), len(t.types))
	}
	for _, id := range t.ids {
		at, ok := t.locationIDs.get(id)
		if !ok {
			return fmt.Errorf("sample %d: there is no location %d", len(t.samples)+1, id)
		}
		t.locs = append(t.locs, at)
	}
	for _, v := range t.vals {
		t.values = append(t.values, int64(v))
	}
	t.samples = append(t.samples, sampleEnds{len(t.locs), len(t.labels)})
	return nil
}

func (t *table) label(b []byte) error {
	var x label
	m := message{rest: b}
	for m.next() {
		switch m.field {
		case labelKey:
			x.key = m.varint()
		case labelString:
			x.str = m.varint()
		case labelNumber:
			x.number = m.varint()
		case labelUnit:
			x.unit = m.varint()
		}
	}
	if x.str != 0 {
		x.number, x.unit = 0, 0
	}
	if x.str != 0 || x.number != 0 || x.unit != 0 { // else it says nothing
		t.labels = append(t.labels, x)
	}
	return errors.Join(m.err, t.check(x.key, x.str, x.unit))
}

// weigh estimates how many bytes of memory google/pprof's form of a profile takes, without making it. The
// figures are the sizes of its types, with what the maps of labels take.
func weigh(data []byte) (int64, error) {
	var sum int64
	m := message{rest: data}
	for m.next() {
		switch m.field {
		case profileSample:
			sum += 170
			sub := message{rest: m.bytes()}
			for sub.next() {
				switch {
				case sub.typ == protowire.VarintType:
					sum += 24
				case sub.field == sampleLabel:
					sum += 800
				default:
					sum += 24 * int64(countVarints(sub.body))
				}
			}
			m.fail(sub.err)
		case profileLocation:
			sum += 100
			sum += 12 * int64(len(m.bytes())) // a line of four bytes takes 48
		case profileMapping, profileFunction:
			sum += 200
		case profileString:
			sum += 16 + int64(len(m.bytes()))
		default:
			sum += 64
			if m.typ == protowire.BytesType {
				sum += 8 * int64(len(m.body))
			}
		}
	}
	return sum, m.err
}

// countVarints tells how many numbers a packed field has: each ends in a byte below 128.
func countVarints(b []byte) int {
	n := 0
	for _, c := range b {
		if c < 0x80 {
			n++
		}
	}
	return n
}

// kind says what the profile measures, such as "samples/count, cpu/nanoseconds per cpu/nanoseconds".
func (t *table) kind() string {
	var b strings.Builder
	for i, st := range t.types {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s/%s", t.strings[st.typ], t.strings[st.unit])
	}
	fmt.Fprintf(&b, " per %s/%s", t.strings[t.periodType.typ], t.strings[t.periodType.unit])
	return b.String()
}
