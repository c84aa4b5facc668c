package wall

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// A snapshot of the flight recorder is a header and some generations of the trace, each about a second
// long and readable without the ones before it. The recorder converts each generation once, and only
// those in which a wanted span was running: to tell them apart it reads of the trace's format just the
// head of each batch, which has the generation's number, and the batch that has the clocks.
const (
	headerSize = 16

	evEventBatch        = 1
	evFrequency         = 8
	evExperimentalBatch = 49
	evSync              = 50
	evClockSnapshot     = 51
	evEndOfGeneration   = 52
)

// generation is one generation's bytes.
type generation struct {
	number  uint64
	start   time.Time // zero when its clock batch could not be read: it is then taken to be old
	batches [][]byte
	size    int
}

var errSnapshot = errors.New("snapshot of the flight recorder is not in the form that this version reads")

// snapshot collects what FlightRecorder.WriteTo writes: the header in one call, then a batch a call.
// Generations up to after are not kept, and of the others no more than the newest that fit into limit, but at
// least one.
type snapshot struct {
	after  uint64
	limit  int    // bytes, 0 is none
	seen   uint64 // the newest generation of the last snapshot
	header []byte
	gens   []*generation
	size   int // bytes kept

	total  int       // bytes of the whole ring
	grown  int       // … of these: after seen
	newest uint64    // its newest generation
	first  time.Time // start of its oldest generation
	ended  int       // how many generations it had

	open *generation // being written; nil between generations
	skip bool        // the open one is not kept
}

var _ io.Writer = (*snapshot)(nil)

func (s *snapshot) Write(p []byte) (int, error) {
	if len(s.header) < headerSize {
		n := min(len(p), headerSize-len(s.header))
		s.header = append(s.header, p[:n]...)
		if n == len(p) {
			return n, nil
		}
		m, err := s.Write(p[n:])
		return n + m, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if s.open == nil {
		s.open, s.skip = &generation{}, false
	}
	s.total += len(p)
	if p[0] == evEndOfGeneration {
		s.keep(p)
		s.newest = max(s.newest, s.open.number)
		s.ended++
		if !s.skip {
			s.gens = append(s.gens, s.open)
		}
		s.open = nil
		return len(p), nil
	}
	number, body, err := batch(p)
	if err != nil {
		return 0, err
	}
	if s.open.number == 0 {
		s.open.number = number
		s.skip = number <= s.after
	}
	if number > s.seen {
		s.grown += len(p)
	}
	if len(body) > 0 && body[0] == evSync {
		s.open.start = clock(body)
		if s.ended == 0 {
			s.first = s.open.start
		}
	}
	s.keep(p)
	return len(p), nil
}

func (s *snapshot) keep(p []byte) {
	if s.skip {
		return
	}
	s.open.batches = append(s.open.batches, bytes.Clone(p))
	s.open.size += len(p)
	s.size += len(p)
	for s.limit > 0 && s.size > s.limit && len(s.gens) > 0 {
		s.drop()
	}
}

// batch reads the head of a batch: type, generation, thread, time and length, all but the first varints.
func batch(p []byte) (number uint64, body []byte, err error) {
	switch p[0] {
	case evEventBatch:
		p = p[1:]
	case evExperimentalBatch:
		p = p[min(2, len(p)):]
	default:
		return 0, nil, fmt.Errorf("%w: batch type %d", errSnapshot, p[0])
	}
	var head [4]uint64
	for i := range head {
		v, n := binary.Uvarint(p)
		if n <= 0 {
			return 0, nil, fmt.Errorf("%w: batch of %d bytes is cut short", errSnapshot, len(p))
		}
		head[i], p = v, p[n:]
	}
	return head[0], p, nil
}

// clock reads the time from the body of a clock batch: the frequency, then the times of the
// trace's clock, the monotonic clock and the wall clock at one moment.
func clock(body []byte) time.Time {
	if len(body) < 2 || body[1] != evFrequency {
		return time.Time{}
	}
	_, n := binary.Uvarint(body[2:])
	if n <= 0 || len(body) < 3+n || body[2+n] != evClockSnapshot {
		return time.Time{}
	}
	body = body[3+n:]
	var v [4]uint64 // trace clock, monotonic clock, seconds, nanoseconds
	for i := range v {
		x, n := binary.Uvarint(body)
		if n <= 0 {
			return time.Time{}
		}
		v[i], body = x, body[n:]
	}
	return timeOf(v[1], time.Unix(int64(v[2]), int64(v[3])))
}

// clockSlack allows for what lies between a generation's first event and its clock batch.
const clockSlack = 5 * time.Millisecond

// since drops the generations that had ended before start and returns how many these were.
func (s *snapshot) since(start time.Time) (dropped int) {
	for len(s.gens) > 1 && s.gens[1].start.Add(clockSlack).Before(start) {
		s.drop()
		dropped++
	}
	return dropped
}

// drop forgets the oldest generation.
func (s *snapshot) drop() {
	s.size -= s.gens[0].size
	s.gens[0] = nil
	s.gens = s.gens[1:]
}

// reader gives the header and the generations in order, and releases each batch once it has been read: the
// trace reader holds a generation of its own while it hands out its events.
func (s *snapshot) reader() io.Reader { return &snapshotReader{rest: s.header, gens: s.gens} }

type snapshotReader struct {
	rest []byte
	gens []*generation
}

func (r *snapshotReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if len(r.gens) == 0 {
			return 0, io.EOF
		}
		g := r.gens[0]
		if len(g.batches) == 0 {
			r.gens = r.gens[1:]
			continue
		}
		r.rest = g.batches[0]
		g.batches[0] = nil
		g.batches = g.batches[1:]
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
