package leaks

import (
	"slices"

	"spanflame/internal/wallprofile"
)

// site is the innermost function of a stack that is not of the standard library, or the innermost of all.
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
