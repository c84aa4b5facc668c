//go:build !linux

package wall

import "time"

// monotonic has no clock on systems where the runtime's monotonic clock cannot be read otherwise.
func monotonic() (reading time.Duration, ok bool) { return 0, false }
