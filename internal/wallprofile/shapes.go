package wallprofile

import "strings"

// ReplaceShapes replaces type parameters such as "[go.shape.int]" in the name of a function. They stand for all types for
// which the compiler generated the same code, and a function can have those of another instance
// (https://go.dev/issue/64528). Pyroscope removes them.
func ReplaceShapes(function, with string) string {
	for from := 0; ; {
		i := strings.Index(function[from:], "[go.shape.")
		if i < 0 {
			return function
		}
		i += from
		function = function[:i] + with + function[i+bracketed(function[i:]):]
		from = i + len(with)
	}
}

// bracketed returns the length of the part in brackets with which a text begins; all of it, if they are not closed.
func bracketed(text string) int {
	depth := 0
	for i, c := range []byte(text) {
		switch c {
		case '[':
			depth++
		case ']':
			depth--
		}
		if depth == 0 {
			return i + 1
		}
	}
	return len(text)
}
