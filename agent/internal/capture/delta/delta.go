// Package delta turns the cumulative profiles that runtime/pprof writes into the profiles of windows, by subtraction.
// Package capture is its only user.
//
// The input is what runtime/pprof writes and not the runtime's records: these have one program counter for each
// physical frame, which only runtime/pprof knows how to expand, and their layout is internal to a Go version.
//
// It is not for profiles of other processes: functions are compared by name and file.
package delta

import (
	"errors"
	"fmt"
	"hash/maphash"
	"math/bits"
	"slices"
	"strings"
	"time"
)

// MaxStacks is the number of different stacks of a profile above which Next fails. With its values and labels a stack
// takes about 100 bytes here, so that the largest state is of 26 MiB. The runtime itself needs a multiple of that.
const MaxStacks = 1 << 18

// unknownFunction is the function of a stack none of whose frames has a name.
const unknownFunction = "[unknown]"

// ErrTooManyStacks reports that a profile has more than MaxStacks stacks.
var ErrTooManyStacks = fmt.Errorf("the profile has more than %d stacks", MaxStacks)

// Delta subtracts from each profile the one before it. The zero value is ready for use, by one goroutine.
type Delta struct {
	seeds seeds
	types []string       // of the profiles
	index map[key]uint32 // the position of a stack and its labels in what follows
	prev  []int64        // values of the last profile, one for each type
	cur   []int64        // values of the profile that is being read
	seen  []uint32       // the first sample of that profile, + 1; 0 if it has none
}

// key is the hash of a stack and its labels. It has 128 bits, so that two never have the same one.
type key [2]uint64

// Skip makes the profile the one that the next is compared with.
func (d *Delta) Skip(raw []byte) error {
	_, err := d.read(raw)
	if err == nil {
		d.keep()
	}
	return err
}

// Next returns the difference between a profile, uncompressed, and the one before it: what happened from begun to end.
// Values that are levels, those in use, are as they are at the end. A value that has decreased counts as unchanged.
// After an error, the next difference is to the same profile as this one.
//
// Frames without a name are left out. Samples that do not differ in their functions, lines and labels are one sample.
func (d *Delta) Next(raw []byte, begun, end time.Time) ([]byte, error) {
	p, err := d.read(raw)
	if err != nil {
		return nil, err
	}
	out, err := d.write(p, begun, end)
	if err != nil {
		return nil, err
	}
	d.keep()
	return out, nil
}

// keep makes the profile that was read the one before.
func (d *Delta) keep() {
	n := len(d.types)
	for i, sample := range d.seen {
		if sample > 0 { // else it is not in this profile, and may be in the next
			copy(d.prev[i*n:(i+1)*n], d.cur[i*n:])
		}
	}
}

// read reads a profile, and its values into cur and seen.
func (d *Delta) read(raw []byte) (*parsed, error) {
	if d.types == nil {
		d.seeds = seeds{maphash.MakeSeed(), maphash.MakeSeed()}
	}
	p, err := parse(raw, d.seeds)
	if err != nil {
		return nil, err
	}
	types := make([]string, len(p.types))
	for i, t := range p.types {
		types[i] = string(p.strings[t.typ].bytes)
	}
	switch {
	case len(types) == 0:
		return nil, errors.New("the profile has no sample types")
	case d.types == nil:
		d.types, d.index = types, map[key]uint32{}
	case !slices.Equal(types, d.types):
		return nil, fmt.Errorf("the profile has the sample types %q, those before it had %q", types, d.types)
	}
	clear(d.cur)
	clear(d.seen)
	var s sample
	for i, body := range p.samples {
		if err := s.read(p, body, d.seeds); err != nil {
			return nil, fmt.Errorf("sample %d: %w", i+1, err)
		}
		at, ok := d.index[s.key]
		if !ok {
			if len(d.index) == MaxStacks {
				return nil, ErrTooManyStacks
			}
			at = uint32(len(d.index))
			d.index[s.key] = at
			d.seen = append(d.seen, 0)
			for range types {
				d.prev, d.cur = append(d.prev, 0), append(d.cur, 0)
			}
		}
		if d.seen[at] == 0 {
			d.seen[at] = uint32(i) + 1
		}
		for j, v := range s.values {
			d.cur[int(at)*len(types)+j] += int64(v)
		}
	}
	return p, nil
}

// mix returns the hash of a sequence that continues with v.
func (k key) mix(v key) key {
	return key{fold(k[0]^v[0], 0x9e3779b97f4a7c15), fold(k[1]^v[1], 0xd6e8feb86659fd93)}
}

func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// seeds make two hashes of 64 bits one of 128.
type seeds [2]maphash.Seed

func (s seeds) hash(b []byte) key { return key{maphash.Bytes(s[0], b), maphash.Bytes(s[1], b)} }

// isLevel reports whether values of a sample type are levels, which are not subtracted.
func isLevel(sampleType string) bool { return strings.HasPrefix(sampleType, "inuse_") }
