package profiles

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/google/pprof/profile"
	"github.com/klauspost/compress/gzip"

	"spanflame/internal/pprofwire"
	"spanflame/internal/record"
)

// maxMergedBytes limits the stacks and names of a merged profile, so that it can be read again.
const maxMergedBytes = maxProfileBytes / 2

// Merge adds up profiles of one kind. Samples with different labels are kept apart. It stops at the first error; use
// WithoutDamaged to leave out unusable files. If there is no profile, the error is ErrNone.
func Merge(ctx context.Context, windows iter.Seq2[Window, error]) (*profile.Profile, error) {
	var m Merger
	for w, err := range windows {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = m.Add(w.Profile)
		}
		if err != nil {
			return nil, fmt.Errorf("merge profiles: %w", err)
		}
	}
	return m.Profile()
}

// A Merger adds up profiles of one kind: of the same sample types and the same period type. The sum equals that of
// google/pprof's profile.Merge to the unit, except that a sum that does not fit into 64 bits is an error. It needs the
// memory of the sum and of one profile. The zero Merger is ready for use, by one goroutine.
type Merger struct {
	// DropLabels drops the labels of samples, such as the span's ID, so that samples with the same stack are added up.
	// Set it before the first profile is added.
	DropLabels bool

	reader *reader
	in     table // the profile that is being added

	count  int     // profiles added
	kind   string  // of all profiles
	totals []int64 // sums of the values' magnitudes, by sample type

	// Each interner numbers its keys in the order in which they are added. A key is a series of varints, which are plain
	// numbers or numbers of another interner, and contains everything that is written.
	strings   interner
	functions interner // name, system name, file, start
	mappings  interner // what equal mappings have in common
	mapped    []mapping
	locations interner // mapping + 1, address in it, folded; then function, line, column for each line
	samples   interner // count of locations, these; then key, string, number, unit for each label
	values    []int64  // of all samples, one for each type

	types                                         []valueType
	dropFrames, keepFrames, defaultSample, docURL uint64
	time, duration, period                        int64
	periodType                                    valueType
	comments                                      []uint64
	commented                                     map[uint64]bool // the set of comments

	// For the elements of the profile that is being added: their numbers in the interners, plus 1, or 0 if not known yet.
	stringAt, functionAt, mappingAt, locationAt []uint32
	sub, locationKey, sampleKey                 []byte // of what is being numbered
	sorted                                      []label
}

// interner numbers strings from 0.
type interner struct {
	numbers map[string]uint32
	keys    []string
	bytes   int // of all keys
}

// number returns the key's number, and whether the key is new.
func (x *interner) number(key []byte) (n uint32, fresh bool) {
	if n, ok := x.numbers[string(key)]; ok {
		return n, false
	}
	if x.numbers == nil {
		x.numbers = make(map[string]uint32)
	}
	n = uint32(len(x.keys))
	k := string(key)
	x.numbers[k] = n
	x.keys = append(x.keys, k)
	x.bytes += len(k)
	return n, true
}

// Add adds a profile and keeps nothing of it. Other goroutines may read p at the same time, but neither write nor add
// it. An error leaves the sum unchanged.
func (m *Merger) Add(p *profile.Profile) error {
	if err := p.CheckValid(); err != nil {
		return fmt.Errorf("not a valid profile: %w", err)
	}
	var b bytes.Buffer
	if err := p.WriteUncompressed(&b); err != nil {
		return fmt.Errorf("encode a profile of %d samples: %w", len(p.Sample), err)
	}
	return m.add(b.Bytes())
}

// AddFile adds the profile in a file, within the limits of ReadFile, and much faster than by reading and adding it. An
// error, which is Damaged, leaves the sum unchanged.
func (m *Merger) AddFile(path string) error {
	if m.reader == nil {
		m.reader = newReader()
	}
	_, data, err := m.reader.read(path)
	if err == nil {
		err = m.add(data)
	}
	if err != nil {
		return Damaged{Path: path, Err: err}
	}
	return nil
}

// add adds a profile in its wire form.
func (m *Merger) add(data []byte) error {
	if err := m.in.decode(data); err != nil {
		return invalid(err)
	}
	if err := m.admit(); err != nil {
		return err
	}
	m.head()
	if len(m.mapped) == 0 && len(m.in.mappings) > 0 {
		m.mapping(0) // the program's, by convention
	}
	width := len(m.types)
	var from sampleEnds
	for i, to := range m.in.samples {
		values := m.in.values[i*width : (i+1)*width]
		if slices.ContainsFunc(values, func(v int64) bool { return v != 0 }) {
			n, fresh := m.sample(m.in.locs[from.locs:to.locs], m.in.labels[from.labels:to.labels])
			if fresh {
				m.values = append(m.values, values...)
			} else {
				for j, v := range values {
					m.values[int(n)*width+j] += v
				}
			}
		}
		from = to
	}
	m.count++
	return nil
}

// admit checks whether the profile that was read can be added, so that it is added as a whole or not at all.
func (m *Merger) admit() error {
	in := &m.in
	kind := in.kind()
	if m.count > 0 && kind != m.kind {
		return fmt.Errorf("profiles of different kinds do not add up: it measures %s, those before it %s", kind, m.kind)
	}
	if size := m.samples.bytes + m.locations.bytes + m.functions.bytes + m.strings.bytes; size > maxMergedBytes {
		return fmt.Errorf("%w: the merged profile has %d bytes of stacks and names, the limit is %d: merge less, or drop the labels",
			record.ErrTooLarge, size, maxMergedBytes)
	}
	totals := make([]int64, len(in.types))
	copy(totals, m.totals)
	for i, v := range in.values {
		j := i % len(totals)
		if totals[j] = addMagnitude(totals[j], v); totals[j] < 0 {
			return fmt.Errorf("the sum of %s does not fit into 64 bits", in.strings[in.types[j].typ])
		}
	}
	if addMagnitude(m.duration, in.duration) < 0 {
		return errors.New("the sum of durations does not fit into 64 bits")
	}
	m.kind, m.totals = kind, totals
	return nil
}

// addMagnitude returns sum + |v|, or a negative number if that does not fit. No sum of the values themselves is larger,
// be it of one stack or of all.
func addMagnitude(sum, v int64) int64 {
	if v < 0 {
		v = -v
	}
	if v < 0 {
		return v // the one number whose magnitude does not fit
	}
	return sum + v
}

// head adds what describes the profile as a whole, and forgets the numbers of the profile before it.
func (m *Merger) head() {
	in := &m.in
	m.stringAt = zeros(m.stringAt, len(in.strings))
	m.functionAt = zeros(m.functionAt, len(in.functions))
	m.mappingAt = zeros(m.mappingAt, len(in.mappings))
	m.locationAt = zeros(m.locationAt, len(in.locations))
	if m.count == 0 {
		m.strings.number(nil) // by the format, string 0 is empty
		m.commented = make(map[uint64]bool)
		for _, st := range in.types {
			m.types = append(m.types, m.valueType(st))
		}
		m.periodType = m.valueType(in.periodType)
		m.dropFrames, m.keepFrames = m.str(in.dropFrames), m.str(in.keepFrames)
	}
	m.defaultSample = cmp.Or(m.defaultSample, m.str(in.defaultSample))
	m.docURL = cmp.Or(m.docURL, m.str(in.docURL))
	if m.time == 0 || in.time != 0 && in.time < m.time {
		m.time = in.time
	}
	m.duration += in.duration
	m.period = max(m.period, in.period)
	for _, c := range in.comments {
		if s := m.str(c); !m.commented[s] {
			m.commented[s] = true
			m.comments = append(m.comments, s)
		}
	}
}

// zeros returns a slice of n zeros, which is s if that is large enough.
func zeros(s []uint32, n int) []uint32 {
	if cap(s) < n {
		return make([]uint32, n)
	}
	s = s[:n]
	clear(s)
	return s
}

func (m *Merger) valueType(v valueType) valueType { return valueType{m.str(v.typ), m.str(v.unit)} }

// str returns the number here of a string of the profile that is being added. The methods that follow do the same for
// a function, a mapping, a location and a sample.
func (m *Merger) str(s uint64) uint64 {
	if m.stringAt[s] == 0 {
		n, _ := m.strings.number(m.in.strings[s])
		m.stringAt[s] = n + 1
	}
	return uint64(m.stringAt[s] - 1)
}

func (m *Merger) function(i uint32) uint64 {
	if m.functionAt[i] == 0 {
		f := m.in.functions[i]
		m.sub = varints(m.sub[:0], m.str(f.name), m.str(f.system), m.str(f.file), f.start)
		n, _ := m.functions.number(m.sub)
		m.functionAt[i] = n + 1
	}
	return uint64(m.functionAt[i] - 1)
}

// mapping considers mappings equal that have the same size in pages, offset and build (or file, if that is unknown):
// programs are loaded at different addresses.
func (m *Merger) mapping(i int) int {
	if m.mappingAt[i] == 0 {
		const page = 0x1000
		x := m.in.mappings[i]
		x.file, x.buildID = m.str(x.file), m.str(x.buildID)
		m.sub = varints(m.sub[:0], (x.limit-x.start+page-1)/page, x.offset, cmp.Or(x.buildID, x.file))
		n, fresh := m.mappings.number(m.sub)
		if fresh {
			m.mapped = append(m.mapped, x)
		}
		m.mappingAt[i] = n + 1
	}
	return int(m.mappingAt[i] - 1)
}

func (m *Merger) location(i uint32) uint64 {
	if m.locationAt[i] == 0 {
		l := m.in.locations[i]
		mapping, address, folded := uint64(0), l.address, uint64(0)
		if l.mapping >= 0 {
			mapping = uint64(m.mapping(l.mapping)) + 1
			address -= m.in.mappings[l.mapping].start
		}
		if l.folded {
			folded = 1
		}
		lines := 0
		if i > 0 {
			lines = m.in.locations[i-1].lines
		}
		key := varints(m.locationKey[:0], mapping, address, folded)
		for _, x := range m.in.lines[lines:l.lines] {
			key = varints(key, m.function(x.fn), x.line, x.column)
		}
		n, _ := m.locations.number(key)
		m.locationKey = key
		m.locationAt[i] = n + 1
	}
	return uint64(m.locationAt[i] - 1)
}

func (m *Merger) sample(locs []uint32, labels []label) (n uint32, fresh bool) {
	key := binary.AppendUvarint(m.sampleKey[:0], uint64(len(locs)))
	for _, l := range locs {
		key = binary.AppendUvarint(key, m.location(l))
	}
	if !m.DropLabels && len(labels) > 0 {
		m.sorted = m.sorted[:0]
		for _, l := range labels {
			m.sorted = append(m.sorted, label{m.str(l.key), m.str(l.str), l.number, m.str(l.unit)})
		}
		// Several values of one label keep their order.
		slices.SortStableFunc(m.sorted, func(a, b label) int {
			return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(min(a.str, 1), min(b.str, 1)))
		})
		for _, l := range m.sorted {
			key = varints(key, l.key, l.str, l.number, l.unit)
		}
	}
	m.sampleKey = key
	return m.samples.number(key)
}

func varints(b []byte, numbers ...uint64) []byte {
	for _, n := range numbers {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

// Profile returns the sum. Without any profile the error is ErrNone.
func (m *Merger) Profile() (*profile.Profile, error) {
	if m.count == 0 {
		return nil, fmt.Errorf("merge profiles: %w", ErrNone)
	}
	var b bytes.Buffer
	if err := m.encode(&b); err != nil {
		return nil, fmt.Errorf("merge profiles: %w", err)
	}
	return parse(b.Bytes())
}

// Write writes the sum as a compressed pprof profile. Without any profile the error is ErrNone.
func (m *Merger) Write(w io.Writer) error {
	if m.count == 0 {
		return fmt.Errorf("merge profiles: %w", ErrNone)
	}
	zw := gzip.NewWriter(w)
	if err := m.encode(zw); err != nil {
		return fmt.Errorf("write the merged profile: %w", err)
	}
	if err := zw.Close(); err != nil {
		return fmt.Errorf("write the merged profile: %w", err)
	}
	return nil
}

// encode writes the sum in its wire form.
func (m *Merger) encode(to io.Writer) error {
	b := wireWriter{to: to}
	valueType := func(field pprofwire.Number, v valueType) {
		var sub pprofwire.Encoder
		sub.Number(pprofwire.ValueTypeType, v.typ)
		sub.Number(pprofwire.ValueTypeUnit, v.unit)
		b.Bytes(field, sub)
	}
	for _, st := range m.types {
		valueType(pprofwire.ProfileSampleType, st)
	}
	m.encodeSamples(&b)
	m.encodeMappings(&b)
	m.encodeLocations(&b)
	m.encodeFunctions(&b)
	for _, s := range m.strings.keys {
		b.Text(pprofwire.ProfileString, s)
		b.flush(wireChunk)
	}
	b.Number(pprofwire.ProfileDropFrames, m.dropFrames)
	b.Number(pprofwire.ProfileKeepFrames, m.keepFrames)
	b.Number(pprofwire.ProfileTime, uint64(m.time))
	b.Number(pprofwire.ProfileDuration, uint64(m.duration))
	valueType(pprofwire.ProfilePeriodType, m.periodType)
	b.Number(pprofwire.ProfilePeriod, uint64(m.period))
	for _, c := range m.comments {
		b.Element(pprofwire.ProfileComment, c)
	}
	b.Number(pprofwire.ProfileDefaultSample, m.defaultSample)
	b.Number(pprofwire.ProfileDocURL, m.docURL)
	b.flush(0)
	return b.err
}

func (m *Merger) encodeSamples(b *wireWriter) {
	var sample, packed, label pprofwire.Encoder
	for i, s := range m.samples.keys {
		key := keyReader(s)
		sample, packed = sample[:0], packed[:0]
		for range key.next() {
			packed = binary.AppendUvarint(packed, key.next()+1)
		}
		sample.Bytes(pprofwire.SampleLocation, packed)
		packed = packed[:0]
		for _, v := range m.values[i*len(m.types) : (i+1)*len(m.types)] {
			packed = binary.AppendUvarint(packed, uint64(v))
		}
		sample.Bytes(pprofwire.SampleValue, packed)
		for len(key) > 0 {
			label = label[:0]
			for field := pprofwire.LabelKey; field <= pprofwire.LabelUnit; field++ {
				label.Number(field, key.next())
			}
			sample.Bytes(pprofwire.SampleLabel, label)
		}
		b.Bytes(pprofwire.ProfileSample, sample)
		b.flush(wireChunk)
	}
}

func (m *Merger) encodeMappings(b *wireWriter) {
	for i, x := range m.mapped {
		var sub pprofwire.Encoder
		sub.Number(pprofwire.MappingID, uint64(i)+1)
		sub.Number(pprofwire.MappingStart, x.start)
		sub.Number(pprofwire.MappingLimit, x.limit)
		sub.Number(pprofwire.MappingOffset, x.offset)
		sub.Number(pprofwire.MappingFile, x.file)
		sub.Number(pprofwire.MappingBuildID, x.buildID)
		for j, set := range x.flags {
			if set {
				sub.Number(pprofwire.MappingFlags+pprofwire.Number(j), 1)
			}
		}
		b.Bytes(pprofwire.ProfileMapping, sub)
	}
}

func (m *Merger) encodeLocations(b *wireWriter) {
	var location, line pprofwire.Encoder
	for i, s := range m.locations.keys {
		key := keyReader(s)
		mapping, address, folded := key.next(), key.next(), key.next()
		if mapping > 0 {
			address += m.mapped[mapping-1].start
		}
		location = location[:0]
		location.Number(pprofwire.LocationID, uint64(i)+1)
		location.Number(pprofwire.LocationMapping, mapping)
		location.Number(pprofwire.LocationAddress, address)
		for len(key) > 0 {
			line = line[:0]
			line.Number(pprofwire.LineFunction, key.next()+1)
			line.Number(pprofwire.LineLine, key.next())
			line.Number(pprofwire.LineColumn, key.next())
			location.Bytes(pprofwire.LocationLine, line)
		}
		location.Number(pprofwire.LocationFolded, folded)
		b.Bytes(pprofwire.ProfileLocation, location)
		b.flush(wireChunk)
	}
}

func (m *Merger) encodeFunctions(b *wireWriter) {
	var function pprofwire.Encoder
	for i, s := range m.functions.keys {
		key := keyReader(s)
		function = function[:0]
		function.Number(pprofwire.FunctionID, uint64(i)+1)
		for field := pprofwire.FunctionName; field <= pprofwire.FunctionStart; field++ {
			function.Number(field, key.next())
		}
		b.Bytes(pprofwire.ProfileFunction, function)
		b.flush(wireChunk)
	}
}

// keyReader reads the varints of an interner's key.
type keyReader string

func (k *keyReader) next() uint64 {
	var v uint64
	for i := range len(*k) {
		c := (*k)[i]
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			*k = (*k)[i+1:]
			break
		}
	}
	return v
}

// wireChunk is about the number of bytes that a wireWriter buffers. The whole wire form would be as large as the sum.
const wireChunk = 64 << 10

// wireWriter writes the fields of a protobuf message. It keeps the first error.
type wireWriter struct {
	pprofwire.Encoder
	to  io.Writer
	err error
}

// flush writes the buffer if it has more than the given number of bytes.
func (w *wireWriter) flush(more int) {
	if len(w.Encoder) <= more {
		return
	}
	if w.err == nil {
		_, w.err = w.to.Write(w.Encoder)
	}
	w.Encoder = w.Encoder[:0]
}
