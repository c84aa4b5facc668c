package save

import (
	"strings"
	"testing"
	"time"
)

func TestTraceFileName(t *testing.T) {
	opened := time.Date(2026, 1, 2, 15, 4, 5, 123456789, time.FixedZone("", 3600))
	name := traceFileName(opened)
	if !strings.HasPrefix(name, "20260102T140405.123456789Z-") {
		t.Errorf("the name is %q", name)
	}
	if got, err := parseTraceFileName(name); err != nil || !got.Equal(opened) {
		t.Errorf("%q was opened %v, %v", name, got, err)
	}
	if name == traceFileName(opened) {
		t.Error("two files have one name")
	}
	for _, bad := range []string{"", "x.jsonl", name + ".tmp", "../" + name, strings.Replace(name, "0102T", "0230T", 1), strings.Replace(name, "-", "+", 1)} {
		if got, err := parseTraceFileName(bad); err == nil {
			t.Errorf("%q is taken for a file of %v", bad, got)
		}
	}
}
