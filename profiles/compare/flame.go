package compare

import (
	"cmp"
	"slices"

	"spanflame/profiles/internal/stacks"
)

// Frame is a function as called by its parent, on both sides.
type Frame struct {
	Name     string
	Before   float64 // with what it called, normalised
	After    float64
	Width    float64 // the larger side of each part, added up, so that what vanished is seen too
	Children []*Frame
}

// flame is the tree of all stacks that are large enough to be seen.
func (c *comparison) flame(total Values) *Frame {
	top := &Frame{Name: "total", Before: float64(total.Before), After: float64(total.After)}
	nodes := c.table.Nodes
	frames := make([]*Frame, len(nodes))
	for id := range nodes {
		tb, ta := at(c.before.tree, int32(id)), at(c.after.tree, int32(id))
		if !c.large(tb, ta) {
			continue
		}
		f := &Frame{
			Name:   c.table.Names[nodes[id].Function],
			Before: float64(tb.sum()) / c.divisors[0], After: float64(ta.sum()) / c.divisors[1],
		}
		frames[id] = f
		parent := top
		if p := nodes[id].Parent; p != stacks.Root {
			parent = frames[p] // it is at least as large
		}
		parent.Children = append(parent.Children, f)
	}
	// What children are too small to be shown stays in the width of their parent.
	for _, f := range slices.Backward(frames) {
		if f != nil {
			f.setWidth()
		}
	}
	top.setWidth()
	return top
}

// setWidth adds up the children, whose widths are set, and the larger side of what they leave.
func (f *Frame) setWidth() {
	before, after := f.Before, f.After
	for _, child := range f.Children {
		before, after = before-child.Before, after-child.After
		f.Width += child.Width
	}
	f.Width += max(before, after, 0)
	slices.SortFunc(f.Children, func(a, b *Frame) int { return cmp.Compare(a.Name, b.Name) })
}
