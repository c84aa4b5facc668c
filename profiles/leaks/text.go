package leaks

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

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

// WriteText writes the report for a terminal.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	for _, e := range r.Ended {
		e.write(&b)
	}
	for i, p := range r.Processes {
		fmt.Fprintf(&b, "%s: %d memory and %d goroutine profiles from %s to %s, %s in use\n",
			p.name(), p.MemoryWindows, p.GoroutineWindows, format.Clock(p.Start), utc(p.End), format.Bytes(p.InUse))
		for _, t := range p.Restarts {
			fmt.Fprintf(&b, "  restarted by %s; only the longest run is analyzed\n", format.Clock(t))
		}
		switch {
		case p.OverLimit:
			fmt.Fprintf(&b, "  the limit of %s is already exceeded\n", format.Bytes(r.Limit))
		case !p.LimitAt.IsZero():
			fmt.Fprintf(&b, "  at this rate, %s per minute, the limit of %s is reached by %s\n", size(p.BytesPerMinute), format.Bytes(r.Limit), utc(p.LimitAt))
		}
		suspects := writeAll(&b, "suspects, by bytes per minute", r.Suspects, i, p, func(Suspect) string { return "" })
		held := writeAll(&b, "grew until the load stopped, and stayed: a leak, or a cache", r.Held, i, p,
			func(s Suspect) string { return fmt.Sprintf(", %s still in use", format.Bytes(s.InUse)) })
		undecided := writeAll(&b, "inconclusive: grew, which may be chance; more profiles would tell", r.Undecided, i, p,
			func(s Suspect) string { return fmt.Sprintf(", q=%.2g (a suspect has at most %.2g)", s.Q, r.Alpha) })
		if suspects+held+undecided == 0 {
			b.WriteString("  no leak found\n")
		}
		b.WriteString("\n")
	}
	if len(r.Dismissed) > 0 {
		b.WriteString("grew, but not as a leak does\n")
		for _, d := range r.Dismissed {
			fmt.Fprintf(&b, "  %-10s  %10s  %s: %s\n", d.Kind, "+"+format.Bytes(d.Grown), stacks.Printable(d.Site), d.Reason)
		}
	}
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "%s\n", note)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeAll writes the stacks of one process below a title, each followed by more, and returns their number.
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
	if s.Kind == Goroutines {
		rate = fmt.Sprintf("%.3g goroutines/min, at least %s/min", s.PerMinute, size(s.BytesPerMinute))
	}
	began := "since " + format.Clock(s.Began)
	if s.Began.Equal(p.Start) {
		began = "since before the first profile"
	}
	fmt.Fprintf(b, "  %d. %s: %s, %s %s, p=%.2g%s\n", n, stacks.Printable(s.Site), s.Kind, rate, began, s.P, more)
	fmt.Fprintf(b, "     %s\n", stacks.Printable(strings.Join(s.Stack, " → ")))
}

// size writes a number of bytes that may have a fraction.
func size(v float64) string { return format.Bytes(int64(v)) }

// utc writes a time with its zone.
func utc(t time.Time) string { return t.UTC().Format(time.DateTime + " MST") }
