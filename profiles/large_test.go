//go:build !race

// With the race detector this takes minutes, and it cannot find anything in a reader that starts no goroutine.

package profiles

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"

	"spanflame/internal/pprofwire"
)

// functions is the number of functions of the large profile: with their names and stacks it has 100 MB.
const functions = 1_000_000

// writeLarge writes a profile in which every function is in use, in one sample of five each.
func writeLarge(t *testing.T, path string) (size int) {
	t.Helper()
	var b, sub pprofwire.Encoder
	sub.Number(pprofwire.ValueTypeType, 1)
	sub.Number(pprofwire.ValueTypeUnit, 2)
	b.Bytes(pprofwire.ProfileSampleType, sub)
	b.Bytes(pprofwire.ProfilePeriodType, sub)
	for _, s := range []string{"", "cpu", "nanoseconds"} {
		b.Text(pprofwire.ProfileString, s)
	}
	var name []byte
	for i := range uint64(functions) {
		name = fmt.Appendf(name[:0], "example.com/monorepo/services/checkout/internal/generated.(*Handler).Method%d", i)
		b.Bytes(pprofwire.ProfileString, name)
		sub = sub[:0]
		sub.Number(pprofwire.FunctionID, i+1)
		sub.Number(pprofwire.FunctionName, i+3)
		b.Bytes(pprofwire.ProfileFunction, sub)
		var line pprofwire.Encoder
		line.Number(pprofwire.LineFunction, i+1)
		line.Number(pprofwire.LineLine, i%5000)
		sub = sub[:0]
		sub.Number(pprofwire.LocationID, i+1)
		sub.Bytes(pprofwire.LocationLine, line)
		b.Bytes(pprofwire.ProfileLocation, sub)
		if i%5 == 4 {
			sub = sub[:0]
			sub.Bytes(pprofwire.SampleLocation, varints(nil, i-3, i-2, i-1, i, i+1))
			sub.Bytes(pprofwire.SampleValue, varints(nil, 10_000_000))
			b.Bytes(pprofwire.ProfileSample, sub)
		}
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	zw, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := zw.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return len(b)
}

// What the process of TestALargeProfileTakesBoundedMemory that reads is told by the environment.
const (
	largeFile = "SPANFLAME_TEST_LARGE_FILE"
	largeWay  = "SPANFLAME_TEST_LARGE_WAY"
)

// TestALargeProfileTakesBoundedMemory reads, and adds up, a profile of 100 MB with a million functions, each in a
// process of its own, whose heap at its largest is a multiple of the profile that does not depend on the machine.
func TestALargeProfileTakesBoundedMemory(t *testing.T) {
	if path := os.Getenv(largeFile); path != "" {
		readLarge(t, path, os.Getenv(largeWay))
		return
	}
	path := filepath.Join(t.TempDir(), "large.pb.gz")
	size := writeLarge(t, path)
	if size < 100_000_000 {
		t.Fatalf("the profile is of %d bytes, want 100 MB", size)
	}
	for way, times := range map[string]float64{"read": 9, "merge": 11} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestALargeProfileTakesBoundedMemory$", "-test.v")
		cmd.Env = append(os.Environ(), largeFile+"="+path, largeWay+"="+way, "GOGC=100", "GOMEMLIMIT=off")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", way, err, out)
		}
		_, text, _ := strings.Cut(string(out), "heap at most ")
		text, _, _ = strings.Cut(text, " ")
		peak, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v\n%s", way, err, out)
		}
		t.Logf("%s: %d MB of heap at most for a profile of %d MB", way, peak/1e6, size/1e6)
		if float64(peak) > times*float64(size) {
			t.Errorf("%s: %d bytes of heap for a profile of %d: want at most %g times as many", way, peak, size, times)
		}
	}
}

// readLarge is the process that reads.
func readLarge(t *testing.T, path, way string) {
	switch way {
	case "read":
		w, err := ReadFile(path)
		if err != nil || len(w.Profile.Function) != functions || len(w.Profile.Sample) != functions/5 {
			t.Fatal(err)
		}
	case "merge":
		var m Merger
		for range 2 {
			if err := m.AddFile(path); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Write(io.Discard); err != nil {
			t.Fatal(err)
		}
		if n := m.values[0]; n != 20_000_000 || len(m.functions.keys) != functions {
			t.Fatalf("the sum of the first sample is %d, of %d functions", n, len(m.functions.keys))
		}
	}
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	fmt.Printf("heap at most %d bytes\n", stats.HeapSys)
}
