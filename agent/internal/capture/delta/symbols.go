//go:build gc && !go1.28 && !spanflame_nolinkname

package delta

import (
	"bytes"
	"fmt"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"

	"github.com/google/pprof/profile"
)

// unknownFunction is the function of a stack none of whose frames has a name.
const unknownFunction = "[unknown]"

// symbols are the locations of the stacks that were looked up, and what these consist of. A number of a location,
// function, string or mapping is its position here.
type symbols struct {
	frames    map[uintptr][]frame // by return address
	places    map[place]uint32    // locations
	names     map[name]uint32     // functions
	texts     map[string]uint32   // strings
	locations []location
	functions []function
	strings   []string // begins with the empty one
	mappings  []mapping

	fresh   bool      // the mappings were read in this window
	scratch []uintptr // a stack that is being expanded
	group   []frame   // frames of one location
	found   []uint32  // locations of one stack
}

// frame is one of those that a return address stands for: one, but for C functions.
type frame struct {
	line
	pc, entry uintptr
	inlined   bool // into the function of the next address of the stack
	complete  bool // function, file and line are known
}

type line struct {
	function uint32
	line     int
}

// place identifies a location: the return addresses of the innermost and the outermost of functions inlined into each
// other.
type place struct{ first, last uintptr }

type location struct {
	address  uintptr
	mapping  int // -1 for none
	complete bool
	lines    []line // those that have a name
}

type name struct{ name, file string }

type function struct {
	name, file uint32 // strings
	start      int
}

type mapping struct {
	start, limit, offset uint64
	file, buildID        string
}

func newSymbols() *symbols {
	return &symbols{
		frames: map[uintptr][]frame{}, places: map[place]uint32{}, names: map[name]uint32{}, texts: map[string]uint32{"": 0},
		strings: []string{""},
	}
}

// begin prepares for the stacks of a window.
func (s *symbols) begin() error {
	s.fresh = false
	if s.mappings == nil {
		return s.readMappings()
	}
	return nil
}

// locate returns the locations of a stack, leaf first, until the next call. They are those that runtime/pprof makes of
// it, without frames that have no name.
func (s *symbols) locate(stack []uintptr, h heading) []uint32 {
	s.found = s.found[:0]
	if h.expandInlined {
		stack = s.expand(stack)
	}
	shown := stack
	if h.hideRuntime {
		shown = withoutRuntime(stack)
	}
	if s.walk(shown) == 0 && len(shown) < len(stack) {
		s.walk(stack)
	}
	if len(s.found) == 0 {
		s.found = append(s.found, s.named(unknownFunction))
	}
	return s.found
}

// outermost returns the function in which the goroutine of a stack began, whether a WaitGroup started it or not.
func (s *symbols) outermost(locations []uint32) string {
	for _, l := range slices.Backward(locations) {
		for _, line := range slices.Backward(s.locations[l].lines) {
			if name := s.strings[s.functions[line.function].name]; !strings.HasPrefix(name, "sync.(*WaitGroup).Go.") {
				return name
			}
		}
	}
	return ""
}

// expand returns a stack with a return address for each inlined function.
func (s *symbols) expand(stack []uintptr) []uintptr {
	to := makeStack()
	n := 0
	for frames, more := runtime.CallersFrames(stack), true; more && n < len(to); n++ {
		var f runtime.Frame
		f, more = frames.Next()
		to[n] = f.PC + 1
	}
	return to[:n]
}

// withoutRuntime returns a stack from the first function on that is not the runtime's, if it has one.
func withoutRuntime(stack []uintptr) []uintptr {
	i := slices.IndexFunc(stack, func(pc uintptr) bool {
		f := runtime.FuncForPC(pc)
		return f == nil || !strings.HasPrefix(f.Name(), "runtime.") && !strings.HasPrefix(f.Name(), "internal/runtime/")
	})
	return stack[max(0, i):]
}

// walk appends the locations of a stack to found. It returns how many there are, with those that have no name.
func (s *symbols) walk(stack []uintptr) (n int) {
	// The runtime's own memory must not be appended to; a copy also leaves room for the functions that were cut off.
	s.scratch = expandLast(append(s.scratch[:0], stack...))
	s.group = s.group[:0]
	var at place
	end := func() {
		if len(s.group) == 0 {
			return
		}
		n++
		if l := s.location(at); len(s.locations[l].lines) > 0 {
			s.found = append(s.found, l)
		}
		s.group = s.group[:0]
	}
	for _, pc := range s.scratch {
		frames := s.lookUp(pc)
		if len(frames) == 0 { // where a goroutine begins
			end()
			continue
		}
		if len(s.group) > 0 && !s.inlinedInto(s.group[len(s.group)-1], frames[0]) {
			end()
		}
		if len(s.group) == 0 {
			at.first = pc
		}
		at.last = pc
		s.group = append(s.group, frames...)
	}
	end()
	return n
}

// inlinedInto reports whether a function is inlined into that of the next return address. Two frames of the same
// function are a recursion.
func (s *symbols) inlinedInto(f, next frame) bool {
	return f.inlined && f.entry != 0 && f.entry == next.entry && s.functions[f.function].name != s.functions[next.function].name
}

// lookUp returns the frames of a return address, none for that of runtime.goexit.
func (s *symbols) lookUp(pc uintptr) []frame {
	if frames, ok := s.frames[pc]; ok {
		return frames
	}
	var frames []frame
	for all, more := runtime.CallersFrames([]uintptr{pc}), true; more; {
		var f runtime.Frame
		f, more = all.Next()
		if f.Function == "runtime.goexit" {
			break
		}
		complete := f.PC != 0 && f.Function != "" && f.File != "" && f.Line != 0
		if f.PC == 0 {
			f.PC = pc - 1
		}
		frames = append(frames, frame{
			line: line{s.function(name{symbolName(&f), f.File}, startLine(&f)), f.Line},
			pc:   f.PC, entry: f.Entry, inlined: f.Func == nil, complete: complete,
		})
	}
	s.frames[pc] = frames
	return frames
}

// location returns the number of the location that the group is.
func (s *symbols) location(at place) uint32 {
	if n, ok := s.places[at]; ok {
		return n
	}
	l := location{address: s.group[0].pc, mapping: s.mapping(uint64(at.first)), complete: true}
	for _, f := range s.group {
		l.complete = l.complete && f.complete
		if s.functions[f.function].name != 0 {
			l.lines = append(l.lines, f.line)
		}
	}
	n := uint32(len(s.locations))
	s.locations = append(s.locations, l)
	s.places[at] = n
	return n
}

// named returns the number of a location that has a name and no place.
func (s *symbols) named(text string) uint32 {
	f := s.function(name{text, ""}, 0)
	at := place{last: uintptr(f) + 1}
	n, ok := s.places[at]
	if !ok {
		n = uint32(len(s.locations))
		s.locations = append(s.locations, location{mapping: -1, complete: true, lines: []line{{function: f}}})
		s.places[at] = n
	}
	return n
}

func (s *symbols) function(f name, start int) uint32 {
	n, ok := s.names[f]
	if !ok {
		n = uint32(len(s.functions))
		s.functions = append(s.functions, function{s.text(f.name), s.text(f.file), start})
		s.names[f] = n
	}
	return n
}

func (s *symbols) text(t string) uint32 {
	n, ok := s.texts[t]
	if !ok {
		n = uint32(len(s.strings))
		s.strings = append(s.strings, t)
		s.texts[t] = n
	}
	return n
}

// mapping returns the number of the mapping that an address is in, -1 for none. Libraries may be loaded at any time.
func (s *symbols) mapping(address uint64) int {
	in := func(m mapping) bool { return m.start <= address && address < m.limit || m.limit == 0 } // where they are not known, one has no limits
	i := slices.IndexFunc(s.mappings, in)
	if i < 0 && !s.fresh && s.readMappings() == nil {
		i = slices.IndexFunc(s.mappings, in)
	}
	return i
}

// readMappings reads the mappings of the process that are not known yet, as runtime/pprof writes them with every
// profile. That of the threads is a small one.
func (s *symbols) readMappings() error {
	s.fresh = true
	var zipped bytes.Buffer
	if err := pprof.Lookup("threadcreate").WriteTo(&zipped, 0); err != nil {
		return fmt.Errorf("mappings of the process: %w", err)
	}
	p, err := profile.Parse(&zipped)
	if err != nil {
		return fmt.Errorf("mappings of the process: %w", err)
	}
	for _, m := range p.Mapping {
		if read := (mapping{m.Start, m.Limit, m.Offset, m.File, m.BuildID}); !slices.Contains(s.mappings, read) {
			s.mappings = append(s.mappings, read)
		}
	}
	return nil
}
