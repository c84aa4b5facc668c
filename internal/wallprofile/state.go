package wallprofile

import "strings"

// State is the state of a goroutine during a slice of time.
type State uint8

// The states. Each nanosecond of a span's own time is in exactly one of them.
const (
	Running State = iota
	Unsampled
	Runnable
	Syscall
	WaitMutex
	WaitRWMutex
	WaitOnce
	WaitWaitGroup
	WaitCond
	WaitSync
	WaitSend
	WaitReceive
	WaitSelect
	WaitSleep
	WaitNetwork
	WaitAssist
	WaitGC
	WaitOther
	Assisting
	StoppedGC
	StoppedOther
	Starting
	Ending
	Elsewhere
	BeforeRecording
	NotRecorded
	NumStates // how many there are
)

// Kind is a group of states.
type Kind uint8

// The kinds of states.
const (
	KindOther Kind = iota // around the recording, or not recorded
	KindRunning
	KindRunnable
	KindSyscall
	KindWaiting
	KindGC // because of the garbage collector
)

// table has one row for each state: its name, which in brackets is the leaf frame of its stacks, the phrase that a
// diagnosis has for it, its kind, and how a wait in it leads to whoever ended it.
var table = [NumStates]struct {
	name, phrase string
	kind         Kind
	link         Link
}{
	Running:       {"running", "on the CPU", KindRunning, NoLink}, // without a leaf frame
	Unsampled:     {"running: no CPU sample", "on the CPU without a sample", KindRunning, NoLink},
	Runnable:      {"runnable: waiting for CPU", "runnable and waiting for a CPU", KindRunnable, NoLink},
	Syscall:       {"syscall", "in a system call", KindSyscall, NoLink},
	WaitMutex:     {"waiting: mutex", "waiting for a mutex", KindWaiting, HeldBy},
	WaitRWMutex:   {"waiting: RWMutex", "waiting for an RWMutex", KindWaiting, HeldBy},
	WaitOnce:      {"waiting: Once", "waiting for a Once", KindWaiting, HeldBy},
	WaitWaitGroup: {"waiting: WaitGroup", "waiting for a WaitGroup", KindWaiting, DoneBy},
	WaitCond:      {"waiting: Cond", "waiting for a Cond", KindWaiting, WokenBy},
	WaitSync:      {"waiting: sync", "waiting for a lock", KindWaiting, WokenBy},
	WaitSend:      {"waiting: channel send", "waiting to send on a channel", KindWaiting, ReceivedBy},
	WaitReceive:   {"waiting: channel receive", "waiting to receive from a channel", KindWaiting, SentBy},
	WaitSelect:    {"waiting: select", "waiting in a select", KindWaiting, WokenBy},
	WaitSleep:     {"waiting: sleep", "sleeping", KindWaiting, NoLink},
	WaitNetwork:   {"waiting: network", "waiting for the network", KindWaiting, NoLink},
	WaitAssist:    {"waiting: GC assist", "waiting to help the garbage collector", KindGC, NoLink},
	WaitGC:        {"waiting: garbage collection", "waiting for the garbage collector", KindGC, NoLink},
	WaitOther:     {"waiting: unspecified", "waiting", KindWaiting, WokenBy},
	Assisting:     {"GC assist", "helping the garbage collector", KindGC, NoLink},
	StoppedGC:     {"stopped: garbage collection", "stopped by the garbage collector", KindGC, NoLink},
	StoppedOther:  {"stopped: the world", "stopped with the whole process", KindOther, NoLink},
	Starting:      {"starting the span", "starting the span", KindOther, NoLink},
	Ending:        {"ending the span", "ending the span", KindOther, NoLink},
	Elsewhere:     {"elsewhere: span ended on another goroutine", "on another goroutine", KindOther, NoLink},
	NotRecorded:   {"not recorded", "not recorded", KindOther, NoLink},

	BeforeRecording: {"before the recording", "before the recording", KindOther, NoLink},
}

var byLeaf = func() map[string]State {
	m := make(map[string]State, NumStates)
	for s := range NumStates {
		m[s.Leaf()] = s
	}
	return m
}()

// String returns the name of the state, which is that of its leaf frame without the brackets.
func (s State) String() string { return table[s].name }

// Leaf returns the frame that ends a stack in this state. It is empty for Running, whose stacks end in the function
// that ran.
func (s State) Leaf() string {
	if s == Running {
		return ""
	}
	return "[" + table[s].name + "]"
}

// phrase returns how a diagnosis puts the state of a leaf frame. The name of a state of a newer agent stands for itself.
func phrase(leaf string) string {
	if s, ok := byLeaf[leaf]; ok {
		return table[s].phrase
	}
	if why, ok := strings.CutPrefix(leaf, notFollowedPrefix); ok {
		return "not followed (" + strings.TrimSuffix(why, "]") + ")"
	}
	return strings.Trim(leaf, "[]")
}

// KindOf returns the kind of state that the innermost frame of a stack is. A function is KindRunning. An unknown
// state of a newer agent is KindWaiting if its name begins like those of waiting.
func KindOf(leaf string) Kind {
	if !IsBracketed(leaf) {
		return KindRunning
	}
	if s, ok := byLeaf[leaf]; ok {
		return table[s].kind
	}
	if strings.HasPrefix(leaf, networkPrefix) {
		return KindWaiting
	}
	group, _, _ := strings.Cut(leaf, ":")
	for s := range NumStates {
		if known, _, _ := strings.Cut(s.Leaf(), ":"); table[s].kind == KindWaiting && known == group {
			return KindWaiting
		}
	}
	return KindOther
}
