package wallprofile

import (
	"fmt"
	"strings"
	"time"
)

// Place is a place where a span spent time: in a function, and in a state given by its leaf frame, which is empty for running.
type Place struct{ Function, Leaf string }

// Diagnosis returns one line on what took most of a span's time, such as "612 ms POST /api/checkout: 571 ms (93 %)
// waiting for a mutex in workload.(*Stock).Reserve". The holder of the lock, if there is a name for it, comes last.
func Diagnosis(span string, duration time.Duration, most Place, took time.Duration, holder string) string {
	percent := 0.0
	if duration > 0 {
		percent = 100 * float64(took) / float64(duration)
	}
	s := fmt.Sprintf("%s %s: %s (%.0f %%) %s", milliseconds(duration), span, milliseconds(took), percent, phrase(most.Leaf))
	if most.Function != "" {
		s += " in " + Short(most.Function)
	}
	if holder != "" {
		s += ", held by " + Short(holder)
	}
	return s
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
}

// Short returns a function's name without the directory of its package's path. Type arguments and receivers, which have
// paths of their own, are left as they are.
func Short(function string) string {
	path := function
	if i := strings.IndexAny(function, "[("); i >= 0 {
		path = function[:i]
	}
	return function[strings.LastIndexByte(path, '/')+1:]
}

// Comment returns the comment of a saved profile that holds the diagnosis of a span, such as
// "span_id=4466fc8554eaf499 612 ms POST /api/checkout: …".
func Comment(spanID, diagnosis string) string { return SpanID + "=" + spanID + " " + diagnosis }

// ParseComment takes a comment of Comment apart; ok is false for any other comment.
func ParseComment(comment string) (spanID, diagnosis string, ok bool) {
	rest, ofSpan := strings.CutPrefix(comment, SpanID+"=")
	spanID, diagnosis, ok = strings.Cut(rest, " ")
	return spanID, diagnosis, ofSpan && ok
}
