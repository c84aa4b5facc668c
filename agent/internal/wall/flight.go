package wall

import (
	"bytes"
	"errors"
	"io"
	"runtime/trace"
	"sync"
)

// ErrNotRecording is returned by Recorder.WriteTo while the flight recorder does not run.
var ErrNotRecording = errors.New("the flight recorder does not run now: it runs while a request does that may become slow; " +
	"SPANFLAME_WALL_MODE=always has it run all the time")

// flight is the flight recorder, whose methods the runtime does not allow to run at the same time.
type flight struct {
	mu       sync.Mutex
	recorder *trace.FlightRecorder
}

// Start starts the recording.
func (f *flight) Start() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.recorder.Start()
}

// Stop ends the recording.
func (f *flight) Stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recorder.Stop()
}

// Enabled reports whether it records.
func (f *flight) Enabled() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.recorder.Enabled()
}

// WriteTo writes what it has recorded, to a writer that does not wait for anything.
func (f *flight) WriteTo(w io.Writer) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.recorder.WriteTo(w)
}

// pieces keeps a copy of each piece that is written.
type pieces [][]byte

func (p *pieces) Write(b []byte) (int, error) {
	*p = append(*p, bytes.Clone(b))
	return len(b), nil
}

// WriteTo writes the execution trace of the last seconds, as the ring has it now, in the form that "go tool trace" reads.
// It takes a copy first, up to the size of the ring, so that a slow writer delays no capture. What it costs is not charged to
// the budget: somebody has asked for it. The error is [ErrNotRecording] while nothing is recorded.
func (r *Recorder) WriteTo(w io.Writer) (int64, error) {
	var copied pieces
	if !r.flight.Enabled() {
		return 0, ErrNotRecording
	}
	if _, err := r.flight.WriteTo(&copied); err != nil {
		if !r.flight.Enabled() {
			err = ErrNotRecording // stopped meanwhile
		}
		return 0, err
	}
	written := int64(0)
	for i, piece := range copied {
		n, err := w.Write(piece)
		written += int64(n)
		if err != nil {
			return written, err
		}
		copied[i] = nil
	}
	return written, nil
}

var _ io.WriterTo = (*Recorder)(nil)
