package leaks

import (
	"cmp"

	"spanflame/internal/wallprofile"
	"spanflame/profiles/internal/stacks"
)

// site returns the function that is to blame for what a stack holds.
func (r *reader) site(node int32) string {
	return cmp.Or(wallprofile.Blamed(func(yield func(function, file string) bool) {
		for at := node; at != stacks.Root; at = r.table.Nodes[at].Parent {
			if f := r.table.Nodes[at].Function; !yield(r.table.Names[f], r.table.Files[f]) {
				return
			}
		}
	}), "no stack")
}
