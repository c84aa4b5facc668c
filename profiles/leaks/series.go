package leaks

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/profiles"
	"spanflame/profiles/internal/stacks"
)

// reader groups windows by process and adds up their values by stack.
type reader struct {
	o         Options
	table     *stacks.Table
	read      int
	processes []*process
	ended     []ended
	most      int // limit of points and stacks
	points    int // so far
}

// process is the data of one process.
type process struct {
	service   string
	labels    map[string]string
	timelines map[Kind]*timeline
	work      []workPoint
}

// workPoint is the work per minute in the window that ended then.
type workPoint struct {
	end  time.Time
	rate float64
}

// timeline has the values of one kind, one for each window.
type timeline struct {
	starts, ends []time.Time
	total        []float64
	reset        []bool            // the process is known to have started before this window
	stacks       map[int32][]point // windows without a value have no point
	unit         float64           // mean bytes between two samples, 0 if everything is counted
	cumulative   float64           // bytes allocated since the start of the process, for profiles that count from there
}

type point struct {
	window int
	value  float64
}

func newReader(o Options) *reader { return &reader{o: o, table: stacks.NewTable(), most: maxPoints} }

// process returns the process of a window by its service and labels. The labels of a record identify its series: a
// service with several instances has a label for the instance.
func (r *reader) process(m record.Meta) *process {
	if _, is := m.Labels[record.IncidentLabel]; is { // a window as any other
		m.Labels = maps.Clone(m.Labels)
		delete(m.Labels, record.IncidentLabel)
	}
	for _, p := range r.processes {
		if p.service == m.Service && maps.Equal(p.labels, m.Labels) {
			return p
		}
	}
	p := &process{service: m.Service, labels: m.Labels, timelines: map[Kind]*timeline{}}
	r.processes = append(r.processes, p)
	return p
}

// add reads one window.
func (r *reader) add(w profiles.Window) error {
	r.read++
	if r.o.Progress != nil {
		r.o.Progress(r.read)
	}
	kind, value, alloc, err := columns(w)
	if err != nil {
		return fmt.Errorf("the profile of %s: %w", w.End.UTC().Format(time.RFC3339), err)
	}
	if kind == "" {
		return nil
	}
	if w.Labels[record.EndedLabel] != "" {
		sums, total, _, err := r.sum(w, kind, value, alloc)
		if err == nil {
			r.addEnded(w, kind, sums, total)
		}
		return err
	}
	p := r.process(w.Meta)
	t := p.timelines[kind]
	if t == nil {
		t = &timeline{stacks: map[int32][]point{}}
		p.timelines[kind] = t
	}
	n := len(t.ends)
	if n > 0 && !w.End.After(t.ends[n-1]) {
		return fmt.Errorf("the %s profile of %s does not come after that of %s: two windows of one process are of the same time, or out of order. "+
			"Give each process a service.instance.id of its own, or leave it to the agent, which does; "+
			"or choose a time at which a single one ran, by --from and --to",
			kind, w.End.UTC().Format(time.RFC3339Nano), t.ends[n-1].UTC().Format(time.RFC3339Nano))
	}
	if pt := w.Profile.PeriodType; kind == Memory && pt != nil && pt.Type == "space" {
		t.unit = max(t.unit, float64(w.Profile.Period))
	}
	sums, total, allocated, err := r.sum(w, kind, value, alloc)
	if err != nil {
		return err
	}
	reset := false
	if alloc >= 0 {
		if reset, err = r.worked(p, t, w, float64(allocated)); err != nil {
			return err
		}
	} else if r.o.Work != nil {
		if _, err := r.worked(p, t, w, 0); err != nil {
			return err
		}
	}
	t.starts, t.ends = append(t.starts, w.Start), append(t.ends, w.End)
	t.total, t.reset = append(t.total, float64(total)), append(t.reset, reset)
	for id, v := range sums {
		t.stacks[id] = append(t.stacks[id], point{n, float64(v)})
	}
	return nil
}

// sum adds up the values of a window by stack.
func (r *reader) sum(w profiles.Window, kind Kind, value, alloc int) (sums map[int32]int64, total, allocated int64, err error) {
	reader := r.table.NewReader()
	sums = map[int32]int64{}
	for _, s := range w.Profile.Sample {
		if len(s.Value) != len(w.Profile.SampleType) {
			return nil, 0, 0, fmt.Errorf("the profile of %s: a sample has %d values, the profile has %d sample types",
				w.End.UTC().Format(time.RFC3339), len(s.Value), len(w.Profile.SampleType))
		}
		v := s.Value[value]
		if v < 0 {
			return nil, 0, 0, fmt.Errorf("the %s profile of %s has the value %d: it is a difference, which cannot be searched for leaks",
				kind, w.End.UTC().Format(time.RFC3339), v)
		}
		if alloc >= 0 {
			allocated += s.Value[alloc]
		}
		if nodes := reader.Nodes(s); v > 0 && len(nodes) > 0 {
			sums[nodes[len(nodes)-1]] += v
		}
		total += v
	}
	if r.points += len(sums); r.points+len(r.table.Nodes) > r.most {
		return nil, 0, 0, fmt.Errorf("%w: up to the %s profile of %s there are over %d stacks and values: select one process or a shorter time range",
			record.ErrTooLarge, kind, w.End.UTC().Format(time.RFC3339), r.most)
	}
	return sums, total, allocated, nil
}

// columns returns the sample types to read from a profile. Kind is empty for a profile of another type, and alloc is
// negative if allocations are missing.
func columns(w profiles.Window) (kind Kind, value, alloc int, err error) {
	types := w.Profile.SampleType
	find := func(name string) int {
		return slices.IndexFunc(types, func(t *profile.ValueType) bool { return t.Type == name })
	}
	unit := ""
	alloc = -1
	if value = find("inuse_space"); value >= 0 {
		kind, unit, alloc = Memory, "bytes", find("alloc_space")
	} else if value = max(find("goroutine"), find("goroutines")); value >= 0 {
		kind, unit = Goroutines, "count"
	} else {
		return "", 0, -1, nil
	}
	if got := types[value].Unit; got != unit {
		return "", 0, -1, fmt.Errorf("%s is in %q: want %s", types[value].Type, got, unit)
	}
	return kind, value, alloc, nil
}

// worked records the work of a window, and reports whether the process restarted since the previous window. A profile
// saved by spanflame has the allocations of its window; a profile of another tool counts from the start of the process,
// so the count falls at a restart.
func (r *reader) worked(p *process, t *timeline, w profiles.Window, allocated float64) (reset bool, err error) {
	minutes := w.End.Sub(w.Start).Minutes()
	if w.Service == "" {
		before := t.cumulative
		t.cumulative = allocated
		if n := len(t.ends); n > 0 {
			minutes = w.End.Sub(t.ends[n-1]).Minutes()
			reset = allocated < before
			allocated -= before
		} else {
			minutes = 0
		}
	}
	if r.o.Work != nil && minutes > 0 {
		m := w.Meta
		m.Start = m.End.Add(-time.Duration(minutes * float64(time.Minute)))
		if allocated, err = r.o.Work(m); err != nil {
			return reset, fmt.Errorf("the work of the window to %s: %w", w.End.UTC().Format(time.RFC3339), err)
		}
	}
	if minutes > 0 && allocated >= 0 {
		p.work = append(p.work, workPoint{w.End, allocated / minutes})
	}
	return reset, nil
}

// load returns the work per minute in each window of a run, nil if it is unknown.
func (p *process) load(run span, t *timeline) []float64 {
	if len(p.work) == 0 {
		return nil
	}
	slices.SortFunc(p.work, func(a, b workPoint) int { return a.end.Compare(b.end) })
	load := make([]float64, 0, run.end-run.start)
	for _, end := range t.ends[run.start:run.end] {
		i, _ := slices.BinarySearchFunc(p.work, end, func(w workPoint, end time.Time) int { return w.end.Compare(end) })
		if i == len(p.work) || i > 0 && end.Sub(p.work[i-1].end) < p.work[i].end.Sub(end) {
			i--
		}
		load = append(load, p.work[i].rate)
	}
	return load
}

// span is windows from start up to end.
type span struct{ start, end int }

const (
	// A process that restarted holds less than this share of the memory that it held before.
	restartShare = 0.5
	// So do most of its stacks, of at least restartStacks that held a relevant part.
	restartStacks     = 5
	restartStackShare = 0.8
)

// longestRun returns the longest part of the timeline without a restart, and the starts of the parts after the first.
// A cache that is emptied drops one stack; a restart drops nearly all of them.
func (t *timeline) longestRun() (longest span, restarts []time.Time) {
	n := len(t.ends)
	values := make(map[int]map[int32]float64, 2) // by window, only around a possible restart
	suspicious := map[int]bool{}
	for i := 1; i < n; i++ {
		if !t.reset[i] && t.total[i] < restartShare*t.total[i-1] {
			suspicious[i], values[i-1], values[i] = true, map[int32]float64{}, map[int32]float64{}
		}
	}
	if len(suspicious) > 0 {
		for id, points := range t.stacks {
			for _, p := range points {
				if at := values[p.window]; at != nil {
					at[id] = p.value
				}
			}
		}
	}
	run := span{0, 0}
	for i := range n {
		if i > 0 && (t.reset[i] || suspicious[i] && fellTogether(values[i-1], values[i], t.total[i-1])) {
			restarts = append(restarts, t.starts[i])
			run = span{i, i}
		}
		run.end = i + 1
		if run.end-run.start >= longest.end-longest.start {
			longest = run
		}
	}
	return longest, restarts
}

// fellTogether reports whether most of the stacks that held at least a hundredth of the total lost more than half.
func fellTogether(before, after map[int32]float64, total float64) bool {
	held, fell := 0, 0
	for id, v := range before {
		if v < total/100 {
			continue
		}
		held++
		if after[id] < restartShare*v {
			fell++
		}
	}
	return held >= restartStacks && float64(fell) >= restartStackShare*float64(held)
}
