package wallprofile

import (
	"iter"
	"strings"
)

// standard has the first elements of the paths of the standard library's packages; a module whose path began with one
// would clash with it. Neither a profile nor, in a binary built with -trimpath, the names of files say where the package
// of a function comes from, and a path without a dot may be that of a module.
var standard = func() map[string]bool {
	m := make(map[string]bool)
	for _, first := range strings.Fields(`archive arena bufio builtin bytes cmp compress container context crypto
		database debug embed encoding errors expvar flag fmt go hash html image index internal io iter log maps
		math mime net os path plugin reflect regexp runtime simd slices sort strconv strings structs sync syscall
		testing text time unicode unique unsafe vendor weak`) {
		m[first] = true
	}
	return m
}()

// Library reports whether a function such as "net/http.(*conn).serve" is of the standard library, the runtime included.
// The file decides about names without a package alone: those of the runtime's assembly, and of C. It is empty if it
// is not known.
func Library(function, file string) bool {
	name, _, _ := strings.Cut(function, "[") // type parameters have paths of their own
	first, _, deep := strings.Cut(name, "/")
	if deep {
		return standard[first]
	}
	first, _, packaged := strings.Cut(name, ".")
	if !packaged {
		return file == "" || strings.HasSuffix(file, ".s")
	}
	return standard[first]
}

// Instrumentation reports whether a function such as
// "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp.(*Transport).RoundTrip" is of OpenTelemetry or
// instruments another package for it: by convention the name of such a package is otel and the other's name. The
// agent's own wrappers, which run on the goroutines of the service, are instrumentation too.
func Instrumentation(function string) bool {
	name, _, _ := strings.Cut(function, "[") // type parameters have paths of their own
	if rest, ok := strings.CutPrefix(name, wrappers); ok {
		return strings.HasPrefix(rest, "telemetry.") || strings.HasPrefix(rest, "spanlink.")
	}
	return strings.HasPrefix(name, "go.opentelemetry.io/") || strings.HasPrefix(Short(name), "otel")
}

// wrappers is the path of the agent's packages, of which two wrap what the service calls.
const wrappers = "spanflame/agent/internal/"

// OnBehalf reports whether a function works, and waits, on behalf of its caller and is therefore not to blame for the
// time it takes: the standard library and instrumentation.
func OnBehalf(function, file string) bool {
	return Library(function, file) || Instrumentation(function)
}

// Blamed returns the function that is to blame for the time of a stack, whose functions are given from the innermost
// outwards with their files, which may be empty. It is the innermost that does not work on behalf of its caller; where
// all do, it is the innermost. It is empty for an empty stack.
func Blamed(stack iter.Seq2[string, string]) string {
	innermost := ""
	for function, file := range stack {
		if !OnBehalf(function, file) {
			return function
		}
		if innermost == "" {
			innermost = function
		}
	}
	return innermost
}
