// Package flame builds flame graphs of profiles and of differences between profiles, and the tables next to them. The
// pages of the viewer and the report of a comparison draw them. It reads no profiles and writes no HTML.
package flame

import (
	"cmp"
	"slices"

	"github.com/google/pprof/profile"

	"spanflame/internal/wallprofile"
)

// Limits of a tree. Parts of stacks beyond them count for the frame above.
const (
	maxDepth = 200     // frames of a stack
	maxNodes = 200_000 // in all
)

const kinds = wallprofile.KindGC + 1

// Side is the part of a profile that a graph shows.
type Side struct {
	Profile  *profile.Profile
	Value    int                        // index of the sample type
	Keep     func(*profile.Sample) bool // nil keeps all samples
	Scale    float64                    // of a difference; 0 is 1
	Negative bool                       // the samples with values below zero, whose sign is changed, instead of those above
	OwnCode  bool                       // without functions that work on behalf of the service's own; their time is the caller's
}

// Unit returns the unit of the values.
func (s Side) Unit() string { return s.Profile.SampleType[s.Value].Unit }

// value returns the value of a sample, or 0 for a sample that the side does not have.
func (s Side) value(sample *profile.Sample) int64 {
	v := sample.Value[s.Value]
	if s.Negative {
		v = -v
	}
	if v <= 0 || s.Keep != nil && !s.Keep(sample) {
		return 0
	}
	return v
}

// leavesOut reports whether the side does not have the function of a line.
func (s Side) leavesOut(l profile.Line) bool {
	if !s.OwnCode || l.Function == nil {
		return s.OwnCode
	}
	name := functionName(l)
	return !wallprofile.IsMarker(name) && wallprofile.OnBehalf(name, l.Function.Filename)
}

func (s Side) scale() float64 { return cmp.Or(s.Scale, 1) }

// tree is a function as called by its parent, with the values of all its stacks.
type tree struct {
	name     string
	behalf   bool // it works on behalf of its caller
	total    int64
	self     int64
	byKind   [kinds]int64 // of the goroutine that waits; below its state, of those that it waits for
	children map[string]*tree
	lines    lines
	cut      bool // of a root: parts of stacks are left out
}

// newTree merges the stacks of a side.
func newTree(side Side) *tree {
	root := &tree{name: "all"}
	nodes := 0
	for _, s := range side.Profile.Sample {
		v := side.value(s)
		if v == 0 {
			continue
		}
		causes := causes(s)
		at, depth, kind := root, 0, wallprofile.KindOf(leaf(s, causes))
		at.add(v, kind)
	stack:
		for i, l := range slices.Backward(s.Location) {
			if i == causes-1 {
				kind = wallprofile.KindOf(leaf(s, 0))
			}
			for _, line := range slices.Backward(l.Line) {
				if side.leavesOut(line) {
					continue
				}
				name := functionName(line)
				child := at.children[name]
				if child == nil {
					if depth == maxDepth || nodes == maxNodes {
						root.cut = true
						break stack
					}
					if at.children == nil {
						at.children = make(map[string]*tree)
					}
					child = &tree{name: name, behalf: onBehalf(name)}
					at.children[name] = child
					nodes++
				}
				at = child
				at.add(v, kind)
				at.lines.add(line, v)
				depth++
			}
		}
		at.self += v
	}
	return root
}

func (t *tree) add(v int64, kind wallprofile.Kind) {
	t.total += v
	t.byKind[kind] += v
}

// lines are the lines of a function, with the values of the stacks that were there. A marker has none.
type lines []lineValue

type lineValue struct {
	file        string
	line, value int64
}

func (l *lines) add(line profile.Line, value int64) {
	if line.Function == nil || line.Line <= 0 || wallprofile.IsMarker(line.Function.Name) {
		return
	}
	i := slices.IndexFunc(*l, func(v lineValue) bool { return v.line == line.Line && v.file == line.Function.Filename })
	if i < 0 {
		i = len(*l)
		*l = append(*l, lineValue{file: line.Function.Filename, line: line.Line})
	}
	(*l)[i].value += value
}

// most returns the line with the largest value, such as "stock.go:123", or nothing if lines are not known.
func (l lines) most() string {
	if len(l) == 0 {
		return ""
	}
	most := slices.MaxFunc(l, func(a, b lineValue) int {
		return cmp.Or(cmp.Compare(a.value, b.value), cmp.Compare(b.line, a.line), cmp.Compare(b.file, a.file))
	})
	return wallprofile.Position(most.file, most.line)
}

// causes returns how many of a sample's innermost locations say who caused a wait, and what was done meanwhile.
func causes(s *profile.Sample) int {
	return wallprofile.Causes(len(s.Location), func(i int) string {
		for _, line := range s.Location[i].Line {
			return functionName(line)
		}
		return ""
	})
}

// leaf returns the innermost function of a stack without the causes of a wait, or a name that stands for none.
func leaf(s *profile.Sample, causes int) string {
	for _, l := range s.Location[causes:] {
		for _, line := range l.Line {
			return functionName(line)
		}
	}
	return ""
}

func functionName(l profile.Line) string {
	if l.Function == nil || l.Function.Name == "" {
		return "(no name)"
	}
	return wallprofile.ReplaceShapes(l.Function.Name, "") // as a profile from a server has it
}

// onBehalf reports whether a function works on behalf of its caller, by its name alone: a span's profile from a server has
// no files, and is shown as the one from a directory is.
func onBehalf(name string) bool { return wallprofile.OnBehalf(name, "") }

// kind returns the kind of state in which most of the time went.
func (t *tree) kind() wallprofile.Kind {
	most := wallprofile.KindRunning
	for _, k := range shownKinds {
		if t.byKind[k.kind] > t.byKind[most] {
			most = k.kind
		}
	}
	return most
}

// Size implements [node].
func (t *tree) Size() float64 { return float64(t.total) }

// Below implements [node]: widest first.
func (t *tree) Below() []*tree {
	all := make([]*tree, 0, len(t.children))
	for _, c := range t.children {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *tree) int { return cmp.Or(cmp.Compare(b.total, a.total), cmp.Compare(a.name, b.name)) })
	return all
}

// child returns the child of a name, or nil. It may be called on nil.
func (t *tree) child(name string) *tree {
	if t == nil {
		return nil
	}
	return t.children[name]
}
