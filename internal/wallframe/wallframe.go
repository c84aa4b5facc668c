// Package wallframe is the language of wall-clock profiles: the frames that are no functions, and the words that a
// sentence has for them. The agent writes them, and whoever reads saved profiles finds them by it. It knows neither
// how they are recorded nor how they are stored.
package wallframe

import (
	"fmt"
	"strings"
	"time"
)

const (
	// Span comes before a span's name in the frames that a stack begins with.
	Span = "span: "
	// Others stands above the time that other goroutines spent for the profile's span.
	Others = "[other goroutines working for this span]"
)

// phrases has, for each leaf frame in brackets, how a sentence says it. Without one the goroutine ran.
var phrases = map[string]string{
	"":                                             "on the CPU",
	"[runnable: waiting for CPU]":                  "runnable and waiting for a CPU",
	"[syscall]":                                    "in a system call",
	"[waiting: mutex]":                             "waiting for a mutex",
	"[waiting: RWMutex]":                           "waiting for an RWMutex",
	"[waiting: Once]":                              "waiting for a Once",
	"[waiting: WaitGroup]":                         "waiting for a WaitGroup",
	"[waiting: Cond]":                              "waiting for a Cond",
	"[waiting: sync]":                              "waiting for a lock",
	"[waiting: channel send]":                      "waiting to send on a channel",
	"[waiting: channel receive]":                   "waiting to receive from a channel",
	"[waiting: select]":                            "waiting in a select",
	"[waiting: sleep]":                             "sleeping",
	"[waiting: network]":                           "waiting for the network",
	"[waiting: GC assist]":                         "waiting to help the garbage collector",
	"[waiting: garbage collection]":                "waiting for the garbage collector",
	"[waiting: unspecified]":                       "waiting",
	"[GC assist]":                                  "helping the garbage collector",
	"[stopped: garbage collection]":                "stopped by the garbage collector",
	"[stopped: the world]":                         "stopped with the whole process",
	"[starting the span]":                          "starting the span",
	"[ending the span]":                            "ending the span",
	"[elsewhere: span ended on another goroutine]": "on another goroutine",
	"[not recorded]":                               "not recorded",
}

// Place is where a span spent time: in a function, and in a state as its leaf frame, empty where it ran.
type Place struct{ Function, Leaf string }

// Sentence says in one line what most of a span's time went to, such as "612 ms POST /api/checkout: 571 ms (93 %)
// waiting for a mutex in workload.(*Stock).Reserve". A leaf that is not known, of a newer agent, is said in its own
// words.
func Sentence(span string, duration time.Duration, most Place, took time.Duration) string {
	percent := 0.0
	if duration > 0 {
		percent = 100 * float64(took) / float64(duration)
	}
	phrase, known := phrases[most.Leaf]
	if !known {
		phrase = strings.Trim(most.Leaf, "[]")
	}
	s := fmt.Sprintf("%s %s: %s (%.0f %%) %s", milliseconds(duration), span, milliseconds(took), percent, phrase)
	if most.Function != "" {
		s += " in " + Short(most.Function)
	}
	return s
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
}

// Short is a function's name without the directory of its package's path.
func Short(function string) string {
	return function[strings.LastIndexByte(function, '/')+1:]
}

// Instrumentation tells whether a function such as
// "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp.(*Transport).RoundTrip" is of OpenTelemetry or
// instruments another package for it: by convention the name of such a package is otel and the other's name. It
// waits for its caller, as the standard library does, and is not to be blamed for what it takes.
func Instrumentation(function string) bool {
	name, _, _ := strings.Cut(function, "[") // type parameters have paths of their own
	return strings.HasPrefix(name, "go.opentelemetry.io/") || strings.HasPrefix(Short(name), "otel")
}
