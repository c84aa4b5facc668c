package wall

import "time"

// timeOf returns the time at which the trace's monotonic clock and the wall clock had these readings. It goes by the
// monotonic one where it can: the times of spans do, and the wall clock may have been set meanwhile.
func timeOf(mono uint64, wall time.Time) time.Time {
	best := time.Duration(-1)
	var at time.Time
	for range 3 { // the goroutine may be kept waiting between two readings
		before := time.Now()
		reading, ok := monotonic()
		if !ok {
			return wall
		}
		if apart := time.Since(before); best < 0 || apart < best {
			best, at = apart, before.Add(time.Duration(mono)-reading)
		}
	}
	return at
}
