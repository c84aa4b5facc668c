//go:build gc && !go1.28 && !spanflame_nolinkname

package delta

import (
	"runtime"
	_ "unsafe" // for go:linkname
)

// The functions by which runtime/pprof reads the runtime's records, and expands and names their stacks. The runtime lets
// other packages link to them: the linker refuses what it does not. The records have the layout below in all Go
// versions of this file's build constraint, except for heapRecord.

//go:linkname heapProfile runtime.pprof_memProfileInternal
func heapProfile(p []heapRecord, inuseZero bool) (n int, ok bool)

//go:linkname mutexProfile runtime.pprof_mutexProfileInternal
func mutexProfile(p []waitRecord) (n int, ok bool)

//go:linkname blockProfile runtime.pprof_blockProfileInternal
func blockProfile(p []waitRecord) (n int, ok bool)

// waitRecord is internal/profilerecord.BlockProfileRecord.
type waitRecord struct {
	Count  int64
	Cycles int64
	Stack  []uintptr
}

//go:linkname cyclesPerSecond runtime/pprof.runtime_cyclesPerSecond
func cyclesPerSecond() int64

// makeStack returns room for as many return addresses as the runtime keeps of a stack.
//
//go:linkname makeStack runtime.pprof_makeProfStack
func makeStack() []uintptr

// expandLast appends the functions that the last one of a stack is inlined into, which were cut off.
//
//go:linkname expandLast runtime/pprof.runtime_expandFinalInlineFrame
func expandLast(stack []uintptr) []uintptr

// symbolName returns the whole name of a function, with the types of a generic one.
//
//go:linkname symbolName runtime/pprof.runtime_FrameSymbolName
func symbolName(f *runtime.Frame) string

//go:linkname startLine runtime/pprof.runtime_FrameStartLine
func startLine(f *runtime.Frame) int
