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
	// maxCalls limits the number of calls between a change and the one that explains it.
	maxCalls = 64
)

// explain finds the origins of the changes of functions and stacks, and sorts the changes by them. Functions has the
// index of each function in m.Functions; m.Stacks must be in the order of their nodes.
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
		byStack.add(stackOf[caller], i, change) // the caller is at least as large, so it is in stackOf
		calls[[2]int{functions[c.table.Nodes[caller].Function], functions[c.table.Nodes[node].Function]}] += change
	}
	for _, call := range slices.SortedFunc(maps.Keys(calls), func(a, b [2]int) int { return slices.Compare(a[:], b[:]) }) {
		byFunction.add(call[0], call[1], calls[call])
	}
	byStack.order()
	byFunction.order()
}

// explanation links each change to the changes of the callees that make up most of it.
type explanation struct {
	changes []Change
	callees [][]int // of each change
}

func newExplanation(changes []Change) explanation {
	return explanation{changes, make([][]int, len(changes))}
}

// add links a caller's change to a callee's if the calls from one to the other make up most of it.
func (e explanation) add(caller, callee int, change float64) {
	if whole := e.changes[caller].Cum.change(); whole != 0 && change/whole >= mostOf {
		e.callees[caller] = append(e.callees[caller], callee)
	}
}

// order sorts the changes by the size of the change that explains them, and changes with the same explanation from the
// callee up to its callers. A change is explained by the reachable one that itself reaches the fewest others: none,
// unless functions call each other.
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

// reach returns a change and the changes of callees that explain it, the nearest first.
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

// explainSpans adds notes on the wall-clock profiles that are left out, and on spans whose scope is unknown.
func (r *Report) explainSpans(before, after *side) {
	if n := before.children + after.children; n > 0 {
		r.note("wall: %d profiles of child spans left out: their time is already in the profiles of their root spans (choose them with %s=%s)",
			n, wallprofile.SpanScope, wallprofile.ScopeChild)
	}
	if n := before.unknown + after.unknown; n > 0 {
		r.note("wall: %d profiles left out: the saved traces do not have their requests, so these are not among those that are counted", n)
	}
	if before.unscoped || after.unscoped {
		r.note("wall: for some profiles it is unknown whether they are of root or of child spans; if both are present, their time counts twice: choose %s=%s",
			wallprofile.SpanScope, wallprofile.ScopeRoot)
	}
}

// explainPower adds notes on metrics with too few windows for an answer. Families has the number of tests in each family.
func (r *Report) explainPower(families map[int]float64) {
	for _, m := range r.Metrics {
		n := fmt.Sprintf("%s: %s before and %d after", m.Name, format.Count(m.WindowsBefore, "window"), m.WindowsAfter)
		switch {
		case m.Per == perSpan:
			continue // which has a note of its own
		case m.Per == perRequest && !m.Tested:
			r.note("%s: too few requests for a significance test, which needs %d on each side", m.Name, wallBins)
			continue
		case !m.Tested:
			r.note("%s: too few for a significance test, which needs %d on each side", n, minWindows)
			continue
		}
		least := m.SmallestP * float64(len(families))
		switch {
		case least*families[familyTotals] > r.Alpha:
			r.note("%s: the smallest p that so few windows allow is %.2g; after correction for the number of tests, "+
				"only a change of nearly everything can be significant: record more windows", n, m.SmallestP)
		case least*families[familyFunctions] > r.Alpha:
			r.note("%s: the smallest p that so few windows allow is %.2g; after correction for %.0f tests of functions, in all metrics, "+
				"the change of a single one cannot be significant: record more windows", n, m.SmallestP, families[familyFunctions])
		}
	}
}

// note adds a note to the report.
func (r *Report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}
