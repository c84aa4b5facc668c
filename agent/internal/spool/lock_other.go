//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package spool

import (
	"errors"
	"fmt"
	"os"
	"runtime"
)

var errLocked = errors.New("locked by another process")

// lockFile fails: without a lock that ends with its process, no slot is safe, so the queue stays in memory.
func lockFile(string) (*os.File, error) {
	return nil, fmt.Errorf("a queue on disk on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func openRegular(path string) (*os.File, error) { return os.Open(path) }
