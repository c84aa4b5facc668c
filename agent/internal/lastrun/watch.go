package lastrun

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/agent/internal/owndir"
	"spanflame/internal/record"
)

// When memory is looked at, and when profiles are taken.
const (
	fastest = 50 * time.Millisecond // between two looks
	slowest = time.Second

	// fastGrowth is a growth in bytes a second that takes no more than a quarter of what is left between two looks.
	fastGrowth = 1 << 30

	near = 0.75            // of the limit, from which on profiles are taken
	far  = 0.6             // of the limit, below which they are of no use any more
	soon = 5 * time.Second // to the limit at the present growth, from which on profiles are taken

	// step is the part of what was left that is used up until the next profiles, so that they come faster towards the limit.
	step = 0.125
	idle = 30 * time.Second // the next ones come after that time even if nothing grows

	// share limits the time of profiles, in parts of all time: what is not used is there for later, up to burst, as it may be
	// a matter of seconds then.
	share = 0.03
	burst = time.Second

	maxGoroutines = 20_000 // with more, their profile takes too long
)

// profileNames are the files of the profiles.
var profileNames = map[record.Type]string{record.Memory: "heap.pb.gz", record.Goroutine: "goroutines.pb.gz"}

// pace decides when memory is looked at, and when profiles are taken.
type pace struct {
	at   time.Time // of the last look
	used uint64    // then

	taken     time.Time // of the last profiles; zero if there are none
	takenUsed uint64

	credit time.Duration // that profiles may take
	since  time.Time     // when that was; zero at the start
}

// look returns when to look again, whether profiles are due, and whether those that there are should be forgotten.
func (p *pace) look(now time.Time, used, limit uint64) (next time.Duration, take, forget bool) {
	if limit == 0 {
		return slowest, false, false
	}
	left := float64(limit) - float64(min(used, limit))
	next = time.Duration(left / 4 / fastGrowth * float64(time.Second))
	next = min(max(next, fastest), slowest)
	growth := 0.0 // bytes a second
	if passed := now.Sub(p.at).Seconds(); !p.at.IsZero() && passed > 0 && used > p.used {
		growth = float64(used-p.used) / passed
	}
	p.at, p.used = now, used
	if p.since.IsZero() {
		p.credit = burst
	} else {
		p.credit = min(burst, p.credit+time.Duration(share*float64(now.Sub(p.since))))
	}
	p.since = now
	isNear := float64(used) >= near*float64(limit) || growth > 0 && left/growth < soon.Seconds()
	switch {
	case !isNear:
		forget = !p.taken.IsZero() && float64(used) < far*float64(limit)
	case p.credit <= 0:
	case p.taken.IsZero():
		take = true
	case now.Sub(p.taken) >= idle:
		take = true
	default:
		was := float64(limit) - float64(min(p.takenUsed, limit))
		take = used > p.takenUsed && float64(used-p.takenUsed) >= step*was
	}
	if forget {
		p.taken = time.Time{}
	}
	return next, take, forget
}

// took notes that profiles were taken, and what they cost.
func (p *pace) took(at time.Time, used uint64, cost time.Duration) {
	p.taken, p.takenUsed = at, used
	p.credit -= cost
}

// watch takes profiles near the limit until the run ends.
func (r *Run) watch() {
	var p pace
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-timer.C:
		}
		used, limit := r.meter.Read()
		next, take, forget := p.look(time.Now(), used, limit)
		if take {
			begun := time.Now()
			cost, err := r.take(memory{begun, used, limit})
			p.took(begun, used, cost)
			r.note(cost, err)
			next = fastest
		}
		if forget {
			for _, name := range append(slices.Collect(maps.Values(profileNames)), memoryName) {
				_ = r.root.Remove(name)
			}
		}
		timer.Reset(next)
	}
}

// note counts profiles, and logs the first that fail.
func (r *Run) note(cost time.Duration, err error) {
	r.mu.Lock()
	r.stats.Profiles++
	r.stats.Elapsed += cost
	first := false
	if err != nil {
		r.stats.Failed++
		first = r.stats.Failed == 1
	}
	r.mu.Unlock()
	if first {
		r.o.Logger.Warn("the profiles of the memory near its limit cannot be kept (logged once, then counted)", "directory", r.Path(), "error", err)
	}
}

// take takes the profiles and writes them. It returns the time that they took, without that of the disk.
func (r *Run) take(m memory) (cost time.Duration, err error) {
	// A profile of the heap has what was in use at the last collection. That one first: there may be no time for a collection.
	// Then one as of now.
	if err = r.put(record.Memory, "heap", &cost); err != nil {
		return cost, err
	}
	if err = r.writeJSON(memoryName, m); err != nil {
		return cost, err
	}
	begun := time.Now()
	runtime.GC()
	cost += time.Since(begun)
	if err = r.put(record.Memory, "heap", &cost); err != nil || runtime.NumGoroutine() > maxGoroutines {
		return cost, err
	}
	return cost, r.put(record.Goroutine, "goroutine", &cost)
}

// put writes a profile of the runtime, and adds the time that it took.
func (r *Run) put(typ record.Type, name string, cost *time.Duration) error {
	begun := time.Now()
	var b bytes.Buffer
	err := pprof.Lookup(name).WriteTo(&b, 0)
	*cost += time.Since(begun)
	if err != nil {
		return err
	}
	return owndir.Write(r.root, profileNames[typ], b.Bytes())
}

// kept returns a profile of the run in a directory, as a record of the moment when it was taken.
func (r *Run) kept(root *os.Root, typ record.Type, why string) (record.Record, error) {
	f, err := owndir.OpenFile(root, profileNames[typ])
	if err != nil {
		return record.Record{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return record.Record{}, err
	}
	if info.Size() > maxProfile {
		return record.Record{}, errors.New("it is too large")
	}
	p, err := profile.Parse(f)
	if err != nil {
		return record.Record{}, err
	}
	if typ == record.Memory {
		// What was allocated since the start is not what was allocated in a window.
		if err := onlyInUse(p); err != nil {
			return record.Record{}, err
		}
	}
	at := time.Unix(0, p.TimeNanos)
	if p.TimeNanos == 0 {
		at = info.ModTime()
	}
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		return record.Record{}, err
	}
	labels := map[string]string{record.EndedLabel: why}
	maps.Copy(labels, r.o.Labels)
	return record.Record{
		Meta:    record.Meta{Service: r.o.Service, Type: typ, Start: at, End: at, Labels: labels},
		Profile: b.Bytes(),
	}, nil
}

// onlyInUse leaves out the sample types of allocations.
func onlyInUse(p *profile.Profile) error {
	var keep []int
	for i, t := range p.SampleType {
		if t.Type == "inuse_objects" || t.Type == "inuse_space" {
			keep = append(keep, i)
		}
	}
	if len(keep) != 2 {
		return fs.ErrInvalid
	}
	p.SampleType = []*profile.ValueType{p.SampleType[keep[0]], p.SampleType[keep[1]]}
	p.DefaultSampleType = ""
	samples := p.Sample[:0]
	for _, s := range p.Sample {
		s.Value = []int64{s.Value[keep[0]], s.Value[keep[1]]}
		if s.Value[0] != 0 || s.Value[1] != 0 {
			samples = append(samples, s)
		}
	}
	p.Sample = samples
	return nil
}
