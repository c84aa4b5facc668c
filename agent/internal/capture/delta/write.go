//go:build gc && !go1.28 && !spanflame_nolinkname

package delta

import (
	"encoding/binary"
	"time"

	"spanflame/internal/pprofwire"
)

// writer writes a profile in its wire form. It has the locations, functions and strings that its samples use, numbered
// in the order of their use.
type writer struct {
	*symbols
	out     pprofwire.Encoder
	samples int

	usedLocations, usedMappings, usedFunctions, usedStrings used

	sub, part pprofwire.Encoder
}

// used gives numbers, from 1 on, to what the output uses.
type used struct {
	number []uint32 // by number in symbols; 0 if it is not used
	order  []uint32
}

func (u *used) add(i uint32) uint64 {
	if int(i) >= len(u.number) {
		u.number = append(u.number, make([]uint32, int(i)+1-len(u.number))...)
	}
	if u.number[i] == 0 {
		u.order = append(u.order, i)
		u.number[i] = uint32(len(u.order))
	}
	return uint64(u.number[i])
}

func (w *writer) sample(locations []uint32, values []int64, size int64) {
	w.samples++
	w.sub, w.part = w.sub[:0], w.part[:0]
	for _, l := range locations {
		w.part = binary.AppendUvarint(w.part, w.usedLocations.add(l))
	}
	w.sub.Bytes(pprofwire.SampleLocation, w.part)
	w.part = w.part[:0]
	for _, v := range values {
		w.part = binary.AppendUvarint(w.part, uint64(v))
	}
	w.sub.Bytes(pprofwire.SampleValue, w.part)
	if size > 0 {
		w.part = w.part[:0]
		w.part.Number(pprofwire.LabelKey, w.str("bytes"))
		w.part.Number(pprofwire.LabelNumber, uint64(size))
		w.sub.Bytes(pprofwire.SampleLabel, w.part)
	}
	w.out.Bytes(pprofwire.ProfileSample, w.sub)
}

// finish writes what the samples use, and what describes the profile as a whole.
func (w *writer) finish(h heading, period int64, begun, end time.Time) []byte {
	for _, t := range h.types {
		w.valueType(pprofwire.ProfileSampleType, t)
	}
	w.valueType(pprofwire.ProfilePeriodType, h.period)
	w.out.Number(pprofwire.ProfilePeriod, uint64(period))
	w.out.Number(pprofwire.ProfileTime, uint64(begun.UnixNano()))
	w.out.Number(pprofwire.ProfileDuration, uint64(max(0, end.Sub(begun))))
	if len(w.mappings) > 0 {
		w.usedMappings.add(0) // the program's, by convention
	}
	tried, failed := make([]bool, len(w.mappings)), make([]bool, len(w.mappings))
	for i, n := range w.usedLocations.order {
		l := &w.locations[n]
		w.location(uint64(i)+1, l)
		if l.mapping >= 0 {
			tried[l.mapping] = true
			failed[l.mapping] = failed[l.mapping] || !l.complete
		}
	}
	for i, n := range w.usedMappings.order {
		w.mapping(uint64(i)+1, &w.mappings[n], tried[n] && !failed[n])
	}
	for i, n := range w.usedFunctions.order {
		f := &w.functions[n]
		w.sub = w.sub[:0]
		w.sub.Number(pprofwire.FunctionID, uint64(i)+1)
		w.sub.Number(pprofwire.FunctionName, w.number(f.name))
		w.sub.Number(pprofwire.FunctionSystem, w.number(f.name))
		w.sub.Number(pprofwire.FunctionFile, w.number(f.file))
		w.sub.Number(pprofwire.FunctionStart, uint64(f.start))
		w.out.Bytes(pprofwire.ProfileFunction, w.sub)
	}
	w.out.Text(pprofwire.ProfileString, "")
	for _, n := range w.usedStrings.order {
		w.out.Text(pprofwire.ProfileString, w.strings[n])
	}
	return w.out
}

func (w *writer) valueType(field pprofwire.Number, t valueType) {
	w.sub = w.sub[:0]
	w.sub.Number(pprofwire.ValueTypeType, w.str(t.name))
	w.sub.Number(pprofwire.ValueTypeUnit, w.str(t.unit))
	w.out.Bytes(field, w.sub)
}

func (w *writer) location(id uint64, l *location) {
	w.sub = w.sub[:0]
	w.sub.Number(pprofwire.LocationID, id)
	if l.mapping >= 0 {
		w.sub.Number(pprofwire.LocationMapping, w.usedMappings.add(uint32(l.mapping)))
	}
	w.sub.Number(pprofwire.LocationAddress, uint64(l.address))
	for _, x := range l.lines {
		w.part = w.part[:0]
		w.part.Number(pprofwire.LineFunction, w.usedFunctions.add(x.function))
		w.part.Number(pprofwire.LineLine, uint64(x.line))
		w.sub.Bytes(pprofwire.LocationLine, w.part)
	}
	w.out.Bytes(pprofwire.ProfileLocation, w.sub)
}

func (w *writer) mapping(id uint64, m *mapping, hasFunctions bool) {
	w.sub = w.sub[:0]
	w.sub.Number(pprofwire.MappingID, id)
	w.sub.Number(pprofwire.MappingStart, m.start)
	w.sub.Number(pprofwire.MappingLimit, m.limit)
	w.sub.Number(pprofwire.MappingOffset, m.offset)
	w.sub.Number(pprofwire.MappingFile, w.str(m.file))
	w.sub.Number(pprofwire.MappingBuildID, w.str(m.buildID))
	if hasFunctions {
		w.sub.Number(pprofwire.MappingFlags, 1)
	}
	w.out.Bytes(pprofwire.ProfileMapping, w.sub)
}

func (w *writer) str(s string) uint64 { return w.number(w.text(s)) }

// number returns the number of a string in the output, 0 for the empty one.
func (w *writer) number(text uint32) uint64 {
	if text == 0 {
		return 0
	}
	return w.usedStrings.add(text)
}
