//go:build long

package lastrun

import (
	"cmp"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

// TestKillsForMemory kills services that grow slowly and fast, as often as SPANFLAME_KILLS says: in 95 of 100 the last profile
// is at most two seconds old or has nine tenths of the growth, and it names the function.
func TestKillsForMemory(t *testing.T) {
	kills, err := strconv.Atoi(cmp.Or(os.Getenv("SPANFLAME_KILLS"), "5"))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ rate, limit int64 }{{1e6, 48 << 20}, {100e6, 256 << 20}, {1000e6, 1 << 30}} {
		t.Run(fmt.Sprintf("%d MB per second", test.rate/1e6), func(t *testing.T) {
			good, named, knew := 0, 0, 0
			var oldest time.Duration
			least := 1.0
			for range kills {
				old, part, known := killed(t, test.rate, test.limit)
				if old <= 2*time.Second || part >= 0.9 {
					good++
				}
				if part > 0.05 {
					named++
				}
				if known {
					knew++
				}
				oldest, least = max(oldest, old), min(least, part)
			}
			t.Logf("%d kills: %d profiles are new enough, %d name the function, %d starts know why; the oldest is %v old, the least has %.0f %% of the limit",
				kills, good, named, knew, oldest.Round(time.Millisecond), 100*least)
			if good*100 < 95*kills || named*100 < 95*kills || knew*100 < 95*kills {
				t.Error("want 95 of 100")
			}
		})
	}
}
