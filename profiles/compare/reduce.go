package compare

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/profiles/internal/stacks"
)

// point is the value of one window; windows without a value have no point.
type point struct {
	window int32
	value  int64
}

// series is a list of points, in the order of windows.
type series []point

func (s series) sum() (sum int64) {
	for _, p := range s {
		sum += p.value
	}
	return sum
}

// window has the data that normalizes the values of one window.
type window struct {
	length  time.Duration // 0 if unknown
	spans   int           // number of different span IDs, for wall profiles
	request int           // the index in the side's requests, see find
	start   time.Time
	work    float64
}

// measure is one metric of one side.
type measure struct {
	name, unit  string
	sample      string // the sample type's own name
	scale       int64  // of its values in the profile that is being added, whose unit may be another
	wall, level bool
	benchmark   bool    // its values are parts of the results of benchmarks
	signed      bool    // it has values below 0
	grain       float64 // of a level: the size of its units, such as the bytes that one sample of the heap stands for
	period      float64 // the largest value of one sample, 0 if unknown
	windows     []window
	total       series
	flat, cum   []series // by function
	self, tree  []series // by node: of the stack itself, and including its callees
}

// side is one side of the comparison, reduced.
type side struct {
	name     string        // "before" or "after", for errors
	table    *stacks.Table // shared by both sides
	only     []string      // metrics, none for all
	work     func(record.Meta) (float64, error)
	metrics  []string // names of all metrics in the windows
	measures []*measure
	services []string
	seed     maphash.Seed   // shared by both sides
	seen     map[uint64]int // windows, by their fingerprints
	builds   builds
	windows  int
	// childSpans includes wall-clock profiles of child spans; otherwise they are left out and counted in children.
	// unscoped is set if there are profiles that do not have the scope of their spans.
	childSpans bool
	children   int
	unscoped   bool
	span       string    // the name of the only requests to compare, empty for all
	requests   *requests // all requests, nil if they are not known
	unknown    int       // wall-clock profiles that are left out because their request is not among them
	timeRange  timeRange // of all windows
	measured   timeRange // of all windows except wall-clock profiles, which exist only for slow spans
	progress   func(side string, windows int)
}

// leavesOut reports whether a window is to be left out, and counts it. The request is the window's, as find returns it.
func (s *side) leavesOut(w profiles.Window, request int) bool {
	if s.span != "" && w.Type != record.Wall && w.Type != record.CPU {
		return true // its samples do not name their requests
	}
	if w.Type != record.Wall || s.childSpans {
		return false
	}
	switch w.Labels[wallprofile.SpanScope] {
	case wallprofile.ScopeChild:
		s.children++
		return true
	case wallprofile.ScopeFast:
		return true // of a sample: it has not all of their time
	case "":
		s.unscoped = s.unscoped || w.Service != ""
	}
	if s.requests != nil && (w.Service != "" || len(profiles.SpanIDs(w.Profile)) > 0) && request < 0 {
		if s.span == "" {
			s.unknown++
		}
		return true
	}
	return false
}

// add reduces one window, of the request that find returned.
func (s *side) add(w profiles.Window, request int) error {
	spans := 0
	if w.Type == record.Wall {
		if spans = len(profiles.SpanIDs(w.Profile)); spans == 0 && w.Service != "" {
			spans = 1 // a server's profile has lost its labels
		}
		// Who else was waited for is no change of the functions that wait, and other goroutines' time is not the span's.
		w.Profile = profiles.Own(w.Profile)
		w.Profile.Sample = slices.DeleteFunc(w.Profile.Sample, func(s *profile.Sample) bool { return !profiles.OwnTime(s) })
	}
	if s.span != "" && w.Type == record.CPU {
		w.Profile = s.requests.only(w.Profile)
	}
	p := w.Profile
	if !slices.Contains(s.services, w.Service) && w.Service != "" {
		s.services = append(s.services, w.Service)
	}
	wanted, err := s.wanted(w)
	if err != nil {
		return err
	}
	win := window{length: time.Duration(p.DurationNanos), spans: spans, request: request, start: w.Start}
	if win.length <= 0 {
		win.length = max(0, w.End.Sub(w.Start))
	}
	if s.work != nil {
		if win.work, err = s.work(w.Meta); err != nil {
			return fmt.Errorf("the work of the window from %s to %s: %w", w.Start.UTC().Format(time.RFC3339), w.End.UTC().Format(time.RFC3339), err)
		}
		if !(win.work > 0) {
			return fmt.Errorf(
				"the work of the window from %s to %s is %g: want more than 0",
				w.Start.UTC().Format(time.RFC3339),
				w.End.UTC().Format(time.RFC3339),
				win.work,
			)
		}
	}
	s.windows++
	s.seen[s.fingerprint(w)]++
	s.builds.add(w)
	s.timeRange.add(w.Start, w.End)
	if w.Type != record.Wall {
		s.measured.add(w.Start, w.End)
	}
	if len(wanted) > 0 {
		if err := s.reduce(p, win, wanted); err != nil {
			return err
		}
	}
	if s.progress != nil {
		s.progress(s.name, s.windows)
	}
	return nil
}

// fingerprint returns a hash that is equal for windows with the same profile.
func (s *side) fingerprint(w profiles.Window) uint64 {
	var h maphash.Hash
	h.SetSeed(s.seed)
	maphash.WriteComparable(&h, [2]string{w.Service, string(w.Type)})
	maphash.WriteComparable(&h, [3]int64{w.Start.UnixNano(), w.Profile.TimeNanos, w.Profile.DurationNanos})
	for _, name := range slices.Sorted(maps.Keys(w.Labels)) {
		maphash.WriteComparable(&h, [2]string{name, w.Labels[name]})
	}
	var values []byte
	for _, sample := range w.Profile.Sample {
		values = binary.LittleEndian.AppendUint64(values[:0], uint64(len(sample.Location)))
		for _, v := range sample.Value {
			values = binary.LittleEndian.AppendUint64(values, uint64(v))
		}
		_, _ = h.Write(values) // it never fails
	}
	return h.Sum64()
}

// shared returns the number of windows that are also on the other side.
func (s *side) shared(other *side) (n int) {
	for window, count := range s.seen {
		n += min(count, other.seen[window])
	}
	return n
}

// wanted returns the measures of the profile's sample types, nil for one that is left out.
func (s *side) wanted(w profiles.Window) ([]*measure, error) {
	types := w.Profile.SampleType
	if len(types) == 0 {
		return nil, fmt.Errorf("the profile of %s has no sample type", w.Start.UTC().Format(time.RFC3339))
	}
	counts := w.Type != profiles.Benchmark && slices.IndexFunc(types, func(t *profile.ValueType) bool { return t.Unit != "count" }) >= 0
	wanted, any := make([]*measure, len(types)), false
	for i, t := range types {
		name := metricName(w.Meta, t.Type)
		if !slices.Contains(s.metrics, name) {
			s.metrics = append(s.metrics, name)
		}
		if w.Type == record.Wall && t.Type == wallprofile.OthersType {
			continue // it was left out
		}
		if len(s.only) > 0 && !slices.Contains(s.only, name) || len(s.only) == 0 && counts && t.Unit == "count" {
			continue
		}
		unit, scale := format.Base(t.Unit)
		j := slices.IndexFunc(s.measures, func(m *measure) bool { return m.name == name })
		if j < 0 {
			j = len(s.measures)
			wall := w.Type == record.Wall && t.Type == string(record.Wall)
			s.measures = append(s.measures, &measure{
				name: name, unit: unit, sample: t.Type, wall: wall, level: isLevel(t.Type), benchmark: w.Type == profiles.Benchmark,
			})
		}
		m := s.measures[j]
		if m.unit != unit {
			return nil, fmt.Errorf("metric %s is in %q in one window and in %q in another: convert one of them", name, m.unit, unit)
		}
		m.scale = scale
		wanted[i], any = s.measures[j], true
	}
	if !any {
		return nil, nil
	}
	return wanted, nil
}

// metricName returns the sample type, prefixed with the profile's type if two profile types have the same sample types.
// In a foreign file these two cannot be distinguished.
func metricName(m record.Meta, sample string) string {
	if m.Service != "" && (m.Type == record.Mutex || m.Type == record.Block) {
		return string(m.Type) + "_" + sample
	}
	return sample
}

// isLevel reports whether a sample type is measured at an instant; others add up over the window.
func isLevel(sample string) bool {
	return strings.HasPrefix(sample, "inuse_") || slices.Contains([]string{"goroutine", "goroutines", "goroutineleak", "threadcreate"}, sample)
}

// heapRate is the number of bytes that a sample of Go's heap profile stands for, unless the profile has another period.
const heapRate = 512 << 10

// grain returns the size of the units of a level: for memory, the mean number of bytes between two samples; otherwise 1.
func grain(p *profile.Profile, unit string) float64 {
	switch {
	case p.PeriodType != nil && p.PeriodType.Unit == unit && p.Period > 0:
		return float64(p.Period)
	case unit == "bytes":
		return heapRate
	}
	return 1
}

// reduce adds up the samples of one profile by function and by stack. A function that occurs several times on a stack
// counts once.
func (s *side) reduce(p *profile.Profile, win window, wanted []*measure) error {
	type sums struct {
		total, size           int64 // size is the sum of the magnitudes
		flat, cum, self, tree map[int32]int64
	}
	all := make([]sums, len(wanted))
	for i := range all {
		all[i] = sums{0, 0, map[int32]int64{}, map[int32]int64{}, map[int32]int64{}, map[int32]int64{}}
	}
	reader := s.table.NewReader()
	var distinct []int32
	seen := make([]int32, 0, len(s.table.Names)) // by function: the last sample that has it, counted from 1
	for n, sample := range p.Sample {
		if len(sample.Value) != len(wanted) {
			return fmt.Errorf("a sample has %d values, the profile %d sample types", len(sample.Value), len(wanted))
		}
		nodes := reader.Nodes(sample)
		distinct = distinct[:0]
		for _, id := range nodes {
			fn := s.table.Nodes[id].Function
			if missing := int(fn) + 1 - len(seen); missing > 0 {
				seen = append(seen, make([]int32, missing)...)
			}
			if seen[fn] != int32(n+1) {
				seen[fn] = int32(n + 1)
				distinct = append(distinct, fn)
			}
		}
		for i, v := range sample.Value {
			if wanted[i] == nil || v == 0 {
				continue
			}
			m, a := wanted[i], &all[i]
			m.signed = m.signed || v < 0
			scaled := v * m.scale
			a.total += scaled
			if a.size += max(scaled, -scaled); a.size < 0 || scaled/m.scale != v || scaled == math.MinInt64 {
				return fmt.Errorf("%s: the values add up to more than 63 bits", m.name)
			}
			v = scaled
			if len(nodes) == 0 {
				continue // counts only for the total
			}
			leaf := nodes[len(nodes)-1]
			a.flat[s.table.Nodes[leaf].Function] += v
			a.self[leaf] += v
			for _, id := range nodes {
				a.tree[id] += v
			}
			for _, fn := range distinct {
				a.cum[fn] += v
			}
		}
	}
	for i, m := range wanted {
		if m == nil {
			continue
		}
		if pt := p.PeriodType; pt != nil {
			if unit, scale := format.Base(pt.Unit); unit == m.unit {
				m.period = max(m.period, float64(p.Period)*float64(scale))
			}
		}
		if m.level {
			m.grain = max(m.grain, grain(p, m.unit))
		}
		n := int32(len(m.windows))
		m.windows = append(m.windows, win)
		m.total = append(m.total, point{n, all[i].total})
		m.flat = put(m.flat, n, all[i].flat)
		m.cum = put(m.cum, n, all[i].cum)
		m.self = put(m.self, n, all[i].self)
		m.tree = put(m.tree, n, all[i].tree)
	}
	return nil
}

// put adds the values of window n to the series of each id.
func put(to []series, n int32, values map[int32]int64) []series {
	for id, v := range values {
		if int(id) >= len(to) {
			to = append(to, make([]series, int(id)+1-len(to))...)
		}
		to[id] = append(to[id], point{n, v})
	}
	return to
}

func at(s []series, id int32) series {
	if int(id) < len(s) {
		return s[id]
	}
	return nil
}
