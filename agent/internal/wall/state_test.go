package wall

import (
	"testing"

	"spanflame/internal/wallprofile"
)

func TestWhatAWaitIsFor(t *testing.T) {
	for _, tt := range []struct {
		reason string
		stack  *stack
		want   wallprofile.State
	}{
		{"sync", frames("internal/sync.(*Mutex).lockSlow", "sync.(*Mutex).Lock", "sync.(*RWMutex).Lock", "shop.buy"), wallprofile.WaitRWMutex},
		{"sync", frames("sync.(*Mutex).Lock", "shop.buy", "sync.(*Once).Do"), wallprofile.WaitMutex},
		{"sync", frames("runtime.semacquire", "shop.buy"), wallprofile.WaitSync},
		// A goroutine that allocates may have to end a phase of the collector, under a lock.
		{"sync", frames("runtime.gcMarkDone", "runtime.gcAssistAlloc", "runtime.mallocgc", "runtime.newobject", "shop.buy"), wallprofile.WaitGC},
		{"sync", frames("runtime.gcStart", "runtime.mallocgc", "sync.(*Once).Do", "shop.buy"), wallprofile.WaitGC},
		{"", frames("sync.(*WaitGroup).Wait", "shop.buy"), wallprofile.WaitWaitGroup},
	} {
		if got := blocked(tt.reason, tt.stack); got != tt.want {
			t.Errorf("%q in %v: %v, want %v", tt.reason, tt.stack.functions(), got, tt.want)
		}
	}
}
