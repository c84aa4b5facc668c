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

// stateNames holds the leaf frame of each state, without the brackets; package wallframe has the words for it.
var stateNames = [...]string{
	running:       "",
	runnable:      "runnable: waiting for CPU",
	syscalling:    "syscall",
	waitMutex:     "waiting: mutex",
	waitRWMutex:   "waiting: RWMutex",
	waitOnce:      "waiting: Once",
	waitWaitGroup: "waiting: WaitGroup",
	waitCond:      "waiting: Cond",
	waitSync:      "waiting: sync",
	waitSend:      "waiting: channel send",
	waitReceive:   "waiting: channel receive",
	waitSelect:    "waiting: select",
	waitSleep:     "waiting: sleep",
	waitNetwork:   "waiting: network",
	waitAssist:    "waiting: GC assist",
	waitGC:        "waiting: garbage collection",
	waitOther:     "waiting: unspecified",
	assisting:     "GC assist",
	stoppedGC:     "stopped: garbage collection",
	stoppedOther:  "stopped: the world",
	starting:      "starting the span",
	ending:        "ending the span",
	elsewhere:     "elsewhere: span ended on another goroutine",
	notRecorded:   "not recorded",
}

// String is the state in an operator's words, as in the leaf frame.
func (s state) String() string {
	if s == running {
		return "running"
	}
	return stateNames[s]
}

// leaf is the frame that ends a stack in this state, empty for running.
func (s state) leaf() string {
	if s == running {
		return ""
	}
	return "[" + stateNames[s] + "]"
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
