package leaks

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/profiles"
)

// TestASeriesIsBounded has two stacks, of which five windows may be kept.
func TestASeriesIsBounded(t *testing.T) {
	p := &profile.Profile{SampleType: []*profile.ValueType{{Type: "inuse_space", Unit: "bytes"}}}
	for i := range 2 {
		f := &profile.Function{Name: fmt.Sprintf("main.f%d", i)}
		p.Sample = append(p.Sample, &profile.Sample{Value: []int64{1}, Location: []*profile.Location{{Line: []profile.Line{{Function: f}}}}})
	}
	r := newReader(Options{})
	r.most = 2 + 5*2
	for i := range 6 {
		m := record.Meta{Service: "shop", Start: time.Unix(int64(i), 0), End: time.Unix(int64(i)+1, 0)}
		err := r.add(profiles.Window{Meta: m, Profile: p})
		if i < 5 && err != nil {
			t.Fatalf("window %d: %v", i, err)
		}
		want := "1970-01-01T00:00:06Z there are over 12 stacks and values: select"
		if i == 5 && (!errors.Is(err, record.ErrTooLarge) || !strings.Contains(err.Error(), want)) {
			t.Errorf("the window that is too many: %v", err)
		}
	}
}
