// Package stacks gives functions and stacks the same numbers in every profile, whichever build or tool it is
// from. Packages compare and leaks add up values by them. It knows nothing of values.
package stacks

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"

	"github.com/google/pprof/profile"
)

// Root is the parent of every outermost function.
const Root int32 = -1

// Node is a stack: a function as called by its parent.
type Node struct {
	Parent, Function int32
}

// Table numbers functions and stacks from 0, in the order in which they come. A parent comes before its
// children.
type Table struct {
	Names []string // of functions
	Files []string // of the first location of each function that was seen
	Nodes []Node

	functions map[string]int32
	nodes     map[Node]int32
}

// NewTable returns an empty table.
func NewTable() *Table {
	return &Table{functions: map[string]int32{}, nodes: map[Node]int32{}}
}

// Has tells whether a function of that name was seen.
func (t *Table) Has(name string) bool {
	_, ok := t.functions[name]
	return ok
}

func (t *Table) function(name, file string) int32 {
	id, ok := t.functions[name]
	if !ok {
		id = int32(len(t.Names))
		t.functions[name] = id
		t.Names, t.Files = append(t.Names, name), append(t.Files, file)
	}
	return id
}

// Child returns the number of a stack.
func (t *Table) Child(parent, function int32) int32 {
	n := Node{parent, function}
	id, ok := t.nodes[n]
	if !ok {
		id = int32(len(t.Nodes))
		t.nodes[n] = id
		t.Nodes = append(t.Nodes, n)
	}
	return id
}

// Path is the functions of a stack, outermost first.
func (t *Table) Path(id int32) []string {
	var names []string
	for ; id != Root; id = t.Nodes[id].Parent {
		names = append(names, t.Names[t.Nodes[id].Function])
	}
	slices.Reverse(names)
	return names
}

// Reader numbers the stacks of one profile.
type Reader struct {
	table     *Table
	locations map[*profile.Location][]int32
	nodes     []int32
}

// NewReader returns a reader of one profile, whose locations it remembers.
func (t *Table) NewReader() *Reader {
	return &Reader{table: t, locations: map[*profile.Location][]int32{}}
}

// Nodes returns a sample's stack as its nodes, outermost first: the last one is the whole stack. They are
// good until the next call.
func (r *Reader) Nodes(s *profile.Sample) []int32 {
	r.nodes = r.nodes[:0]
	at := Root
	for _, l := range slices.Backward(s.Location) {
		ids, ok := r.locations[l]
		if !ok {
			ids = r.table.location(l)
			r.locations[l] = ids
		}
		for _, id := range ids {
			at = r.table.Child(at, id)
			r.nodes = append(r.nodes, at)
		}
	}
	return r.nodes
}

// location returns the functions of a location, outermost first.
func (t *Table) location(l *profile.Location) []int32 {
	var ids []int32
	for _, line := range slices.Backward(l.Line) { // the first line is the innermost inlined function
		if line.Function == nil {
			continue
		}
		name := line.Function.Name
		if name == "" {
			name = line.Function.SystemName
		}
		if name != "" {
			ids = append(ids, t.function(Identity(name), line.Function.Filename))
		}
	}
	if len(ids) == 0 {
		ids = append(ids, t.function(address(l), ""))
	}
	return ids
}

// Identity is what functions of two builds are matched by: the name without the type arguments that a
// compiler spells out for shared code, which change with the set of types in a program.
func Identity(name string) string {
	for from := 0; ; {
		i := strings.Index(name[from:], "[go.shape.")
		if i < 0 {
			return name
		}
		i += from
		depth, end := 0, len(name)
		for j := i; j < len(name); j++ {
			switch name[j] {
			case '[':
				depth++
			case ']':
				depth--
			}
			if depth == 0 {
				end = j + 1
				break
			}
		}
		name = name[:i] + "[...]" + name[end:]
		from = i + len("[...]")
	}
}

// address names a location without symbols by its place in its file, which does not depend on where the
// process loaded it.
func address(l *profile.Location) string {
	if l.Mapping == nil || l.Mapping.File == "" {
		return fmt.Sprintf("0x%x", l.Address)
	}
	return fmt.Sprintf("%s+0x%x", path.Base(l.Mapping.File), l.Address-l.Mapping.Start+l.Mapping.Offset)
}

// Printable keeps a profile's names from breaking lines and from steering a terminal.
func Printable(name string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, name)
}
