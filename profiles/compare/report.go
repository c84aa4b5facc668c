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

// Report is the result of Compare.
type Report struct {
	Before        Side          `json:"before"`
	After         Side          `json:"after"`
	Shared        int           `json:"shared_windows,omitempty"` // windows that are the same on both sides
	Normalization Normalization `json:"normalization"`
	Alpha         float64       `json:"alpha"`
	Routes        []Route       `json:"routes,omitempty"` // if all requests are known, those first that took most of the time
	Metrics       []Metric      `json:"metrics"`
	Renamed       []Rename      `json:"renamed,omitempty"`
	Notes         []string      `json:"notes,omitempty"` // limitations of the comparison

	// Diff is the difference as a profile, if Options.Diff is set; "go tool pprof" recognises it as a difference.
	// Its values are those of after, minus those of before scaled to the length or the work of after.
	Diff *profile.Profile `json:"-"`

	table *stacks.Table // of both sides, including functions that are too small to be reported
}

// Side describes the windows that were read for one side.
type Side struct {
	Services []string  `json:"services,omitempty"`
	Windows  int       `json:"windows"`
	Start    time.Time `json:"start,omitzero"` // zero if no window has a time
	End      time.Time `json:"end,omitzero"`
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
	Per  string `json:"per"`  // divisor of the values: "second", "request", "unit of work", "span", "window", or "" for an instant
	// WindowsBefore and WindowsAfter are the numbers of windows with this metric.
	WindowsBefore int `json:"windows_before"`
	WindowsAfter  int `json:"windows_after"`
	// RawBefore and RawAfter are the totals of the profiles, not normalized. Their difference equals that of
	// "go tool pprof -diff_base".
	RawBefore int64 `json:"raw_before"`
	RawAfter  int64 `json:"raw_after"`
	// Tested reports whether there are enough windows for a significance test.
	Tested bool `json:"tested"`
	// Signed reports whether there are values below 0, as in a profile that is itself a difference. Changes then have no
	// ratio, and every function is reported.
	Signed bool `json:"signed,omitempty"`
	// SmallestP is the smallest p that is possible with this number of windows.
	SmallestP float64  `json:"smallest_p"`
	Total     Change   `json:"total"`
	Functions []Change `json:"functions"` // by the size of the change, the cause of a change before its callers
	Stacks    []Change `json:"stacks"`    // at most 1000: significant changes by size, then others
	// Small is the number of functions that are not reported because their share is too small.
	Small int `json:"small_functions"`

	// Flame has both sides as one tree.
	Flame *flame.Difference `json:"-"`
}

// Change is the change of one quantity.
type Change struct {
	Name  string   `json:"name,omitempty"`  // of the function
	Stack []string `json:"stack,omitempty"` // outermost function first
	Flat  Values   `json:"flat"`            // of the function or stack alone; for the total, equal to Cum
	Cum   Values   `json:"cum"`             // including callees

	node int32 // of the stack
	explained
}

// explained is the origin of a change. Changes are sorted by it: if a function became slower, so did all of its callers
// up to main, and they come after it.
type explained struct {
	size    float64 // of the change that explains this one; its own size if no callee explains it
	calls   int     // number of calls between the two
	reached int     // number of changes that explain that one in turn, itself included
}

// Values are both sides of one quantity, divided as Metric.Per says.
type Values struct {
	Before Number `json:"before"`
	After  Number `json:"after"`
	// Difference is after minus before, Ratio is after divided by before. If tested, they are the medians over all pairs
	// of windows, or, if too many windows have a value of 0 for that, those of the means, with their intervals.
	// Otherwise they are those of Before and After, without limits.
	Difference Estimate `json:"difference"`
	Ratio      Estimate `json:"ratio"`
	// P is the probability of a difference at least as large by chance, and Q the rate of false discoveries among all
	// changes that are at least as unlikely. Both are 1 if there was no test.
	P float64 `json:"p"`
	Q float64 `json:"q"`
	// Significant reports whether Q is at most Alpha.
	Significant bool `json:"significant"`
	// Smallest is the smallest change that the data can show at Alpha, as a share. It is infinite if there was no test.
	Smallest Number `json:"smallest_change"`

	noise noise // if it was tested
}

// change returns the change of the means.
func (v Values) change() float64 { return float64(v.After - v.Before) }

// Significant reports whether the change is significant, of the function alone or including its callees.
func (c Change) Significant() bool { return c.Flat.Significant || c.Cum.Significant }

// leaf reports whether there are no callees, so that Flat and Cum are equal.
func (c Change) leaf() bool { return c.Flat.Before == c.Cum.Before && c.Flat.After == c.Cum.After }

// magnitude returns the size of the change, in the metric's unit.
func (c Change) magnitude() float64 {
	return max(math.Abs(float64(c.Flat.Difference.Value)), math.Abs(float64(c.Cum.Difference.Value)))
}

// Changed returns the functions whose change is significant.
func (m Metric) Changed() []Change {
	var changed []Change
	for _, c := range m.Functions {
		if c.Significant() {
			changed = append(changed, c)
		}
	}
	return changed
}

// markSignificant sets Significant in all values.
func (m *Metric) markSignificant(alpha float64) {
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

// cutStacks keeps the first stacks, and sets their functions. A profile with deep stacks also has many of them: the
// functions of all would take memory in the square of the profile's size.
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
