package incident

import (
	"testing"
	"time"

	"spanflame/agent/internal/memlimit"
)

// BenchmarkSample is what the keeper does every second while nothing happens.
func BenchmarkSample(b *testing.B) {
	s, w := newSampler(memlimit.New()), newWatch(Triggers{CPU: 1, Latency: time.Hour, Memory: 1, Goroutines: 1 << 30})
	b.ReportAllocs()
	for b.Loop() {
		w.look(s.next(time.Now()))
	}
}
