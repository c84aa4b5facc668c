package wallprofile

import (
	"fmt"
	"iter"
	"path"
	"slices"
	"strings"
	"time"
)

// Place is a place where a span spent time: in a function, and in a state given by its leaf frame, which is empty for running.
type Place struct {
	Function, Leaf string
	For            string // what it waited for, as WaitedFor returns it
	Line           string // of the function, as Position returns it; empty while times are added up, and if it is not known
}

// where returns the function of the place, and the line.
func (p Place) where() string {
	if p.Line == "" {
		return Short(p.Function)
	}
	return Short(p.Function) + " (" + p.Line + ")"
}

// Position returns a line of a file in the form that diagnoses use, such as "stock.go:123", empty if it is not known.
func Position(file string, line int64) string {
	if file == "" || line <= 0 {
		return ""
	}
	return fmt.Sprintf("%s:%d", path.Base(file), line)
}

// Phrase returns how a diagnosis puts the state of the place.
func (p Place) Phrase() string {
	if p.For != "" {
		return "waiting for " + p.For
	}
	return phrase(p.Leaf)
}

// Cause is what made a wait at a place as long as it was.
type Cause struct {
	Who  string        // "held by main.report", as Caused returns it; empty if it is not known or differs
	Most Place         // where most of the wait was spent by whoever was waited for; empty if the wait is not followed
	Took time.Duration // there

	Caller string // of the function there, as Caller returns it
}

// Caused returns who made a wait longer: one, whose name is given, or several in turn, which may all be other requests.
// All of them ended it in the function by, which is empty if that is not known or goes without saying.
func Caused(l Link, name string, several int, requests bool, by string) string {
	who := links[l] + " " + name
	switch {
	case several > 1 && requests:
		who = fmt.Sprintf("%s in turn by %d other requests", strings.TrimSuffix(links[l], " by"), several)
	case several > 1:
		who = fmt.Sprintf("%s in turn by %d others", strings.TrimSuffix(links[l], " by"), several)
	}
	if by != "" {
		who += " in " + Short(by)
	}
	return who
}

// Diagnosis returns one line on what took most of a span's time, such as "612 ms POST /api/checkout: 571 ms (93 %)
// waiting for a mutex in workload.(*Stock).Reserve". The cause of a wait, if it is known, comes last, such as ", held in
// turn by 47 other requests: 490 ms of it in sql.(*Tx).Commit". The last function that it names may be a helper: if it is
// known who called it, and not named yet, that follows. The caller is that of the function in which the span was.
func Diagnosis(span string, duration time.Duration, most Place, took time.Duration, caller string, cause Cause) string {
	s := diagnosis(span, duration, most, took, cause)
	if cause != (Cause{}) {
		caller = cause.Caller
	}
	caller = Short(caller)
	named := func(word string) bool { return enclosing(strings.TrimRight(word, ",:")) == caller }
	if caller == "" || slices.ContainsFunc(strings.Fields(s), named) {
		return s
	}
	return s + calledBy + caller
}

func diagnosis(span string, duration time.Duration, most Place, took time.Duration, cause Cause) string {
	percent := 0.0
	if duration > 0 {
		percent = 100 * float64(took) / float64(duration)
	}
	s := fmt.Sprintf("%s %s: %s (%.0f %%) %s", milliseconds(duration), span, milliseconds(took), percent, most.Phrase())
	if most.Function != "" {
		s += " in " + most.where()
	}
	if cause.Who != "" {
		s += ", " + cause.Who
	}
	if cause.Most == (Place{}) {
		return s
	}
	s += ": " + milliseconds(cause.Took) + " of it "
	if cause.Most.Leaf != Syscall.Leaf() || cause.Most.Function == "" || cause.Most.For != "" {
		s += cause.Most.Phrase()
		if cause.Most.Function == "" {
			return s
		}
		s += " "
	}
	return s + "in " + cause.Most.where()
}

// CausePlace returns where whoever was waited for spent time: the functions of its stack are given from the innermost
// outwards with their files. While it waited or was in a system call, that is what the caller, if it is on the stack,
// called: the caller is the function that waits, and that of the holder of a lock is often the same one. It is empty for
// a goroutine that runs nothing but the standard library, such as one that serves a connection: that is a part of the
// wait for it.
func CausePlace(leaf string, stack iter.Seq2[string, string], callers ...string) Place {
	function, known := blamed(stack)
	if !known {
		return Place{}
	}
	at := Place{Function: function, Leaf: leaf, For: WaitedFor(leaf, stack)}
	if kind := KindOf(leaf); at.For != "" || leaf == WaitSleep.Leaf() || kind != KindSyscall && kind != KindWaiting {
		return at
	}
	inner := ""
	for function, file := range stack {
		if inner != "" && slices.Contains(callers, function) {
			at.Function = inner
		}
		if !Instrumentation(function, file) {
			inner = function
		}
	}
	return at
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
}

// Short returns a function's name without the directory of its package's path, and without the major version of its
// module: chi for github.com/go-chi/chi/v5. Type arguments and receivers, which have
// paths of their own, are left as they are.
func Short(function string) string {
	path := function
	if i := strings.IndexAny(function, "[("); i >= 0 {
		path = function[:i]
	}
	short := lastElement(path)
	name, rest, ok := strings.Cut(short, ".")
	if before, version, dotted := strings.Cut(name, "%2e"); ok && dotted && isMajor(version) { // as in gopkg.in/yaml.v3
		return before + "." + rest + function[len(path):]
	}
	if above := len(path) - len(short) - 1; ok && isMajor(name) && above > 0 { // the package has the name of the element above
		return lastElement(path[:above]) + "." + rest + function[len(path):]
	}
	return short + function[len(path):]
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

// isMajor reports whether an element of a path is a module's major version, such as v5.
func isMajor(element string) bool {
	digits, ok := strings.CutPrefix(element, "v")
	return ok && digits != "" && strings.Trim(digits, "0123456789") == ""
}

// lastElement returns the last element of a path.
func lastElement(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }
