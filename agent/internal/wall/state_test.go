package wall

import (
	"testing"

	"spanflame/internal/wallframe"
)

func TestEveryStateHasItsWords(t *testing.T) {
	for s := range state(len(stateNames)) {
		if (s == running) != (s.leaf() == "") || !wallframe.Known(s.leaf()) {
			t.Errorf("state %d: a sentence has no words for %q", s, s.leaf())
		}
	}
}
