package viewer

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/pprof/profile"

	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
)

// Bounds of a flame graph that is drawn: what is beyond them is left to pprof's own pages.
const (
	maxFlameDepth  = 200   // rows
	maxFlameFrames = 2_000 // in all
	minFlameShare  = 0.002 // of the width
	maxTreeNodes   = 200_000
	rowHeight      = 22 // in CSS pixels
)

// state is what a goroutine was doing, as far as colours go.
type state string

const (
	running  state = "running"
	waiting  state = "waiting"
	runnable state = "runnable"
	syscall  state = "syscall"
	gc       state = "gc"
	unknown  state = "unknown"
)

// What a frame of a difference is instead.
const (
	more state = "more"
	less state = "less"
	same state = "same"
)

// states are all of them, in the order in which they are shown.
var states = []state{running, waiting, runnable, syscall, gc, unknown}

// Words is how the legend says a state.
func (s state) Words() string {
	switch s {
	case running:
		return "running on the CPU"
	case runnable:
		return "runnable, waiting for a CPU"
	case syscall:
		return "in a system call"
	case gc:
		return "garbage collection"
	case unknown:
		return "other or not recorded"
	}
	return string(s)
}

// stateOf reads the state from the innermost frame of a stack: a frame in brackets says it, see
// docs/profiles.md.
func stateOf(leaf string) state {
	switch wallprofile.KindOf(leaf) {
	case wallprofile.KindRunning:
		return running
	case wallprofile.KindGC:
		return gc
	case wallprofile.KindWaiting:
		return waiting
	case wallprofile.KindRunnable:
		return runnable
	case wallprofile.KindSyscall:
		return syscall
	}
	return unknown
}

// node is a function as called by its parent, with the values of all its stacks.
type node struct {
	name     string
	total    int64
	self     int64
	byState  map[state]int64
	children map[string]*node

	cut           bool  // of a root: stacks below it are not whole
	before, after int64 // of both sides, in the tree of a difference, whose total is how wide it is
}

// newTree merges the stacks of a profile that are kept. Stacks deeper than maxFlameDepth are cut, and so are those that
// would make the tree larger than maxTreeNodes: their time counts for the frame above the cut.
func newTree(p *profile.Profile, value int, keep func(*profile.Sample) bool) *node {
	root := &node{}
	nodes := 0
	for _, s := range p.Sample {
		v := s.Value[value]
		if v <= 0 || !keep(s) {
			continue
		}
		at, depth, leaf := root, 0, leafName(s)
		st := stateOf(leaf)
		at.add(v, st)
	stack:
		for _, l := range slices.Backward(s.Location) {
			for _, line := range slices.Backward(l.Line) {
				name := functionName(line)
				child := at.children[name]
				if child == nil {
					if depth == maxFlameDepth || nodes == maxTreeNodes {
						root.cut = true
						break stack
					}
					if at.children == nil {
						at.children = make(map[string]*node)
					}
					child = &node{name: name}
					at.children[name] = child
					nodes++
				}
				at = child
				at.add(v, st)
				depth++
			}
		}
		at.self += v
	}
	return root
}

func (n *node) add(v int64, s state) {
	n.total += v
	if n.byState == nil {
		n.byState = make(map[state]int64, 1)
	}
	n.byState[s] += v
}

func leafName(s *profile.Sample) string {
	for _, l := range s.Location {
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
	return l.Function.Name
}

// state is that of most of the node's time.
func (n *node) state() state {
	most := running
	for _, s := range states {
		if n.byState[s] > n.byState[most] {
			most = s
		}
	}
	return most
}

// sorted are the children, the widest first.
func (n *node) sorted() []*node {
	all := make([]*node, 0, len(n.children))
	for _, c := range n.children {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *node) int {
		return cmp.Or(cmp.Compare(b.total, a.total), cmp.Compare(a.name, b.name))
	})
	return all
}

// flame is a flame graph as the template draws it.
type flame struct {
	Frames []flameFrame
	Height int // in CSS pixels
	Total  string
	Shares []share // by state, where the profile has states
	Top    []topFunction
	ID     string // of the section that shows it, empty for a second one
	Label  string // what it is, for who does not see it
	Zoomed string // name of the frame that takes the whole width, empty for the whole graph
	Whole  string // the page with the whole graph
	Cut    bool   // something was left out
}

type flameFrame struct {
	Path   string // the page zoomed to it, empty where there is none
	X, W   string // in percent of the width
	Y      int    // in CSS pixels
	Name   string // as it is shown
	Title  string // all of it, in words
	State  state
	Marker bool // a frame in brackets or a span's, which is no function
}

// share is a part of the whole.
type share struct {
	State   state
	Words   string
	Value   string
	Percent string
	X, W    string // in percent, for the bar
}

// topFunction is one line of the table beside the graph: where the time ended.
type topFunction struct {
	Name, In, State string
	Value, Percent  string
	Kind            state
}

// newFlame lays out the span's own time, zoomed to the frame with the index; 0 is the whole. The page zoomed to a
// frame is at zoomPath and its index.
func newFlame(p *profile.Profile, zoomPath string, zoom int) flame {
	f := flame{ID: "flame", Label: "Flame graph: each frame is a link that zooms to it"}
	f.fill(p, zoomPath, zoom, profiles.OwnTime)
	return f
}

// newOthers lays out the time of other goroutines that worked for the span, which is beside its own.
func newOthers(p *profile.Profile) flame {
	f := flame{Label: "Flame graph of other goroutines"}
	f.fill(p, "", 0, func(s *profile.Sample) bool { return !profiles.OwnTime(s) })
	return f
}

// fill takes in those samples of a profile that keep wants.
func (f *flame) fill(p *profile.Profile, zoomPath string, zoom int, keep func(*profile.Sample) bool) {
	value := profiles.DefaultSampleIndex(p)
	if value < 0 {
		return
	}
	unit := p.SampleType[value].Unit
	root := newTree(p, value, keep)
	root.name = "all"
	f.Total = format.Value(root.total, unit)
	if root.total == 0 {
		return
	}
	stated := p.SampleType[value].Type == string(record.Wall) // other profiles say nothing of states
	if stated {
		f.Shares = shares(root, unit)
	}
	f.Top = top(root, unit, stated)
	f.draw(root, zoomPath, zoom, func(n *node) (string, state) { return frameTitle(n, root.total, unit, stated), n.state() })
}

// draw lays out the frames of a tree, zoomed to the frame with the index. What a frame says in words, and its colour,
// describe tells. Without a zoomPath the frames are no links.
func (f *flame) draw(root *node, zoomPath string, zoom int, describe func(*node) (title string, s state)) {
	// Frames are numbered in the order of a walk through the whole graph, so that a number means the same
	// frame whatever the zoom.
	type numbered struct {
		*node
		index int
	}
	counter := 0
	var find func(n *node) []numbered // the frame and those above it, from the innermost
	find = func(n *node) []numbered {
		index := counter
		if index == zoom {
			return []numbered{{n, index}}
		}
		counter++
		for _, c := range n.sorted() {
			if path := find(c); path != nil {
				return append(path, numbered{n, index})
			}
		}
		return nil
	}
	found := find(root)
	if found == nil {
		found = []numbered{{root, 0}}
	}
	from, above := found[0], found[1:]
	if from.index > 0 {
		f.Zoomed = format.Clean(from.name, 200)
	}
	slices.Reverse(above)
	path := func(index int) string {
		if zoomPath == "" {
			return ""
		}
		return zoomPath + strconv.Itoa(index) + "#" + f.ID
	}
	f.Whole = path(0)
	f.Cut = root.cut
	rows := 0
	draw := func(n *node, index, depth int, x, w float64) {
		rows = max(rows, depth+1)
		title, st := describe(n)
		f.Frames = append(f.Frames, flameFrame{
			Path: path(index), X: format.Percent(x), W: format.Percent(w), Y: depth * rowHeight,
			Name: format.Clean(short(n.name), 120), Title: title, State: st,
			Marker: wallprofile.IsMarker(n.name),
		})
	}
	for depth, n := range above {
		draw(n.node, n.index, depth, 0, 1)
	}
	var walk func(n *node, index, depth int, x, w float64) int
	walk = func(n *node, index, depth int, x, w float64) int {
		shown := w >= minFlameShare && len(f.Frames) < maxFlameFrames
		if shown {
			draw(n, index, depth, x, w)
		} else {
			f.Cut = true
		}
		next := index + 1
		for _, c := range n.sorted() {
			part := w * float64(c.total) / float64(n.total)
			next = walk(c, next, depth+1, x, part)
			x += part
		}
		return next
	}
	walk(from.node, from.index, len(above), 0, 1)
	f.Height = rows * rowHeight
}

// frameTitle says a frame in words: its name, how much, what share, and in which states where the profile has them.
func frameTitle(n *node, whole int64, unit string, stated bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s, %s", format.Clean(n.name, 300), format.Value(n.total, unit), format.Share(n.total, whole))
	if stated && !wallprofile.IsBracketed(n.name) {
		sep := " ("
		for _, s := range states {
			if v := n.byState[s]; v > 0 {
				fmt.Fprintf(&b, "%s%s %s", sep, s.Words(), format.Share(v, n.total))
				sep = ", "
			}
		}
		b.WriteByte(')')
	}
	return b.String()
}

func shares(root *node, unit string) []share {
	var all []share
	at := 0.0
	for _, s := range states {
		v := root.byState[s]
		if v == 0 {
			continue
		}
		w := float64(v) / float64(root.total)
		all = append(all, share{s, s.Words(), format.Value(v, unit), format.Share(v, root.total), format.Percent(at), format.Percent(w)})
		at += w
	}
	return all
}

// top are the functions in which most of the time ended, with what they did there where the profile has states.
func top(root *node, unit string, stated bool) []topFunction {
	type place struct{ function, in, state string }
	sums := make(map[place]int64)
	var walk func(n *node, at place, owner string)
	walk = func(n *node, at place, owner string) {
		if wallprofile.IsBracketed(n.name) {
			at.state = n.name
		} else {
			at.function = n.name
			if !wallprofile.OnBehalf(n.name, "") {
				owner = n.name
			}
		}
		if n.self > 0 {
			if wallprofile.OnBehalf(at.function, "") {
				at.in = owner
			}
			sums[at] += n.self
			at.in = ""
		}
		for _, c := range n.children {
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
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(cmp.Compare(sums[b], sums[a]), cmp.Compare(a.function, b.function), cmp.Compare(a.in, b.in), cmp.Compare(a.state, b.state))
	})
	var all []topFunction
	for _, p := range places[:min(len(places), 12)] {
		st := p.state
		if st == "" && stated {
			st = string(running)
		}
		all = append(
			all,
			topFunction{
				format.Clean(p.function, 200), format.Clean(p.in, 200), format.Clean(strings.Trim(st, "[]"), 60),
				format.Value(sums[p], unit), format.Share(sums[p], root.total), stateOf(p.state),
			},
		)
	}
	return all
}

// short is a function's name without the directory of its package's path, as pprof shows it. What is no
// function stays as it is.
func short(name string) string {
	if wallprofile.IsMarker(name) {
		return name
	}
	path := name
	if i := strings.IndexAny(name, "[("); i >= 0 { // type arguments and receivers have paths of their own
		path = name[:i]
	}
	return name[strings.LastIndexByte(path, '/')+1:]
}
