package demo

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"
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
