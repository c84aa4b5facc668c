package delta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"strings"
	"time"

	"spanflame/internal/pprofwire"
)

// Between returns the difference between two readings of a cumulative profile, uncompressed, and whether it is one: it is
// not if a stack of the first has decreased or is not there any more, since then another process has been read. The
// difference is the later one with other values: it has the locations and functions of all stacks, and frames without names
// too.
func Between(before, after []byte, begun, end time.Time) (p Profile, same bool, err error) {
	s := newSubtraction()
	if err := s.parse(before); err != nil {
		return Profile{}, false, err
	}
	s.keep()
	if err := s.parse(after); err != nil {
		return Profile{}, false, err
	}
	if s.decreased() {
		return Profile{}, false, nil
	}
	p, err = s.difference(begun, end)
	return p, true, err
}

// subtraction subtracts from each reading of a profile the one before.
type subtraction struct {
	seeds  [2]maphash.Seed
	raw    []byte
	levels []bool // by sample type
	keys   []key  // by sample

	now, before map[key][]int64

	// What a sample of its own needs: numbers that the profile has not.
	nextString, nextFunction, nextLocation uint64

	MaxSamples int // as newSubtraction sets it, MaxSamples
}

func newSubtraction() *subtraction {
	return &subtraction{MaxSamples: MaxSamples, seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}}
}

// key is the hash of a stack's addresses and the size of its objects. It has 128 bits, so that two never have the same.
type key [2]uint64

func (d *subtraction) keep() { d.before, d.now, d.raw = d.now, nil, nil }

// decreased reports whether a value of a stack is smaller than it was, or a stack is missing.
func (d *subtraction) decreased() bool {
	for k, before := range d.before {
		now := d.now[k]
		for j, v := range before {
			if !d.levels[j] && v > 0 && (now == nil || now[j] < v) {
				return true
			}
		}
	}
	return false
}

// parse reads the values of each stack.
func (d *subtraction) parse(raw []byte) error {
	d.raw = raw
	d.now, d.keys, d.levels = make(map[key][]int64, len(d.before)), d.keys[:0], d.levels[:0]
	d.nextFunction, d.nextLocation = 1, 1
	var types []uint64 // numbers of strings
	var strs, samples [][]byte
	addresses := map[uint64]uint64{} // by location
	p := pprofwire.NewMessage(d.raw)
	for p.Next() {
		switch p.Field {
		case pprofwire.ProfileSampleType:
			types = append(types, p.Inner(pprofwire.ValueTypeType))
		case pprofwire.ProfileString:
			strs = append(strs, p.Bytes())
		case pprofwire.ProfileSample:
			samples = append(samples, p.Bytes())
		case pprofwire.ProfileLocation:
			id := p.Inner(pprofwire.LocationID)
			addresses[id] = p.Inner(pprofwire.LocationAddress)
			d.nextLocation = max(d.nextLocation, id+1)
		case pprofwire.ProfileFunction:
			d.nextFunction = max(d.nextFunction, p.Inner(pprofwire.FunctionID)+1)
		}
	}
	if p.Err() != nil {
		return p.Err()
	}
	d.nextString = uint64(len(strs))
	for _, name := range types {
		d.levels = append(d.levels, name < uint64(len(strs)) && isLevel(string(strs[name])))
	}
	var stack []byte
	var numbers []uint64
	for _, body := range samples {
		stack, numbers = stack[:0], numbers[:0]
		m := pprofwire.NewMessage(body)
		for m.Next() {
			switch m.Field {
			case pprofwire.SampleValue:
				numbers = m.Varints(numbers)
			case pprofwire.SampleLabel:
				stack = binary.LittleEndian.AppendUint64(stack, m.Inner(pprofwire.LabelNumber))
			case pprofwire.SampleLocation:
				for _, id := range m.Varints(nil) {
					stack = binary.LittleEndian.AppendUint64(stack, addresses[id])
				}
			}
		}
		if m.Err() != nil {
			return m.Err()
		}
		if len(numbers) != len(d.levels) {
			return fmt.Errorf("a sample has %d values, want %d", len(numbers), len(d.levels))
		}
		k := key{maphash.Bytes(d.seeds[0], stack), maphash.Bytes(d.seeds[1], stack)}
		d.keys = append(d.keys, k)
		if d.now[k] == nil {
			d.now[k] = make([]int64, len(numbers))
		}
		for j, v := range numbers {
			d.now[k][j] += int64(v)
		}
	}
	return nil
}

func (d *subtraction) difference(begun, end time.Time) (Profile, error) {
	head, err := pprofwire.AppendWithout(nil, d.raw, pprofwire.ProfileSample, pprofwire.ProfileTime, pprofwire.ProfileDuration)
	out := pprofwire.Encoder(head)
	out.Number(pprofwire.ProfileTime, uint64(begun.UnixNano()))
	out.Number(pprofwire.ProfileDuration, uint64(max(0, end.Sub(begun))))
	written := make(map[key]bool, len(d.now)) // a stack that comes again was added to its first sample
	var sample, packed pprofwire.Encoder
	values, rest, samples, summed, i := make([]int64, len(d.levels)), make([]int64, len(d.levels)), 0, 0, 0
	for p := pprofwire.NewMessage(d.raw); p.Next(); {
		if p.Field != pprofwire.ProfileSample {
			continue
		}
		k := d.keys[i]
		i++
		changed := false
		for j, v := range d.now[k] {
			if before := d.before[k]; !d.levels[j] && before != nil {
				v -= before[j]
			}
			values[j] = max(0, v)
			changed = changed || v > 0
		}
		switch {
		case !changed || written[k]:
		case samples == d.MaxSamples:
			for j, v := range values {
				rest[j] += v
			}
			summed++
		default:
			body, bad := pprofwire.AppendWithout(sample[:0], p.Bytes(), pprofwire.SampleValue)
			err = errors.Join(err, bad)
			sample, packed = body, pack(packed[:0], values)
			sample.Bytes(pprofwire.SampleValue, packed)
			out.Bytes(pprofwire.ProfileSample, sample)
			samples++
		}
		written[k] = true
	}
	if summed > 0 {
		d.other(&out, pack(nil, rest))
	}
	return Profile{out, summed}, err
}

// other appends the sample of other stacks, with what it needs.
func (d *subtraction) other(out *pprofwire.Encoder, values []byte) {
	var function, line, location, sample pprofwire.Encoder
	function.Number(pprofwire.FunctionID, d.nextFunction)
	function.Number(pprofwire.FunctionName, d.nextString)
	line.Number(pprofwire.LineFunction, d.nextFunction)
	location.Number(pprofwire.LocationID, d.nextLocation)
	location.Bytes(pprofwire.LocationLine, line)
	sample.Number(pprofwire.SampleLocation, d.nextLocation)
	sample.Bytes(pprofwire.SampleValue, values)
	out.Text(pprofwire.ProfileString, otherStacks)
	out.Bytes(pprofwire.ProfileFunction, function)
	out.Bytes(pprofwire.ProfileLocation, location)
	out.Bytes(pprofwire.ProfileSample, sample)
}

// pack appends numbers in the packed form.
func pack(to []byte, values []int64) []byte {
	for _, v := range values {
		to = binary.AppendUvarint(to, uint64(v))
	}
	return to
}

// isLevel reports whether values of a sample type are levels, which are not subtracted.
func isLevel(sampleType string) bool { return strings.HasPrefix(sampleType, "inuse_") }
