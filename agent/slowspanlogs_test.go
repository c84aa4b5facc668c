package agent

import (
	"bytes"
	"strings"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// TestSlowSpansAreLoggedWithinALimit: many slow requests of one name have few lines in the log, and all their profiles.
func TestSlowSpansAreLoggedWithinALimit(t *testing.T) {
	for _, test := range []struct{ setting, want int }{{0, 5}, {2, 2}, {-1, 0}} {
		var out bytes.Buffer
		cfg := quiet(t)
		cfg.Dir, cfg.Logger = t.TempDir(), logTo(&out)
		cfg.SlowSpan, cfg.WallCPUShare, cfg.SlowSpanLogs = time.Millisecond, 1, test.setting
		a, err := Start(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		tracer := a.TracerProvider(sdktrace.NewTracerProvider()).Tracer("test")
		for range 12 {
			_, span := tracer.Start(t.Context(), "POST /checkout")
			time.Sleep(20 * time.Millisecond)
			span.End()
		}
		shutdown(t, a)
		recorder, _ := a.slow.running()
		captured := int(recorder.Stats().Captured)
		lines, further := strings.Count(out.String(), `"top_function"`), strings.Count(out.String(), `"further"`)
		// A minute that ends in between allows twice as many.
		if lines < min(captured, test.want) || lines > 2*test.want || (further > 0) != (test.want > 0 && captured > lines) {
			t.Errorf("SlowSpanLogs %d: %d captured, %d logged, %d lines about further ones: %s", test.setting, captured, lines, further, out.String())
		}
	}
}
