package wall

import "strings"

// state is what a goroutine was doing during a slice of time.
type state uint8

const (
	running state = iota
	runnable
	syscalling
	waitMutex
	waitRWMutex
	waitOnce
	waitWaitGroup
	waitCond
	waitSync
	waitSend
	waitReceive
	waitSelect
	waitSleep
	waitNetwork
	waitAssist
	waitGC
	waitOther
	assisting
	stoppedGC
	stoppedOther
	starting
	ending
	elsewhere
	notRecorded
)

// stateNames holds for each state its leaf frame (without the brackets) and how a sentence says it.
var stateNames = [...]struct{ leaf, phrase string }{
	running:       {"", "on the CPU"},
	runnable:      {"runnable: waiting for CPU", "runnable and waiting for a CPU"},
	syscalling:    {"syscall", "in a system call"},
	waitMutex:     {"waiting: mutex", "waiting for a mutex"},
	waitRWMutex:   {"waiting: RWMutex", "waiting for an RWMutex"},
	waitOnce:      {"waiting: Once", "waiting for a Once"},
	waitWaitGroup: {"waiting: WaitGroup", "waiting for a WaitGroup"},
	waitCond:      {"waiting: Cond", "waiting for a Cond"},
	waitSync:      {"waiting: sync", "waiting for a lock"},
	waitSend:      {"waiting: channel send", "waiting to send on a channel"},
	waitReceive:   {"waiting: channel receive", "waiting to receive from a channel"},
	waitSelect:    {"waiting: select", "waiting in a select"},
	waitSleep:     {"waiting: sleep", "sleeping"},
	waitNetwork:   {"waiting: network", "waiting for the network"},
	waitAssist:    {"waiting: GC assist", "waiting to help the garbage collector"},
	waitGC:        {"waiting: garbage collection", "waiting for the garbage collector"},
	waitOther:     {"waiting: unspecified", "waiting"},
	assisting:     {"GC assist", "helping the garbage collector"},
	stoppedGC:     {"stopped: garbage collection", "stopped by the garbage collector"},
	stoppedOther:  {"stopped: the world", "stopped with the whole process"},
	starting:      {"starting the span", "starting the span"},
	ending:        {"ending the span", "ending the span"},
	elsewhere:     {"elsewhere: span ended on another goroutine", "on another goroutine"},
	notRecorded:   {"not recorded", "not recorded"},
}

// String is the state in an operator's words, as in the leaf frame.
func (s state) String() string {
	if s == running {
		return "running"
	}
	return stateNames[s].leaf
}

// leaf is the frame that ends a stack in this state, empty for running.
func (s state) leaf() string {
	if s == running {
		return ""
	}
	return "[" + stateNames[s].leaf + "]"
}

// blocked says why a goroutine waits, from the trace's reason and, where that is only "sync", from the
// outermost function of package sync in the run of library functions at the stack's leaf: an RWMutex
// waits in a Mutex inside it, and what the caller called is what the operator knows.
func blocked(reason string, at *stack) state {
	switch reason {
	case "chan send":
		return waitSend
	case "chan receive":
		return waitReceive
	case "select":
		return waitSelect
	case "sleep":
		return waitSleep
	case "network":
		return waitNetwork
	case "sync.(*Cond).Wait":
		return waitCond
	case "GC mark assist wait for work":
		return waitAssist
	case "wait until GC ends", "GC weak to strong wait", "GC background sweeper wait", "preempted":
		return waitGC
	case "sync":
		return blockedInSync(at)
	case "":
		return blockedAt(at)
	}
	return waitOther
}

// blockedAt says why a goroutine waits from its stack alone, as after a gap in the trace.
func blockedAt(at *stack) state {
	for _, f := range at.frames {
		switch f.function {
		case "runtime.chansend", "runtime.chansend1":
			return waitSend
		case "runtime.chanrecv", "runtime.chanrecv1", "runtime.chanrecv2":
			return waitReceive
		case "runtime.selectgo":
			return waitSelect
		case "time.Sleep":
			return waitSleep
		case "internal/poll.runtime_pollWait":
			return waitNetwork
		}
		if strings.HasPrefix(f.function, "sync.") || strings.HasPrefix(f.function, "internal/sync.") {
			return blockedInSync(at)
		}
		if !strings.HasPrefix(f.function, "runtime.") {
			break
		}
	}
	return waitOther
}

func blockedInSync(at *stack) state {
	s := waitSync
	for _, f := range at.frames {
		if !inSync(f.function) {
			break
		}
		switch {
		case strings.HasPrefix(f.function, "sync.(*RWMutex)."):
			s = waitRWMutex
		case strings.HasPrefix(f.function, "sync.(*Mutex)."), strings.HasPrefix(f.function, "internal/sync.(*Mutex)."):
			s = waitMutex
		case strings.HasPrefix(f.function, "sync.(*WaitGroup)."):
			s = waitWaitGroup
		case strings.HasPrefix(f.function, "sync.(*Once)."):
			s = waitOnce
		case strings.HasPrefix(f.function, "sync.(*Cond)."):
			s = waitCond
		}
	}
	return s
}

// releaser is the function that released the lock whose release woke a waiter, from the stack of the
// goroutine that did: the caller of Unlock or RUnlock. It is empty when the waker did something else.
func releaser(at *stack) string {
	unlocked := false
	for _, f := range at.frames {
		if !inSync(f.function) {
			if unlocked {
				return f.function
			}
			return ""
		}
		if strings.HasSuffix(f.function, ".Unlock") || strings.HasSuffix(f.function, ".RUnlock") {
			unlocked = true
		}
	}
	return ""
}

func inSync(function string) bool {
	return strings.HasPrefix(function, "sync.") || strings.HasPrefix(function, "internal/sync.") || strings.HasPrefix(function, "runtime.")
}
