// Package format writes values, shares, times and names for readers. Pages and reports share it, so that one value
// looks the same in all of them. It does not parse, and it does not escape for HTML or Markdown.
package format

import (
	"cmp"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Duration writes a duration with three digits.
func Duration(d time.Duration) string {
	switch {
	case d < 0 && d != math.MinInt64:
		return "-" + Duration(-d)
	case d >= 100*time.Second || d < 0:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return fmt.Sprintf("%.3g s", d.Seconds())
	case d >= time.Millisecond:
		return fmt.Sprintf("%.3g ms", float64(d)/1e6)
	case d >= time.Microsecond:
		return fmt.Sprintf("%.3g µs", float64(d)/1e3)
	}
	return fmt.Sprintf("%d ns", d.Nanoseconds())
}

// Bytes writes a number of bytes with three digits and a unit that fits.
func Bytes(v int64) string {
	f := float64(v)
	for _, unit := range []string{"B", "KiB", "MiB", "GiB"} {
		if math.Abs(f) < 1000 {
			return fmt.Sprintf("%.3g %s", f, unit)
		}
		f /= 1024
	}
	return fmt.Sprintf("%.4g TiB", f)
}

// Value writes a sample value in its unit. A count has none.
func Value(v int64, unit string) string {
	factor, kind := measure(unit)
	switch scaled := factor * float64(v); {
	case unit == "count" || unit == "":
		return strconv.FormatInt(v, 10)
	case kind == "" || math.Abs(scaled) >= math.MaxInt64:
		return fmt.Sprintf("%d %s", v, unit)
	case kind == "bytes":
		return Bytes(int64(scaled))
	case factor == 1:
		return Duration(time.Duration(v)) // exactly
	default:
		return Duration(time.Duration(scaled))
	}
}

// measure returns what a unit of samples is a multiple of, nanoseconds or bytes, and the factor. It accepts the names
// that profilers use, in singular and plural; kind is empty for another unit.
func measure(unit string) (factor float64, kind string) {
	name := strings.ToLower(unit)
	if len(name) > 2 {
		name = strings.TrimSuffix(name, "s")
	}
	switch name {
	case "nanosecond", "ns":
		return 1, "nanoseconds"
	case "microsecond", "us", "µs":
		return 1e3, "nanoseconds"
	case "millisecond", "ms":
		return 1e6, "nanoseconds"
	case "second", "sec", "s":
		return 1e9, "nanoseconds"
	case "minute", "min":
		return 60e9, "nanoseconds"
	case "hour", "hr":
		return 3600e9, "nanoseconds"
	case "byte", "b":
		return 1, "bytes"
	case "kilobyte", "kb", "kib":
		return 1 << 10, "bytes"
	case "megabyte", "mb", "mib":
		return 1 << 20, "bytes"
	case "gigabyte", "gb", "gib":
		return 1 << 30, "bytes"
	}
	return 1, ""
}

// Base returns the unit of which a unit is a multiple, nanoseconds or bytes, and the factor: itself and 1 for others.
func Base(unit string) (base string, factor int64) {
	f, kind := measure(unit)
	return cmp.Or(kind, unit), int64(f)
}

// step is a unit, or a prefix, for values from a limit on.
type step struct {
	from float64
	name string
}

// Amount writes a value that may have a fraction, such as a mean or a rate, with three digits and a unit that fits.
func Amount(v float64, unit string) string {
	factor, kind := measure(unit)
	v *= factor
	steps := []step{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}, {0, ""}}
	switch {
	case kind == "nanoseconds":
		steps = []step{{1e9, " s"}, {1e6, " ms"}, {1e3, " µs"}, {0, " ns"}}
	case kind == "bytes":
		steps = []step{{1 << 40, " TiB"}, {1 << 30, " GiB"}, {1 << 20, " MiB"}, {1 << 10, " KiB"}, {0, " B"}}
	case unit != "count" && unit != "":
		for i := range steps {
			steps[i].name += " " + unit
		}
	}
	i := 0
	for math.Abs(v) < steps[i].from {
		i++
	}
	v /= max(steps[i].from, 1)
	digits := 2
	switch a := math.Abs(v); {
	case a >= 100 || v == math.Trunc(v):
		digits = 0
	case a >= 10:
		digits = 1
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + steps[i].name
}

// Difference writes a difference of sample values, with its sign.
func Difference(v int64, unit string) string {
	if v < 0 {
		return "−" + Value(-v, unit)
	}
	return "+" + Value(v, unit)
}

// Share writes a part of a whole as a percentage.
func Share(part, whole int64) string {
	switch share := float64(part) / float64(whole); {
	case whole == 0 || part == 0:
		return "0 %"
	case share > 0 && share < 0.001:
		return "< 0.1 %"
	}
	return fmt.Sprintf("%.3g %%", 100*float64(part)/float64(whole))
}

// Percent writes a share as a percentage for an attribute of HTML or SVG.
func Percent(share float64) string {
	return fmt.Sprintf("%.4g%%", math.Round(share*1e6)/1e4)
}

// Probability writes a probability with three digits after the point.
func Probability(p float64) string {
	if p < 0.0005 {
		return "<0.001"
	}
	return strconv.FormatFloat(p, 'f', 3, 64)
}

// Count writes a number of things, such as "1 span" and "2 spans".
func Count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return strconv.Itoa(n) + " " + thing + "s"
}

// Clock writes a time in UTC, without saying so.
func Clock(t time.Time) string { return t.UTC().Format(time.DateTime) }

// Clean makes a name from outside fit to be shown on one line: characters that do not print, or that change the
// direction of the text around them, become escapes, and the name is cut after a number of runes.
func Clean(s string, most int) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n == most {
			return b.String() + "…"
		}
		n++
		switch {
		case r == ' ' || unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r) // controls, among them those of direction
		}
	}
	return b.String()
}
