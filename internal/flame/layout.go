package flame

import "slices"

// node is a frame of a graph with those below it, in the order in which they are drawn.
type node[T any] interface {
	Size() float64
	Below() []T
}

// Limits selects the frames of a graph that are drawn.
type Limits struct {
	Share  float64 // of the width of the graph, which a frame must have at least
	Depth  int     // frames of a stack
	Frames int     // in all
}

// Placed is a frame with its place.
type Placed[T any] struct {
	Node     T
	Index    int // the number of the frame in a walk through the whole graph; it does not depend on what is drawn
	Depth    int
	X, Width float64 // shares of the width of the graph
}

// Layout is a graph whose frames have places.
type Layout[T node[T]] struct {
	Frames []Placed[T]
	Rows   int
	Zoomed *Placed[T] // the frame that takes the whole width, unless it is the root
	Cut    bool       // frames are left out
}

// Place gives the frames of a graph their places, zoomed to the frame with the index: 0 is the root, and so is an index
// that no frame has.
func Place[T node[T]](root T, zoom int, limits Limits) Layout[T] {
	path := find(root, zoom)
	if path == nil {
		path = []Placed[T]{{Node: root}}
	}
	var l Layout[T]
	for depth := range path {
		path[depth].Depth, path[depth].Width = depth, 1
	}
	l.Frames = append(l.Frames, path[:len(path)-1]...)
	at := path[len(path)-1]
	if at.Index > 0 {
		l.Zoomed = &at
	}
	l.Rows = at.Depth
	l.place(at, limits)
	return l
}

// place places a frame and those below it, and returns the index of the next frame.
func (l *Layout[T]) place(at Placed[T], limits Limits) int {
	if at.Width < limits.Share || at.Depth > limits.Depth || len(l.Frames) >= limits.Frames {
		l.Cut = true
	} else {
		l.Frames, l.Rows = append(l.Frames, at), max(l.Rows, at.Depth+1)
	}
	next, x := at.Index+1, at.X
	size := at.Node.Size()
	for _, child := range at.Node.Below() {
		width := at.Width * child.Size() / size
		next = l.place(Placed[T]{Node: child, Index: next, Depth: at.Depth + 1, X: x, Width: width}, limits)
		x += width
	}
	return next
}

// find returns the frame with the index and those above it, from the root; nil if there is none.
func find[T node[T]](root T, index int) []Placed[T] {
	counter := 0
	var walk func(n T) []Placed[T]
	walk = func(n T) []Placed[T] {
		at := Placed[T]{Node: n, Index: counter}
		if counter == index {
			return []Placed[T]{at}
		}
		counter++
		for _, child := range n.Below() {
			if path := walk(child); path != nil {
				return append(path, at)
			}
		}
		return nil
	}
	path := walk(root)
	slices.Reverse(path)
	return path
}
