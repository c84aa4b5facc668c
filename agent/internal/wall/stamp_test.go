package wall

import (
	"io"
	"testing"
	"time"

	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

// Records that begin in the same millisecond are moved apart, some of them beyond the end of their spans.
func TestManySpansOfOneMillisecond(t *testing.T) {
	records := 0
	x := newEncoder(Options{Service: "shop", Emit: func(r record.Record) {
		records++
		if err := record.Encode(io.Discard, r); err != nil {
			t.Error(err)
		}
	}})
	at := time.Now().Add(-time.Second)
	for range 200 {
		a := account{span: &span{start: at, first: "GET /", root: &root{}}, duration: 10 * time.Millisecond}
		for range 500 {
			a.samples = append(a.samples, sample{entry{stack: noStack, state: wallprofile.Running}, false, 20000})
		}
		x.add(wallprofile.ScopeRoot, a)
	}
	x.flush(wallprofile.ScopeRoot)
	if records < 2 {
		t.Errorf("%d records, want several of one millisecond", records)
	}
}
