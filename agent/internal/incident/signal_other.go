//go:build !unix

package incident

import "os"

// SignalSupported reports whether the system has the signal.
const SignalSupported = false

// signals returns a channel that receives nothing.
func signals() (<-chan os.Signal, func()) { return nil, func() {} }
