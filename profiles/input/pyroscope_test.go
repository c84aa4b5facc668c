package input_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"google.golang.org/protobuf/encoding/protowire"

	"spanflame/internal/record"
	"spanflame/profiles"
	"spanflame/profiles/input"
)

// captured is a profile on a server, with one sample of the given value.
type captured struct {
	instance string
	start    time.Time
	value    int64
}

// chosen returns the profiles that match a selector between two times in milliseconds, compared as nanoseconds.
func chosen(all []captured, selector string, start, end int64) []captured {
	return slices.DeleteFunc(slices.Clone(all), func(c captured) bool {
		return c.start.Before(time.UnixMilli(start)) || c.start.After(time.UnixMilli(end)) ||
			strings.Contains(selector, "service_instance_id") && !strings.Contains(selector, fmt.Sprintf("service_instance_id=%q", c.instance))
	})
}

// pyroscope answers the two requests of reading windows like Pyroscope: one returns the ends of the cells with captures,
// the other the sum of the captures, each of which has a stack of its own.
func pyroscope(t *testing.T, all []captured) (address string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		switch r.URL.Path {
		case "/querier.v1.QuerierService/SelectSeries":
			var ask struct {
				LabelSelector string
				Start, End    int64
				Step          float64
				GroupBy       []string
			}
			if err := json.Unmarshal(body, &ask); err != nil || len(ask.GroupBy) != 1 {
				t.Errorf("%s: %v", body, err)
			}
			type point struct {
				Value     float64 `json:"value"`
				Timestamp string  `json:"timestamp"`
			}
			series := map[string][]point{}
			step := int64(ask.Step * 1000)
			for _, c := range chosen(all, ask.LabelSelector, ask.Start+1, ask.End) {
				end := ask.Start + (c.start.UnixMilli()-ask.Start+step-1)/step*step
				series[c.instance] = append(series[c.instance], point{float64(c.value), strconv.FormatInt(end, 10)})
			}
			answer := struct {
				Series []any `json:"series"`
			}{}
			for instance, points := range series {
				answer.Series = append(
					answer.Series,
					map[string]any{"labels": []any{map[string]string{"name": ask.GroupBy[0], "value": instance}}, "points": points},
				)
			}
			if err := json.NewEncoder(w).Encode(answer); err != nil {
				t.Error(err)
			}
		case "/querier.v1.QuerierService/SelectMergeProfile":
			var selector, typ string
			var times [2]uint64
			for len(body) > 0 {
				field, kind, n := protowire.ConsumeTag(body)
				body = body[n:]
				if kind == protowire.BytesType {
					text, n := protowire.ConsumeString(body)
					body = body[n:]
					if field == 1 {
						typ = text
					} else {
						selector = text
					}
				} else {
					number, n := protowire.ConsumeVarint(body)
					body = body[n:]
					times[field-3] = number
				}
			}
			parts := strings.Split(typ, ":")
			p := &profile.Profile{SampleType: []*profile.ValueType{{Type: parts[1], Unit: parts[2]}}, TimeNanos: 1, DurationNanos: 1}
			for i, c := range chosen(all, selector, int64(times[0]), int64(times[1])) {
				f := &profile.Function{ID: uint64(i + 1), Name: fmt.Sprint("main.f", i)}
				l := &profile.Location{ID: f.ID, Line: []profile.Line{{Function: f}}}
				p.Function, p.Location = append(p.Function, f), append(p.Location, l)
				p.Sample = append(p.Sample, &profile.Sample{Location: []*profile.Location{l}, Value: []int64{c.value}})
			}
			var b bytes.Buffer
			if err := p.WriteUncompressed(&b); err != nil {
				t.Error(err)
			}
			w.Header().Set("Content-Type", "application/proto")
			_, _ = w.Write(b.Bytes())
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return strings.Replace(server.URL, "http:", "pyroscope:", 1)
}

// TestWindowsOfPyroscope: two instances capture every 15 s, one of them with a pause of two minutes.
func TestWindowsOfPyroscope(t *testing.T) {
	at := func(seconds int) time.Time { return epoch.Add(time.Duration(seconds) * time.Second) }
	var one, two []captured
	for i := range 6 {
		one = append(one, captured{"a", at(15 * i), int64(1 + i)})
		two = append(two, captured{"a", at(15 * i), int64(1 + i)}, captured{"b", at(15*i + 5), 100})
	}
	paused := append(slices.Clone(one), captured{"a", at(210), 7})
	rare := []captured{{"a", at(0), 1}, {"a", at(15), 1}}
	const cpu, inUse = "process_cpu:cpu:nanoseconds:cpu:nanoseconds", "memory:inuse_space:bytes:space:bytes"
	for name, tt := range map[string]struct {
		captures []captured
		typ      string
		seconds  int // of the range
		step     string
		want     string // instance, start, length and value of each window
	}{
		"a capture each":                   {one, cpu, 90, "15s", "[ 0 15 1] [ 15 15 2] [ 30 15 3] [ 45 15 4] [ 60 15 5] [ 75 15 6]"},
		"shorter steps":                    {one, cpu, 90, "1s", "[ 0 15 1] [ 15 15 2] [ 30 15 3] [ 45 15 4] [ 60 15 5] [ 75 15 6]"},
		"two captures each":                {one, cpu, 90, "30s", "[ 0 30 3] [ 30 30 7] [ 60 30 11]"},
		"one or two captures":              {one, cpu, 90, "20s", "[ 0 30 3] [ 30 15 3] [ 45 15 4] [ 60 30 11]"},
		"a level is a mean":                {one, inUse, 90, "30s", "[ 0 30 2] [ 30 30 4] [ 60 30 6]"},
		"each stack is rare":               {rare, inUse, 30, "30s", "[ 0 30 1]"},
		"instances add up":                 {two, cpu, 30, "30s", "[ 0 30 203]"},
		"levels of instances do not":       {two, inUse, 30, "30s", "[a 0 30 2] [b 5 30 100]"},
		"of a pause not more than a step":  {paused, cpu, 240, "30s", "[ 0 30 3] [ 30 30 7] [ 60 45 11] [ 210 15 7]"},
		"in the last millisecond":          {[]captured{{"a", at(14).Add(999500 * time.Microsecond), 9}}, cpu, 30, "15s", "[ 14.9 15 9]"},
		"a part of the range has captures": {one, cpu, 20, "10s", "[ 0 15 1] [ 15 15 2]"},
	} {
		address := pyroscope(t, tt.captures)
		query := url.Values{
			"query": {tt.typ + `{service_name="shop"}`},
			"from":  {strconv.FormatInt(epoch.UnixMilli(), 10)},
			"until": {strconv.FormatInt(at(tt.seconds).UnixMilli(), 10)},
			"step":  {tt.step},
		}
		windows, err := input.Open(t.Context(), address+"/?"+query.Encode(), input.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for w, err := range windows {
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			seconds, total := w.End.Sub(w.Start).Seconds(), profiles.Total(w.Profile, 0, profiles.OwnTime)
			got = append(got, fmt.Sprint([]any{w.Labels["service_instance_id"], w.Start.Sub(epoch).Seconds(), seconds, total}))
			if w.Service != "shop" || w.Type != record.Type(tt.typ[:strings.Index(tt.typ, ":")]) || w.Profile.TimeNanos != w.Start.UnixNano() ||
				w.Profile.DurationNanos != int64(seconds*1e9) {
				t.Errorf("%s: window %+v of %d for %d ns", name, w.Meta, w.Profile.TimeNanos, w.Profile.DurationNanos)
			}
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: %v\nwant %s", name, got, tt.want)
		}
	}
	address := pyroscope(t, nil)
	if _, err := read(t, address+"/?query="+cpu, input.Options{}); err == nil || !strings.Contains(err.Error(), profiles.ErrNone.Error()) ||
		strings.Contains(err.Error(), "is it the address") {
		t.Errorf("of nothing: %v", err)
	}
}

// TestAnotherServerThanPyroscope: the servers answer, but not like Pyroscope.
func TestAnotherServerThanPyroscope(t *testing.T) {
	for name, tt := range map[string]struct {
		status     int
		body, want string
	}{
		"a web page": {200, "<html>Hello", "invalid character '<'"},
		"no page":    {404, "404 page not found", `status 404: "404 page not found`},
		"an error":   {500, "oops", "status 500"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(tt.status)
			_, _ = io.WriteString(w, tt.body)
		}))
		address := strings.Replace(server.URL, "http:", "pyroscope:", 1)
		_, err := read(t, address+"/?query=a:b:c:d:e{}", input.Options{})
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), server.URL) ||
			!strings.Contains(err.Error(), "is it the address of a Pyroscope server?") {
			t.Errorf("%s: %v", name, err)
		}
		server.Close()
	}
}
