package compare

import (
	"cmp"
	"slices"

	"spanflame/internal/flame"
	"spanflame/profiles/internal/stacks"
)

// flame returns the tree of all stacks that are large enough to be seen.
func (c *comparison) flame(total Values) *flame.Difference {
	top := &flame.Difference{Name: "total", Before: float64(total.Before), After: float64(total.After)}
	nodes := c.table.Nodes
	frames := make([]*flame.Difference, len(nodes))
	for id := range nodes {
		tb, ta := at(c.before.tree, int32(id)), at(c.after.tree, int32(id))
		if !c.large(tb, ta) {
			continue
		}
		f := &flame.Difference{
			Name:   c.table.Names[nodes[id].Function],
			Before: c.mean(0, tb), After: c.mean(1, ta),
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
			setWidth(f)
		}
	}
	setWidth(top)
	return top
}

func setWidth(f *flame.Difference) {
	f.SetWidth()
	slices.SortFunc(f.Children, func(a, b *flame.Difference) int { return cmp.Compare(a.Name, b.Name) })
}
