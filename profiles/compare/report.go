package compare

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/flame"
	"spanflame/profiles/internal/stacks"
)

const (
	maxStacks     = 1000 // in a report
	maxStackDepth = 512  // functions of a stack in a report
)

// Number is a float64 that is null in JSON where it is infinite or undefined.
type Number float64

// MarshalJSON implements json.Marshaler.
func (n Number) MarshalJSON() ([]byte, error) {
	if f := float64(n); !math.IsNaN(f) && !math.IsInf(f, 0) {
		return json.Marshal(f)
	}
	return []byte("null"), nil
}

// Report is a comparison.
type Report struct {
	Before        Side          `json:"before"`
	After         Side          `json:"after"`
	Shared        int           `json:"shared_windows,omitempty"` // windows that are the same on both sides
	Normalization Normalization `json:"normalization"`
	Alpha         float64       `json:"alpha"`
	Metrics       []Metric      `json:"metrics"`
	Renamed       []Rename      `json:"renamed,omitempty"`
	Notes         []string      `json:"notes,omitempty"` // what a reader has to know to trust the rest

	// Diff is the difference as a profile that "go tool pprof" opens as one, if Options.Diff asked for it.
	// Values are those of after, less those of before scaled to the length or the work of after.
	Diff *profile.Profile `json:"-"`

	table *stacks.Table // of both sides, also of what is too small to be reported
}

// Side is what was read of one side.
type Side struct {
	Services []string  `json:"services,omitempty"`
	Windows  int       `json:"windows"`
	Start    time.Time `json:"start"`
	End      time.Time `json:"end"`
}

// Rename is a function that was matched although its name changed.
type Rename struct {
	Before string `json:"before"`
	After  string `json:"after"`
}

// Metric is the comparison of one metric.
type Metric struct {
	Name string `json:"name"`
	Unit string `json:"unit"` // of the raw values
	Per  string `json:"per"`  // what values were divided by: "second", "unit of work", "span", "window", or "" for an instant
	// WindowsBefore and WindowsAfter have this metric.
	WindowsBefore int `json:"windows_before"`
	WindowsAfter  int `json:"windows_after"`
	// RawBefore and RawAfter are the totals as the profiles have them. Their difference is that of
	// "go tool pprof -diff_base".
	RawBefore int64 `json:"raw_before"`
	RawAfter  int64 `json:"raw_after"`
	// Tested tells whether there are enough windows to tell a change from chance.
	Tested bool `json:"tested"`
	// SmallestP is the least p that so many windows can give.
	SmallestP float64  `json:"smallest_p"`
	Total     Change   `json:"total"`
	Functions []Change `json:"functions"` // by the size of the change, what explains one before its callers
	Stacks    []Change `json:"stacks"`    // the first thousand: those whose change is more than chance, by its size, then others
	// Small is how many functions are not reported because their share is too small.
	Small int `json:"small_functions"`

	// Flame is both sides as one tree.
	Flame *flame.Difference `json:"-"`
}

// Change is the change of one quantity.
type Change struct {
	Name  string   `json:"name,omitempty"`  // of the function
	Stack []string `json:"stack,omitempty"` // outermost function first
	Flat  Values   `json:"flat"`            // of the function or stack alone; of the total it is the total
	Cum   Values   `json:"cum"`             // with what it called

	node int32 // of the stack
	explained
}

// explained is what a change comes from, by which changes are ordered: where a function became slower, so did all that
// call it, up to main, and they come after it.
type explained struct {
	size    float64 // of the change that explains it, its own if no callee's does
	calls   int     // how far away that is
	reached int     // how many changes explain that one in turn, with itself
}

// Values are both sides of one quantity, divided as Metric.Per says.
type Values struct {
	Before Number `json:"before"`
	After  Number `json:"after"`
	// Difference and Ratio of after to before. With a test they are the medians over all pairs of windows,
	// or the difference and the ratio of the means where so many windows have nothing that those medians say
	// nothing, with their intervals; else those of Before and After, with no bounds.
	Difference Estimate `json:"difference"`
	Ratio      Estimate `json:"ratio"`
	// P is the probability of a difference at least as large by chance, and Q the rate of false discoveries
	// among all that are as unlikely. Both are 1 where nothing was tested.
	P float64 `json:"p"`
	Q float64 `json:"q"`
	// Significant tells whether Q is at most Alpha.
	Significant bool `json:"significant"`
}

// change is that of the means.
func (v Values) change() float64 { return float64(v.After - v.Before) }

// Significant tells whether the change is more than chance, alone or with what was called.
func (c Change) Significant() bool { return c.Flat.Significant || c.Cum.Significant }

// leaf tells whether nothing was called: both values are one.
func (c Change) leaf() bool { return c.Flat.Before == c.Cum.Before && c.Flat.After == c.Cum.After }

// magnitude is how large the change is, in the metric's unit.
func (c Change) magnitude() float64 {
	return max(math.Abs(float64(c.Flat.Difference.Value)), math.Abs(float64(c.Cum.Difference.Value)))
}

// Changed are the functions whose change is more than chance.
func (m Metric) Changed() []Change {
	var changed []Change
	for _, c := range m.Functions {
		if c.Significant() {
			changed = append(changed, c)
		}
	}
	return changed
}

// judge marks what is significant.
func (m *Metric) judge(alpha float64) {
	mark := func(v *Values) { v.Significant = v.Q <= alpha }
	mark(&m.Total.Cum)
	m.Total.Flat = m.Total.Cum
	for _, changes := range [][]Change{m.Functions, m.Stacks} {
		for i := range changes {
			c := &changes[i]
			mark(&c.Cum)
			if mark(&c.Flat); c.leaf() {
				c.Flat = c.Cum
			}
		}
	}
}

// cutStacks keeps the stacks that come first, and spells them out. A profile whose stacks are deep has as many
// stacks, and all of them spelled out would take the square of its size.
func (m *Metric) cutStacks(t *stacks.Table) {
	slices.SortStableFunc(m.Stacks, func(a, b Change) int { return cmp.Compare(rank(b), rank(a)) })
	m.Stacks = slices.Clip(m.Stacks[:min(len(m.Stacks), maxStacks)])
	for i := range m.Stacks {
		path := t.Path(m.Stacks[i].node)
		if deep := len(path) - maxStackDepth; deep > 0 {
			path = append([]string{fmt.Sprintf("[%d more]", deep)}, path[deep:]...)
		}
		m.Stacks[i].Stack = path
	}
}
