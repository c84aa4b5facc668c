package viewer

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/viewer/internal/fixture"
)

// A tree that was cut says so, also as one side of a difference; zoomed deep, each frame above links to itself.
func TestDeepStacks(t *testing.T) {
	deep := func(depth int) *profile.Profile {
		var b strings.Builder
		for i := range depth {
			fmt.Fprintf(&b, ";main.f%d", i)
		}
		return fixture.Profile(fixture.Began, time.Second, "cpu", "nanoseconds", nil, fixture.Sample(b.String()[1:], 9e8, ""))
	}
	whole, cut := deep(maxFlameDepth), deep(maxFlameDepth+1)
	if newFlame(whole, "", 0).Cut || !newFlame(cut, "", 0).Cut {
		t.Error("want the deeper graph alone to be cut")
	}
	for name, tt := range map[string]struct {
		after, before *profile.Profile
		want          bool
	}{"neither": {whole, whole, false}, "after": {cut, whole, true}, "before": {whole, cut, true}} {
		if got := newDifference(differenceTree(tt.after, tt.before, 1, 1), "nanoseconds", "", 0).Cut; got != tt.want {
			t.Errorf("%s is cut: %v, want %v", name, got, tt.want)
		}
	}
	for i, f := range newFlame(whole, "/at?frame=", maxFlameDepth/2).Frames {
		if want := fmt.Sprintf("/at?frame=%d#flame", i); f.Path != want {
			t.Errorf("frame %d of a single stack links to %s, want %s", i, f.Path, want)
		}
	}
}
