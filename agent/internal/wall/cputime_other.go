//go:build !linux

package wall

import "time"

var clockStart = time.Now()

// cpuTime is wall-clock time where the CPU time of one thread cannot be had: the budget is then kept
// too strictly, never too loosely.
func cpuTime() time.Duration { return time.Since(clockStart) }
