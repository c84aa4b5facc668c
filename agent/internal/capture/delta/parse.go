package delta

import (
	"errors"
	"fmt"

	"spanflame/internal/pprofwire"
)

// parsed is a profile that is being read: numbers that are called str index strings. What has a field out is
// written only if a sample that is written uses it, and has its number there, + 1.
type parsed struct {
	strings   []text
	types     []valueType
	mappings  []mapping
	functions []function
	locations []location
	lines     []line // of all locations
	samples   [][]byte

	dropFrames, keepFrames, defaultSample, docURL uint64 // str
	period                                        int64
	periodType                                    valueType
	comments                                      []uint64 // str

	mappingIDs, functionIDs, locationIDs pprofwire.Index
}

type text struct {
	bytes []byte
	hash  key // of those that a label may have; numbers of strings differ from profile to profile
	out   uint32
}

type valueType struct{ typ, unit uint64 } // str

type mapping struct {
	start, limit, offset uint64
	file, buildID        uint64 // str
	flags                [4]bool
	out                  uint32
}

type function struct {
	name, system, file uint64 // str
	start              uint64
	hash               key
	out                uint32
}

type location struct {
	mapping    int // -1 for none
	address    uint64
	folded     bool
	first, end int // of its lines
	out        uint32
}

// named reports whether every line has a function with a name.
func (l location) named() bool { return l.end > l.first }

type line struct {
	fn           uint32
	line, column uint64
	hash         key
}

// parse reads a profile, except for its samples.
func parse(raw []byte, seeds seeds) (*parsed, error) {
	p := &parsed{}
	var functions, locations, mappings [][]byte
	m := pprofwire.NewMessage(raw)
	for m.Next() {
		switch m.Field {
		case pprofwire.ProfileSampleType:
			p.types = append(p.types, readValueType(&m))
		case pprofwire.ProfileSample:
			p.samples = append(p.samples, m.Bytes())
		case pprofwire.ProfileMapping:
			mappings = append(mappings, m.Bytes())
		case pprofwire.ProfileLocation:
			locations = append(locations, m.Bytes())
		case pprofwire.ProfileFunction:
			functions = append(functions, m.Bytes())
		case pprofwire.ProfileString:
			p.strings = append(p.strings, text{bytes: m.Bytes()})
		case pprofwire.ProfileDropFrames:
			p.dropFrames = m.Varint()
		case pprofwire.ProfileKeepFrames:
			p.keepFrames = m.Varint()
		case pprofwire.ProfilePeriodType:
			p.periodType = readValueType(&m)
		case pprofwire.ProfilePeriod:
			p.period = int64(m.Varint())
		case pprofwire.ProfileComment:
			p.comments = m.Varints(p.comments)
		case pprofwire.ProfileDefaultSample:
			p.defaultSample = m.Varint()
		case pprofwire.ProfileDocURL:
			p.docURL = m.Varint()
		}
	}
	if m.Err() != nil {
		return nil, m.Err()
	}
	if len(p.strings) == 0 || len(p.strings[0].bytes) > 0 {
		return nil, errors.New("the first string is not the empty one")
	}
	used := append([]uint64{p.dropFrames, p.keepFrames, p.defaultSample, p.docURL, p.periodType.typ, p.periodType.unit}, p.comments...)
	for _, t := range p.types {
		used = append(used, t.typ, t.unit)
	}
	if err := p.check(used...); err != nil {
		return nil, err
	}
	p.mappingIDs.Reset(len(mappings))
	p.functionIDs.Reset(len(functions))
	p.locationIDs.Reset(len(locations))
	p.mappings, p.functions = make([]mapping, 0, len(mappings)), make([]function, 0, len(functions))
	p.locations, p.lines = make([]location, 0, len(locations)), make([]line, 0, len(locations)*3/2)
	for _, b := range mappings {
		if err := p.readMapping(b); err != nil {
			return nil, fmt.Errorf("mapping: %w", err)
		}
	}
	for _, b := range functions {
		if err := p.readFunction(b, seeds); err != nil {
			return nil, fmt.Errorf("function: %w", err)
		}
	}
	for _, b := range locations {
		if err := p.readLocation(b); err != nil {
			return nil, fmt.Errorf("location: %w", err)
		}
	}
	return p, nil
}

// check returns an error unless each number is that of a string.
func (p *parsed) check(strs ...uint64) error {
	for _, s := range strs {
		if s >= uint64(len(p.strings)) {
			return fmt.Errorf("string %d of %d", s, len(p.strings))
		}
	}
	return nil
}

func readValueType(m *pprofwire.Message) (v valueType) {
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

func (p *parsed) readMapping(b []byte) error {
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
		default:
			if i := m.Field - pprofwire.MappingFlags; 0 <= i && int(i) < len(x.flags) {
				x.flags[i] = m.Varint() != 0
			}
		}
	}
	err := errors.Join(m.Err(), p.check(x.file, x.buildID), p.mappingIDs.Put(id, len(p.mappings)))
	p.mappings = append(p.mappings, x)
	return err
}

func (p *parsed) readFunction(b []byte, seeds seeds) error {
	var x function
	var id uint64
	m := pprofwire.NewMessage(b)
	for m.Next() {
		switch m.Field {
		case pprofwire.FunctionID:
			id = m.Varint()
		case pprofwire.FunctionName:
			x.name = m.Varint()
		case pprofwire.FunctionSystem:
			x.system = m.Varint()
		case pprofwire.FunctionFile:
			x.file = m.Varint()
		case pprofwire.FunctionStart:
			x.start = m.Varint()
		}
	}
	if err := errors.Join(m.Err(), p.check(x.name, x.system, x.file), p.functionIDs.Put(id, len(p.functions))); err != nil {
		return err
	}
	x.hash = seeds.hash(p.strings[x.name].bytes).mix(seeds.hash(p.strings[x.file].bytes))
	p.functions = append(p.functions, x)
	return nil
}

// readLocation reads a location, and those of its lines that have functions with names.
func (p *parsed) readLocation(b []byte) error {
	x := location{mapping: -1, first: len(p.lines)}
	var id uint64
	m := pprofwire.NewMessage(b)
	for m.Next() {
		switch m.Field {
		case pprofwire.LocationID:
			id = m.Varint()
		case pprofwire.LocationMapping:
			if at, ok := p.mappingIDs.Get(m.Varint()); ok {
				x.mapping = int(at)
			}
		case pprofwire.LocationAddress:
			x.address = m.Varint()
		case pprofwire.LocationLine:
			m.Fail(p.readLine(m.Bytes()))
		case pprofwire.LocationFolded:
			x.folded = m.Varint() != 0
		}
	}
	x.end = len(p.lines)
	err := errors.Join(m.Err(), p.locationIDs.Put(id, len(p.locations)))
	p.locations = append(p.locations, x)
	return err
}

func (p *parsed) readLine(b []byte) error {
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
	at, ok := p.functionIDs.Get(id)
	switch {
	case m.Err() != nil:
		return m.Err()
	case !ok:
		return fmt.Errorf("no function %d", id)
	}
	f := &p.functions[at]
	if len(p.strings[f.name].bytes) == 0 {
		return nil
	}
	x.fn, x.hash = at, f.hash.mix(key{x.line, x.line})
	p.lines = append(p.lines, x)
	return nil
}

// sample is one sample, read again and again into the same memory.
type sample struct {
	ids, values []uint64
	locations   []uint32 // positions of those that have names
	labels      []label
	key         key
}

type label struct {
	key, str uint64 // str
	number   uint64
	unit     uint64 // str
}

func (s *sample) read(p *parsed, body []byte, seeds seeds) error {
	s.ids, s.values, s.locations, s.labels = s.ids[:0], s.values[:0], s.locations[:0], s.labels[:0]
	m := pprofwire.NewMessage(body)
	for m.Next() {
		switch m.Field {
		case pprofwire.SampleLocation:
			s.ids = m.Varints(s.ids)
		case pprofwire.SampleValue:
			s.values = m.Varints(s.values)
		case pprofwire.SampleLabel:
			l, err := p.readLabel(m.Bytes(), seeds)
			m.Fail(err)
			s.labels = append(s.labels, l)
		}
	}
	if m.Err() != nil {
		return m.Err()
	}
	if len(s.values) != len(p.types) {
		return fmt.Errorf("%d values, want %d", len(s.values), len(p.types))
	}
	s.key = key{1, 2}
	for _, id := range s.ids {
		at, ok := p.locationIDs.Get(id)
		if !ok {
			return fmt.Errorf("no location %d", id)
		}
		l := p.locations[at]
		if !l.named() {
			continue
		}
		s.locations = append(s.locations, at)
		for _, x := range p.lines[l.first:l.end] {
			s.key = s.key.mix(x.hash)
		}
	}
	for _, l := range s.labels {
		s.key = s.key.mix(p.strings[l.key].hash).mix(p.strings[l.str].hash).mix(key{l.number, l.number}).mix(p.strings[l.unit].hash)
	}
	return nil
}

func (p *parsed) readLabel(body []byte, seeds seeds) (l label, err error) {
	m := pprofwire.NewMessage(body)
	for m.Next() {
		switch m.Field {
		case pprofwire.LabelKey:
			l.key = m.Varint()
		case pprofwire.LabelString:
			l.str = m.Varint()
		case pprofwire.LabelNumber:
			l.number = m.Varint()
		case pprofwire.LabelUnit:
			l.unit = m.Varint()
		}
	}
	if err := errors.Join(m.Err(), p.check(l.key, l.str, l.unit)); err != nil {
		return l, err
	}
	for _, s := range []uint64{l.key, l.str, l.unit} {
		if t := &p.strings[s]; t.hash == (key{}) {
			t.hash = seeds.hash(t.bytes)
		}
	}
	return l, nil
}
