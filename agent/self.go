package agent

import (
	"bytes"
	"reflect"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
)

// own is this package's path, which the names of its functions begin with.
var own = reflect.TypeFor[Agent]().PkgPath()

// isOwn reports whether a function is of this package or of one below it.
func isOwn(function string) bool {
	rest, ok := strings.CutPrefix(function, own)
	return ok && (strings.HasPrefix(rest, ".") || strings.HasPrefix(rest, "/"))
}

// heapEvery is how many memory profiles there are for each that is searched for the agent's own part: a memory
// profile has a sample for every place that allocates in the whole service.
const heapEvery = 4

// self is what the agent costs the service, according to the profiles that it captures anyway: the samples
// with a function of the agent on their stack. Work of the OpenTelemetry SDK on its own goroutines is not included.
type self struct {
	cpu  atomic.Int64 // time.Duration since the start
	heap atomic.Int64 // bytes in use, as last seen

	heaps int // memory profiles seen
}

// look adds the agent's part of r. It is called for one record at a time.
func (s *self) look(r record.Record) {
	switch r.Type {
	case record.CPU:
		if ns, ok := ownShare(r.Profile, "cpu"); ok {
			s.cpu.Add(ns)
		}
	case record.Memory:
		if s.heaps%heapEvery == 0 {
			if n, ok := ownShare(r.Profile, "inuse_space"); ok {
				s.heap.Store(n)
			}
		}
		s.heaps++
	}
}

func (s *self) cpuTime() time.Duration { return time.Duration(s.cpu.Load()) }

// ownShare sums a sample type over the samples that have a function of the agent on their stack.
func ownShare(gz []byte, sampleType string) (sum int64, ok bool) {
	p, err := profile.Parse(bytes.NewReader(gz))
	if err != nil {
		return 0, false
	}
	value := -1
	for i, t := range p.SampleType {
		if t.Type == sampleType {
			value = i
		}
	}
	if value < 0 {
		return 0, false
	}
	mine := make(map[uint64]bool, len(p.Location))
	for _, l := range p.Location {
		for _, line := range l.Line {
			if line.Function != nil && isOwn(line.Function.Name) {
				mine[l.ID] = true
			}
		}
	}
	for _, sample := range p.Sample {
		for _, l := range sample.Location {
			if mine[l.ID] {
				sum += sample.Value[value]
				break
			}
		}
	}
	return sum, true
}
