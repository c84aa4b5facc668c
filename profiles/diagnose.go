package profiles

import (
	"cmp"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/wallprofile"
)

// DiagnosisOf returns the diagnosis that the agent saved with the wall-clock profile of a span, or that of [Diagnose] if
// there is none.
func DiagnosisOf(p *profile.Profile, spanID, spanName string, duration time.Duration) string {
	return cmp.Or(SavedDiagnosis(p, spanID), Diagnose(p, spanName, duration))
}

// Diagnose returns one line on what took most of a span's own time, such as
// "612 ms POST /api/checkout: 571 ms (93 %) waiting for a mutex in workload.(*Stock).Reserve", from the
// wall-clock profile of that span alone. It is empty for a profile that has none of the span's own time.
func Diagnose(p *profile.Profile, spanName string, duration time.Duration) string {
	spent := make(wallprofile.Spent)
	for _, s := range p.Sample {
		if at, stacks, own := locate(s); own && len(s.Value) > 0 {
			spent.Add(at.At, lineOf(stacks.waiting, at.At.Function), functionsOf(stacks.waiting), time.Duration(s.Value[0]))
		}
	}
	if len(spent) == 0 {
		return ""
	}
	most, took := spent.Most()
	top := most
	top.Line = ""
	causes, whose, ran := make(wallprofile.Spent), make(map[string]time.Duration), make(map[wallprofile.Ran]time.Duration)
	followed, calls, memory := time.Duration(0), make(map[string]time.Duration), wallprofile.Memory{}
	for _, s := range p.Sample {
		at, stacks, own := locate(s)
		if !own || len(s.Value) == 0 {
			continue
		}
		memory.Add(top, at.At, functionsOf(stacks.waiting), time.Duration(s.Value[0]))
		if at.At == top {
			calls[at.Call] += time.Duration(s.Value[0])
		}
		if at.At == top && at.Who != "" {
			causes.Add(at.Cause, lineOf(stacks.causing, at.Cause.Function), functionsOf(stacks.causing), time.Duration(s.Value[0]))
			whose[at.Who] += time.Duration(s.Value[0])
			ran[wallprofile.Ran{Frame: at.Who, Entry: wallprofile.Entry(functionsOf(stacks.causing))}] += time.Duration(s.Value[0])
			followed += time.Duration(s.Value[0])
		}
	}
	var cause wallprofile.Cause
	if 2*followed >= took && followed > 0 && !wallprofile.IsAnswer(top.For) {
		cause.Most, cause.Took = causes.Most()
		cause.Caller = causes.Caller(cause.Most, false)
		if wallprofile.KindOf(top.Leaf) == wallprofile.KindRunnable {
			cause.Who = wallprofile.Busy(ran, took)
		} else if who, ok := wallprofile.NearlyAll(whose, took); ok && cause.Most.Function != "" {
			cause.Who = wallprofile.CauseName(who)
		}
	}
	return wallprofile.Diagnosis(spanName, duration, most, took, spent.Caller(most, false), cause) + memory.In(most, took, nil) +
		wallprofile.InCalls(top.Call(calls, nil), 0)
}

// Where is where a sample's time was spent.
type Where struct {
	Span  string // the name of the innermost span that the goroutine was in, empty for none
	Call  string // the frame of the innermost call of another service or a database that it was in, empty for none
	At    wallprofile.Place
	Cause wallprofile.Place // where whoever was waited for spent it; empty for none
	Who   string            // the frame that says who it was
}

// stacks are those of a sample's places, from the innermost frame outwards.
type stacks struct{ waiting, causing []profile.Line }

// WhereOf returns where a sample of a wall-clock profile was, and whether its time is the span's own rather than that of
// other goroutines.
func WhereOf(s *profile.Sample) (w Where, own bool) {
	w, _, own = locate(s)
	return w, own
}

// locate is WhereOf with the stacks.
func locate(s *profile.Sample) (w Where, of stacks, own bool) {
	var frames []profile.Line
	for _, l := range s.Location {
		for _, line := range l.Line {
			switch f := line.Function; {
			case f == nil:
			case f.Name == wallprofile.Others:
				return Where{}, stacks{}, false
			default:
				if name, ok := strings.CutPrefix(f.Name, wallprofile.SpanPrefix); ok && w.Span == "" {
					w.Span = name
				}
				if w.Call == "" && wallprofile.IsCall(f.Name) {
					w.Call = f.Name
				}
				frames = append(frames, line)
			}
		}
	}
	causes := wallprofile.Causes(len(frames), func(i int) string { return frames[i].Function.Name })
	waiting, leaf := split(frames[causes:])
	of.waiting = waiting
	waiter := functionsOf(waiting)
	w.At = wallprofile.Place{Function: wallprofile.Blamed(waiter), Leaf: leaf, For: wallprofile.WaitedFor(leaf, waiter)}
	for rest := frames[:causes]; len(rest) > 0; { // from the innermost goroutine outwards
		i := slices.IndexFunc(rest, func(l profile.Line) bool {
			return wallprofile.IsCause(l.Function.Name) && !wallprofile.IsWaitedFor(l.Function.Name)
		})
		if i < 0 {
			break
		}
		if stack, leaf := split(rest[:i]); w.Cause == (wallprofile.Place{}) {
			if w.Cause = wallprofile.CausePlace(leaf, functionsOf(stack), w.At.Function); i == 0 {
				w.Cause.Leaf = rest[0].Function.Name // why it is not followed
			}
			of.causing = stack
		}
		w.Who = rest[i].Function.Name
		rest = rest[i+1:]
	}
	return w, of, true
}

// split takes the state off a stack, which is given from the innermost frame outwards.
func split(frames []profile.Line) (stack []profile.Line, leaf string) {
	if len(frames) > 0 && wallprofile.IsWaitedFor(frames[0].Function.Name) {
		frames = frames[1:]
	}
	if len(frames) > 0 && wallprofile.IsBracketed(frames[0].Function.Name) {
		leaf, frames = frames[0].Function.Name, frames[1:]
	}
	return frames, leaf
}

// functionsOf yields the functions of a stack with their files.
func functionsOf(stack []profile.Line) iter.Seq2[string, string] {
	return func(yield func(function, file string) bool) {
		for _, l := range stack {
			if f := l.Function; !wallprofile.IsMarker(f.Name) && !yield(f.Name, f.Filename) {
				return
			}
		}
	}
}

// lineOf returns where in a function a stack is, empty if that is not known.
func lineOf(stack []profile.Line, function string) string {
	for _, l := range stack {
		if l.Function.Name == function {
			return wallprofile.Position(l.Function.Filename, l.Line)
		}
	}
	return ""
}

// SavedDiagnosis returns the diagnosis that the agent saved with a wall-clock profile for a span, in a comment such as
// "span_id=4466fc8554eaf499 612 ms POST /api/checkout: …"; it is empty if there is none. It can have more
// than Diagnose, such as the holder of a lock.
func SavedDiagnosis(p *profile.Profile, spanID string) string {
	for _, c := range p.Comments {
		if id, diagnosis, ok := wallprofile.ParseComment(c); ok && id == spanID {
			return diagnosis
		}
	}
	return ""
}
