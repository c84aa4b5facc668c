package leaks_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/profiles"
	"spanflame/profiles/leaks"
)

// Real services are processes of this test that save heap and goroutine profiles of the runtime. Windows have the length
// in their profiles, although the work of one window takes only milliseconds.

const (
	realService = "SPANFLAME_TEST_REAL_SERVICE" // the plant, its bytes a window, the load and the seed of such a process
	realWindows = 60
	// realRate is the number of bytes that a sample stands for. Go's default is eight times as large; with it, a leak
	// would have to last eight times as long.
	realRate = 64 << 10
)

// service is one of them.
type service struct {
	rng      *rand.Rand
	cache    map[int][]byte // fills up in a third of the time
	sessions map[int][]byte // of random lifetimes
	batch    [][]byte       // is written and dropped every seven windows
	inFlight [][]byte       // follows the load
	stop     chan struct{}

	remembered map[int][]byte
	collected  [][]byte
	subscribed []func() int
	expiring   []*time.Timer
	listening  int
}

//go:noinline
func (s *service) remember(n int) { s.remembered[len(s.remembered)] = make([]byte, n) }

//go:noinline
func (s *service) collect(n int) { s.collected = append(s.collected, make([]byte, n)) }

//go:noinline
func (s *service) subscribe(n int) {
	buffer := make([]byte, n)
	s.subscribed = append(s.subscribed, func() int { return len(buffer) })
}

//go:noinline
func (s *service) expire(n int) {
	buffer := make([]byte, n)
	s.expiring = append(s.expiring, time.AfterFunc(time.Hour, func() { runtime.KeepAlive(buffer) }))
}

//go:noinline
func (s *service) listen(int) {
	s.listening++
	go func() { <-s.stop }()
}

//go:noinline
func (s *service) fill() {
	if n := len(s.cache); n < 4000 {
		for i := range 200 {
			s.cache[n+i] = make([]byte, 1<<10)
		}
	}
}

//go:noinline
func (s *service) login() {
	for range 150 {
		s.sessions[s.rng.IntN(1000)] = make([]byte, 2<<10)
	}
}

//go:noinline
func (s *service) log(window int) {
	if window%7 == 0 {
		s.batch = nil
	}
	for range 200 {
		s.batch = append(s.batch, make([]byte, 1<<10))
	}
}

//go:noinline
func (s *service) serve(load float64) {
	s.inFlight = nil
	for range int(2000 * load * (0.95 + 0.1*s.rng.Float64())) {
		s.inFlight = append(s.inFlight, make([]byte, 1<<10))
	}
}

// run is one life of the service, of which the profiles of each window are saved.
func (s *service) run(dir, plant string, bytesAWindow int, doubles bool, length time.Duration) error {
	leak := map[string]func(int){
		"map": s.remember, "slice": s.collect, "closure": s.subscribe, "timer": s.expire, "goroutine": s.listen, "none": nil,
	}[plant]
	piece := 1000
	if plant == "goroutine" {
		piece = 2048 // its first stack
	}
	defer close(s.stop)
	for i := range realWindows {
		load := 1.0
		if doubles {
			load += float64(i) / realWindows
		}
		s.fill()
		s.login()
		s.log(i)
		s.serve(load)
		for n := 0; leak != nil && n+piece <= bytesAWindow; n += piece {
			leak(piece)
		}
		runtime.GC()
		runtime.GC() // the heap profile is as of the previous collection
		for _, name := range []string{"heap", "goroutine"} {
			var b bytes.Buffer
			if err := pprof.Lookup(name).WriteTo(&b, 0); err != nil {
				return err
			}
			p, err := profile.Parse(&b)
			if err != nil {
				return err
			}
			p.TimeNanos, p.DurationNanos = epoch.Add(time.Duration(i+1)*length).UnixNano(), 0
			f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%03d-%s.pb.gz", i, name)))
			if err != nil {
				return err
			}
			if err := errors.Join(p.Write(f), f.Close()); err != nil {
				return err
			}
		}
	}
	return nil
}

// startReal runs a service in a process of its own and looks for leaks in what it saved.
func startReal(t *testing.T, plant string, bytesAWindow int, doubles bool, seed uint64, length time.Duration) *leaks.Report {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestRealService$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %t %d %d", realService, plant, bytesAWindow, doubles, seed, int64(length)),
		fmt.Sprintf("GODEBUG=memprofilerate=%d", realRate))
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	entries, damaged, err := profiles.Find(t.Context(), profiles.Query{}, dir)
	if err != nil || len(damaged) > 0 || len(entries) != 2*realWindows {
		t.Fatalf("%d profiles, %v, %v", len(entries), damaged, err)
	}
	r, err := leaks.Find(t.Context(), profiles.Read(t.Context(), entries), leaks.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestRealService is the service that runs in such a process.
func TestRealService(t *testing.T) {
	var plant string
	var bytesAWindow int
	var doubles bool
	var seed uint64
	var length time.Duration
	text := os.Getenv(realService)
	if text == "" {
		return // nothing to do in the process of the other tests
	}
	if _, err := fmt.Sscan(text, &plant, &bytesAWindow, &doubles, &seed, &length); err != nil {
		t.Fatal(err)
	}
	if runtime.MemProfileRate != realRate {
		t.Fatalf("the rate is %d", runtime.MemProfileRate)
	}
	s := &service{
		rng: rand.New(rand.NewPCG(seed, 1)), cache: map[int][]byte{}, sessions: map[int][]byte{}, remembered: map[int][]byte{}, stop: make(chan struct{}),
	}
	if err := s.run(".", plant, bytesAWindow, doubles, length); err != nil {
		t.Fatal(err)
	}
	runtime.KeepAlive(s)
}

// TestRealLeaksAreTheFirstSuspect has leaks of 1, 10 and 100 KB/s in a service that has a cache, sessions, batches and
// memory that follows the load.
func TestRealLeaksAreTheFirstSuspect(t *testing.T) {
	t.Parallel()
	for plant, site := range map[string]string{"map": "remember", "slice": "collect", "closure": "subscribe", "timer": "expire", "goroutine": "listen.func1"} {
		for kilobytes, length := range map[int]time.Duration{1: time.Minute, 10: 15 * time.Second, 100: 5 * time.Second} {
			rate := float64(kilobytes) * 60e3 // per minute
			r := startReal(t, plant, int(rate*length.Minutes()), false, 1, length)
			if len(r.Suspects) == 0 || !strings.Contains(r.Suspects[0].Site, site) {
				t.Errorf("%s of %d KB/s: the suspects are %+v; undecided %+v; dismissed %+v", plant, kilobytes, r.Suspects, r.Undecided, r.Dismissed)
				continue
			}
			if s := r.Suspects[0]; s.BytesPerMinute < rate/2 || s.BytesPerMinute > rate*2 {
				t.Errorf("%s of %d KB/s: found %.3g KB/s", plant, kilobytes, s.BytesPerMinute/60e3)
			}
			// A leaked timer or goroutine also keeps memory that other stacks allocated.
			for _, s := range r.Suspects[1:] {
				if innocent(s.Site) {
					t.Errorf("%s of %d KB/s: %s is suspected, too: %+v", plant, kilobytes, s.Site, s)
				}
			}
		}
	}
}

// innocent reports whether a site belongs to what a steady service does.
func innocent(site string) bool {
	for _, name := range []string{"fill", "login", "log", "serve"} {
		if strings.HasSuffix(site, ")."+name) {
			return true
		}
	}
	return false
}

// TestRealSteadyServicesAreNotSuspected: the load of every other service doubles. There are six services, or the number
// in the variable SPANFLAME_REAL_SERVICES. Their behaviour is determined by their seed, the runtime's samples are not.
func TestRealSteadyServicesAreNotSuspected(t *testing.T) {
	t.Parallel()
	services := uint64(6)
	if text := os.Getenv("SPANFLAME_REAL_SERVICES"); text != "" {
		var err error
		if services, err = strconv.ParseUint(text, 10, 32); err != nil {
			t.Fatal(err)
		}
	}
	for seed := range services {
		r := startReal(t, "none", 0, seed%2 == 1, seed, 15*time.Second)
		for _, s := range r.Suspects {
			t.Errorf("service %d: %s is suspected: %+v", seed, s.Site, s)
		}
	}
}
