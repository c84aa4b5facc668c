package save

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"time"
)

// A file of traces is named after the time when it was opened, so that names sort by time and a reader who wants a
// time range opens few files. It holds spans that ended from then on, for an hour at most.
const (
	timeLayout = "20060102T150405.000000000Z"
	fileSuffix = ".jsonl"
)

// traceFileName returns a new name for a file that is opened now, like "20060102T150405.000000000Z-01ab23cd.jsonl".
func traceFileName(now time.Time) string {
	return fmt.Sprintf("%s-%08x%s", now.UTC().Format(timeLayout), rand.Uint32(), fileSuffix)
}

var namePattern = regexp.MustCompile(`^([0-9]{8}T[0-9]{6}\.[0-9]{9}Z)-[0-9a-f]{8}\.jsonl$`)

// parseTraceFileName returns when the file of that name was opened.
func parseTraceFileName(file string) (time.Time, error) {
	m := namePattern.FindStringSubmatch(file)
	if m == nil {
		return time.Time{}, fmt.Errorf("file name %q: want time-id%s", file, fileSuffix)
	}
	opened, err := time.Parse(timeLayout, m[1])
	if err != nil {
		return time.Time{}, fmt.Errorf("file name %q: %w", file, err)
	}
	return opened, nil
}
