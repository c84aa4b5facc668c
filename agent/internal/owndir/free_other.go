//go:build !(darwin || freebsd || linux || windows)

package owndir

import "os"

// Free returns false: the agent does not ask this system.
func Free(*os.Root) (int64, bool) { return 0, false }
