package incident

import (
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"spanflame/agent/internal/owndir/owndirtest"
	"spanflame/internal/incidentfile"
)

// TestFullDisk: the bundles that are there stay, the next one is refused without a trace, and one is written when there is
// room again.
func TestFullDisk(t *testing.T) {
	dir := owndirtest.Disk(t, "256k")
	big := false
	k, _ := keeper(t, func(o *Options) {
		o.Dir, o.Max = dir, 1
		o.Trace = func(w io.Writer) error {
			if big {
				_, err := io.CopyN(w, rand.NewChaCha8([32]byte{}), 1<<20) // which no compression makes smaller
				return err
			}
			return nil
		}
	})
	id, _ := request(t, k)
	big = true
	if _, _, err := k.Request(t.Context()); err == nil {
		t.Fatal("more is written than fits")
	}
	if entries, err := os.ReadDir(k.store.path()); err != nil || len(entries) != 1 || entries[0].Name() != id+incidentfile.Suffix {
		t.Errorf("%v, %v", entries, err)
	}
	big = false
	request(t, k)
}
