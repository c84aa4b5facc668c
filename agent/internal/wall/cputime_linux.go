package wall

import (
	"syscall"
	"time"
)

// cpuTime is the CPU time that the calling thread has used; the caller is locked to it.
func cpuTime() time.Duration {
	var u syscall.Rusage
	// The call cannot fail: its only errors are a wrong constant and a wrong pointer.
	_ = syscall.Getrusage(syscall.RUSAGE_THREAD, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
