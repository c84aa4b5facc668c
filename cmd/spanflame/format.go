package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// byFormat returns the writer of a report that --format names.
func byFormat[W any](format string, writers map[string]W) (W, error) {
	write, ok := writers[format]
	if !ok {
		return write, fmt.Errorf("--format %q: want one of %s", format, strings.Join(slices.Sorted(maps.Keys(writers)), ", "))
	}
	return write, nil
}
