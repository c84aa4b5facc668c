package profiles

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"
)

// Frames of a wall-clock profile that are no functions. A stack's leaf frame in brackets is the state that
// its goroutine was in.
const (
	spanFrame   = "span: "
	othersFrame = "[other goroutines working for this span]"
)

// phrases has, for each leaf frame in brackets, how a sentence says it; without one the goroutine ran.
var phrases = map[string]string{
	"":                              "on the CPU",
	"[runnable: waiting for CPU]":   "runnable and waiting for a CPU",
	"[syscall]":                     "in a system call",
	"[waiting: mutex]":              "waiting for a mutex",
	"[waiting: RWMutex]":            "waiting for an RWMutex",
	"[waiting: Once]":               "waiting for a Once",
	"[waiting: WaitGroup]":          "waiting for a WaitGroup",
	"[waiting: Cond]":               "waiting for a Cond",
	"[waiting: sync]":               "waiting for a lock",
	"[waiting: channel send]":       "waiting to send on a channel",
	"[waiting: channel receive]":    "waiting to receive from a channel",
	"[waiting: select]":             "waiting in a select",
	"[waiting: sleep]":              "sleeping",
	"[waiting: network]":            "waiting for the network",
	"[waiting: GC assist]":          "waiting to help the garbage collector",
	"[waiting: garbage collection]": "waiting for the garbage collector",
	"[waiting: unspecified]":        "waiting",
	"[GC assist]":                   "helping the garbage collector",
	"[stopped: garbage collection]": "stopped by the garbage collector",
	"[stopped: the world]":          "stopped with the whole process",
	"[starting the span]":           "starting the span",
	"[elsewhere: span ended on another goroutine]": "on another goroutine",
	"[not recorded]": "not recorded",
}

// Diagnose says in one line what most of a span's own time went to, such as
// "612 ms POST /api/checkout: 571 ms (93 %) waiting for a mutex in workload.(*Stock).Reserve", from the
// wall-clock profile of that span alone. It is empty for a profile that has none of the span's own time.
func Diagnose(p *profile.Profile, spanName string, duration time.Duration) string {
	times := make(map[place]int64)
	for _, s := range p.Sample {
		if at, own := placeOf(s); own && len(s.Value) > 0 {
			times[at] += s.Value[0]
		}
	}
	if len(times) == 0 {
		return ""
	}
	top := slices.MinFunc(slices.Collect(maps.Keys(times)), func(a, b place) int {
		return cmp.Or(cmp.Compare(times[b], times[a]), strings.Compare(a.function, b.function), strings.Compare(a.state, b.state))
	})
	took := time.Duration(times[top])
	percent := 0.0
	if duration > 0 {
		percent = 100 * float64(took) / float64(duration)
	}
	phrase, known := phrases[top.state]
	if !known {
		phrase = strings.Trim(top.state, "[]") // of a newer agent: its own words
	}
	sentence := fmt.Sprintf("%s %s: %s (%.0f %%) %s", milliseconds(duration), spanName, milliseconds(took), percent, phrase)
	if top.function != "" {
		sentence += " in " + top.function[strings.LastIndexByte(top.function, '/')+1:]
	}
	return sentence
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
}

// place is the function that a span's time went to and the state it was in there, as its leaf frame.
type place struct{ function, state string }

// placeOf tells the place of a sample: the innermost function that is neither of the standard library nor of
// an instrumentation, where there is one. The time of other goroutines is not the span's own.
func placeOf(s *profile.Sample) (at place, own bool) {
	innermost := true
	found := false
	for _, l := range s.Location {
		for _, line := range l.Line {
			if line.Function == nil {
				continue
			}
			name := line.Function.Name
			switch {
			case name == othersFrame:
				return place{}, false
			case strings.HasPrefix(name, spanFrame):
			case innermost && strings.HasPrefix(name, "["):
				at.state = name
			case at.function == "" || !found && ownFunction(name):
				at.function, found = name, ownFunction(name)
			}
			innermost = false
		}
	}
	return at, true
}

// Sentence is the diagnosis that the agent noted in a wall-clock profile for a span, in a comment such as
// "span_id=4466fc8554eaf499 612 ms POST /api/checkout: …"; it is empty if there is none. It can say more
// than Diagnose, such as who held a lock.
func Sentence(p *profile.Profile, spanID string) string {
	for _, c := range p.Comments {
		if id, sentence, ok := commentOf(c); ok && id == spanID {
			return sentence
		}
	}
	return ""
}

// commentOf takes a comment apart that the agent noted for a span.
func commentOf(comment string) (spanID, sentence string, ok bool) {
	rest, ofSpan := strings.CutPrefix(comment, spanLabel+"=")
	spanID, sentence, ok = strings.Cut(rest, " ")
	return spanID, sentence, ofSpan && ok
}

// library has the first elements of the paths of the standard library's packages. A profile does not say
// where a function's package comes from, and file names do not either in a binary built with -trimpath.
var library = strings.Fields(`archive arena bufio builtin bytes cmp compress container context crypto
	database debug embed encoding errors expvar flag fmt go hash html image index internal io iter log maps
	math mime net os path plugin reflect regexp runtime simd slices sort strconv strings structs sync syscall
	testing text time unicode unique unsafe vendor weak`)

// ownFunction tells whether a function can be blamed: what the standard library and an instrumentation do, they
// do for their caller.
func ownFunction(name string) bool { return !Standard(name) && !instrumentation(name) }

// instrumentation tells whether a function such as
// "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp.(*Transport).RoundTrip" is of OpenTelemetry or
// instruments another package for it: by convention the name of such a package is otel and the other's name.
func instrumentation(function string) bool {
	name, _, _ := strings.Cut(function, "[") // type parameters have paths of their own
	return strings.HasPrefix(name, "go.opentelemetry.io/") ||
		strings.HasPrefix(name[strings.LastIndexByte(name, '/')+1:], "otel")
}

// Standard tells whether a function such as "net/http.(*conn).serve" is of the standard library.
func Standard(function string) bool {
	name, _, _ := strings.Cut(function, "[") // type parameters have paths of their own
	dir, _, deep := strings.Cut(name, "/")
	if !deep {
		dir, _, _ = strings.Cut(name, ".")
	}
	return slices.Contains(library, dir)
}
