//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd || windows)

package owndir

import (
	"errors"
	"fmt"
	"os"
	"runtime"
)

// Lock fails: there is no lock here that ends with its process.
func Lock(*os.Root, string) (*os.File, error) {
	return nil, fmt.Errorf("a lock on a file on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
