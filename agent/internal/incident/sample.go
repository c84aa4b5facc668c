package incident

import (
	"fmt"
	"io"
	"math"
	"runtime"
	"runtime/metrics"
	"strconv"
	"time"

	"spanflame/agent/internal/memlimit"
)

// The samples that are kept: of the last minutes, one a second.
const (
	sampleEvery = time.Second
	keptSamples = 300
)

// sample is what the runtime's metrics were in one second.
type sample struct {
	at     time.Time
	values [numColumns]float64
}

// The columns of a sample.
const (
	colCPU        = iota // share of the CPUs that the process may use, over the second; NaN if not known
	colGoroutines        // their number
	colLatency           // 99th percentile of the time that goroutines waited for a CPU, seconds
	colPause             // longest stop of the world, seconds
	colMutex             // time that goroutines waited for mutexes, seconds a second
	colHeap              // bytes of objects, garbage included
	colLive              // bytes of objects that the last collection found reachable
	colMemory            // bytes that the process uses, for the limit
	colLimit             // bytes, the limit; 0 for none
	colGC                // collections
	numColumns
)

// columns are the names in the CSV file.
var columns = [numColumns]string{
	"cpu_share", "goroutines", "sched_latency_p99_seconds", "longest_pause_seconds", "mutex_wait_seconds_per_second", "heap_bytes", "live_heap_bytes",
	"memory_bytes", "memory_limit_bytes", "gc_cycles",
}

// The runtime's metrics that are read.
const (
	readGoroutines = iota
	readLatencies
	readPauses
	readMutex
	readHeap
	readLive
	readGC
	numRead
)

var metricNames = [numRead]string{
	"/sched/goroutines:goroutines", "/sched/latencies:seconds", "/sched/pauses/total/gc:seconds", "/sync/mutex/wait/total:seconds",
	"/memory/classes/heap/objects:bytes", "/gc/heap/live:bytes", "/gc/cycles/total:gc-cycles",
}

// sampler reads samples. It remembers what it read last, as most of the metrics are sums since the start of the process.
type sampler struct {
	read      [numRead]metrics.Sample
	memory    *memlimit.Meter
	at        time.Time
	cpu       time.Duration
	mutex     float64
	gc        uint64
	latencies []uint64
	pauses    []uint64
}

func newSampler(memory *memlimit.Meter) *sampler {
	s := &sampler{memory: memory}
	for i, name := range metricNames {
		s.read[i].Name = name
	}
	s.next(time.Now())
	return s
}

// next reads a sample of the time since the last one.
func (s *sampler) next(now time.Time) sample {
	metrics.Read(s.read[:])
	passed := now.Sub(s.at).Seconds()
	row := sample{at: now}
	v := &row.values
	v[colCPU] = math.NaN()
	if cpu, ok := cpuTime(); ok {
		v[colCPU] = (cpu - s.cpu).Seconds() / passed / float64(runtime.GOMAXPROCS(0))
		s.cpu = cpu
	}
	v[colGoroutines] = float64(number(s.read[readGoroutines]))
	v[colLatency] = quantile(s.read[readLatencies], &s.latencies, 0.99)
	v[colPause] = quantile(s.read[readPauses], &s.pauses, 1)
	if m := s.read[readMutex]; m.Value.Kind() == metrics.KindFloat64 {
		v[colMutex] = (m.Value.Float64() - s.mutex) / passed
		s.mutex = m.Value.Float64()
	}
	v[colHeap] = float64(number(s.read[readHeap]))
	v[colLive] = float64(number(s.read[readLive]))
	gc := number(s.read[readGC])
	v[colGC] = float64(gc - s.gc)
	s.gc = gc
	used, limit := s.memory.Read()
	v[colMemory], v[colLimit] = float64(used), float64(limit)
	s.at = now
	return row
}

func number(s metrics.Sample) uint64 {
	if s.Value.Kind() != metrics.KindUint64 {
		return 0 // this version of Go does not have it
	}
	return s.Value.Uint64()
}

// quantile returns a quantile of what a histogram has counted since the last time: the upper bound of its bucket, or the
// lower one of the last. It is 0 if that is nothing.
func quantile(s metrics.Sample, last *[]uint64, q float64) float64 {
	if s.Value.Kind() != metrics.KindFloat64Histogram {
		return 0
	}
	h := s.Value.Float64Histogram()
	if len(*last) != len(h.Counts) {
		*last = make([]uint64, len(h.Counts))
	}
	total := uint64(0)
	for i, n := range h.Counts {
		(*last)[i] = n - (*last)[i] // the difference, until the end
		total += (*last)[i]
	}
	found, seen := 0.0, uint64(0)
	for i, n := range *last {
		if seen += n; n > 0 && float64(seen) >= q*float64(total) {
			if found = h.Buckets[i+1]; math.IsInf(found, 1) {
				found = h.Buckets[i]
			}
			break
		}
	}
	copy(*last, h.Counts)
	return found
}

// writeSamples writes samples as CSV.
func writeSamples(w io.Writer, rows []sample) error {
	line := []byte("time")
	for _, name := range columns {
		line = append(append(line, ','), name...)
	}
	for _, row := range rows {
		line = append(line, '\n')
		line = row.at.UTC().AppendFormat(line, "2006-01-02T15:04:05.000Z")
		for _, v := range row.values {
			line = append(line, ',')
			if !math.IsNaN(v) {
				line = strconv.AppendFloat(line, v, 'g', 6, 64)
			}
		}
	}
	_, err := fmt.Fprintf(w, "%s\n", line)
	return err
}
