package flame

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"spanflame/internal/format"
	"spanflame/internal/wallprofile"
)

// pageLimits are those of a graph on a page: the pages of pprof show what is beyond them.
var pageLimits = Limits{Share: 0.002, Depth: maxDepth, Frames: 2_000}

const (
	rowHeight = 22 // CSS pixels
	topRows   = 12 // of the table of functions
)

// Classes of the frames of a difference.
const (
	classMore = "more"
	classLess = "less"
	classSame = "same"
)

// shownKinds has a row for each kind of state, in the order in which they are shown: its class on a page, and the words
// of the legend.
var shownKinds = []struct {
	kind         wallprofile.Kind
	class, words string
}{
	{wallprofile.KindRunning, "running", "running on the CPU"},
	{wallprofile.KindWaiting, "waiting", "waiting"},
	{wallprofile.KindRunnable, "runnable", "runnable, waiting for a CPU"},
	{wallprofile.KindSyscall, "syscall", "in a system call"},
	{wallprofile.KindGC, "gc", "garbage collection"},
	{wallprofile.KindOther, "unknown", "other or not recorded"},
}

func classOf(kind wallprofile.Kind) string {
	for _, k := range shownKinds {
		if k.kind == kind {
			return k.class
		}
	}
	return ""
}

// Graph is a flame graph as a page shows it. Names in it are clean but not escaped.
type Graph struct {
	Frames []Frame
	Height int // CSS pixels
	Total  string
	Shares []Share // by kind of state, if the profile has states
	Top    []Function
	ID     string // of the part of the page that shows it, empty for a second graph
	Label  string // describes it for those who do not see it
	Zoomed string // name of the frame that takes the whole width, empty for the whole graph
	Whole  string // address of the whole graph
	Cut    bool   // frames are left out
}

// Frame is a frame of a Graph.
type Frame struct {
	Path   string // address of the page that is zoomed to it, empty if there is none
	X, W   string // in percent of the width
	Y      int    // CSS pixels
	Name   string // as it is shown
	Title  string // all of it, in words
	Class  string
	Marker bool // not a function
}

// Share is the time in one kind of state.
type Share struct {
	Class, Words   string
	Value, Percent string
	X, W           string // in percent, for the bar
}

// Function is one line of the table next to a graph: a function in which time ended.
type Function struct {
	Name, In, State string // In is the caller, if it says more
	Line            string // where most of it was, such as "stock.go:123", empty if it is not known
	Value, Percent  string
	Class           string
}

// New returns the graph of a side, zoomed to the frame with the index; 0 is the whole graph. The page that is zoomed to a
// frame is at zoomPath followed by its index. Only wall-clock profiles are stated: their stacks end in states.
func New(side Side, stated bool, zoomPath string, zoom int) Graph {
	g := Graph{ID: "flame", Label: "Flame graph: each frame is a link that zooms to it"}
	g.fill(side, stated, zoomPath, zoom)
	return g
}

// NewOthers returns the graph of other goroutines that worked for a span. It cannot be zoomed.
func NewOthers(side Side) Graph {
	g := Graph{Label: "Flame graph of other goroutines"}
	g.fill(side, true, "", 0)
	return g
}

func (g *Graph) fill(side Side, stated bool, zoomPath string, zoom int) {
	root, unit := newTree(side), side.Unit()
	g.Total = format.Value(root.total, unit)
	if root.total == 0 {
		return
	}
	if stated {
		g.Shares = shares(root, unit)
	}
	g.Top = top(side, root, stated)
	g.Cut = root.cut
	draw(g, root, zoomPath, zoom, func(t *tree) (name, title, class string) {
		return t.name, titleOf(t, root.total, unit, stated), classOf(t.kind())
	})
}

// NewDifference returns the graph of a difference, or nil for nil.
func NewDifference(root *Difference, unit, zoomPath string, zoom int) *Graph {
	if root == nil {
		return nil
	}
	g := &Graph{
		ID: "difference", Cut: root.Cut,
		Label: "Flame graph of the difference: each frame is as wide as the larger of both sides, and a link that zooms to it",
	}
	draw(g, root, zoomPath, zoom, func(d *Difference) (name, title, class string) {
		before, after := round(d.Before), round(d.After)
		class = classSame
		switch least := d.Width / 50; { // a smaller change is not coloured
		case d.After-d.Before > least:
			class = classMore
		case d.Before-d.After > least:
			class = classLess
		}
		title = fmt.Sprintf("%s: before %s, after %s, %s", format.Clean(d.Name, 300),
			format.Value(before, unit), format.Value(after, unit), format.Difference(after-before, unit))
		return d.Name, title, class
	})
	return g
}

func round(v float64) int64 { return int64(math.Round(v)) }

// draw adds the frames of a tree, as described, to a graph.
func draw[T node[T]](g *Graph, root T, zoomPath string, zoom int, describe func(T) (name, title, class string)) {
	path := func(index int) string {
		if zoomPath == "" {
			return ""
		}
		return zoomPath + strconv.Itoa(index) + "#" + g.ID
	}
	l := Place(root, zoom, pageLimits)
	if l.Zoomed != nil {
		name, _, _ := describe(l.Zoomed.Node)
		g.Zoomed = format.Clean(name, 200)
	}
	g.Whole, g.Cut, g.Height = path(0), g.Cut || l.Cut, l.Rows*rowHeight
	for _, f := range l.Frames {
		name, title, class := describe(f.Node)
		marker := wallprofile.IsMarker(name)
		shown := name
		if !marker {
			shown = wallprofile.Short(name)
		}
		g.Frames = append(g.Frames, Frame{
			Path: path(f.Index), X: format.Percent(f.X), W: format.Percent(f.Width), Y: f.Depth * rowHeight,
			Name: format.Clean(shown, 120), Title: title, Class: class, Marker: marker,
		})
	}
}

// titleOf describes a frame: its name, how much, what share and, of a stated profile, in which states.
func titleOf(t *tree, whole int64, unit string, stated bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s, %s", format.Clean(t.name, 300), format.Value(t.total, unit), format.Share(t.total, whole))
	if line := t.lines.most(); line != "" {
		fmt.Fprintf(&b, ", at %s", format.Clean(line, 100))
	}
	if stated && !wallprofile.IsBracketed(t.name) {
		sep := " ("
		for _, k := range shownKinds {
			if v := t.byKind[k.kind]; v > 0 {
				fmt.Fprintf(&b, "%s%s %s", sep, k.words, format.Share(v, t.total))
				sep = ", "
			}
		}
		b.WriteByte(')')
	}
	return b.String()
}

func shares(root *tree, unit string) []Share {
	var all []Share
	at := 0.0
	for _, k := range shownKinds {
		v := root.byKind[k.kind]
		if v == 0 {
			continue
		}
		w := float64(v) / float64(root.total)
		all = append(all, Share{
			Class: k.class, Words: k.words, Value: format.Value(v, unit), Percent: format.Share(v, root.total),
			X: format.Percent(at), W: format.Percent(w),
		})
		at += w
	}
	return all
}

// place is a function, its caller if that says more, and the state in which time ended there.
type place struct{ function, in, state string }

func (p place) compare(q place) int {
	return cmp.Or(cmp.Compare(p.function, q.function), cmp.Compare(p.in, q.in), cmp.Compare(p.state, q.state))
}

// top returns the functions in which most of the time of the goroutines themselves ended, whoever they waited for there. What
// another service did meanwhile, in a profile of a whole trace, ended there.
func top(side Side, root *tree, stated bool) []Function {
	unit := side.Unit()
	at := make(map[place]lines)
	for _, s := range side.Profile.Sample {
		if v := side.value(s); v > 0 {
			place, line := side.place(s)
			of := at[place]
			of.add(line, v)
			at[place] = of
		}
	}
	sums := make(map[place]int64)
	var walk func(t *tree, at place, owner string)
	var elsewhere func(t *tree) int64
	elsewhere = func(t *tree) (total int64) {
		for _, c := range t.children {
			if strings.HasPrefix(c.name, wallprofile.SpanPrefix) {
				total += c.total
				walk(c, place{}, "")
			} else {
				total += elsewhere(c)
			}
		}
		return total
	}
	walk = func(t *tree, at place, owner string) {
		switch {
		case wallprofile.IsCause(t.name):
			if here := t.total - elsewhere(t); here > 0 {
				sums[at] += here
			}
			return
		case wallprofile.IsBracketed(t.name):
			at.state = t.name
		default:
			at.function, at.in = t.name, owner
			if !t.behalf {
				at.in, owner = "", t.name
			}
		}
		if t.self > 0 {
			sums[at] += t.self
		}
		for _, c := range t.children {
			walk(c, at, owner)
		}
	}
	for _, c := range root.children {
		walk(c, place{}, "")
	}
	places := make([]place, 0, len(sums))
	for p := range sums {
		places = append(places, p)
	}
	slices.SortFunc(places, func(a, b place) int { return cmp.Or(cmp.Compare(sums[b], sums[a]), a.compare(b)) })
	var all []Function
	for _, p := range places[:min(len(places), topRows)] {
		state := p.state
		if state == "" && stated {
			state = wallprofile.Running.String()
		}
		all = append(all, Function{
			Name: format.Clean(cmp.Or(p.function, "(other code)"), 200), In: format.Clean(p.in, 200), Line: format.Clean(at[p].most(), 100),
			State: format.Clean(strings.Trim(state, "[]"), 60),
			Value: format.Value(sums[p], unit), Percent: format.Share(sums[p], root.total),
			Class: classOf(wallprofile.KindOf(p.state)),
		})
	}
	return all
}
