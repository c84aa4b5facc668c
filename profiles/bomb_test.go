//go:build !race

// With the race detector decompressing so much takes a minute. TestLimits has smaller limits.

package profiles_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"path/filepath"
	"testing"

	"spanflame/profiles"
)

// A gzip bomb of 600 MiB of zeros in 600 kB: a member of 4 MiB, 150 times.
func TestAGzipBombIsRefused(t *testing.T) {
	var member bytes.Buffer
	zw := gzip.NewWriter(&member)
	if _, err := zw.Write(make([]byte, 4<<20)); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	path := put(t, filepath.Join(t.TempDir(), "bomb.pb.gz"), bytes.Repeat(member.Bytes(), 150))
	_, err := profiles.ReadFile(path)
	for what, err := range map[string]error{"ReadFile": err, "AddFile": new(profiles.Merger).AddFile(path)} {
		want := fmt.Sprintf("%s: record too large: the decompressed profile has more than %d bytes, which is the limit", path, 512<<20)
		if err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
}
