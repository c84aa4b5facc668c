//go:build gc && go1.27 && !go1.28 && !spanflame_nolinkname

package delta

// heapRecord is internal/profilerecord.MemProfileRecord of Go 1.27.
type heapRecord struct {
	ObjectSize                int64
	AllocObjects, FreeObjects int64
	Stack                     []uintptr
}

func (r *heapRecord) allocated() (objects, bytes int64) {
	return r.AllocObjects, r.AllocObjects * r.ObjectSize
}

func (r *heapRecord) inUse() (objects, bytes int64) {
	objects = r.AllocObjects - r.FreeObjects
	return objects, objects * r.ObjectSize
}
