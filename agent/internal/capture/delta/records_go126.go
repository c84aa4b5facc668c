//go:build gc && !go1.27 && !spanflame_nolinkname

package delta

// heapRecord is internal/profilerecord.MemProfileRecord before Go 1.27.
type heapRecord struct {
	AllocBytes, FreeBytes     int64
	AllocObjects, FreeObjects int64
	Stack                     []uintptr
}

func (r *heapRecord) allocated() (objects, bytes int64) { return r.AllocObjects, r.AllocBytes }

func (r *heapRecord) inUse() (objects, bytes int64) {
	return r.AllocObjects - r.FreeObjects, r.AllocBytes - r.FreeBytes
}
