package wallprofile

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Link is how the work of one goroutine made another one wait.
type Link uint8

// The links. A wait in a state without one ends by itself: by a timer, the network or the garbage collector.
const (
	NoLink Link = iota
	HeldBy
	WokenBy
	SentBy
	ReceivedBy
	DoneBy
	BusyWith  // what is above waited for a CPU, and this one had it
	StartedBy // what is above was done by a goroutine that did not exist yet: this one started it
	numLinks
)

var links = [numLinks]string{
	HeldBy: "held by", WokenBy: "woken by", SentBy: "sent by", ReceivedBy: "received by", DoneBy: "done by", BusyWith: "CPUs busy with", StartedBy: "started by",
}

// Link returns how a wait in the state leads to the goroutine that ended it.
func (s State) Link() Link { return table[s].link }

// Whose is for whom a goroutine worked.
type Whose uint8

// For whom a goroutine worked.
const (
	SameRequest  Whose = iota // for the one that waited
	OtherRequest              // for another local root span
	NoSpan                    // for a request that has no span: it was not sampled, or it began before the recording
	NoRequest                 // for none
	Timer                     // no goroutine: a timer
)

// CauseFrame returns the frame below a wait that says who caused it, such as "[held by: POST /audit, another request]". The
// name is that of the other request's local root span, empty if it is not known, or of a function.
func CauseFrame(l Link, whose Whose, name string) string {
	who := name
	switch whose {
	case SameRequest:
		who = sameRequest
	case OtherRequest:
		who = strings.TrimPrefix(name+otherSuffix, ", ")
	case NoSpan:
		who += noSpanSuffix
	case NoRequest:
		who += noRequestSuffix
	case Timer:
		who = "a timer"
	}
	return "[" + links[l] + ": " + who + "]"
}

// methods are those of HTTP, and what older instrumentation has in front of them.
var methods = strings.Fields("GET HEAD POST PUT PATCH DELETE CONNECT OPTIONS TRACE HTTP")

// RequestName returns the name of a request for a frame of CauseFrame. As long as a request runs, the name of its span is often
// its method alone, which says nothing: the function that it runs follows, if that is known. It is asked for only then.
func RequestName(span string, entry func() string) string {
	if !slices.Contains(methods, strings.TrimPrefix(span, "HTTP ")) {
		return span
	}
	if function := entry(); function != "" {
		return span + " in " + Short(function)
	}
	return span
}

const (
	sameRequest     = "the same request"
	otherSuffix     = ", another request"
	noSpanSuffix    = ", a request without a span"
	noRequestSuffix = ", no request"
)

// Culprit returns who a frame of CauseFrame names, if it is not the request that waited or a timer: another request, whose name
// is empty if it is not known, or the function of a goroutine that worked for no request with a span.
func Culprit(frame string) (name string, whose Whose, ok bool) {
	if !IsCause(frame) {
		return "", 0, false
	}
	_, who, _ := strings.Cut(strings.TrimSuffix(frame, "]"), ": ")
	if who == strings.TrimPrefix(otherSuffix, ", ") {
		return "", OtherRequest, true
	}
	for whose, suffix := range map[Whose]string{OtherRequest: otherSuffix, NoSpan: noSpanSuffix, NoRequest: noRequestSuffix} {
		if name, ok := strings.CutSuffix(who, suffix); ok {
			return name, whose, true
		}
	}
	return "", 0, false
}

// Ran is who ran on a CPU: the frame that says it, and what that goroutine was started for, as Entry returns it.
type Ran struct{ Frame, Entry string }

// Busy returns who had the CPUs while a request could not run, and the function in which they were: "the CPUs busy with POST
// /report in main.compute (71 %)". It is empty if less than half of the time is known.
func Busy(ran map[Ran]time.Duration, whole time.Duration) string {
	times, known := make(map[string]time.Duration), time.Duration(0)
	for one, took := range ran {
		times[one.Frame] += took
		known += took
	}
	if known == 0 || 2*known < whole {
		return ""
	}
	most, in := longest(times), ""
	for one, took := range ran {
		if one.Frame == most && Nearly(took, times[most]) {
			in = Short(one.Entry)
		}
	}
	who := "others"
	if 2*times[most] >= whole {
		name, whose, other := Culprit(most)
		switch {
		case !other:
			who = sameRequest
		case name == "":
			who = "another request"
		case whose == OtherRequest:
			who = name
		case name == "runtime.gcBgMarkWorker":
			who = "the garbage collector"
		default:
			who, in = Short(name), ""
		}
		if in != "" && !strings.HasSuffix(who, in) {
			who += " in " + in
		}
		who = fmt.Sprintf("%s (%.0f %%)", who, 100*times[most].Seconds()/whole.Seconds())
	}
	return "the " + links[BusyWith] + " " + who
}

// NotFollowed is why it is not known what was done during a part of a wait.
type NotFollowed uint8

// Why a wait is not followed.
const (
	Followed  NotFollowed = iota
	Forgotten             // the recording does not reach back so far
	TooDeep               // the wait of a goroutine that was itself waited for, and so on, many times
	TooMuch               // it would take too much time or memory
	NotNamed              // the recording does not name who ended the wait
	NotEnded              // the wait had not ended when the span did
	NumNotFollowed
)

var notFollowed = [NumNotFollowed]string{
	Forgotten: "forgotten", TooDeep: "too deep", TooMuch: "too much", NotNamed: "waker not known", NotEnded: "the wait had not ended",
}

// String returns the reason in words.
func (n NotFollowed) String() string { return notFollowed[n] }

const notFollowedPrefix = "[not followed: "

// Leaf returns the frame that ends the stack of a wait that is not followed.
func (n NotFollowed) Leaf() string { return notFollowedPrefix + notFollowed[n] + "]" }

// Causes returns how many of a stack's n frames, which are numbered from the innermost outwards, are below the state of the
// goroutine that waited: they say who caused the wait, and are 0 for most stacks. In a profile of a whole trace that
// is the goroutine of the innermost service.
func Causes(n int, frame func(i int) string) int {
	causes := 0
	for i := n - 1; i >= 0; i-- {
		switch name := frame(i); {
		case strings.HasPrefix(name, SpanPrefix):
			causes = 0
		case causes == 0 && IsCause(name):
			causes = i + 1
		}
	}
	return causes
}

// CauseName returns the part of a cause's frame that is without the brackets, such as "held by: POST /audit, another request".
func CauseName(frame string) string { return strings.Trim(frame, "[]") }

// IsCause reports whether a frame stands below a wait and says what it was for, who caused it, or why that is not known. The frames from
// the outermost such frame inwards are of other goroutines; those above it are the waiting one's own, and end in its
// own state.
func IsCause(frame string) bool {
	if !IsBracketed(frame) {
		return false
	}
	if strings.HasPrefix(frame, notFollowedPrefix) || IsWaitedFor(frame) {
		return true
	}
	link, _, ok := strings.Cut(frame[1:], ": ")
	if !ok {
		return false
	}
	for _, l := range links[NoLink+1:] {
		if l == link {
			return true
		}
	}
	return false
}
