package compare

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"spanflame/internal/format"
	"spanflame/internal/wallprofile"
	"spanflame/profiles/internal/stacks"
)

const (
	// mostOf is the share of a change that a callee must have to explain it.
	mostOf = 0.8
	// maxCalls limits the functions on the way from a change to what explains it.
	maxCalls = 64
)

// explain finds what the changes of functions and stacks come from, and orders them by that. The index of each function
// in m.Functions is given, and m.Stacks are in the order of their nodes.
func (c *comparison) explain(m *Metric, functions map[int32]int) {
	byStack, byFunction := newExplanation(m.Stacks), newExplanation(m.Functions)
	stackOf := map[int32]int{}
	calls := map[[2]int]float64{} // change of a function when called by another
	for i := range m.Stacks {
		node := m.Stacks[i].node
		stackOf[node] = i
		caller := c.table.Nodes[node].Parent
		if caller == stacks.Root {
			continue
		}
		change := m.Stacks[i].Cum.change()
		byStack.add(stackOf[caller], i, change) // a caller is as large, so that it is there
		calls[[2]int{functions[c.table.Nodes[caller].Function], functions[c.table.Nodes[node].Function]}] += change
	}
	for _, call := range slices.SortedFunc(maps.Keys(calls), func(a, b [2]int) int { return slices.Compare(a[:], b[:]) }) {
		byFunction.add(call[0], call[1], calls[call])
	}
	byStack.order()
	byFunction.order()
}

// explanation leads from changes to those of callees that have most of them.
type explanation struct {
	changes []Change
	callees [][]int // of each change
}

func newExplanation(changes []Change) explanation {
	return explanation{changes, make([][]int, len(changes))}
}

// add says how much of a caller's change is in its calls of a callee.
func (e explanation) add(caller, callee int, change float64) {
	if whole := e.changes[caller].Cum.change(); whole != 0 && change/whole >= mostOf {
		e.callees[caller] = append(e.callees[caller], callee)
	}
}

// order sorts the changes by what explains them, and those that one change explains from there up. That is the one from
// which the fewest others are reached: none, but where functions call each other.
func (e explanation) order() {
	reached := make([]int, len(e.changes))
	for i := range e.changes {
		reached[i] = len(e.reach(i))
	}
	for i := range e.changes {
		for _, r := range e.reach(i) {
			if origin := &e.changes[i].explained; r.calls == 0 || reached[r.change] < origin.reached {
				*origin = explained{e.changes[r.change].magnitude(), r.calls, reached[r.change]}
			}
		}
	}
	slices.SortStableFunc(e.changes, func(x, y Change) int {
		return cmp.Or(cmp.Compare(y.size, x.size), cmp.Compare(x.calls, y.calls), cmp.Compare(x.magnitude(), y.magnitude()))
	})
}

// callee is a change that is reached from another.
type callee struct{ change, calls int }

// reach is a change itself, and those of callees that explain it, the nearest first.
func (e explanation) reach(change int) []callee {
	all := []callee{{change, 0}}
	for i := 0; i < len(all) && len(all) < maxCalls; i++ {
		for _, next := range e.callees[all[i].change] {
			if !slices.ContainsFunc(all, func(c callee) bool { return c.change == next }) {
				all = append(all, callee{next, all[i].calls + 1})
			}
		}
	}
	return all
}

// explainSpans notes which spans the wall-clock profiles are of, where that may surprise.
func (r *Report) explainSpans(before, after *side) {
	if n := before.children + after.children; n > 0 {
		r.note("wall: %d profiles of child spans left out: their time is already in the profiles of their root spans (choose them with %s=%s)",
			n, wallprofile.SpanScope, wallprofile.ScopeChild)
	}
	if before.unscoped || after.unscoped {
		r.note("wall: some profiles do not say whether they are of root or of child spans; if both are present, their time counts twice: choose %s=%s",
			wallprofile.SpanScope, wallprofile.ScopeRoot)
	}
}

// explainPower notes where there are too few windows for an answer. Families are the numbers of tests in each.
func (r *Report) explainPower(families map[int]float64) {
	for _, m := range r.Metrics {
		n := fmt.Sprintf("%s: %s before and %d after", m.Name, format.Count(m.WindowsBefore, "window"), m.WindowsAfter)
		if !m.Tested {
			r.note("%s: too few for a significance test, which needs %d on each side", n, minWindows)
			continue
		}
		least := m.SmallestP * float64(len(families))
		switch {
		case least*families[familyTotals] > r.Alpha:
			r.note("%s: the smallest p that so few windows allow is %.2g; after correction for the number of tests, "+
				"only a change of nearly everything can be significant: record more windows", n, m.SmallestP)
		case least*families[familyFunctions] > r.Alpha:
			r.note("%s: the smallest p that so few windows allow is %.2g; after correction for %d functions, "+
				"the change of a single one cannot be significant: record more windows", n, m.SmallestP, len(m.Functions))
		}
	}
}

// note adds a note to the report.
func (r *Report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}
