package wallprofile

import (
	"cmp"
	"iter"
	"strconv"
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

// Dependency reports whether a function is of a module that the service depends on. Its file says so, such as
// "/go/pkg/mod/golang.org/x/sync@v0.22.0/errgroup/errgroup.go", of which -trimpath leaves what follows "mod/": only
// the path of a dependency has a version. Or it is below a directory vendor.
func Dependency(function, file string) bool {
	if i := strings.LastIndex(file, "@v"); i > 0 {
		major, _, ok := strings.Cut(file[i+len("@v"):], ".")
		_, err := strconv.ParseUint(major, 10, 64)
		return ok && err == nil
	}
	first, _, deep := strings.Cut(function, "/")
	return deep && strings.Contains(file, "/vendor/"+first+"/")
}

// Instrumentation reports whether a function such as
// "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp.(*Transport).RoundTrip" is of OpenTelemetry or
// instruments another package for it: by convention the name of such a package is otel and the other's name. The
// agent, which the goroutines of the service call, is instrumentation too, but for its tests, which call it.
func Instrumentation(function, file string) bool {
	name, _, _ := strings.Cut(function, "[") // type parameters have paths of their own
	if rest, ok := strings.CutPrefix(name, agent); ok && strings.IndexAny(rest, "./") == 0 {
		return !strings.HasSuffix(file, "_test.go")
	}
	return strings.HasPrefix(name, "go.opentelemetry.io/") || strings.HasPrefix(Short(name), "otel")
}

// agent is the path of the agent's package.
const agent = "spanflame/agent"

// Anyones reports whether a function may be any service's: of the standard library, or instrumentation.
func Anyones(function, file string) bool {
	return Library(function, file) || Instrumentation(function, file)
}

// OnBehalf reports whether a function works, and waits, on behalf of its caller and is therefore not to blame for the
// time it takes: all that is not the service's own.
func OnBehalf(function, file string) bool {
	return Anyones(function, file) || Dependency(function, file)
}

// Own returns the innermost function of a stack that is the service's own, empty if there is none. The functions are
// given from the innermost outwards with their files.
func Own(stack iter.Seq2[string, string]) string {
	for function, file := range stack {
		if !OnBehalf(function, file) {
			return function
		}
	}
	return ""
}

// Blamed returns the function that is to blame for the time of a stack, whose functions are given from the innermost
// outwards with their files, which may be empty. It is the innermost that does not work on behalf of its caller; where
// all do, it is the innermost of a dependency, or else the innermost that is not the runtime's, if there is one. It is
// empty for an empty stack.
func Blamed(stack iter.Seq2[string, string]) string {
	function, _ := blamed(stack)
	return function
}

// blamed is Blamed, and reports whether the function is the service's own or of a dependency.
func blamed(stack iter.Seq2[string, string]) (function string, known bool) {
	innermost, library, dependency := "", "", ""
	for function, file := range stack {
		if !OnBehalf(function, file) {
			return function, true
		}
		innermost = cmp.Or(innermost, function)
		if library == "" && !ofRuntime(function) {
			library = function
		}
		if dependency == "" && !Anyones(function, file) {
			dependency = function
		}
	}
	return cmp.Or(dependency, library, innermost), dependency != ""
}

// ofRuntime reports whether a function is the runtime's.
func ofRuntime(function string) bool {
	return strings.HasPrefix(function, "runtime.") || strings.HasPrefix(function, "internal/runtime/") || strings.HasPrefix(function, "runtime/")
}
