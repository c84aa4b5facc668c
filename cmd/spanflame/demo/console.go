package demo

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"spanflame/workload/load"
)

// clearLine clears a line of progress on a terminal.
const clearLine = "\r\x1b[K"

// console separates findings and progress, even if both go to the same terminal: there a line of progress is
// rewritten in place, and would otherwise mix with a finding. It is the io.Writer for progress and for the log of
// the pages.
type console struct {
	mu            sync.Mutex
	out, progress io.Writer
	terminal      bool
	rewriting     bool // the cursor is after a line of progress
}

// Write writes progress: a line that stays, or, without a newline, a line that will be rewritten.
func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stays := bytes.HasSuffix(b, []byte("\n"))
	if stays && c.rewriting {
		fmt.Fprint(c.progress, clearLine)
	}
	c.rewriting = c.terminal && !stays
	return c.progress.Write(b)
}

// interval is the time between lines of progress.
func (c *console) interval() time.Duration {
	if c.terminal {
		return 200 * time.Millisecond
	}
	return 5 * time.Second
}

// load writes the progress of the load: on a terminal, a line that is rewritten. After the load's duration, it
// reports the wait for the remaining answers.
func (c *console) load(s load.Snapshot) {
	var line strings.Builder
	if s.Elapsed < s.Duration {
		fmt.Fprintf(&line, "%3.0f s of %.0f s: %d of %d requests sent, %d in flight, %d failed",
			s.Elapsed.Seconds(), s.Duration.Seconds(), s.Sent, s.Due, s.InFlight, s.Failed)
	} else {
		fmt.Fprintf(&line, "%.0f s are over: waiting for the answers to %d requests; %d failed", s.Duration.Seconds(), s.InFlight, s.Failed)
	}
	if s.Shed > 0 {
		fmt.Fprintf(&line, ", %d shed because %d were in flight", s.Shed, concurrency)
	}
	if c.terminal {
		fmt.Fprint(c, clearLine+line.String())
	} else {
		fmt.Fprintln(c, line.String())
	}
}

// findf writes a finding. It ignores errors: the demo continues without a reader.
func (c *console) findf(format string, args ...any) { c.line(c.out, format, args...) }

// progressf writes a line of progress that stays.
func (c *console) progressf(format string, args ...any) { c.line(c.progress, format, args...) }

func (c *console) line(w io.Writer, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rewriting {
		fmt.Fprint(c.progress, clearLine)
		c.rewriting = false
	}
	fmt.Fprintf(w, format+"\n", args...)
}

// endLine ends a line of progress, which then stays.
func (c *console) endLine() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rewriting {
		fmt.Fprintln(c.progress)
		c.rewriting = false
	}
}
