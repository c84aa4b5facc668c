// Package delta makes profiles of windows from the cumulative profiles of the runtime: heap, mutex and block. Each is
// the difference between what runtime/pprof would write at the end of the window and at its beginning, to the unit and
// to the frame. Package capture uses it.
//
// It reads the records that runtime/pprof reads, by go:linkname, and looks up only the stacks that have changed and that
// it has not seen before. The layout of the records belongs to the Go version, so a Go version that is not known here,
// another compiler, and a build with the tag spanflame_nolinkname subtract what runtime/pprof writes instead, which costs
// several times as much and needs nothing but public functions. The tests run both.
//
// Between subtracts profiles that were written, for package scrape: those of other processes.
package delta

import "time"

// Name is that of a cumulative profile in runtime/pprof.
type Name string

// The cumulative profiles.
const (
	Heap  Name = "heap"
	Mutex Name = "mutex"
	Block Name = "block"
)

// MaxSamples is the number of samples above which the rest of a profile is one sample, of the function otherStacks.
const MaxSamples = 1 << 18

const otherStacks = "[other stacks]"

// Profile is the difference between two readings of a cumulative profile.
type Profile struct {
	Raw    []byte // in the wire form, uncompressed
	Summed int    // stacks that have one sample together, because the profile has too many
}

// Skip makes the profile as it is now the one that the next is compared with.
func (d *Delta) Skip() error {
	if err := d.read(); err != nil {
		return err
	}
	d.keep()
	return nil
}

// Next returns the difference between the profile as it is now and as it was at the last call: what happened from begun
// to end. Values that are levels, those in use, are as they are now. A value that has decreased counts as unchanged.
// After an error, the next difference begins where this one would have, unless the error says that it does not.
func (d *Delta) Next(begun, end time.Time) (Profile, error) {
	if err := d.read(); err != nil {
		return Profile{}, err
	}
	p, err := d.difference(begun, end)
	if err != nil {
		return Profile{}, err
	}
	d.keep()
	return p, nil
}
