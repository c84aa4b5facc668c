package wall

import (
	"strings"

	"golang.org/x/exp/trace"

	"spanflame/internal/wallprofile"
)

// blocked returns why a goroutine waits: the trace's reason, or, if that is only "sync", the outermost function of package
// sync among the library functions at the stack's leaf. An RWMutex waits in a Mutex inside it, and the function that the
// service called is the one that its operator knows.
func blocked(reason string, at *stack) wallprofile.State {
	switch reason {
	case "chan send":
		return wallprofile.WaitSend
	case "chan receive":
		return wallprofile.WaitReceive
	case "select":
		return wallprofile.WaitSelect
	case "sleep":
		return wallprofile.WaitSleep
	case "network":
		return wallprofile.WaitNetwork
	case "sync.(*Cond).Wait":
		return wallprofile.WaitCond
	case "GC mark assist wait for work":
		return wallprofile.WaitAssist
	case "wait until GC ends", "GC weak to strong wait", "GC background sweeper wait", "preempted":
		return wallprofile.WaitGC
	case "sync":
		return blockedInSync(at)
	case "":
		return blockedAt(at)
	}
	return wallprofile.WaitOther
}

// blockedAt returns why a goroutine waits, from its stack alone, for example after a gap in the trace.
func blockedAt(at *stack) wallprofile.State {
	for _, f := range at.frames {
		switch f.function {
		case "runtime.chansend", "runtime.chansend1":
			return wallprofile.WaitSend
		case "runtime.chanrecv", "runtime.chanrecv1", "runtime.chanrecv2":
			return wallprofile.WaitReceive
		case "runtime.selectgo":
			return wallprofile.WaitSelect
		case "time.Sleep":
			return wallprofile.WaitSleep
		case "internal/poll.runtime_pollWait":
			return wallprofile.WaitNetwork
		}
		if strings.HasPrefix(f.function, "sync.") || strings.HasPrefix(f.function, "internal/sync.") {
			return blockedInSync(at)
		}
		if !strings.HasPrefix(f.function, "runtime.") {
			break
		}
	}
	return wallprofile.WaitOther
}

func blockedInSync(at *stack) wallprofile.State {
	s := wallprofile.WaitSync
	for _, f := range at.frames {
		if !inSync(f.function) {
			break
		}
		switch {
		case strings.HasPrefix(f.function, "runtime.gc"):
			return wallprofile.WaitGC // for a lock of the collector, which one of the goroutines that allocate has
		case strings.HasPrefix(f.function, "sync.(*RWMutex)."):
			s = wallprofile.WaitRWMutex
		case strings.HasPrefix(f.function, "sync.(*Mutex)."), strings.HasPrefix(f.function, "internal/sync.(*Mutex)."):
			s = wallprofile.WaitMutex
		case strings.HasPrefix(f.function, "sync.(*WaitGroup)."):
			s = wallprofile.WaitWaitGroup
		case strings.HasPrefix(f.function, "sync.(*Once)."):
			s = wallprofile.WaitOnce
		case strings.HasPrefix(f.function, "sync.(*Cond)."):
			s = wallprofile.WaitCond
		}
	}
	return s
}

// facts are what a stack tells about waits.
type facts struct {
	place         frame
	releaser, own string
	entry         *string // nil until it was asked for
}

func (s *stack) about() *facts {
	if s.facts == nil {
		s.facts = &facts{own: wallprofile.Own(s.functions())}
		unlocked := false
		for _, f := range s.frames {
			if !inSync(f.function) {
				s.facts.place = f
				if unlocked {
					s.facts.releaser = f.function
				}
				break
			}
			unlocked = unlocked || strings.HasSuffix(f.function, ".Unlock") || strings.HasSuffix(f.function, ".RUnlock")
		}
	}
	return s.facts
}

// place returns the innermost frame that is not of the runtime or of package sync: it called what waits.
func (s *stack) place() frame { return s.about().place }

// releaser returns the function that released the lock whose release woke a waiter, from the stack of the
// goroutine that did: the caller of Unlock or RUnlock. It is empty when the waker did something else.
func (s *stack) releaser() string { return s.about().releaser }

// entry returns the function of the service that the goroutine was started for, or that handles its request, empty if there is none.
func (s *stack) entry() string {
	about := s.about()
	if about.entry == nil {
		entry := wallprofile.Entry(s.functions())
		about.entry = &entry
	}
	return *about.entry
}

// own returns the innermost function of the service, empty if there is none.
func (s *stack) own() string { return s.about().own }

func inSync(function string) bool {
	return strings.HasPrefix(function, "sync.") || strings.HasPrefix(function, "internal/sync.") || strings.HasPrefix(function, "runtime.")
}

// stateIn returns the state of a goroutine that was put into one of the trace's states for a reason, at a stack.
func stateIn(to trace.GoState, reason string, at *stack) wallprofile.State {
	switch to {
	case trace.GoRunnable:
		return wallprofile.Runnable
	case trace.GoWaiting:
		return blocked(reason, at)
	case trace.GoSyscall:
		return wallprofile.Syscall
	default:
		return wallprofile.Running
	}
}
