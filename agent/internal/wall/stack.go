package wall

import (
	"encoding/binary"
	"iter"
	"reflect"
	"strings"

	"golang.org/x/exp/trace"

	"spanflame/internal/wallprofile"
)

// frame is one function on a stack.
type frame struct {
	function, file string
	line           int64
}

// stack is an interned call stack, innermost frame first. Two equal pointers are the same stack; after
// the interner forgot, equal stacks may have two pointers, which costs space and nothing else.
type stack struct {
	frames []frame
	facts  *facts // once they were needed
}

// functions yields the functions of the stack with their files, from the innermost outwards.
func (s *stack) functions() iter.Seq2[string, string] {
	return func(yield func(function, file string) bool) {
		for _, f := range s.frames {
			if !yield(f.function, f.file) {
				return
			}
		}
	}
}

// line returns where in a function the stack is, empty if that is not known.
func (s *stack) line(function string) string {
	for _, f := range s.frames {
		if f.function == function {
			return wallprofile.Position(f.file, f.line)
		}
	}
	return ""
}

// noStack stands where the trace gives none.
var noStack = &stack{facts: &facts{}}

// maxStacks bounds the interner; beyond it everything is forgotten and learned again.
const maxStacks = 1 << 15

// interner gives each call stack of a process one pointer. The trace has a table of stacks for each
// generation; program counters mean the same in all of them.
type interner struct {
	byHandle map[trace.Stack]*stack // of the current generation
	byPCs    map[string]*stack
	key      []byte

	// The latest handle, which the historian and the converter look up in turn.
	handle trace.Stack
	stack  *stack
}

func newInterner() *interner {
	return &interner{byHandle: make(map[trace.Stack]*stack), byPCs: make(map[string]*stack), stack: noStack}
}

// generation forgets the handles of the previous generation, which would keep its tables alive.
func (in *interner) generation() {
	clear(in.byHandle)
	in.handle, in.stack = trace.NoStack, noStack
	if len(in.byPCs) > maxStacks {
		clear(in.byPCs)
	}
}

func (in *interner) intern(handle trace.Stack) *stack {
	if handle != in.handle {
		in.handle, in.stack = handle, in.lookUp(handle)
	}
	return in.stack
}

func (in *interner) lookUp(handle trace.Stack) *stack {
	if handle == trace.NoStack {
		return noStack
	}
	if s, ok := in.byHandle[handle]; ok {
		return s
	}
	in.key = in.key[:0]
	for f := range handle.Frames() {
		in.key = binary.LittleEndian.AppendUint64(in.key, f.PC)
	}
	s, ok := in.byPCs[string(in.key)]
	if !ok {
		s = &stack{}
		for f := range handle.Frames() {
			if len(s.frames) == 0 && isMarking(f.Func) || f.Func == outermost {
				continue
			}
			s.frames = append(s.frames, frame{
				function: strings.Clone(f.Func), // the trace's strings share large blocks
				file:     strings.Clone(f.File),
				line:     int64(f.Line),
			})
		}
		in.byPCs[string(in.key)] = s
	}
	in.byHandle[handle] = s
	return s
}

// outermost is the outermost frame of every goroutine. CPU samples have it, the other events' stacks have not:
// without it, time on the CPU and off it stands under the same frames.
const outermost = "runtime.goexit"

// ofGoroutine reports whether a CPU sample's stack is that of the goroutine. Where the profiler's signal found none,
// in the kernel's shared page or in code that is not Go's, the outermost function is one of the runtime's stand-ins
// ([runtime/pprof] shows them, too).
func (s *stack) ofGoroutine() bool {
	if len(s.frames) == 0 {
		return false
	}
	switch s.frames[len(s.frames)-1].function {
	case "runtime._System", "runtime._ExternalCode", "runtime._VDSO", "runtime._GC", "runtime._LostExternalCode":
		return false
	}
	return true
}

// ours is the path of the directory of this package and of package spanlink; package sdkview is next to it.
var ours = strings.TrimSuffix(reflect.TypeFor[Recorder]().PkgPath(), "/wall")

// isMarking reports whether a function at a leaf is not the application's: it writes a mark, or belongs to a preemption,
// which happens between any two instructions.
func isMarking(function string) bool {
	for _, prefix := range [...]string{
		"runtime.asyncPreempt",
		"runtime/trace.",
		ours + "/wall.(*Recorder).",
		ours + "/wall.(*span).",
		ours + "/spanlink.(*tracer).",
		ours + "/spanlink.(*span).",
		strings.TrimSuffix(ours, "/internal") + "/sdkview.",
	} {
		if strings.HasPrefix(function, prefix) {
			return true
		}
	}
	return false
}

// path is a chain of spans below some span, interned so that equal chains are one pointer.
// The nil path is the span itself.
type path struct {
	above *path
	step
}

// step is a span by its name and, for a client span, the frame that says what it called.
type step struct{ name, call string }

type paths map[path]*path

func (ps paths) join(above *path, s step) *path {
	k := path{above, s}
	p, ok := ps[k]
	if !ok {
		p = &k
		ps[k] = p
	}
	return p
}

// concat is the path below below the path above.
func (ps paths) concat(above, below *path) *path {
	if below == nil {
		return above
	}
	return ps.join(ps.concat(above, below.above), below.step)
}
