//go:build !race

// With the race detector decompressing so much takes a minute.

package input_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"spanflame/profiles/input"
)

// A service that answers with 600 MiB of zeros in 600 kB: a member of 4 MiB, 150 times.
func TestALiveGzipBombIsRefused(t *testing.T) {
	var member bytes.Buffer
	zw := gzip.NewWriter(&member)
	if _, err := zw.Write(make([]byte, 4<<20)); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(bytes.Repeat(member.Bytes(), 150)) // who refuses it does not read all
	}))
	defer server.Close()
	address := server.URL + "/debug/pprof/heap"
	want := fmt.Sprintf("%s: record too large: the decompressed profile has more than %d bytes, which is the limit", address, 512<<20)
	if _, err := read(t, address, input.Options{}); err == nil || err.Error() != want {
		t.Errorf("%v, want %q", err, want)
	}
}
