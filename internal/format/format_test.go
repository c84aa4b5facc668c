package format

import (
	"math"
	"testing"
	"time"
)

func TestValue(t *testing.T) {
	for _, tt := range []struct {
		v          int64
		unit, want string
	}{
		{0, "nanoseconds", "0 ns"},
		{999, "nanoseconds", "999 ns"},
		{1_500, "nanoseconds", "1.5 µs"},
		{123_456_789, "nanoseconds", "123 ms"},
		{2e9, "nanoseconds", "2 s"},
		{200e9, "nanoseconds", "3m20s"},
		{512, "bytes", "512 B"},
		{1 << 20, "bytes", "1 MiB"},
		{-3 << 20, "bytes", "-3 MiB"},
		{1 << 50, "bytes", "1024 TiB"},
		{-2e9, "nanoseconds", "-2 s"},
		{math.MinInt64, "nanoseconds", "-9223372036854775808 nanoseconds"},
		{7, "count", "7"},
		{7, "objects", "7 objects"},
		{8_980_000, "microseconds", "8.98 s"},
		{3, "seconds", "3 s"},
		{2, "Milliseconds", "2 ms"},
		{1536, "kilobytes", "1.5 MiB"},
		{1 << 62, "hours", "4611686018427387904 hours"},
	} {
		if got := Value(tt.v, tt.unit); got != tt.want {
			t.Errorf("%d %s: %q, want %q", tt.v, tt.unit, got, tt.want)
		}
	}
	if got := Difference(-1<<20, "bytes") + " " + Difference(2e9, "nanoseconds"); got != "−1 MiB +2 s" {
		t.Errorf("differences: %q", got)
	}
}

func TestAmount(t *testing.T) {
	for _, tt := range []struct {
		v          float64
		unit, want string
	}{
		{0, "nanoseconds", "0 ns"},
		{99.66e6, "nanoseconds", "99.7 ms"},
		{1.0312e9, "nanoseconds", "1.03 s"},
		{-5.85e3, "milliseconds", "-5.85 s"},
		{8.98e6, "microseconds", "8.98 s"},
		{0.5, "bytes", "0.50 B"},
		{66.71 * (1 << 20), "bytes", "66.7 MiB"},
		{1536, "count", "1.54k"},
		{30, "cats", "30 cats"},
	} {
		if got := Amount(tt.v, tt.unit); got != tt.want {
			t.Errorf("%v %s: %q, want %q", tt.v, tt.unit, got, tt.want)
		}
	}
}

func TestShare(t *testing.T) {
	for _, tt := range []struct {
		part, whole int64
		want        string
	}{{0, 10, "0 %"}, {5, 0, "0 %"}, {1, 10_000, "< 0.1 %"}, {75, 100, "75 %"}, {1, 3, "33.3 %"}} {
		if got := Share(tt.part, tt.whole); got != tt.want {
			t.Errorf("%d of %d: %q, want %q", tt.part, tt.whole, got, tt.want)
		}
	}
	if got := Percent(1.0 / 3); got != "33.33%" {
		t.Errorf("attribute: %q", got)
	}
	for p, want := range map[float64]string{0: "<0.001", 0.0004: "<0.001", 0.0005: "0.001", 0.25: "0.250", 1: "1.000"} {
		if got := Probability(p); got != want {
			t.Errorf("probability %v: %q, want %q", p, got, want)
		}
	}
}

func TestText(t *testing.T) {
	if got := Count(1, "span") + ", " + Count(2, "span") + ", " + Count(0, "span"); got != "1 span, 2 spans, 0 spans" {
		t.Errorf("counts: %q", got)
	}
	if got := Clock(time.Date(2026, 1, 2, 16, 4, 5, 0, time.FixedZone("CET", 3600))); got != "2026-01-02 15:04:05" {
		t.Errorf("time: %q", got)
	}
	for _, tt := range []struct {
		name string
		most int
		want string
	}{
		{"main.work é", 20, "main.work é"}, {"a\nb\x1b", 20, `a\x0ab\x1b`}, {"\u202egpj", 20, `\u202egpj`}, {"0123456789abc", 10, "0123456789…"},
	} {
		if got := Clean(tt.name, tt.most); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.name, got, tt.want)
		}
	}
}
