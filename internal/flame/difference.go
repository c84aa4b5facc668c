package flame

import (
	"cmp"
	"math"
	"slices"
)

// Difference is a function as called by its parent, on two sides.
type Difference struct {
	Name          string
	Before, After float64       // with everything that it called
	Width         float64       // the larger side of each of its parts, added up, so that what vanished can be seen
	Children      []*Difference // in the order in which they are drawn
	Cut           bool          // of a root: parts of stacks are left out
}

// Compare returns the tree of two sides, or nil if both are empty.
func Compare(before, after Side) *Difference {
	b, a := newTree(before), newTree(after)
	root := join(b, a, before.scale(), after.scale())
	if root.Width == 0 {
		return nil
	}
	root.Cut = a.cut || b.cut
	return root
}

// join merges the trees of both sides; one of them may be nil.
func join(before, after *tree, beforeScale, afterScale float64) *Difference {
	d := &Difference{}
	var selfBefore, selfAfter float64
	names := make(map[string]bool)
	if after != nil {
		d.Name, d.After, selfAfter = after.name, float64(after.total)*afterScale, float64(after.self)*afterScale
		for name := range after.children {
			names[name] = true
		}
	}
	if before != nil {
		d.Name, d.Before, selfBefore = before.name, float64(before.total)*beforeScale, float64(before.self)*beforeScale
		for name := range before.children {
			names[name] = true
		}
	}
	d.Width = max(selfBefore, selfAfter)
	for name := range names {
		child := join(before.child(name), after.child(name), beforeScale, afterScale)
		d.Children = append(d.Children, child)
		d.Width += child.Width
	}
	slices.SortFunc(d.Children, func(a, b *Difference) int {
		return cmp.Or(cmp.Compare(b.Width, a.Width), cmp.Compare(a.Name, b.Name))
	})
	return d
}

// SetWidth sets the width from the children, whose widths are set, and from the larger side of what they leave.
func (d *Difference) SetWidth() {
	before, after := d.Before, d.After
	d.Width = 0
	for _, child := range d.Children {
		before, after = before-child.Before, after-child.After
		d.Width += child.Width
	}
	d.Width += max(math.Abs(before), math.Abs(after))
}

// Size implements [node].
func (d *Difference) Size() float64 { return d.Width }

// Below implements [node].
func (d *Difference) Below() []*Difference { return d.Children }
