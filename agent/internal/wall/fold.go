package wall

import (
	"slices"

	"spanflame/internal/wallprofile"
)

// minShown is how many times as long as a sample a span is if the causes of the sample are folded.
const minShown = 1000

// folding shortens the causes of an account's small samples.
type folding struct {
	all    map[labelled]*cause
	stacks map[*stack]*stack   // up to the function that took the time
	same   map[string][]*stack // these, by the first function's name
}

// fold shortens the causes of samples that are less than a thousandth of their span, and adds up those that become equal:
// of all who waited for one another, there remain who made the span wait, and the function that took the time. In a crowd of
// requests that wait for each other, each has a sample for every stack of every other one, which makes the profiles of a
// thousand requests ten times as large, and none of these samples can be seen.
func fold(a account) []sample {
	f := folding{all: make(map[labelled]*cause), stacks: make(map[*stack]*stack), same: make(map[string][]*stack)}
	type key struct {
		entry
		other bool
	}
	at := make(map[key]int)
	var kept []sample
	for _, s := range a.samples {
		if s.below == nil || s.ns*minShown >= int64(a.duration) {
			kept = append(kept, s)
			continue
		}
		s.below = f.short(s.below)
		if i, ok := at[key{s.entry, s.other}]; ok {
			kept[i].ns += s.ns
			continue
		}
		at[key{s.entry, s.other}] = len(kept)
		kept = append(kept, s)
	}
	return kept
}

// short returns the cause that stands for one and those above it.
func (f *folding) short(c *cause) *cause {
	outer := c.outermost()
	k := labelled{causeKey{link: outer.link, not: outer.not}, outer.label}
	if place, state, there := c.place(); place.Function != "" {
		k.state, k.stack = state, f.below(there, place.Function)
	}
	one := f.cause(k)
	if c.not != wallprofile.Followed && c != outer {
		one = f.cause(labelled{causeKey{above: one, not: c.not}, c.label})
	}
	return one
}

func (f *folding) cause(k labelled) *cause {
	c := f.all[k]
	if c == nil {
		c = &cause{causeKey: k.causeKey, label: k.label}
		f.all[k] = c
	}
	return c
}

// below returns the part of a stack from its innermost frame to a function: one for all stacks that have it.
func (f *folding) below(s *stack, function string) *stack {
	if part, ok := f.stacks[s]; ok {
		return part
	}
	n := 1 + slices.IndexFunc(s.frames, func(x frame) bool { return x.function == function })
	frames := s.frames[:n]
	first := frames[0].function
	for _, part := range f.same[first] {
		if slices.Equal(part.frames, frames) {
			f.stacks[s] = part
			return part
		}
	}
	part := &stack{frames: frames}
	f.stacks[s], f.same[first] = part, append(f.same[first], part)
	return part
}
