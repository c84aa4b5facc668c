package leaks

import (
	"slices"

	"spanflame/internal/wallprofile"
)

// site returns the innermost function of a stack that is not in the standard library, or else the innermost function.
func site(stack []string) string {
	for _, name := range slices.Backward(stack) {
		if !wallprofile.Library(name, "") {
			return name
		}
	}
	if len(stack) == 0 {
		return "no stack"
	}
	return stack[len(stack)-1]
}
