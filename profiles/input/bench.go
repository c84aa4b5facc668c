package input

import (
	"bytes"
	"fmt"
	"io"
	"iter"
	"maps"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/google/pprof/profile"
	"golang.org/x/perf/benchfmt"

	"spanflame/internal/record"
	"spanflame/profiles"
)

// maxBenchmarks limits a file with the output of benchmarks, in bytes.
const maxBenchmarks = 64 << 20

// benchmarkLine matches a line of the output of go test -bench.
var benchmarkLine = regexp.MustCompile(`(?m)^Benchmark\S*[ \t]+[0-9]+[ \t]+[0-9.e+]+[ \t]+\S+`)

// benchmarks returns the output of benchmarks in a file, as windows: one for each repetition, with the benchmarks as its
// functions. It returns nil if the file is something else.
func benchmarks(path string) (iter.Seq2[profiles.Window, error], error) {
	// Opening a pipe would wait for its writer.
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // it was only read
	head := make([]byte, 4096)
	n, err := io.ReadFull(f, head)
	if err == io.EOF || bytes.IndexByte(head[:n], 0) >= 0 {
		return nil, nil // empty or not a text
	}
	text, err := io.ReadAll(io.LimitReader(io.MultiReader(bytes.NewReader(head[:n]), f), maxBenchmarks+1))
	switch {
	case err != nil:
		return nil, err
	case !benchmarkLine.Match(text):
		return nil, nil
	case len(text) > maxBenchmarks:
		return nil, fmt.Errorf("%s has more than %d bytes of benchmarks", path, maxBenchmarks)
	}
	windows, err := repetitions(text, path)
	if err != nil {
		return nil, err
	}
	return func(yield func(profiles.Window, error) bool) {
		for _, w := range windows {
			if !yield(w, nil) {
				return
			}
		}
	}, nil
}

// measured are the values of one unit by benchmark, in the order of the output.
type measured map[string][]float64

// repetitions makes a window of each repetition of the benchmarks. Benchmarks that were repeated more often than others
// are cut to the least number, so that each window has them all.
func repetitions(text []byte, path string) ([]profiles.Window, error) {
	all := make(map[string]measured) // by unit
	reader := benchfmt.NewReader(bytes.NewReader(text), path)
	for reader.Scan() {
		r, ok := reader.Result().(*benchfmt.Result)
		if !ok {
			continue // a line that is not of the format, or about a unit
		}
		for _, v := range r.Values {
			if all[v.Unit] == nil {
				all[v.Unit] = make(measured)
			}
			all[v.Unit][r.Name.String()] = append(all[v.Unit][r.Name.String()], v.Value)
		}
	}
	if err := reader.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	count := math.MaxInt
	for _, of := range all {
		for _, values := range of {
			count = min(count, len(values))
		}
	}
	var windows []profiles.Window
	for i := range count {
		w, err := repetition(all, i)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		windows = append(windows, w)
	}
	return windows, nil
}

// repetition returns a window with one value of each benchmark and unit.
func repetition(all map[string]measured, i int) (profiles.Window, error) {
	units := slices.Sorted(maps.Keys(all))
	p := &profile.Profile{}
	samples := make(map[string]*profile.Sample)
	for column, unit := range units {
		of, factor := unitOf(unit)
		p.SampleType = append(p.SampleType, &profile.ValueType{Type: unit, Unit: of})
		for _, name := range slices.Sorted(maps.Keys(all[unit])) {
			s := samples[name]
			if s == nil {
				f := &profile.Function{ID: uint64(len(p.Function) + 1), Name: name}
				l := &profile.Location{ID: f.ID, Line: []profile.Line{{Function: f}}}
				s = &profile.Sample{Location: []*profile.Location{l}, Value: make([]int64, len(units))}
				p.Function, p.Location, samples[name] = append(p.Function, f), append(p.Location, l), s
				p.Sample = append(p.Sample, s)
			}
			v := math.Round(all[unit][name][i] * factor * profiles.BenchmarkParts)
			if !(math.Abs(v) < math.MaxInt64) {
				return profiles.Window{}, fmt.Errorf("%s: %g %s is too large", name, all[unit][name][i], unit)
			}
			s.Value[column] = int64(v)
		}
	}
	return profiles.Window{Meta: record.Meta{Type: profiles.Benchmark}, Profile: p}, nil
}

// unitOf returns the unit of samples in which values of a benchmark's unit are written, and the factor to it.
func unitOf(unit string) (of string, factor float64) {
	switch base, _, _ := strings.Cut(unit, "/"); base {
	case "sec":
		return "nanoseconds", 1e9
	case "B":
		return "bytes", 1
	}
	return "count", 1
}
