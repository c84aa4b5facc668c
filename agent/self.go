package agent

import (
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"spanflame/internal/pprofwire"
	"spanflame/internal/record"
)

// own is this package's path, which the names of its functions begin with.
var own = reflect.TypeFor[Agent]().PkgPath()

// isOwn reports whether a function is of this package or of one below it.
func isOwn(function string) bool {
	rest, ok := strings.CutPrefix(function, own)
	return ok && (strings.HasPrefix(rest, ".") || strings.HasPrefix(rest, "/"))
}

// heapEvery is the number of memory profiles for each one that is searched for the agent's own part: a memory
// profile has a sample for every place that allocates in the whole service.
const heapEvery = 4

// self is the agent's cost for the service, according to the profiles that it captures anyway: the samples
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

// maxOwnBytes is the size of the largest profile that is searched, in bytes and uncompressed.
const maxOwnBytes = 512 << 20

// ownShare sums a sample type over the samples that have a function of the agent on their stack. It does not build the
// profile, which would cost more than to capture it.
func ownShare(gz []byte, sampleType string) (sum int64, ok bool) {
	raw, err := pprofwire.Gunzip(gz, maxOwnBytes)
	if err != nil {
		return 0, false
	}
	var types []uint64 // numbers of strings
	var texts, functions, locations, samples [][]byte
	m := pprofwire.NewMessage(raw)
	for m.Next() {
		switch m.Field {
		case pprofwire.ProfileSampleType:
			types = append(types, m.Inner(pprofwire.ValueTypeType))
		case pprofwire.ProfileString:
			texts = append(texts, m.Bytes())
		case pprofwire.ProfileFunction:
			functions = append(functions, m.Bytes())
		case pprofwire.ProfileLocation:
			locations = append(locations, m.Bytes())
		case pprofwire.ProfileSample:
			samples = append(samples, m.Bytes())
		}
	}
	text := func(i uint64) string {
		if i >= uint64(len(texts)) {
			return ""
		}
		return string(texts[i])
	}
	value := slices.IndexFunc(types, func(t uint64) bool { return text(t) == sampleType })
	if m.Err() != nil || value < 0 {
		return 0, false
	}
	mine := ownLocations(functions, locations, text)
	var ids, values []uint64
	for _, body := range samples {
		ids, values = ids[:0], values[:0]
		sample := pprofwire.NewMessage(body)
		for sample.Next() {
			switch sample.Field {
			case pprofwire.SampleLocation:
				ids = sample.Varints(ids)
			case pprofwire.SampleValue:
				values = sample.Varints(values)
			}
		}
		if sample.Err() != nil || value >= len(values) {
			return 0, false
		}
		if slices.ContainsFunc(ids, func(id uint64) bool { return mine[id] }) {
			sum += int64(values[value])
		}
	}
	return sum, true
}

// ownLocations returns the IDs of the locations that have a function of the agent.
func ownLocations(functions, locations [][]byte, text func(uint64) string) map[uint64]bool {
	called := map[uint64]bool{} // functions
	for _, body := range functions {
		var id, name uint64
		f := pprofwire.NewMessage(body)
		for f.Next() {
			switch f.Field {
			case pprofwire.FunctionID:
				id = f.Varint()
			case pprofwire.FunctionName:
				name = f.Varint()
			}
		}
		if isOwn(text(name)) {
			called[id] = true
		}
	}
	mine := map[uint64]bool{}
	for _, body := range locations {
		var id uint64
		has := false
		l := pprofwire.NewMessage(body)
		for l.Next() {
			switch l.Field {
			case pprofwire.LocationID:
				id = l.Varint()
			case pprofwire.LocationLine:
				has = has || called[l.Inner(pprofwire.LineFunction)]
			}
		}
		if has {
			mine[id] = true
		}
	}
	return mine
}
