package record_test

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"

	"spanflame/internal/record"
)

// setClock returns t as time.Now would give it had the wall clock been set by d: the monotonic reading stays.
func setClock(t time.Time, d time.Duration) time.Time {
	const hasMonotonic, nanos = 1 << 63, 1<<30 - 1
	raw := (*struct {
		wall uint64 // a flag, 33 bits of seconds since 1885, 30 bits of nanoseconds
		ext  int64
		loc  *time.Location
	})(unsafe.Pointer(&t))
	if raw.wall&hasMonotonic == 0 {
		panic("no monotonic reading")
	}
	seconds := int64(raw.wall<<1>>31) + int64(d/time.Second)
	raw.wall = hasMonotonic | uint64(seconds)<<30 | raw.wall&nanos
	return t
}

func TestAClockSetInsideAWindow(t *testing.T) {
	for _, by := range []time.Duration{-time.Hour, -10 * time.Second, time.Hour} {
		r := sample(t)
		r.Start = time.Now()
		r.End = setClock(r.Start.Add(15*time.Second), by)
		if wall := r.End.Round(0).Sub(r.Start.Round(0)); wall != 15*time.Second+by {
			t.Fatalf("the clock was set by %v, want %v", wall-15*time.Second, by)
		}
		var b bytes.Buffer
		if err := record.Encode(&b, r); err != nil {
			t.Fatal(err)
		}
		got, err := record.Decode(&b, limit)
		if err != nil {
			t.Errorf("set by %v: %v", by, err)
			continue
		}
		if !got.Start.Equal(r.Start) || got.End.Sub(got.Start) != 15*time.Second {
			t.Errorf("set by %v: from %v to %v, want 15 s from %v", by, got.Start, got.End, r.Start)
		}
		if c := r.Canonical(); c.Start != got.Start || c.End != got.End {
			t.Errorf("canonical %v to %v, read back %v to %v", c.Start, c.End, got.Start, got.End)
		}
	}
}

// TestWhatEncodeAcceptsDecodeAccepts draws records at random, most of them near a border of what is valid.
func TestWhatEncodeAcceptsDecodeAccepts(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	pick := func(choices ...time.Time) time.Time { return choices[random.IntN(len(choices))] }
	duration := func() time.Duration {
		return []time.Duration{0, 1, -1, time.Second, -time.Second, time.Hour, 290 * 365 * 24 * time.Hour, -1 << 63, 1<<63 - 1}[random.IntN(9)]
	}
	moment := func() time.Time {
		now := time.Now()
		return pick(now, now.Round(0), now.Add(duration()), setClock(now, time.Duration(random.Int64N(1e18)-5e17)),
			time.Unix(0, 0), time.Unix(-1, 0), time.Date(2261, 12, 31, 23, 59, 59, 999999999, time.UTC), time.Time{},
			time.Date(2261, 12, 31, 23, 59, 59, 0, time.FixedZone("odd", 5*3600+1)), now.In(time.FixedZone("west", -12*3600)))
	}
	text := func() string {
		b := make([]byte, random.IntN(12))
		for i := range b {
			b[i] = byte(random.Uint32()) >> random.IntN(3)
		}
		return string(b)
	}
	accepted, base := 0, sample(t)
	for range 20_000 {
		r := base
		r.Start = moment()
		r.End = pick(moment(), r.Start.Add(duration()))
		if random.IntN(3) == 0 {
			r.Service, r.Type = text(), record.Type(text())
			r.Labels = map[string]string{text(): text(), text(): text()}
		}
		var b bytes.Buffer
		if record.Encode(&b, r) != nil {
			continue
		}
		accepted++
		got, err := record.Decode(&b, limit)
		if err != nil {
			t.Fatalf("seed %d: %+v is accepted and cannot be read: %v", seed, r.Meta, err)
		}
		want := r.Canonical()
		if got.Service != want.Service || got.Type != want.Type || !got.Start.Equal(want.Start) || !got.End.Equal(want.End) {
			t.Fatalf("seed %d: read back %+v, want %+v", seed, got.Meta, want)
		}
		if _, err := record.ParseFileName(r.FileName()); err != nil {
			t.Fatalf("seed %d: %+v: %v", seed, r.Meta, err)
		}
	}
	if accepted < 1000 {
		t.Errorf("%d of 20000 are accepted, which is too few to show anything", accepted)
	}
}
