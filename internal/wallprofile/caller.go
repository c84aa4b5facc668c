package wallprofile

import (
	"iter"
	"strings"
)

// Caller returns the function of the service that called another one on a stack, whose functions are given from the
// innermost outwards with their files. Methods of its own type that call it on behalf of others are passed over, if there is
// one that called these, unless the nearest is asked for. It is empty for a function that a library called, such as the
// handler of a request.
func Caller(function string, stack iter.Seq2[string, string], nearest bool) (caller string) {
	inner, reached := enclosing(function), false
	for f, file := range stack {
		if !reached {
			reached = f == function
			continue
		}
		outer := enclosing(f)
		switch {
		case outer == inner: // it calls itself, or is a closure
		case OnBehalf(f, file) || strings.Contains(Short(f), "._"): // or generated, for gRPC
			return caller
		case nearest || receiver(outer) != receiver(inner) || receiver(inner) == "":
			return outer
		case caller == "":
			caller = outer
		}
	}
	return caller
}

// Entry returns the function of the service that a goroutine was started for, or the handler of the request that it serves,
// from its stack, whose functions are given from the innermost outwards with their files. Closures are passed over, if there
// is another function in them, and so is what is around a handler. It is empty if there is no function of the service.
func Entry(stack iter.Seq2[string, string]) (entry string) {
	closure := true
	for f, file := range stack {
		if OnBehalf(f, file) {
			if entry != "" && (strings.HasSuffix(f, ".ServeHTTP") || strings.HasPrefix(f, "google.golang.org/grpc.(*Server).")) {
				break
			}
			continue
		}
		if outer := enclosing(f); closure || outer == f {
			entry, closure = outer, outer != f
		}
	}
	return entry
}

// enclosing returns the function in which a closure stands, such as "main.serve" for "main.serve.func1.2" and for the body
// of a loop over an iterator, "main.serve-range1". For any other function it is that one.
func enclosing(function string) string {
	for {
		outer := function
		if i := strings.LastIndex(outer, "-range"); i > 0 && isNumber(outer[i+len("-range"):]) {
			outer = outer[:i]
		}
		if i := strings.LastIndexByte(outer, '.'); i > 0 && strings.Contains(Short(outer[:i]), ".") && !strings.HasSuffix(outer[:i], ".") {
			last := outer[i+1:]
			for _, made := range []string{"func", "gowrap", "deferwrap"} {
				last = strings.TrimPrefix(last, made)
			}
			if isNumber(last) {
				outer = outer[:i]
			}
		}
		if outer == function {
			return function
		}
		function = outer
	}
}

func isNumber(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// receiver returns the type of a method, such as "main.(*Stock)", empty for other functions.
func receiver(function string) string {
	name := strings.ReplaceAll(function, "[...]", "")
	i := strings.LastIndexByte(name, '.')
	if i < 0 || !strings.Contains(Short(name[:i]), ".") {
		return ""
	}
	return name[:i]
}
