// Package format writes values, shares, times and names for readers. Pages and reports share it, so that one value
// looks the same in all of them. It does not parse, and it does not escape for HTML or Markdown.
package format

import (
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
	case d >= 100*time.Second || d <= -100*time.Second:
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

// Value writes a sample value in its unit.
func Value(v int64, unit string) string {
	switch unit {
	case "nanoseconds":
		return Duration(time.Duration(v))
	case "bytes":
		return Bytes(v)
	}
	return fmt.Sprintf("%d %s", v, unit)
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
