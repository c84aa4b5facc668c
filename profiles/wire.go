package profiles

import (
	"errors"
	"fmt"
	"strings"

	"spanflame/internal/pprofwire"
)

// This file reads a profile from its wire form into tables of numbers, in which strings, functions and locations are
// indices. google/pprof's own form has an object for each of these and maps for each sample's labels, which is most of
// the cost of adding up thousands of profiles.

// A table has the contents of a profile: numbers that are called str index strings, those called fn, mapping and loc the
// slices of these names. The slices of all samples are one after the other in common ones. A table is used for one
// profile after the other, to save allocations.
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

	functionIDs, mappingIDs, locationIDs pprofwire.Index
	bodies                               bodies
	ids, vals                            []uint64 // of the sample that is being read
}

// bodies has the messages that refer to others, which may come after them.
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

// sampleEnds has the ends of a sample's part of locs and of labels, which begins where that of the sample before ends.
type sampleEnds struct{ locs, labels int }

type label struct {
	key, str uint64 // str
	number   uint64
	unit     uint64 // str
}

// decode reads a profile and checks everything that google/pprof's Profile.CheckValid checks. The table refers to data.
func (t *table) decode(data []byte) error {
	*t = table{
		strings: t.strings[:0], types: t.types[:0], functions: t.functions[:0], mappings: t.mappings[:0],
		locations: t.locations[:0], lines: t.lines[:0], samples: t.samples[:0], locs: t.locs[:0],
		values: t.values[:0], labels: t.labels[:0], comments: t.comments[:0],
		functionIDs: t.functionIDs, mappingIDs: t.mappingIDs, locationIDs: t.locationIDs,
		bodies: bodies{t.bodies.functions[:0], t.bodies.mappings[:0], t.bodies.locations[:0], t.bodies.samples[:0]},
		ids:    t.ids, vals: t.vals,
	}
	m := pprofwire.NewMessage(data)
	for m.Next() {
		switch m.Field {
		case pprofwire.ProfileSampleType:
			t.types = append(t.types, decodeValueType(&m))
		case pprofwire.ProfileSample:
			t.bodies.samples = append(t.bodies.samples, m.Bytes())
		case pprofwire.ProfileMapping:
			t.bodies.mappings = append(t.bodies.mappings, m.Bytes())
		case pprofwire.ProfileLocation:
			t.bodies.locations = append(t.bodies.locations, m.Bytes())
		case pprofwire.ProfileFunction:
			t.bodies.functions = append(t.bodies.functions, m.Bytes())
		case pprofwire.ProfileString:
			t.strings = append(t.strings, m.Bytes())
		case pprofwire.ProfileDropFrames:
			t.dropFrames = m.Varint()
		case pprofwire.ProfileKeepFrames:
			t.keepFrames = m.Varint()
		case pprofwire.ProfileTime:
			if t.time != 0 {
				m.Fail(errors.New("it has several profiles, one after the other"))
			}
			t.time = int64(m.Varint())
		case pprofwire.ProfileDuration:
			t.duration = int64(m.Varint())
		case pprofwire.ProfilePeriodType:
			t.periodType = decodeValueType(&m)
		case pprofwire.ProfilePeriod:
			t.period = int64(m.Varint())
		case pprofwire.ProfileComment:
			t.comments = m.Varints(t.comments)
		case pprofwire.ProfileDefaultSample:
			t.defaultSample = m.Varint()
		case pprofwire.ProfileDocURL:
			t.docURL = m.Varint()
		}
	}
	if m.Err() != nil {
		return m.Err()
	}
	if len(t.strings) == 0 || len(t.strings[0]) > 0 {
		return errors.New("the first string is not the empty one")
	}
	t.functionIDs.Reset(len(t.bodies.functions))
	t.mappingIDs.Reset(len(t.bodies.mappings))
	t.locationIDs.Reset(len(t.bodies.locations))
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

func decodeValueType(m *pprofwire.Message) (v valueType) {
	sub := pprofwire.NewMessage(m.Bytes())
	for sub.Next() {
		switch sub.Field {
		case pprofwire.ValueTypeType:
			v.typ = sub.Varint()
		case pprofwire.ValueTypeUnit:
			v.unit = sub.Varint()
		}
	}
	m.Fail(sub.Err())
	return v
}

func (t *table) function(b []byte) error {
	var f function
	var id uint64
	m := pprofwire.NewMessage(b)
	for m.Next() {
		switch m.Field {
		case pprofwire.FunctionID:
			id = m.Varint()
		case pprofwire.FunctionName:
			f.name = m.Varint()
		case pprofwire.FunctionSystem:
			f.system = m.Varint()
		case pprofwire.FunctionFile:
			f.file = m.Varint()
		case pprofwire.FunctionStart:
			f.start = m.Varint()
		}
	}
	err := errors.Join(m.Err(), t.functionIDs.Put(id, len(t.functions)), t.check(f.name, f.system, f.file))
	if err != nil {
		return fmt.Errorf("function %d: %w", id, err)
	}
	t.functions = append(t.functions, f)
	return nil
}

func (t *table) mapping(b []byte) error {
	var x mapping
	var id uint64
	m := pprofwire.NewMessage(b)
	for m.Next() {
		switch m.Field {
		case pprofwire.MappingID:
			id = m.Varint()
		case pprofwire.MappingStart:
			x.start = m.Varint()
		case pprofwire.MappingLimit:
			x.limit = m.Varint()
		case pprofwire.MappingOffset:
			x.offset = m.Varint()
		case pprofwire.MappingFile:
			x.file = m.Varint()
		case pprofwire.MappingBuildID:
			x.buildID = m.Varint()
		case pprofwire.MappingFlags, pprofwire.MappingFlags + 1, pprofwire.MappingFlags + 2, pprofwire.MappingFlags + 3:
			x.flags[m.Field-pprofwire.MappingFlags] = m.Varint() != 0
		}
	}
	if err := errors.Join(m.Err(), t.mappingIDs.Put(id, len(t.mappings)), t.check(x.file, x.buildID)); err != nil {
		return fmt.Errorf("mapping %d: %w", id, err)
	}
	t.mappings = append(t.mappings, x)
	return nil
}

func (t *table) location(b []byte) error {
	x := location{mapping: -1}
	var id uint64
	m := pprofwire.NewMessage(b)
	for m.Next() {
		switch m.Field {
		case pprofwire.LocationID:
			id = m.Varint()
		case pprofwire.LocationMapping:
			x.mapping = -1
			if at, ok := t.mappingIDs.Get(m.Varint()); ok { // a missing mapping counts as none
				x.mapping = int(at)
			}
		case pprofwire.LocationAddress:
			x.address = m.Varint()
		case pprofwire.LocationLine:
			m.Fail(t.line(m.Bytes()))
		case pprofwire.LocationFolded:
			x.folded = m.Varint() != 0
		}
	}
	if err := errors.Join(m.Err(), t.locationIDs.Put(id, len(t.locations))); err != nil {
		return fmt.Errorf("location %d: %w", id, err)
	}
	x.lines = len(t.lines)
	t.locations = append(t.locations, x)
	return nil
}

func (t *table) line(b []byte) error {
	var x line
	var id uint64
	m := pprofwire.NewMessage(b)
	for m.Next() {
		switch m.Field {
		case pprofwire.LineFunction:
			id = m.Varint()
		case pprofwire.LineLine:
			x.line = m.Varint()
		case pprofwire.LineColumn:
			x.column = m.Varint()
		}
	}
	fn, ok := t.functionIDs.Get(id)
	if m.Err() == nil && !ok {
		return fmt.Errorf("there is no function %d", id)
	}
	x.fn = fn
	t.lines = append(t.lines, x)
	return m.Err()
}

func (t *table) sample(b []byte) error {
	t.ids, t.vals = t.ids[:0], t.vals[:0]
	m := pprofwire.NewMessage(b)
	for m.Next() {
		switch m.Field {
		case pprofwire.SampleLocation:
			t.ids = m.Varints(t.ids)
		case pprofwire.SampleValue:
			t.vals = m.Varints(t.vals)
		case pprofwire.SampleLabel:
			m.Fail(t.label(m.Bytes()))
		}
	}
	if m.Err() != nil {
		return fmt.Errorf("sample %d: %w", len(t.samples)+1, m.Err())
	}
	if len(t.vals) != len(t.types) || len(t.types) == 0 {
		return fmt.Errorf("sample %d has %d values, want one for each of %d types", len(t.samples)+1, len(t.vals), len(t.types))
	}
	for _, id := range t.ids {
		at, ok := t.locationIDs.Get(id)
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
	m := pprofwire.NewMessage(b)
	for m.Next() {
		switch m.Field {
		case pprofwire.LabelKey:
			x.key = m.Varint()
		case pprofwire.LabelString:
			x.str = m.Varint()
		case pprofwire.LabelNumber:
			x.number = m.Varint()
		case pprofwire.LabelUnit:
			x.unit = m.Varint()
		}
	}
	if x.str != 0 {
		x.number, x.unit = 0, 0
	}
	if x.str != 0 || x.number != 0 || x.unit != 0 { // else it is empty
		t.labels = append(t.labels, x)
	}
	return errors.Join(m.Err(), t.check(x.key, x.str, x.unit))
}

// kind returns what the profile measures, such as "samples/count, cpu/nanoseconds per cpu/nanoseconds".
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
