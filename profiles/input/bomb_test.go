//go:build !race

// With the race detector, decompressing this much takes a minute.

package input_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"spanflame/profiles/input"
	"spanflame/profiles/internal/bomb"
)

// A service may answer with 600 MiB of zeros, compressed to 600 kB.
func TestALiveGzipBombIsRefused(t *testing.T) {
	answer := bomb.New(t, 150)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(answer) // a client that refuses it does not read all
	}))
	defer server.Close()
	address := server.URL + "/debug/pprof/heap"
	want := fmt.Sprintf("%s: record too large: the decompressed profile has more than %d bytes, which is the limit", address, 512<<20)
	if _, err := read(t, address, input.Options{}); err == nil || err.Error() != want {
		t.Errorf("%v, want %q", err, want)
	}
}
