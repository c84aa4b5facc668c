package wall

import (
	"strings"
	"testing"
	"time"

	"spanflame/internal/wallframe"
)

// TestEveryStateHasItsWords: a leaf that a sentence has no words for is said as it is, such as "waiting: mutex".
func TestEveryStateHasItsWords(t *testing.T) {
	for s := range state(len(stateNames)) {
		said := wallframe.Sentence("x", time.Second, wallframe.Place{Function: "main.f", Leaf: s.leaf()}, time.Second)
		if (s == running) != (s.leaf() == "") || strings.Count(said, ":") != 1 || strings.Contains(said, "  ") {
			t.Errorf("state %d: a sentence has no words for %q: %q", s, s.leaf(), said)
		}
	}
}
