package workload

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"spanflame/workload/faults"

	"golang.org/x/time/rate"
)

// storefrontFault returns a fault of the storefront.
func (s *services) storefrontFault(t testing.TB, name string) *fault {
	t.Helper()
	i := slices.IndexFunc(s.storefront.faults, func(f *fault) bool { return f.is.Name == name })
	if i < 0 {
		t.Fatalf("the storefront has no fault %s", name)
	}
	return s.storefront.faults[i]
}

// send sends a request of a fault to the storefront.
func (s *services) send(t testing.TB, r faults.Request) answer {
	t.Helper()
	got := s.do(t, r.Method, s.storefrontURL+r.Path, nil)
	if got.status != 200 {
		t.Errorf("%s %s: %d %s", r.Method, r.Path, got.status, got.body)
	}
	return got
}

// The straggler of eight suppliers is asked only with the fault.
func TestStragglerIsAsked(t *testing.T) {
	w := newWarehouse(t)
	close(w.answer)
	s := newServices(t, Config{InventoryURL: w.URL})
	f := s.storefrontFault(t, "straggler")
	for _, on := range []bool{false, true} {
		set(f, on)
		s.send(t, f.is.Victim)
		want := map[string]int{"10": 7}
		if on {
			want["200"] = 1
		}
		if got := w.questions(); !maps.Equal(got, want) {
			t.Errorf("fault on: %v; the warehouse was asked so often for so many ms: %v, want %v", on, got, want)
		}
	}
}

// An address is looked up for the first connection alone, or with the fault for each request.
func TestNewConnectionsLookTheAddressUp(t *testing.T) {
	w := newWarehouse(t)
	close(w.answer)
	s := newServices(t, Config{InventoryURL: w.URL})
	f := s.storefrontFault(t, "new-connections")
	s.send(t, f.is.Victim)
	w.questions()
	for on, want := range map[bool]map[string]int{false: {"1": 3}, true: {"1": 3, "77": 3}} {
		if on {
			s.send(t, f.is.Victim) // takes the kept connection if there is one
			f.switchOn(77)
			s.send(t, f.is.Victim)
			w.questions()
		}
		for range 3 {
			s.send(t, f.is.Victim)
		}
		if got := w.questions(); !maps.Equal(got, want) {
			t.Errorf("fault on: %v; the warehouse was asked so often for so many ms: %v, want %v", on, got, want)
		}
		f.repair()
		s.send(t, f.is.Victim)
		w.questions()
	}
}

// What the inventory does not serve any more is asked for only with the fault, three times with pauses.
func TestHiddenRetries(t *testing.T) {
	s := newServices(t, Config{})
	f := s.storefrontFault(t, "hidden-retries")
	for _, on := range []bool{false, true} {
		before := len(s.log.requests(t, "http_status", 410.0))
		f.repair()
		if on {
			f.switchOn(20)
		}
		begun := time.Now()
		s.send(t, f.is.Victim)
		took := time.Since(begun)
		refused := len(s.log.requests(t, "http_status", 410.0)) - before
		if on && (refused != 3 || took < 60*time.Millisecond) || !on && refused != 0 {
			t.Errorf("fault on: %v; the inventory refused %d requests, in %v", on, refused, took)
		}
	}
}

// The reviews are the same with the fault, but each has a query of its own.
func TestNPlusOneQueries(t *testing.T) {
	s := newServices(t, Config{})
	f := s.storefrontFault(t, "n-plus-one")
	answers := map[bool]string{}
	for on, want := range map[bool]int{false: 1, true: f.is.Knobs[0].Default} {
		set(f, on)
		s.spans.Reset()
		answers[on] = s.send(t, f.is.Victim).body
		queries := 0
		for _, span := range s.spans.GetSpans() {
			if span.Name == "sql.conn.query" {
				queries++
			}
		}
		if queries != want {
			t.Errorf("fault on: %v; %d queries, want %d", on, queries, want)
		}
	}
	if answers[true] != answers[false] || strings.Count(answers[true], "stars") != f.is.Knobs[0].Default {
		t.Errorf("with the fault the reviews are\n%swithout it\n%s", answers[true], answers[false])
	}
}

// A parcel waits for each one before it, with the fault.
func TestRateLimitMakesParcelsWait(t *testing.T) {
	for _, on := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := &carrier{fault: &fault{}, contract: rate.NewLimiter(100, 100), cautious: rate.NewLimiter(1, 1)}
			want := time.Duration(0)
			if on {
				c.fault.switchOn(30)
				want = 120 * time.Millisecond
			}
			begun := time.Now()
			for range parcels {
				if _, err := c.quote(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if took := time.Since(begun); took != want {
				t.Errorf("fault on: %v; the quotes take %v, want %v", on, took, want)
			}
		})
	}
}

// countedSyncs is a file that counts how often it is synced.
type countedSyncs struct {
	*os.File
	n int
}

func (c *countedSyncs) Sync() error {
	c.n++
	return c.File.Sync()
}

func TestFsyncEachRecord(t *testing.T) {
	for want, appendTo := range map[int]func(syncer, int) error{1: appendRecords, 7: appendSyncingEach} {
		file, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		counted := &countedSyncs{File: file}
		if err := appendTo(counted, 7); err != nil {
			t.Error(err)
		}
		if text, err := os.ReadFile(file.Name()); err != nil || string(text) != strings.Repeat(record, 7) || counted.n != want {
			t.Errorf("%v; %d syncs, want %d, of %q", err, counted.n, want, text)
		}
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	}
}

// The journal grows by the records of each request, has an upper limit, and is gone after the end.
func TestJournal(t *testing.T) {
	s := newServices(t, Config{})
	f := s.storefrontFault(t, "fsync-each")
	path := s.storefront.cfg.Database + ".records"
	t.Cleanup(func() { // before that of newServices
		if err := s.storefront.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("after the end of the service: %v, want no journal", err)
		}
	})
	s.send(t, f.is.Victim)
	f.switchOn(3)
	s.send(t, f.is.Victim)
	if text, err := os.ReadFile(path); err != nil || string(text) != strings.Repeat(record, journalRecords+3) {
		t.Errorf("%v: the journal is %q", err, text)
	}
	if err := os.Truncate(path, maxJournal+1); err != nil {
		t.Fatal(err)
	}
	s.send(t, f.is.Victim)
	if info, err := os.Stat(path); err != nil || info.Size() != int64(3*len(record)) {
		t.Errorf("a journal that was large: %v, %v", err, info)
	}
}

// All orders of articles need no fewer boxes than the largest first, which is why that is the repair.
func TestPacking(t *testing.T) {
	for n := 1; n <= 8; n++ {
		sizes := slices.Clone(articles[:n])
		if every, one := packEveryWay(slices.Clone(sizes), 0), packLargestFirst(sizes); every != one {
			t.Errorf("%v: %d boxes in the best order, %d if the largest is first", sizes, every, one)
		}
	}
	s := newServices(t, Config{})
	for _, f := range s.inventory.faults {
		set(f, f.is.Name == "slow-packing")
	}
	for range 2 {
		if got := s.do(t, "POST", s.inventoryURL+"/api/pack", nil); got.fields["boxes"] != 5.0 {
			t.Errorf("%d %s, want 5 boxes", got.status, got.body)
		}
		for _, f := range s.inventory.faults {
			f.repair()
		}
	}
}

// The ledger says the same in both ways.
func TestLedger(t *testing.T) {
	s := newServices(t, Config{})
	for _, on := range []bool{false, true} {
		for _, f := range s.inventory.faults {
			set(f, on && f.is.Name == "ledger-scan")
		}
		if got := s.do(t, "GET", s.inventoryURL+"/api/balance", nil); got.fields["pieces"] != movements/8.0 {
			t.Errorf("fault on: %v; %d %s, want %d pieces", on, got.status, got.body, movements/8)
		}
	}
	s.get(t, "/api/stock")
	s.get(t, "/api/boxes")
}

func TestBadHashPutsAllIntoOneBucket(t *testing.T) {
	bad := newCustomerIndex(hashOfFirstLetters)
	largest := 0
	for _, bucket := range bad.buckets {
		largest = max(largest, len(bucket))
	}
	if largest != indexed {
		t.Errorf("the largest bucket has %d of %d customers", largest, indexed)
	}
	s := newServices(t, Config{})
	f := s.storefrontFault(t, "bad-hash")
	for _, on := range []bool{false, true} {
		set(f, on)
		if got := s.send(t, f.is.Victim); got.fields["found"] != float64(lookups) {
			t.Errorf("fault on: %v; found %s, want %d", on, got.body, lookups)
		}
	}
	if _, ok := bad.find("customer-"); ok {
		t.Error("somebody who is no customer was found")
	}
}

// With the fault, the feed is built for each request, of which the allocations tell.
func TestSlowEncoding(t *testing.T) {
	s := newServices(t, Config{})
	f := s.storefrontFault(t, "slow-encoding")
	answers := map[bool]string{}
	for _, on := range []bool{false, true} {
		set(f, on)
		allocated := testing.AllocsPerRun(1, func() {
			rec := httptest.NewRecorder()
			s.storefront.ServeHTTP(rec, httptest.NewRequest(f.is.Victim.Method, f.is.Victim.Path, nil))
			answers[on] = rec.Body.String()
		})
		if built := allocated > feedProducts; built != on {
			t.Errorf("fault on: %v; %v allocations for %d products", on, allocated, feedProducts)
		}
	}
	if answers[true] != answers[false] || strings.Count(answers[true], "sku") != feedProducts {
		t.Error("the feed is another one with the fault")
	}
}

// The number of workers is that of the fault, or one.
func TestAllCPUsWorkers(t *testing.T) {
	s := newServices(t, Config{})
	f := s.storefrontFault(t, "all-cpus")
	f.switchOn(1)
	if got := s.send(t, *f.is.Offender); got.fields["workers"] != float64(forecastWorkers*runtime.GOMAXPROCS(0)) {
		t.Errorf("%s, want %d workers for each CPU", got.body, forecastWorkers)
	}
	f.repair()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	computeForecast(ctx, 1_000_000) // or takes minutes
}

// The import allocates what it imports, with the fault alone.
func TestMuchGarbage(t *testing.T) {
	s := newServices(t, Config{})
	f := s.storefrontFault(t, "much-garbage")
	for _, on := range []bool{false, true} {
		set(f, on)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s.send(t, *f.is.Offender)
		runtime.ReadMemStats(&after)
		if mb := (after.TotalAlloc - before.TotalAlloc) >> 20; on != (mb >= importMB) {
			t.Errorf("fault on: %v; allocated %d MiB to import %d", on, mb, importMB)
		}
	}
}

func TestManyGoroutinesNotifyEverybody(t *testing.T) {
	sums := map[bool]int{}
	for _, on := range []bool{false, true} {
		s := newServices(t, Config{})
		f := s.storefrontFault(t, "many-goroutines")
		want := customers
		if on {
			want = 10_000 // more than the race detector allows
			f.switchOn(want)
		}
		if got := s.send(t, f.is.Victim); got.fields["customers"] != float64(want) {
			t.Errorf("fault on: %v; %s, want %d", on, got.body, want)
		}
		n := &notifier{sent: map[int]int{}}
		begin := make(chan struct{})
		close(begin)
		for customer := range 100 {
			if on {
				n.notifyFromOwnGoroutine(customer, begin)
			} else {
				n.notify(customer)
			}
		}
		for _, sent := range n.sent {
			sums[on] += sent
		}
	}
	if sums[true] != sums[false] {
		t.Errorf("notified %d with the fault and %d without", sums[true], sums[false])
	}
}

// leaks has a row for each leak: what each request leaves behind at least.
var leaks = []struct {
	name       string
	bytes      int
	goroutines int
}{
	{"session-map", sessionKB << 10, 0},
	{"forgotten-timers", basketKB << 10, 0},
	{"small-slices", documentKB << 10, 0},
	{"kept-closures", wishKB << 10, 0},
	{"blocked-senders", 0, 1},
	{"open-bodies", 0, 2},
}

// A leak grows with each request, a repair frees all of it, and nothing leaks after the repair.
func TestLeaks(t *testing.T) {
	const requests = 100
	for _, tt := range leaks {
		t.Run(tt.name, func(t *testing.T) {
			s := newServices(t, Config{})
			f := s.storefrontFault(t, tt.name)
			if f.is.Kind != faults.Leak {
				t.Errorf("the kind is %s", f.is.Kind)
			}
			s.send(t, f.is.Victim)
			bytes, goroutines := inUse()
			f.switchOn()
			for range requests {
				s.send(t, f.is.Victim)
			}
			if b, g := inUse(); b-bytes < requests*tt.bytes*9/10 || g-goroutines < requests*tt.goroutines {
				t.Errorf("%d requests leaked %d bytes and %d goroutines, want %d and %d",
					requests, b-bytes, g-goroutines, requests*tt.bytes, requests*tt.goroutines)
			}
			f.repair()
			for range requests {
				s.send(t, f.is.Victim)
			}
			// What ends, ends soon.
			for b, g := inUse(); b-bytes > requests*sessionKB<<10/5 || g-goroutines > requests/5; b, g = inUse() {
				if t.Context().Err() != nil {
					t.Fatalf("after the repair, %d bytes and %d goroutines are left", b-bytes, g-goroutines)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
}

// A reminder that is stopped while it is about to remind does not start again.
func TestStoppedReminderStaysStopped(t *testing.T) {
	m := newReminder(basketKB)
	m.stop()
	m.remind()
	if m.timer.Stop() {
		t.Error("the timer runs")
	}
}

// What a repair has freed does not count towards the limit of the next leak.
func TestFreedClosureIsNotCounted(t *testing.T) {
	s := newServices(t, Config{})
	x := &priceHooks{fault: s.storefrontFault(t, "kept-closures"), hooks: map[int]func() int{}}
	x.fault.switchOn()
	for _, freed := range []bool{false, true} {
		x.free()
		number := x.register(func() int { return 0 })
		if freed {
			x.free()
		}
		x.remove(number, wishKB)
		if got := x.leaked == 0; got != freed || len(x.hooks)*wishKB != x.leaked {
			t.Errorf("freed: %v; %d KiB count for %d functions", freed, x.leaked, len(x.hooks))
		}
	}
}

// inUse returns the bytes in use and the number of goroutines.
func inUse() (bytes, goroutines int) {
	runtime.GC()
	runtime.GC() // what the first one found to be free
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc), runtime.NumGoroutine()
}

// Each fault is switched on and off while requests run. No request fails, and nothing runs after the end.
func TestFaultsAreSwitchedUnderLoad(t *testing.T) {
	s := newServices(t, Config{})
	s.all(func(f *fault, url string) {
		if f.is.Kind == faults.Machine {
			return // is slow, and in the tests above
		}
		query := ""
		for _, k := range f.is.Knobs {
			query += fmt.Sprintf("?%s=%d", k.Name, k.Min)
		}
		var load sync.WaitGroup
		stop := make(chan struct{})
		for _, r := range []*faults.Request{&f.is.Victim, f.is.Offender} {
			if r == nil {
				continue
			}
			load.Go(func() {
				for {
					s.send(t, *r)
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
		for range 2 {
			for _, turn := range []struct{ method, query string }{{http.MethodPut, query}, {http.MethodDelete, ""}} {
				if got := s.do(t, turn.method, url+turn.query, nil); got.status != 200 {
					t.Errorf("%s %s%s: %d %s", turn.method, url, turn.query, got.status, got.body)
				}
				s.send(t, f.is.Victim)
			}
		}
		close(stop)
		load.Wait()
	})
}
