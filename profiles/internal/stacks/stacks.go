// Package stacks assigns numbers to functions and stacks that are the same in all profiles, regardless of the build or
// tool that they are from. Packages compare and leaks use it to add up values by function and stack. It does not handle
// the values.
package stacks

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"

	"github.com/google/pprof/profile"

	"spanflame/internal/wallprofile"
)

// Root is the parent of every outermost function.
const Root int32 = -1

// Node is a stack: a function as called by its parent.
type Node struct {
	Parent, Function int32
}

// Table numbers functions and stacks from 0, in the order in which they are added. A parent comes before its children.
type Table struct {
	Names []string // of functions
	Files []string // of the first location that was seen of each function
	Lines []int64  // at which each function starts there, 0 if that is not known
	Nodes []Node

	functions map[string]int32
	nodes     map[Node]int32
}

// NewTable returns an empty table.
func NewTable() *Table {
	return &Table{functions: map[string]int32{}, nodes: map[Node]int32{}}
}

// Has reports whether the table has a function with this name.
func (t *Table) Has(name string) bool {
	_, ok := t.functions[name]
	return ok
}

func (t *Table) function(name, file string, line int64) int32 {
	id, ok := t.functions[name]
	if !ok {
		id = int32(len(t.Names))
		t.functions[name] = id
		t.Names, t.Files, t.Lines = append(t.Names, name), append(t.Files, file), append(t.Lines, line)
	}
	return id
}

// Child returns the number of the stack of a function called by parent, and adds the stack if it is new.
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

// Path returns the functions of a stack, outermost first.
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

// NewReader returns a reader of one profile; it remembers the profile's locations.
func (t *Table) NewReader() *Reader {
	return &Reader{table: t, locations: map[*profile.Location][]int32{}}
}

// Nodes returns a sample's stack as its nodes, outermost first: the last one is the whole stack. The slice is valid until
// the next call.
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
			ids = append(ids, t.function(Identity(name), line.Function.Filename, line.Function.StartLine))
		}
	}
	if len(ids) == 0 {
		ids = append(ids, t.function(address(l), "", 0))
	}
	return ids
}

// Identity returns the name by which functions of two builds are matched: it leaves out the type arguments that the
// compiler writes for code shared by several types, because they depend on the set of types in a program.
func Identity(name string) string { return wallprofile.ReplaceShapes(name, "[...]") }

// address returns a name for a location without symbols: its offset in its file, which does not depend on the address at
// which the process loaded the file.
func address(l *profile.Location) string {
	if l.Mapping == nil || l.Mapping.File == "" {
		return fmt.Sprintf("0x%x", l.Address)
	}
	return fmt.Sprintf("%s+0x%x", path.Base(l.Mapping.File), l.Address-l.Mapping.Start+l.Mapping.Offset)
}

// Printable replaces the characters of a name that could break lines or control a terminal.
func Printable(name string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, name)
}
