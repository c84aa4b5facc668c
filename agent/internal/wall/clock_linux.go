package wall

import (
	"syscall"
	"time"
	"unsafe"
)

// monotonic reads the clock that the runtime writes into the trace as its monotonic clock; ok is false if there is none.
func monotonic() (reading time.Duration, ok bool) {
	const clockMonotonic = 1 // of Linux; package syscall has no name for it
	var t syscall.Timespec
	_, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&t)), 0)
	return time.Duration(t.Nano()), errno == 0
}
