//go:build !gc || go1.28 || spanflame_nolinkname

package delta

import (
	"bytes"
	"fmt"
	"runtime/pprof"

	"spanflame/internal/pprofwire"
)

// maxProfileBytes is the size of the largest profile that is read, uncompressed.
const maxProfileBytes = 512 << 20

// Delta subtracts from each profile of runtime/pprof the one before.
type Delta struct {
	name Name
	*subtraction

	LeaveOut func(function string) bool // not used: this implementation leaves out nothing
}

// New returns a Delta of a profile, for use by one goroutine.
func New(name Name) *Delta { return &Delta{name: name, subtraction: newSubtraction()} }

func (d *Delta) read() error {
	var zipped bytes.Buffer
	err := pprof.Lookup(string(d.name)).WriteTo(&zipped, 0)
	var raw []byte
	if err == nil {
		raw, err = pprofwire.Gunzip(zipped.Bytes(), maxProfileBytes)
	}
	if err == nil {
		err = d.parse(raw)
	}
	if err != nil {
		return fmt.Errorf("%s profile of runtime/pprof: %w", d.name, err)
	}
	return nil
}
