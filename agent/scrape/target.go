package scrape

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"time"

	"spanflame/agent/internal/capture"
	"spanflame/agent/internal/capture/delta"
	"spanflame/internal/pprofwire"
	"spanflame/internal/record"
	"spanflame/internal/redact"
)

// kind is a profile that targets serve.
type kind struct {
	name       string // in net/http/pprof
	typ        record.Type
	sampleType string // one that it has
	cumulative bool   // since the process began
}

var allKinds = []kind{
	{"profile", record.CPU, "cpu", false},
	{"heap", record.Memory, "inuse_space", true},
	{"goroutine", record.Goroutine, "goroutine", false},
	{"mutex", record.Mutex, "delay", true},
	{"block", record.Block, "delay", true},
}

// kinds returns those with the names, by default all.
func kinds(names []string) ([]kind, error) {
	if len(names) == 0 {
		return allKinds, nil
	}
	var found []kind
	for _, name := range names {
		i := slices.IndexFunc(allKinds, func(k kind) bool { return k.name == name })
		if i < 0 {
			return nil, fmt.Errorf("profile type %q: want profile, heap, goroutine, mutex or block", name)
		}
		if !slices.Contains(found, allKinds[i]) {
			found = append(found, allKinds[i])
		}
	}
	return found, nil
}

// parsers is how many profiles are read at a time: each takes a multiple of its size.
const parsers = 2

// maxRestarts is in how many of eight windows a target may be restarted. Replicas behind one address look like restarts: each time
// one would be delivered with all that it has done since it began.
const maxRestarts = 3

// target is one that is scraped. It has a goroutine for the CPU profiles, each of which takes a window, and one for the
// others.
type target struct {
	Target
	s      *Scraper
	shown  string
	stop   context.Context // done: it takes its last windows and ends
	cancel context.CancelFunc

	// For the goroutine of the cumulative profiles.
	before   map[record.Type]reading // their last readings
	restarts uint8                   // a bit for each of the last eight windows, the lowest for the last one

	mu       sync.Mutex
	failures map[record.Type]error // of the last request of each type
	logged   bool                  // that it fails
}

// reading is a cumulative profile and when it was read.
type reading struct {
	gz []byte
	at time.Time
}

// scrape starts to scrape a target. The caller has the lock.
func (s *Scraper) scrape(of Target) *target {
	t := &target{Target: of, s: s, shown: redact.URL(of.URL), before: map[record.Type]reading{}, failures: map[record.Type]error{}}
	t.stop, t.cancel = context.WithCancel(s.stop)
	s.using[of.Service]++
	var parts sync.WaitGroup
	var others []kind
	for _, k := range s.types {
		if k.typ == record.CPU {
			parts.Go(func() { s.stage.Keep(t.stop.Done(), func() { t.cpu(k) }) })
			continue
		}
		others = append(others, k)
	}
	if len(others) > 0 {
		parts.Go(func() { s.stage.Keep(t.stop.Done(), func() { t.others(others) }) })
	}
	s.running.Go(func() {
		parts.Wait()
		s.ended(of.Service)
	})
	return t
}

func (t *target) boundary(begun time.Time) time.Time {
	return capture.Boundary(begun, t.s.cfg.Agent.Window, t.Service+"@"+t.URL)
}

// cpu fetches a CPU profile of each window. Between two, the target has no CPU profile for the time of a request, and until the
// end of the window, since requests are in whole seconds.
func (t *target) cpu(k kind) {
	for t.stop.Err() == nil {
		begun := time.Now()
		end := t.boundary(begun)
		length := max(time.Second, end.Sub(begun).Round(time.Second))
		b, err := t.s.client.fetch(t.stop, fmt.Sprintf("%s/%s?seconds=%d", t.URL, k.name, length/time.Second), length)
		if t.stop.Err() != nil {
			return // what it has recorded of this window is lost with the request
		}
		if took := time.Since(begun); err == nil {
			err = t.recorded(k, b, begun, took, length)
		}
		t.result(k, err)
		if !sleep(t.stop, end) {
			return
		}
	}
}

// recorded hands over a CPU profile, with the time for which it was recorded by its own account, and not longer than the
// request took. One that was recorded for less than half the time is another one than was asked for.
func (t *target) recorded(k kind, gz []byte, begun time.Time, took, want time.Duration) error {
	r, err := t.with(func() (record.Record, error) {
		raw, err := unpack(gz, k.sampleType)
		if err != nil {
			return record.Record{}, err
		}
		length := took
		for m := pprofwire.NewMessage(raw); m.Next(); {
			if m.Field == pprofwire.ProfileDuration && m.Varint() > 0 {
				length = min(took, time.Duration(m.Varint()))
			}
		}
		if length < want/2 {
			return record.Record{}, failure{tooShort, fmt.Errorf("it has %v, and %v were asked for", length.Round(time.Millisecond), want)}
		}
		return t.stamped(k, raw, begun, begun.Add(length))
	})
	return t.emit(r, err)
}

// others reads all other profiles at the end of each window. The first reading of a cumulative profile has everything since
// the process began: it is the zero point of the first window. At the end it reads them once more, so that nothing is lost.
func (t *target) others(of []kind) {
	begun := time.Now()
	t.read(slices.DeleteFunc(slices.Clone(of), func(k kind) bool { return !k.cumulative }), begun, begun)
	for {
		end := t.boundary(begun)
		more := sleep(t.stop, end)
		now := time.Now()
		t.read(of, begun, now)
		if !more {
			return
		}
		begun = now
	}
}

// read fetches the profiles of the window that ends now.
func (t *target) read(of []kind, begun, end time.Time) {
	now := map[kind][]byte{}
	var down error
	for _, k := range of {
		if down != nil { // it would be the same
			t.result(k, down)
			continue
		}
		b, err := t.s.client.fetch(t.s.last, t.URL+"/"+k.name, 0)
		switch reason := reasonOf(err); {
		case err == nil && k.cumulative:
			now[k] = b
			continue
		case err == nil:
			err = t.emit(t.with(func() (record.Record, error) { return t.whole(k, b, begun, end) }))
		case reason == unreachable || reason == timedOut:
			down = err
		}
		t.result(k, err)
	}
	t.differences(of, now, end)
}

// differences hands over what has changed in the cumulative profiles since they were read before. Another process of the
// target, one that has been restarted, is recognised by any of them: the others were read before it began, if that was not
// later.
func (t *target) differences(of []kind, now map[kind][]byte, end time.Time) {
	changed := map[kind]record.Record{}
	var restarted time.Time // after this time
	for _, k := range of {
		b, ok := now[k]
		if !ok {
			continue
		}
		var same bool
		r, err := t.with(func() (r record.Record, err error) {
			r, same, err = t.since(k, b, end)
			return r, err
		})
		changed[k] = r
		if err != nil {
			t.result(k, err)
			delete(now, k)
		} else if at := t.before[k.typ].at; !same && at.After(restarted) {
			restarted = at
		}
	}
	t.restarts <<= 1
	if !restarted.IsZero() {
		t.restarts |= 1
	}
	several := bits.OnesCount8(t.restarts) > maxRestarts
	if !restarted.IsZero() && !several {
		t.s.counts.restart()
		t.s.log.Info("target has been restarted", "target", t.shown, "service", t.Service)
	}
	for _, k := range of {
		b, ok := now[k]
		if !ok {
			continue
		}
		before, had := t.before[k.typ]
		var err error
		switch {
		case several: // what they have counted since the last reading of each cannot be known
			err = failure{severalProcesses, fmt.Errorf("restarted in more than %d of the last 8 windows, or replicas behind one address: "+
				"each needs a target of its own", maxRestarts)}
		case !had: // the zero point
		case !before.at.After(restarted):
			err = t.emit(t.with(func() (record.Record, error) { return t.whole(k, b, before.at, end) })) // all of it is of this window
		default:
			t.s.emit(changed[k])
		}
		t.result(k, err)
		t.before[k.typ] = reading{b, end}
	}
}

// since returns the difference between a cumulative profile and the last reading of it, and whether it is of the same
// process. Of the first reading there is none.
func (t *target) since(k kind, gz []byte, end time.Time) (r record.Record, same bool, err error) {
	now, err := unpack(gz, k.sampleType)
	if err != nil {
		return r, true, err
	}
	before, ok := t.before[k.typ]
	if !ok {
		return r, true, nil
	}
	earlier, err := pprofwire.Gunzip(before.gz, maxProfile)
	if err != nil {
		return r, true, err
	}
	p, same, err := delta.Between(earlier, now, before.at, end)
	if err != nil || !same {
		return r, same, err
	}
	return t.record(k, p.Raw, before.at, end), true, nil
}

// whole returns a profile as it was fetched, with the time of a window.
func (t *target) whole(k kind, gz []byte, begun, end time.Time) (record.Record, error) {
	raw, err := unpack(gz, k.sampleType)
	if err != nil {
		return record.Record{}, err
	}
	return t.stamped(k, raw, begun, end)
}

func (t *target) stamped(k kind, raw []byte, begun, end time.Time) (record.Record, error) {
	raw, err := pprofwire.Stamp(raw, begun, end)
	if err != nil {
		return record.Record{}, failure{noProfile, err}
	}
	return t.record(k, raw, begun, end), nil
}

func (t *target) record(k kind, raw []byte, begun, end time.Time) record.Record {
	return record.Record{
		Meta:    record.Meta{Service: t.Service, Type: k.typ, Start: begun, End: end, Labels: t.Labels},
		Profile: pprofwire.Gzip(raw),
	}
}

// emit hands over a record, unless there is an error.
func (t *target) emit(r record.Record, err error) error {
	if err == nil {
		t.s.emit(r)
	}
	return err
}

// with runs f, which reads profiles, when its turn comes. What f returns is handed over after that: disks are slow.
func (t *target) with(f func() (record.Record, error)) (record.Record, error) {
	t.s.parse <- struct{}{}
	defer func() { <-t.s.parse }()
	return f()
}

// result notes what became of a request. The first failure of a target is logged, and when all of its profiles are fetched
// again.
func (t *target) result(k kind, err error) {
	if err != nil && errors.Is(err, context.Canceled) {
		return // by the end of the scraper
	}
	if err != nil {
		t.s.counts.failed(k.typ, reasonOf(err))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		delete(t.failures, k.typ)
	} else {
		t.failures[k.typ] = fmt.Errorf("%s: %w", k.name, err)
	}
	switch failing := len(t.failures) > 0; {
	case failing && !t.logged:
		t.s.log.Warn("target fails (logged once, until all of its profiles are fetched again)", "target", t.shown, "service", t.Service,
			"profile", k.name, "reason", reasonOf(err), "error", clean(err))
		t.logged = true
	case !failing && t.logged:
		t.s.log.Info("target is scraped again", "target", t.shown, "service", t.Service)
		t.logged = false
	}
}

// failing returns why the last requests of the target failed, nil if they did not.
func (t *target) failing() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []string
	for _, typ := range slices.Sorted(maps.Keys(t.failures)) {
		errs = append(errs, clean(t.failures[typ]))
	}
	if len(errs) == 0 {
		return nil
	}
	return errors.New(strings.Join(errs, "; "))
}
