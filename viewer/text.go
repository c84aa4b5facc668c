package viewer

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// clean makes a name that came from outside fit to be shown on one line: characters that do not print or
// that change the direction of the text around them are written as escapes, and what is longer than most
// runes is cut. Escaping for HTML is the templates' business.
func clean(s string, most int) string {
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

// count is a number of things, in words.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return strconv.Itoa(n) + " " + thing + "s"
}

// clock is a time for a reader.
func clock(t time.Time) string { return t.UTC().Format(time.DateTime) }

// quoteShell quotes an argument for a POSIX shell, so that a command line can be copied as it is shown.
func quoteShell(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./=:%@+,") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// arguments are files for a shell; not ok where there are none, more than anybody types, or one whose name would
// deceive the eye.
func arguments(files []string) (list string, ok bool) {
	if len(files) > listedWindows {
		return "", false
	}
	for _, f := range files {
		if clean(f, len(f)) != f {
			return "", false
		}
		list += " " + quoteShell(f)
	}
	return list, len(files) > 0
}
