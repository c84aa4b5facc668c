package push

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/pprofwire"
	"spanflame/internal/record"
)

// newProfile has n samples, each in a function of its own; label gives the labels of the i-th.
func newProfile(n int, label func(i int) map[string][]string) *profile.Profile {
	cpu := &profile.ValueType{Type: "cpu", Unit: "nanoseconds"}
	p := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "samples", Unit: "count"}, cpu}, PeriodType: cpu, Period: 1e7,
		TimeNanos: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC).UnixNano(), DurationNanos: 15e9,
		Mapping:  []*profile.Mapping{{ID: 1, File: "shop", HasFunctions: true}},
		Comments: []string{"kept"},
	}
	for i := range n {
		f := &profile.Function{ID: uint64(i + 1), Name: fmt.Sprintf("main.f%d", i)}
		l := &profile.Location{ID: uint64(i + 1), Mapping: p.Mapping[0], Line: []profile.Line{{Function: f, Line: 1}}}
		s := &profile.Sample{Location: []*profile.Location{l}, Value: []int64{1, int64(i) + 1}}
		if label != nil {
			s.Label = label(i)
		}
		p.Function, p.Location, p.Sample = append(p.Function, f), append(p.Location, l), append(p.Sample, s)
	}
	return p
}

func pack(p *profile.Profile) []byte {
	var b bytes.Buffer
	if err := p.WriteUncompressed(&b); err != nil {
		panic(err)
	}
	return pprofwire.Gzip(b.Bytes())
}

func unpack(t testing.TB, b []byte) *profile.Profile {
	t.Helper()
	p, err := profile.ParseData(b)
	must(t, err)
	return p
}

// totals adds up the values of every stack and label set.
func totals(p *profile.Profile, into map[string]int64) {
	for _, s := range p.Sample {
		key := fmt.Sprint(s.Label)
		for _, l := range s.Location {
			key += " " + l.Line[0].Function.Name
		}
		for i, v := range s.Value {
			into[fmt.Sprint(p.SampleType[i].Type, " ", key)] += v
		}
	}
}

func TestSplitLeavesOrdinaryProfilesAlone(t *testing.T) {
	r := cpuRecord()
	for _, p := range []*profile.Profile{newProfile(3, nil), newProfile(15_999, nil)} {
		r.Profile = pack(p)
		parts, err := Split(r, Limits{})
		if err != nil || len(parts) != 1 || &parts[0].Profile[0] != &r.Profile[0] {
			t.Errorf("%d samples: %d parts, %v", len(p.Sample), len(parts), err)
		}
	}
	// Small by its own word: not even looked at.
	r.Profile = []byte{0x1f, 0x8b, 0, 0, 0, 0}
	if parts, err := Split(r, Limits{}); err != nil || len(parts) != 1 {
		t.Errorf("%d parts, %v", len(parts), err)
	}
}

func TestSplitKeepsTheTotals(t *testing.T) {
	for name, tc := range map[string]struct {
		samples int
		label   func(i int) map[string][]string
		limits  Limits
	}{
		"too many samples": {16_001, nil, Limits{}},
		"three times over": {3_500, nil, Limits{Samples: 1000}},
		"too many bytes": {9_000, func(i int) map[string][]string {
			return map[string][]string{"span_id": {fmt.Sprintf("%0300d", i)}}
		}, Limits{}},
		"one large sample among small ones": {50, func(i int) map[string][]string {
			if i == 20 {
				return map[string][]string{"a": {strings.Repeat("x", 3000)}}
			}
			return nil
		}, Limits{Bytes: 4000}},
		"one sample a part": {20, nil, Limits{Samples: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			whole := newProfile(tc.samples, tc.label)
			r := cpuRecord()
			r.Profile = pack(whole)
			parts, err := Split(r, tc.limits)
			if err != nil || len(parts) < 2 {
				t.Fatalf("%d parts, %v", len(parts), err)
			}
			limits := tc.limits
			if limits.Bytes == 0 {
				limits.Bytes = defaultPartBytes
			}
			if limits.Samples == 0 {
				limits.Samples = defaultPartSamples
			}
			want, got := map[string]int64{}, map[string]int64{}
			totals(whole, want)
			times := map[int64]bool{}
			for _, part := range parts {
				raw, err := decompress(part.Profile)
				must(t, err)
				p := unpack(t, part.Profile)
				must(t, p.CheckValid())
				if len(raw) > limits.Bytes || len(p.Sample) > limits.Samples {
					t.Errorf("a part has %d bytes and %d samples", len(raw), len(p.Sample))
				}
				if part.Service != r.Service || !part.Start.Equal(r.Start) || p.DurationNanos != whole.DurationNanos ||
					p.Period != whole.Period || len(p.Comments) != 1 {
					t.Errorf("a part is of another window: %+v %v", part.Meta, p)
				}
				totals(p, got)
				times[p.TimeNanos/int64(time.Millisecond)] = true
			}
			if !maps.Equal(got, want) {
				t.Errorf("%d totals became %d", len(want), len(got))
			}
			// Pyroscope keeps one profile of a series and millisecond.
			if len(times) != len(parts) {
				t.Errorf("%d parts have %d different times", len(parts), len(times))
			}
		})
	}
}

func TestSplitReportsWhatCannotBeSplit(t *testing.T) {
	r := cpuRecord()
	r.Profile = pack(newProfile(1, func(int) map[string][]string { return map[string][]string{"a": {strings.Repeat("x", 5000)}} }))
	if _, err := Split(r, Limits{Bytes: 4000}); err == nil || !strings.Contains(err.Error(), "one sample alone") {
		t.Errorf("%v", err)
	}
	r.Profile = append(bytes.Repeat([]byte("x"), 2<<20), 0, 0, 0, 0)
	if _, err := Split(r, Limits{}); err == nil {
		t.Error("no gzip, and no error")
	}
}

// sent pushes the profile and returns it as it arrived.
func sent(t *testing.T, version string, typ record.Type, p *profile.Profile) (*profile.Profile, Result, []byte) {
	t.Helper()
	var body []byte
	s := server(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == versionPath {
			if version == "none" {
				http.NotFound(w, r)
				return
			}
			fmt.Fprintf(w, `{"status":"success","data":{"version":%q}}`, version)
			return
		}
		body, _ = io.ReadAll(r.Body)
		accept(w, r)
	})
	r := cpuRecord()
	r.Type = typ
	r.Profile = pack(p)
	res := client(t, Config{URL: s.URL}).Push(t.Context(), r)
	if res.Outcome != Accepted {
		t.Fatalf("%+v", res)
	}
	_, b := decodeRequest(t, body)
	return unpack(t, b), res, b
}

func spanLabels(i int) map[string][]string {
	return map[string][]string{"span_id": {fmt.Sprintf("%016x", i/2)}, "trace_id": {fmt.Sprintf("%032x", i)}}
}

func TestTraceIDsGoOnlyWhereTheyMakeNoSeries(t *testing.T) {
	for version, keeps := range map[string]bool{
		"": false, "none": false, "1.21.1": false, "2.0.3": false, "nonsense": false, "2": false, "9": false,
		"2.1.0": true, "2.2.1": true, "v2.1.0-rc.0": true, "2.1-rc": true, "3.0.0": true, "10.0": true,
	} {
		p := newProfile(4, spanLabels)
		for _, s := range p.Sample {
			s.Location = p.Sample[0].Location // so that samples differ by their labels alone
		}
		got, res, _ := sent(t, version, record.CPU, p)
		ids, spans, sum := 0, 0, int64(0)
		for _, s := range got.Sample {
			ids += len(s.Label["trace_id"])
			spans += len(s.Label["span_id"])
			sum += s.Value[1]
		}
		if sum != 1+2+3+4 || got.TimeNanos != p.TimeNanos || got.DurationNanos != p.DurationNanos {
			t.Errorf("version %q: total %d, %v", version, sum, got)
		}
		if keeps && (ids != 4 || spans != 4 || res.Changes.TraceIDs != 0) {
			t.Errorf("version %q: %d trace ids, %d span ids, %+v", version, ids, spans, res.Changes)
		}
		if !keeps && (ids != 0 || spans != 2 || res.Changes.TraceIDs != 4) { // two samples of each span are one now
			t.Errorf("version %q: %d trace ids, %d span ids, %+v", version, ids, spans, res.Changes)
		}
	}
}

func TestProfilesWithoutLabelsAreSentAsTheyAre(t *testing.T) {
	for _, tc := range []struct {
		typ record.Type
		p   *profile.Profile
	}{
		{record.CPU, newProfile(3, nil)},
		{record.CPU, newProfile(3, func(i int) map[string][]string { return map[string][]string{"span_id": {fmt.Sprint(i)}, "ok": {"v"}} })},
		{record.Memory, newProfile(3, spanLabels)}, // the runtime never writes this; it shows that nothing was parsed
		{record.Mutex, newProfile(3, spanLabels)},
		{record.Block, newProfile(3, spanLabels)},
	} {
		_, res, b := sent(t, "1.0.0", tc.typ, tc.p)
		if !bytes.Equal(b, pack(tc.p)) || res.Changes.Any() {
			t.Errorf("%s was changed: %+v", tc.typ, res.Changes)
		}
	}
}

func TestSampleLabelsFollowTheRulesForSeries(t *testing.T) {
	got, res, _ := sent(t, "", record.CPU, newProfile(2, func(int) map[string][]string {
		return map[string][]string{
			"span_id": {"0123456789abcdef"}, "http-route": {"/a"}, "__name__": {"x"}, "a.b": {"renamed"}, "a_b": {"right"},
			"long": {strings.Repeat("ü", 2000)}, "bad": {"x\xff"},
		}
	}))
	want := map[string][]string{
		"span_id": {"0123456789abcdef"}, "http_route": {"/a"}, "a_b": {"right"},
		"long": {strings.Repeat("ü", 1024)}, "bad": {"x\uFFFD"},
	}
	for _, s := range got.Sample {
		if !reflect.DeepEqual(s.Label, want) {
			t.Errorf("got %v", s.Label)
		}
	}
	if ch := res.Changes; ch.Renamed != 1 || ch.Cut != 2 || ch.Dropped != 2 {
		t.Errorf("%+v", ch)
	}
}

func TestSampleLabelsShareTheRoomOfASeries(t *testing.T) {
	got, res, _ := sent(t, "", record.CPU, newProfile(2, func(i int) map[string][]string {
		l := spanLabels(i)
		for j := range 40 {
			l[fmt.Sprintf("z%02d", j)] = []string{"v"}
		}
		return l
	}))
	const room = maxLabels - 3 // the series has a name, a service and a region
	for _, s := range got.Sample {
		if len(s.Label) != room+1 || s.Label["span_id"] == nil { // the link is added to the labels of the series
			t.Errorf("%d labels: %v", len(s.Label), s.Label)
		}
	}
	if ch := res.Changes; ch.Dropped != 40-room || ch.TraceIDs != 2 {
		t.Errorf("%+v", ch)
	}
}

// roundTrip answers without a network, so that time can be that of a test.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestTheVersionIsAskedRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, down, version := 0, false, "1.21.1"
		c, err := New(Config{URL: "http://h"})
		must(t, err)
		c.http.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			if down {
				return nil, errors.New("connection refused")
			}
			body := ""
			if r.URL.Path == versionPath {
				asked++
				body = fmt.Sprintf(`{"data":{"version":%q}}`, version)
			}
			return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {pyroscopeType}}, Body: io.NopCloser(strings.NewReader(body))}, nil
		})
		labelled, bare := cpuRecord(), cpuRecord()
		labelled.Profile = pack(newProfile(3, spanLabels))
		push := func(r record.Record) int { return c.Push(t.Context(), r).Changes.TraceIDs }
		expect := func(what string, removed, times int) {
			t.Helper()
			if got := push(labelled); got != removed || asked != times {
				t.Errorf("%s: %d trace ids removed, want %d; asked %d times, want %d", what, got, removed, asked, times)
			}
		}
		push(bare)
		if asked != 0 {
			t.Error("asked without need")
		}
		expect("first", 3, 1)
		version = "2.2.1"
		expect("again", 3, 1)
		time.Sleep(versionTTL + time.Second)
		expect("an hour later, upgraded", 0, 2)
		version, down = "2.0.0", true
		expect("down", 0, 2)
		expect("down, so it may come back as another, and was asked lately", 3, 2)
		down = false
		time.Sleep(versionPause)
		expect("back as an older one", 3, 3)
		down = true
		expect("down again", 3, 3)
		time.Sleep(versionPause)
		expect("down and not to be asked counts as old", 3, 3)
	})
}

func FuzzProfile(f *testing.F) {
	raw := func(p *profile.Profile) []byte {
		b, err := decompress(pack(p))
		must(f, err)
		return b
	}
	f.Add(raw(newProfile(3, nil)))
	f.Add(raw(newProfile(5, spanLabels)))
	f.Add([]byte{0x12, 0x00})
	f.Add([]byte("garbage"))
	c, err := New(Config{URL: "http://127.0.0.1:1"})
	must(f, err)
	c.http.Transport = roundTrip(func(*http.Request) (*http.Response, error) { return nil, errors.New("no network here") })
	f.Fuzz(func(t *testing.T, raw []byte) {
		packed := pprofwire.Gzip(raw)
		r := cpuRecord()
		r.Profile = packed
		var ch Changes
		if b, err := c.prepare(t.Context(), r, 5, &ch); err == nil {
			if _, err := decompress(b); err != nil {
				t.Fatal(err)
			}
		}
		parts, err := Split(r, Limits{Bytes: 200, Samples: 2})
		if err != nil {
			return
		}
		for _, p := range parts {
			if b, err := decompress(p.Profile); err != nil || len(parts) > 1 && len(b) > 200 {
				t.Fatalf("a part of %d bytes, %v", len(b), err)
			}
		}
	})
}
