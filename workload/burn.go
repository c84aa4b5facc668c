package workload

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// The functions below appear in the flame graphs of the load endpoints. Those marked noinline are not inlined, so
// that each name has its own frame, however a tool shows inlined frames.

// burnCPU computes for d on the calling goroutine. It returns the last value, so that the compiler cannot optimise
// the work away.
//
//go:noinline
func burnCPU(ctx context.Context, d time.Duration) (uint64, error) {
	value := uint64(1)
	for end := time.Now().Add(d); time.Now().Before(end); {
		if err := ctx.Err(); err != nil {
			return value, err
		}
		value = xorshift(value, 1<<16) // about 100 µs: short compared with the millisecond that callers ask for
	}
	return value, nil
}

//go:noinline
func xorshift(value uint64, rounds int) uint64 {
	for range rounds {
		value ^= value << 13
		value ^= value >> 7
		value ^= value << 17
	}
	return value
}

// churnMemory allocates mb MiB in pieces of 64 KiB and drops each at once: work for the garbage collector
// without growth.
//
//go:noinline
func churnMemory(ctx context.Context, mb int) error {
	const piece = 64 << 10
	for range mb * (1 << 20 / piece) {
		if err := ctx.Err(); err != nil {
			return err
		}
		newGarbage(piece)[0] = 1
	}
	return nil
}

//go:noinline
func newGarbage(bytes int) []byte { return make([]byte, bytes) }

// sleepFor sleeps in short intervals, because time.Sleep cannot be interrupted, and the runtime reports a select on
// a timer as a wait for a channel.
//
//go:noinline
func sleepFor(ctx context.Context, d time.Duration) error {
	const turn = 20 * time.Millisecond
	for end := time.Now().Add(d); ; {
		left := time.Until(end)
		if err := ctx.Err(); err != nil || left <= 0 {
			return err
		}
		time.Sleep(min(turn, left))
	}
}

// waitForChannel receives from a channel that another goroutine closes after d, or when ctx ends. It is a plain
// receive, so that the runtime reports it as one.
//
//go:noinline
func waitForChannel(ctx context.Context, d time.Duration) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		pause(ctx, d)
	}()
	<-done
	return ctx.Err()
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// contendedLock is the mutex that all requests to /load/lock queue for.
type contendedLock struct {
	mu    sync.Mutex
	turns int // guarded by mu
}

// contend waits for the lock until another goroutine has held it for d. The caller takes the lock, hands it locked
// to that goroutine and queues behind it. That way even a single request meets real contention, and with several
// requests all of the convoy's time is spent waiting for this mutex. When ctx ends, the holder unlocks at once, so
// that a convoy of cancelled requests dissolves.
func (l *contendedLock) contend(ctx context.Context, d time.Duration) error {
	l.wait()
	var holder sync.WaitGroup
	holder.Go(func() { l.holdAndRelease(ctx, d) })
	l.wait()
	l.mu.Unlock()
	holder.Wait()
	return ctx.Err()
}

//go:noinline
func (l *contendedLock) wait() {
	l.mu.Lock()
	l.turns++
}

//go:noinline
func (l *contendedLock) holdAndRelease(ctx context.Context, d time.Duration) {
	defer l.mu.Unlock()
	pause(ctx, d)
}

// limitError reports that a request would exceed a limit of the service.
type limitError struct {
	what               string
	asked, have, limit int
	unit               string
}

func (e *limitError) Error() string {
	return fmt.Sprintf("%s: %d %s more would exceed the limit of %d (%d in use); free them with DELETE", e.what, e.asked, e.unit, e.limit, e.have)
}

// leak retains memory until it is released.
type leak struct {
	limit  int // MiB
	mu     sync.Mutex
	blocks [][]byte // of 1 MiB each
}

func newLeak(limitMB int) *leak { return &leak{limit: limitMB} }

// grow retains mb MiB more and returns how much is retained now. At the limit nothing is retained.
//
//go:noinline
func (l *leak) grow(ctx context.Context, mb int) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if have := len(l.blocks); have+mb > l.limit {
		return have, &limitError{what: "leak", asked: mb, have: have, limit: l.limit, unit: "MiB"}
	}
	for range mb {
		if err := ctx.Err(); err != nil {
			return len(l.blocks), err
		}
		block := make([]byte, 1<<20)
		for i := 0; i < len(block); i += 4 << 10 {
			block[i] = 1 // an untouched page costs no memory
		}
		l.blocks = append(l.blocks, block)
	}
	return len(l.blocks), nil
}

// release frees everything and returns how many MiB were retained.
func (l *leak) release() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.blocks)
	l.blocks = nil
	return n
}

// parking keeps goroutines parked until their time is over or they are drained.
type parking struct {
	limit   int
	mu      sync.Mutex
	parked  int
	batches map[*batch]struct{}
}

// batch holds the goroutines of one request.
type batch struct {
	leave chan struct{} // closed to release them
	gone  chan struct{} // closed when they have ended
}

func newParking(limit int) *parking {
	return &parking{limit: limit, batches: map[*batch]struct{}{}}
}

// park parks n goroutines for d and returns how many are parked now. They intentionally outlive the request.
func (p *parking) park(n int, d time.Duration) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.parked+n > p.limit {
		return p.parked, &limitError{what: "goroutines", asked: n, have: p.parked, limit: p.limit, unit: "goroutines"}
	}
	p.parked += n
	b := &batch{leave: make(chan struct{}), gone: make(chan struct{})}
	p.batches[b] = struct{}{}
	expiry := time.AfterFunc(d, func() { p.release(b) })
	var running sync.WaitGroup
	for range n {
		running.Go(func() { parkGoroutine(b.leave) })
	}
	go func() {
		running.Wait()
		expiry.Stop()
		p.mu.Lock()
		p.parked -= n
		p.mu.Unlock()
		close(b.gone)
	}()
	return p.parked, nil
}

//go:noinline
func parkGoroutine(leave <-chan struct{}) { <-leave }

// release ends one batch; only the first call for a batch does anything.
func (p *parking) release(b *batch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.batches[b]; ok {
		delete(p.batches, b)
		close(b.leave)
	}
}

// drain ends every batch, waits for the goroutines and returns how many there were.
func (p *parking) drain() int {
	p.mu.Lock()
	parked := p.parked
	going := make([]*batch, 0, len(p.batches))
	for b := range p.batches {
		going = append(going, b)
		delete(p.batches, b)
		close(b.leave)
	}
	p.mu.Unlock()
	for _, b := range going {
		<-b.gone
	}
	return parked
}
