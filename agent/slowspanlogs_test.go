package agent

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// TestSlowSpansAreLoggedWithinALimit: many slow requests of one name have few lines in the log, and all their profiles.
func TestSlowSpansAreLoggedWithinALimit(t *testing.T) {
	for _, test := range []struct{ setting, want int }{{0, 5}, {2, 2}, {-1, 0}} {
		var out bytes.Buffer
		cfg := quiet(t)
		cfg.Dir, cfg.Stdout = t.TempDir(), &out
		cfg.SlowSpan, cfg.WallCPUShare, cfg.SlowSpanLogs = time.Millisecond, 1, test.setting
		a, err := Start(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		for range 12 {
			slowRequest(t.Context())
		}
		shutdown(t, a)
		captured := int(a.wall.Stats().Captured)
		lines, further := strings.Count(out.String(), `"top_function"`), strings.Count(out.String(), `"further"`)
		// A minute that ends in between allows twice as many.
		if lines < min(captured, test.want) || lines > 2*test.want || (further > 0) != (test.want > 0 && captured > lines) {
			t.Errorf("SlowSpanLogs %d: %d captured, %d logged, %d lines about further ones: %s", test.setting, captured, lines, further, out.String())
		}
	}
}
