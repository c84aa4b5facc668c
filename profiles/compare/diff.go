package compare

import (
	"errors"
	"fmt"
	"io"

	"github.com/google/pprof/profile"
	"github.com/klauspost/compress/gzip"
)

// baseLabel marks the samples of the subtracted side, as "go tool pprof -diff_base" does. pprof recognises a difference
// by it and computes percentages of the base.
const baseLabel = "pprof::base"

// difference returns after minus before. The values of before are multiplied by the scale of their sample type.
func difference(before, after *profile.Profile, scales map[string]float64) (*profile.Profile, error) {
	base := before.Copy()
	base.SetLabel(baseLabel, []string{"true"})
	ratios := make([]float64, len(base.SampleType))
	for i, t := range base.SampleType {
		ratios[i] = -scaleOf(t, base.SampleType, scales)
	}
	if err := base.ScaleN(ratios); err != nil {
		return nil, err
	}
	diff, err := profile.Merge([]*profile.Profile{after, base})
	if err != nil {
		return nil, fmt.Errorf("%w: choose one type of profile", err)
	}
	return diff, nil
}

// scaleOf returns the scale of a sample type, or else of a compared one of the same kind: the number of CPU samples, for
// example, has the scale of the CPU time.
func scaleOf(t *profile.ValueType, all []*profile.ValueType, scales map[string]float64) float64 {
	if scale, ok := scales[t.Type]; ok {
		return scale
	}
	for _, like := range all {
		if scale, ok := scales[like.Type]; ok && isLevel(like.Type) == isLevel(t.Type) {
			return scale
		}
	}
	return 1
}

// WriteDiff writes Diff as a gzip-compressed profile.
func (r *Report) WriteDiff(w io.Writer) error {
	if r.Diff == nil {
		return errors.New("the comparison was made without Options.Diff")
	}
	zw := gzip.NewWriter(w)
	// Profile.Write compresses too, but ignores the error of closing the compressor.
	return errors.Join(r.Diff.WriteUncompressed(zw), zw.Close())
}
