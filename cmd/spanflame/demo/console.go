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

// clearLine takes back a line of progress on a terminal.
const clearLine = "\r\x1b[K"

// console keeps findings and progress apart, also where both are the same terminal: a line of progress is
// rewritten in place there, and would otherwise stand in the middle of a finding. It is the io.Writer of the
// progress, and of what the pages log.
type console struct {
	mu            sync.Mutex
	out, progress io.Writer
	terminal      bool
	rewriting     bool // the cursor stands behind a line of progress
}

// Write writes progress: a line that stays, or one that will be rewritten if it has no end.
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

// interval is how often a line of progress is worth its place.
func (c *console) interval() time.Duration {
	if c.terminal {
		return 200 * time.Millisecond
	}
	return 5 * time.Second
}

// load writes how far the load is: on a terminal a line that is rewritten. After its time it waits for the answers to
// what was sent.
func (c *console) load(s load.Snapshot) {
	var line strings.Builder
	if s.Elapsed < s.Duration {
		fmt.Fprintf(&line, "%3.0f s of %.0f s: %d of %d requests sent, %d in flight, %d failed", s.Elapsed.Seconds(), s.Duration.Seconds(), s.Sent, s.Due, s.InFlight, s.Failed)
	} else {
		fmt.Fprintf(&line, "the %.0f s are over: waiting for the answers to %d requests; %d failed", s.Duration.Seconds(), s.InFlight, s.Failed)
	}
	if s.Shed > 0 {
		fmt.Fprintf(&line, ", %d left out as %d were in flight", s.Shed, concurrency)
	}
	if c.terminal {
		fmt.Fprint(c, clearLine+line.String())
	} else {
		fmt.Fprintln(c, line.String())
	}
}

// say writes a finding. That nobody reads it is no reason to end the demo.
func (c *console) say(format string, args ...any) { c.line(c.out, format, args...) }

// progressf writes one line of progress that stays.
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

// endLine leaves the line of progress as it is.
func (c *console) endLine() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rewriting {
		fmt.Fprintln(c.progress)
		c.rewriting = false
	}
}
