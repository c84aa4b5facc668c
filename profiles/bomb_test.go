//go:build !race

// With the race detector decompressing so much takes a minute. TestLimits has smaller limits.

package profiles_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"spanflame/profiles"
	"spanflame/profiles/internal/bomb"
)

// A gzip bomb of 600 MiB of zeros in 600 kB.
func TestAGzipBombIsRefused(t *testing.T) {
	path := put(t, filepath.Join(t.TempDir(), "bomb.pb.gz"), bomb.New(t, 150))
	_, err := profiles.ReadFile(path)
	for what, err := range map[string]error{"ReadFile": err, "AddFile": new(profiles.Merger).AddFile(path)} {
		want := fmt.Sprintf("%s: record too large: the decompressed profile has more than %d bytes, which is the limit", path, 512<<20)
		if err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
}
