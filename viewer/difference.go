package viewer

import (
	"fmt"

	"spanflame/internal/format"
	"spanflame/profiles"

	"github.com/google/pprof/profile"
)

// differenceTree is the stacks of two profiles, without what other goroutines did beside the time of a span. It is nil
// where there are none.
func differenceTree(p, base *profile.Profile, scale, baseScale float64) *node {
	value, baseValue := profiles.DefaultSampleIndex(p), profiles.DefaultSampleIndex(base)
	if value < 0 || baseValue < 0 {
		return nil
	}
	after, before := newTree(p, value, profiles.OwnTime), newTree(base, baseValue, profiles.OwnTime)
	root := join(after, before, scale, baseScale)
	root.cut = after.cut || before.cut
	if root.total == 0 {
		return nil
	}
	root.name = "all"
	return root
}

// join merges the trees of both sides; one of them may be nil.
func join(after, before *node, scale, baseScale float64) *node {
	n := &node{}
	var selfAfter, selfBefore int64
	names := make(map[string]bool)
	if after != nil {
		n.name, n.after, selfAfter = after.name, scaled(after.total, scale), scaled(after.self, scale)
		for name := range after.children {
			names[name] = true
		}
	}
	if before != nil {
		n.name, n.before, selfBefore = before.name, scaled(before.total, baseScale), scaled(before.self, baseScale)
		for name := range before.children {
			names[name] = true
		}
	}
	n.total = max(selfAfter, selfBefore)
	for name := range names {
		child := join(after.child(name), before.child(name), scale, baseScale)
		if child.total == 0 {
			continue // it was scaled to nothing
		}
		if n.children == nil {
			n.children = make(map[string]*node, len(names))
		}
		n.children[name] = child
		n.total += child.total
	}
	return n
}

func scaled(v int64, by float64) int64 { return int64(float64(v) * by) }

// child is the one of a name; nil where there is none.
func (n *node) child(name string) *node {
	if n == nil {
		return nil
	}
	return n.children[name]
}

// newDifference draws a tree of both sides, whose values have the unit; nil where there is none. A frame is as wide as
// the larger of its sides, so that what is gone is seen, too.
func newDifference(root *node, unit, zoomPath string, zoom int) *flame {
	if root == nil {
		return nil
	}
	f := &flame{ID: "difference", Label: "Flame graph of the difference: each frame is as wide as the larger of both sides, and a link that zooms to it"}
	f.draw(root, zoomPath, zoom, func(n *node) (string, state) {
		by, st := n.after-n.before, same
		switch {
		case by > n.total/50: // a fiftieth is too little to be coloured
			st = more
		case -by > n.total/50:
			st = less
		}
		return fmt.Sprintf(
			"%s: before %s, after %s, %s", format.Clean(n.name, 300), format.Value(n.before, unit),
			format.Value(n.after, unit), format.Difference(by, unit),
		), st
	})
	return f
}
