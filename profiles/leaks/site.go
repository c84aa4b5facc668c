package leaks

import (
	"slices"
	"strings"
)

// library has the first elements of the import paths of the standard library.
var library = func() map[string]bool {
	m := map[string]bool{}
	for dir := range strings.FieldsSeq(`archive arena bufio builtin bytes cmp compress container context crypto
		database debug embed encoding errors expvar flag fmt go hash html image index internal io iter log maps
		math mime net os path plugin reflect regexp runtime simd slices sort strconv strings structs sync syscall
		testing text time unicode unique unsafe vendor weak`) {
		m[dir] = true
	}
	return m
}()

// standard tells whether a function such as "net/http.(*conn).serve" is of the standard library.
func standard(function string) bool {
	end := strings.IndexAny(function, "/.")
	return end >= 0 && library[function[:end]]
}

// site is the innermost function of a stack that is not of the standard library, or the innermost of all.
func site(stack []string) string {
	for _, name := range slices.Backward(stack) {
		if !standard(name) {
			return name
		}
	}
	if len(stack) == 0 {
		return "no stack"
	}
	return stack[len(stack)-1]
}
