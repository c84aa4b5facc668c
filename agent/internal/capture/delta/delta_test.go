package delta

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
)

// The window of the tests.
var (
	begun = time.Unix(1_800_000_000, 5)
	end   = begun.Add(15 * time.Second)
)

// TestDeltasOfRealProfiles builds and runs testdata/stacks, which compares the deltas of its own profiles with the
// differences between what runtime/pprof writes: in each way to make deltas, with and without cgo, with each unwinder.
func TestDeltasOfRealProfiles(t *testing.T) {
	for _, tag := range []string{"", "spanflame_nolinkname"} {
		for _, cgo := range []string{"0", "1"} {
			program := filepath.Join(t.TempDir(), "stacks")
			build := exec.CommandContext(t.Context(), "go", "build", "-tags", tag, "-o", program, "./testdata/stacks")
			build.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("build with the tag %q and CGO_ENABLED=%s: %v\n%s", tag, cgo, err, out)
			}
			for _, unwinder := range []string{"0", "1"} {
				run := exec.CommandContext(t.Context(), program)
				run.Env = append(os.Environ(), "GODEBUG=memprofilerate=512,tracefpunwindoff="+unwinder) // initialization is sampled, too
				if out, err := run.CombinedOutput(); err != nil {
					t.Errorf("tag %q CGO_ENABLED=%s GODEBUG=tracefpunwindoff=%s: %v\n%s", tag, cgo, unwinder, err, out)
				}
			}
		}
	}
}

// wait blocks for a moment, with a stack of its own for each depth.
//
//go:noinline
func wait(depth int) {
	if depth > 0 {
		wait(depth - 1)
		return
	}
	ch := make(chan int)
	go func() { time.Sleep(time.Millisecond); close(ch) }()
	<-ch
}

// samples returns the samples of a profile, by the names of their functions, and the sum of their values.
func samples(t *testing.T, p Profile) (values map[string][]int64, sum []int64) {
	t.Helper()
	parsed, err := profile.ParseUncompressed(p.Raw)
	if err == nil {
		err = parsed.CheckValid()
	}
	if err != nil {
		t.Fatal(err)
	}
	values, sum = map[string][]int64{}, make([]int64, len(parsed.SampleType))
	for _, s := range parsed.Sample {
		var names []string
		for _, l := range s.Location {
			for _, line := range l.Line {
				names = append(names, line.Function.Name)
			}
		}
		values[strings.Join(names, " ")] = s.Value
		for i, v := range s.Value {
			sum[i] += v
		}
	}
	return values, sum
}

func TestStacksAboveTheLimitAreOneSample(t *testing.T) {
	runtime.SetBlockProfileRate(1)
	defer runtime.SetBlockProfileRate(0)
	d := New(Block)
	if err := d.Skip(); err != nil {
		t.Fatal(err)
	}
	for depth := range 5 {
		wait(depth)
	}
	if err := d.read(); err != nil {
		t.Fatal(err)
	}
	difference := func() Profile {
		p, err := d.difference(begun, end)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	d.MaxSamples = 2
	some := difference()
	got, sum := samples(t, some)
	d.MaxSamples = MaxSamples
	all := difference()
	want, wantSum := samples(t, all)
	if len(want) < 5 || all.Summed != 0 || want[otherStacks] != nil {
		t.Fatalf("%d stacks without a limit, %d summed: %v", len(want), all.Summed, want)
	}
	if len(got) != 3 || got[otherStacks] == nil || some.Summed != len(want)-2 || !slices.Equal(sum, wantSum) {
		t.Errorf("%d samples, %d stacks summed, sum %v; want 3, %d and %v: %v", len(got), some.Summed, sum, len(want)-2, wantSum, got)
	}
	for names, values := range got {
		if names != otherStacks && !slices.Equal(values, want[names]) {
			t.Errorf("%v, want %v: %s", values, want[names], names)
		}
	}
	d.keep()
	wait(0) // as many stacks as there are samples again
	next, err := d.Next(begun, end)
	if err != nil || next.Summed != 0 {
		t.Errorf("the next window: %d stacks summed, error %v", next.Summed, err)
	}
}
