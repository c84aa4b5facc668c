// Package processestest builds the spanflame program for the tests of a package that runs it. It is for tests only.
package processestest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

// Main is the TestMain of such a package. It builds the program, as processes.Build does, sets binary to its path, runs
// the tests, and removes the program. Goroutines that the tests leave are a failure.
func Main(m *testing.M, binary *string, build func(ctx context.Context, path string, flags ...string) error) {
	dir, err := os.MkdirTemp("", "spanflame-test-")
	if err == nil {
		*binary = filepath.Join(dir, "spanflame")
		err = build(context.Background(), *binary)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}))
}
