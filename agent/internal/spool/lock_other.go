//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package spool

import (
	"errors"
	"fmt"
	"os"
	"runtime"
)

// lockFile fails: without a lock that ends with its process, no slot is safe, so the queue stays in memory.
func lockFile(*os.Root, string) (*os.File, error) {
	return nil, fmt.Errorf("a queue on disk on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
