package leaks

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"spanflame/profiles/internal/stacks"
)

// WriteJSON writes the report as one JSON object.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// WriteText writes the report for a terminal.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	for i, p := range r.Processes {
		fmt.Fprintf(&b, "%s: %d heap and %d goroutine profiles from %s to %s, %s in use\n",
			p.name(), p.Heap, p.Goroutines, p.Start.UTC().Format(time.DateTime), p.End.UTC().Format(time.DateTime+" MST"), size(float64(p.InUse)))
		for _, t := range p.Restarts {
			fmt.Fprintf(&b, "  restarted by %s; the longest run is judged\n", t.UTC().Format(time.DateTime))
		}
		switch {
		case p.OverLimit:
			fmt.Fprintf(&b, "  the limit of %s is already exceeded\n", size(float64(r.Limit)))
		case !p.LimitAt.IsZero():
			fmt.Fprintf(&b, "  at this rate, %s a minute, the limit of %s is reached by %s\n", size(p.BytesPerMinute), size(float64(r.Limit)), p.LimitAt.UTC().Format(time.DateTime+" MST"))
		}
		suspects := writeAll(&b, "suspects, by bytes a minute", r.Suspects, i, p, func(Suspect) string { return "" })
		undecided := writeAll(&b, "rise as a leak does, but perhaps by chance: more profiles will tell", r.Undecided, i, p,
			func(s Suspect) string { return fmt.Sprintf(", q=%.2g where a suspect has at most %.2g", s.Q, r.Alpha) })
		if suspects+undecided == 0 {
			b.WriteString("  no leak found\n")
		}
		b.WriteString("\n")
	}
	if len(r.Dismissed) > 0 {
		b.WriteString("grew, but not as a leak does\n")
		for _, d := range r.Dismissed {
			fmt.Fprintf(&b, "  %-9s  %10s  %s: %s\n", d.Kind, "+"+size(float64(d.Grown)), stacks.Printable(d.Site), d.Reason)
		}
	}
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "%s\n", note)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeAll writes the stacks of one process below a title, with more behind each, and returns how many there are.
func writeAll(b *strings.Builder, title string, all []Suspect, process int, p Process, more func(Suspect) string) (n int) {
	for i, s := range all {
		if s.Process != process {
			continue
		}
		if n == 0 {
			fmt.Fprintf(b, "\n  %s\n", title)
		}
		n++
		s.write(b, i+1, p, more(s))
	}
	return n
}

func (s Suspect) write(b *strings.Builder, n int, p Process, more string) {
	rate := fmt.Sprintf("%s/min [%s, %s]", size(s.BytesPerMinute), size(s.Low), size(s.High))
	if s.Kind == Goroutine {
		rate = fmt.Sprintf("%.3g goroutines/min, at least %s/min", s.PerMinute, size(s.BytesPerMinute))
	}
	began := "since " + s.Began.UTC().Format(time.DateTime)
	if s.Began.Equal(p.Start) {
		began = "since before the first profile"
	}
	fmt.Fprintf(b, "  %d. %s: %s, %s %s, p=%.2g%s\n", n, stacks.Printable(s.Site), s.Kind, rate, began, s.P, more)
	fmt.Fprintf(b, "     %s\n", stacks.Printable(strings.Join(s.Stack, " → ")))
}

// size writes bytes with a unit that fits.
func size(v float64) string {
	for _, u := range []struct {
		bytes float64
		name  string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if math.Abs(v) >= u.bytes {
			return fmt.Sprintf("%.1f %s", v/u.bytes, u.name)
		}
	}
	return fmt.Sprintf("%.0f B", v)
}
