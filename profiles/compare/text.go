package compare

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"

	"spanflame/internal/format"
	"spanflame/profiles/internal/stacks"
)

// WriteJSON writes the report as one JSON object.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// WriteText writes tables for a terminal, with at most rows functions per metric.
func (r *Report) WriteText(w io.Writer, rows int) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, line := range r.summary() {
		fmt.Fprintln(tw, line)
	}
	fmt.Fprintln(tw)
	for _, m := range r.Metrics {
		if m.unchanged() {
			continue
		}
		fmt.Fprintf(tw, "%s\n", m.heading())
		fmt.Fprintf(tw, "  function\tflat before\tafter\tchange\tcum before\tafter\tchange\tq\n")
		for _, c := range append([]Change{m.Total}, m.Top(rows)...) {
			fmt.Fprintf(tw, "  %s\n", strings.Join(m.row(c), "\t"))
		}
		if text := m.leftOut(rows); text != "" {
			fmt.Fprintf(tw, "  %s\n", text)
		}
		fmt.Fprintln(tw)
	}
	for _, line := range r.remarks() {
		fmt.Fprintln(tw, line)
	}
	return tw.Flush()
}

// markdownEscaper prevents names of functions from being rendered as markup.
var markdownEscaper = strings.NewReplacer("|", `\|`, "*", `\*`, "_", `\_`, "<", "&lt;", "[", `\[`, "`", "\\`", "\n", " ", "\r", " ", `\`, `\\`)

// WriteMarkdown writes the same tables for a comment on a pull request, with at most rows functions per metric.
func (r *Report) WriteMarkdown(w io.Writer, rows int) error {
	var b strings.Builder
	for _, line := range r.summary() {
		fmt.Fprintf(&b, "- %s\n", markdownEscaper.Replace(line))
	}
	b.WriteString("\n")
	for _, m := range r.Metrics {
		if m.unchanged() {
			continue
		}
		fmt.Fprintf(&b, "### %s\n\n", markdownEscaper.Replace(m.heading()))
		b.WriteString("| function | flat before | after | change | cum before | after | change | q |\n|---|--:|--:|--:|--:|--:|--:|--:|\n")
		for _, c := range append([]Change{m.Total}, m.Top(rows)...) {
			cells := m.row(c)
			for i := range cells {
				cells[i] = markdownEscaper.Replace(cells[i])
			}
			fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | "))
		}
		b.WriteString("\n")
		if text := m.leftOut(rows); text != "" {
			fmt.Fprintf(&b, "%s\n\n", text)
		}
	}
	for _, line := range r.remarks() {
		fmt.Fprintf(&b, "- %s\n", markdownEscaper.Replace(line))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// maxSummarized limits the changes and routes that a summary names.
const maxSummarized = 3

// summary returns the report in a few lines: what changed most, what did not change, and how long requests took.
func (r *Report) summary() []string {
	var changed, same, untested []string
	for _, m := range r.Metrics {
		text := fmt.Sprintf("%s %s", m.Name, m.sizes())
		switch {
		case !m.Tested:
			untested = append(untested, text)
		case m.unchanged():
			same = append(same, fmt.Sprintf("%s (%s before, %d after)", m.Name, format.Count(m.WindowsBefore, "window"), m.WindowsAfter))
		default:
			if top := m.Top(1); len(top) > 0 && top[0].Significant() {
				v := top[0].Cum
				if !v.Significant {
					v = top[0].Flat
				}
				text += fmt.Sprintf(", most in %s (%s)", stacks.Printable(top[0].Name), m.Change(v))
			}
			changed = append(changed, text)
		}
	}
	var lines []string
	add := func(what string, all []string, separator string) {
		if len(all) > 0 {
			lines = append(lines, what+": "+strings.Join(all, separator))
		}
	}
	add("changed", changed, "; ")
	add("no significant change", same, ", ")
	add("not tested", untested, "; ")
	for _, route := range r.Routes[:min(len(r.Routes), maxSummarized)] {
		lines = append(lines, route.line())
	}
	return lines
}

// sizes writes the total on both sides.
func (m Metric) sizes() string {
	text := m.Format(float64(m.Total.Cum.Before)) + " → " + m.Format(float64(m.Total.Cum.After))
	if change := m.Change(m.Total.Cum); change != "" && change != "~" {
		text += " (" + change + ")"
	}
	return text
}

// unchanged reports whether neither the total nor any function changed significantly.
func (m Metric) unchanged() bool {
	return m.Tested && !m.Total.Cum.Significant && len(m.Changed()) == 0
}

// line describes how long the requests of a name took.
func (r Route) line() string {
	side := func(d Durations) string {
		if d.Requests == 0 {
			return "none"
		}
		return fmt.Sprintf("median %s, 99 %% %s of %d", format.Duration(d.Median), format.Duration(d.P99), d.Requests)
	}
	return fmt.Sprintf("requests %s: before %s; after %s", stacks.Printable(r.Name), side(r.Before), side(r.After))
}

// remarks returns what the tables do not show.
func (r *Report) remarks() []string {
	var lines []string
	for _, rn := range r.Renamed {
		lines = append(lines, stacks.Printable(fmt.Sprintf("renamed: %s is now %s", rn.Before, rn.After)))
	}
	return append(lines, r.Notes...)
}

func (m Metric) heading() string {
	per := ""
	if m.Per != "" {
		per = ", per " + m.Per
	}
	return fmt.Sprintf("%s%s: %s before, %d after", m.Name, per, format.Count(m.WindowsBefore, "window"), m.WindowsAfter)
}

// Top returns at most n functions to show first: those whose change is significant, then the others, each in the order
// of Functions.
func (m Metric) Top(n int) []Change {
	top := slices.Clone(m.Functions)
	slices.SortStableFunc(top, func(a, b Change) int {
		return cmp.Compare(rank(b), rank(a))
	})
	return top[:min(n, len(top))]
}

func rank(c Change) int {
	if c.Significant() {
		return 1
	}
	return 0
}

func (m Metric) leftOut(rows int) string {
	if left := len(m.Functions) - rows; left > 0 || m.Small > 0 {
		return fmt.Sprintf("and %d more functions (%d too small to test)", max(left, 0)+m.Small, m.Small)
	}
	return ""
}

// row returns the cells of a function's row.
func (m Metric) row(c Change) []string {
	q := "?"
	if m.Tested {
		q = format.Probability(min(c.Flat.Q, c.Cum.Q))
	}
	return []string{
		stacks.Printable(c.Name),
		m.Format(float64(c.Flat.Before)), m.Format(float64(c.Flat.After)), m.Change(c.Flat),
		m.Format(float64(c.Cum.Before)), m.Format(float64(c.Cum.After)), m.Change(c.Cum), q,
	}
}

// Change writes how a value changed: "~" if the change is not significant, else the percentage, or the difference if there
// are values below 0, with its interval if there is one.
func (m Metric) Change(v Values) string {
	switch {
	case v.Before == 0 && v.After == 0:
		return ""
	case m.Tested && !v.Significant:
		return "~"
	}
	if m.Signed {
		text := m.difference(v.Difference.Value)
		if low, high := v.Difference.Low, v.Difference.High; !math.IsInf(float64(low), -1) {
			text += fmt.Sprintf(" [%s, %s]", m.difference(low), m.difference(high))
		}
		return text
	}
	text := v.size()
	if low, high := float64(v.Ratio.Low), float64(v.Ratio.High); v.Before != 0 && v.After != 0 && !math.IsInf(low, -1) {
		text += fmt.Sprintf(" [%s, %s]", percent(low), percent(high))
	}
	return text
}

// size writes the change as a percentage, or that one side has nothing.
func (v Values) size() string {
	return sizeOf(float64(v.Before), float64(v.After), float64(v.Ratio.Value))
}

func sizeOf(before, after, ratio float64) string {
	switch {
	case before == 0 && after != 0:
		return "new"
	case before != 0 && after == 0:
		return "gone"
	}
	return percent(ratio)
}

// percent writes a ratio as a change.
func percent(ratio float64) string {
	if math.IsInf(ratio, 1) {
		return "∞"
	}
	return fmt.Sprintf("%+.1f %%", 100*(ratio-1))
}

// difference writes a change in the metric's unit, with its sign.
func (m Metric) difference(v Number) string {
	if v < 0 {
		return m.Format(float64(v))
	}
	return "+" + m.Format(float64(v))
}

// Format writes a normalized value in the metric's unit.
func (m Metric) Format(v float64) string {
	text := format.Amount(v, m.Unit)
	if m.Per == "second" {
		text += "/s"
	}
	return text
}
