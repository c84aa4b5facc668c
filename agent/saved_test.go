package agent

import (
	"bytes"
	"strings"
	"testing"
)

func TestNothingIsCapturedForNobody(t *testing.T) {
	for _, tt := range []struct{ name, dir string }{
		{"off", off},
		{"no cache directory", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			cfg := quiet(t)
			cfg.Dir, cfg.Logger = tt.dir, logTo(&out)
			t.Setenv("HOME", "")
			t.Setenv("XDG_CACHE_HOME", "")
			a, err := Start(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			shutdown(t, a)
			if n := a.capture.Stats().Captured; len(n) > 0 || a.slow.options != nil {
				t.Errorf("captured %v, wall %v", n, a.slow.options)
			}
			if !strings.Contains(out.String(), "no profiles are captured") {
				t.Errorf("the log says %s", out.String())
			}
		})
	}
}
