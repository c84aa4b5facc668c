//go:build long && !race

package watch

import "testing"

// TestNothingIsFoundInAMonth takes about ten minutes.
func TestNothingIsFoundInAMonth(t *testing.T) { rounds(t, 1, month) }
