package delta

import (
	"encoding/binary"
	"time"

	"spanflame/internal/pprofwire"
)

// write returns the difference between the profile that was read and the one before. It has the locations,
// functions and strings that its samples use, numbered again in the order of their use.
func (d *Delta) write(p *parsed, begun, end time.Time) ([]byte, error) {
	w := writer{parsed: p}
	for _, t := range p.types {
		w.valueType(pprofwire.ProfileSampleType, t)
	}
	n := len(p.types)
	level := make([]bool, n)
	for j, t := range d.types {
		level[j] = isLevel(t)
	}
	values := make([]int64, n)
	var s sample
	// In the order of the profile: a stack that comes again there was added to its first sample.
	first := make([]uint32, len(p.samples))
	for at, i := range d.seen {
		if i > 0 {
			first[i-1] = uint32(at) + 1
		}
	}
	for i, at := range first {
		if at == 0 {
			continue
		}
		at--
		changed := false
		for j := range values {
			v := d.cur[int(at)*n+j]
			if !level[j] {
				v -= d.prev[int(at)*n+j]
			}
			values[j] = max(0, v)
			changed = changed || values[j] > 0
		}
		if !changed {
			continue
		}
		if err := s.read(p, p.samples[i], d.seeds); err != nil {
			return nil, err
		}
		w.sample(s, values)
	}
	w.rest(begun, end)
	return w.out, nil
}

// writer writes a profile in its wire form. Its methods return numbers of the output, which begin with 1.
type writer struct {
	*parsed
	out pprofwire.Encoder

	// What the output has, in the order of its numbers.
	outMappings  []*mapping
	outLocations []*location
	outFunctions []*function
	outStrings   [][]byte

	nameless  *location // of stacks none of whose frames has a name; nil while there is none
	sub, part pprofwire.Encoder
}

func (w *writer) valueType(field pprofwire.Number, v valueType) {
	w.sub = w.sub[:0]
	w.sub.Number(pprofwire.ValueTypeType, w.str(v.typ))
	w.sub.Number(pprofwire.ValueTypeUnit, w.str(v.unit))
	w.out.Bytes(field, w.sub)
}

func (w *writer) sample(s sample, values []int64) {
	w.sub, w.part = w.sub[:0], w.part[:0]
	for _, at := range s.locations {
		w.part = binary.AppendUvarint(w.part, w.location(&w.locations[at]))
	}
	if len(s.locations) == 0 {
		w.part = binary.AppendUvarint(w.part, w.location(w.unknown()))
	}
	w.sub.Bytes(pprofwire.SampleLocation, w.part)
	w.part = w.part[:0]
	for _, v := range values {
		w.part = binary.AppendUvarint(w.part, uint64(v))
	}
	w.sub.Bytes(pprofwire.SampleValue, w.part)
	for _, l := range s.labels {
		w.part = w.part[:0]
		w.part.Number(pprofwire.LabelKey, w.str(l.key))
		w.part.Number(pprofwire.LabelString, w.str(l.str))
		w.part.Number(pprofwire.LabelNumber, l.number)
		w.part.Number(pprofwire.LabelUnit, w.str(l.unit))
		w.sub.Bytes(pprofwire.SampleLabel, w.part)
	}
	w.out.Bytes(pprofwire.ProfileSample, w.sub)
}

// rest writes what the samples use, and what describes the profile as a whole.
func (w *writer) rest(begun, end time.Time) {
	w.valueType(pprofwire.ProfilePeriodType, w.periodType)
	w.out.Number(pprofwire.ProfilePeriod, uint64(w.period))
	w.out.Number(pprofwire.ProfileTime, uint64(begun.UnixNano()))
	w.out.Number(pprofwire.ProfileDuration, uint64(max(0, end.Sub(begun))))
	w.out.Number(pprofwire.ProfileDropFrames, w.str(w.dropFrames))
	w.out.Number(pprofwire.ProfileKeepFrames, w.str(w.keepFrames))
	w.out.Number(pprofwire.ProfileDefaultSample, w.str(w.defaultSample))
	w.out.Number(pprofwire.ProfileDocURL, w.str(w.docURL))
	for _, c := range w.comments {
		w.out.Element(pprofwire.ProfileComment, w.str(c))
	}
	if len(w.mappings) > 0 {
		w.mapping(0) // the program's, by convention
	}
	for i, l := range w.outLocations {
		w.writeLocation(uint64(i)+1, l)
	}
	for i, m := range w.outMappings {
		w.writeMapping(uint64(i)+1, m)
	}
	for i, f := range w.outFunctions {
		w.sub = w.sub[:0]
		w.sub.Number(pprofwire.FunctionID, uint64(i)+1)
		w.sub.Number(pprofwire.FunctionName, w.str(f.name))
		w.sub.Number(pprofwire.FunctionSystem, w.str(f.system))
		w.sub.Number(pprofwire.FunctionFile, w.str(f.file))
		w.sub.Number(pprofwire.FunctionStart, f.start)
		w.out.Bytes(pprofwire.ProfileFunction, w.sub)
	}
	w.out.Text(pprofwire.ProfileString, "")
	for _, s := range w.outStrings {
		w.out.Bytes(pprofwire.ProfileString, s)
	}
}

func (w *writer) writeLocation(id uint64, l *location) {
	w.sub = w.sub[:0]
	w.sub.Number(pprofwire.LocationID, id)
	if l.mapping >= 0 {
		w.sub.Number(pprofwire.LocationMapping, w.mapping(l.mapping))
	}
	w.sub.Number(pprofwire.LocationAddress, l.address)
	for _, x := range w.lines[l.first:l.end] {
		w.part = w.part[:0]
		w.part.Number(pprofwire.LineFunction, w.function(&w.functions[x.fn]))
		w.part.Number(pprofwire.LineLine, x.line)
		w.part.Number(pprofwire.LineColumn, x.column)
		w.sub.Bytes(pprofwire.LocationLine, w.part)
	}
	if l.folded {
		w.sub.Number(pprofwire.LocationFolded, 1)
	}
	w.out.Bytes(pprofwire.ProfileLocation, w.sub)
}

func (w *writer) writeMapping(id uint64, m *mapping) {
	w.sub = w.sub[:0]
	w.sub.Number(pprofwire.MappingID, id)
	w.sub.Number(pprofwire.MappingStart, m.start)
	w.sub.Number(pprofwire.MappingLimit, m.limit)
	w.sub.Number(pprofwire.MappingOffset, m.offset)
	w.sub.Number(pprofwire.MappingFile, w.str(m.file))
	w.sub.Number(pprofwire.MappingBuildID, w.str(m.buildID))
	for i, set := range m.flags {
		if set {
			w.sub.Number(pprofwire.MappingFlags+pprofwire.Number(i), 1)
		}
	}
	w.out.Bytes(pprofwire.ProfileMapping, w.sub)
}

func (w *writer) location(l *location) uint64 {
	if l.out == 0 {
		w.outLocations = append(w.outLocations, l)
		l.out = uint32(len(w.outLocations))
	}
	return uint64(l.out)
}

// unknown returns a location for stacks none of whose frames has a name.
func (w *writer) unknown() *location {
	if w.nameless == nil {
		w.strings = append(w.strings, text{bytes: []byte(unknownFunction)})
		w.functions = append(w.functions, function{name: uint64(len(w.strings) - 1)})
		w.lines = append(w.lines, line{fn: uint32(len(w.functions) - 1)})
		w.nameless = &location{mapping: -1, first: len(w.lines) - 1, end: len(w.lines)}
	}
	return w.nameless
}

func (w *writer) mapping(i int) uint64 {
	m := &w.mappings[i]
	if m.out == 0 {
		w.outMappings = append(w.outMappings, m)
		m.out = uint32(len(w.outMappings))
	}
	return uint64(m.out)
}

func (w *writer) function(f *function) uint64 {
	if f.out == 0 {
		w.outFunctions = append(w.outFunctions, f)
		f.out = uint32(len(w.outFunctions))
	}
	return uint64(f.out)
}

func (w *writer) str(s uint64) uint64 {
	t := &w.strings[s]
	if len(t.bytes) == 0 {
		return 0
	}
	if t.out == 0 {
		w.outStrings = append(w.outStrings, t.bytes)
		t.out = uint32(len(w.outStrings))
	}
	return uint64(t.out)
}
