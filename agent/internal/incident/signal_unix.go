//go:build unix

package incident

import (
	"os"
	"os/signal"
	"syscall"
)

// SignalSupported reports whether the system has the signal.
const SignalSupported = true

// signals returns a channel that receives SIGUSR1, and a function that ends that.
func signals() (<-chan os.Signal, func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	return c, func() { signal.Stop(c) }
}
