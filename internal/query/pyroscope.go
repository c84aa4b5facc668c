package query

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/pyroscopewire"
)

// Profile types, by Pyroscope's names.
const (
	CPU        = "process_cpu:cpu:nanoseconds:cpu:nanoseconds"
	Wall       = "wall:wall:nanoseconds:wall:nanoseconds"
	WallOthers = "wall:others:nanoseconds:wall:nanoseconds" // of other goroutines that worked for spans
	InuseSpace = "memory:inuse_space:bytes:space:bytes"
	MutexDelay = "mutex:delay:nanoseconds:contentions:count"
	BlockDelay = "block:delay:nanoseconds:contentions:count"
	Goroutines = "goroutines:goroutine:count:goroutine:count"
)

// Pyroscope is a Pyroscope server.
type Pyroscope struct{ client }

// NewPyroscope returns the server at the base URL.
func NewPyroscope(base string) *Pyroscope { return &Pyroscope{newClient(base)} }

// Frame is a node of a flame graph: a function as called by its parent. Values are in the profile type's unit.
type Frame struct {
	Name     string
	Total    int64 // of the function and of what it called
	Self     int64 // of the function alone
	Children []*Frame

	offset int64 // from the left edge of the flame graph
}

// Walk calls visit for f and every frame below it, each with the names from the root down to it.
func (f *Frame) Walk(visit func(stack []string, f *Frame)) { f.walk(nil, visit) }

func (f *Frame) walk(above []string, visit func([]string, *Frame)) {
	stack := append(above[:len(above):len(above)], f.Name)
	visit(stack, f)
	for _, c := range f.Children {
		c.walk(stack, visit)
	}
}

// Find returns the sum of Total over the topmost frames whose name contains part.
func (f *Frame) Find(part string) int64 {
	if strings.Contains(f.Name, part) {
		return f.Total
	}
	var sum int64
	for _, c := range f.Children {
		sum += c.Find(part)
	}
	return sum
}

// Selector names the series of a query: label names and their values.
type Selector map[string]string

func (s Selector) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s)) {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%s=%q", name, s[name])
	}
	return "{" + b.String() + "}"
}

// SpanFlameGraph returns the flame graph of the spans with the given IDs, with the call that Grafana makes when a user
// follows the link of a span. If there is none, its root has Total 0.
func (p *Pyroscope) SpanFlameGraph(ctx context.Context, profileType string, s Selector, spanIDs []string, start, end time.Time) (*Frame, error) {
	return p.flameGraph(ctx, "SelectMergeSpanProfile", map[string]any{
		"profileTypeID": profileType, "labelSelector": s.String(), "spanSelector": spanIDs,
		"start": start.UnixMilli(), "end": end.UnixMilli(),
	})
}

// FlameGraph returns the flame graph of all profiles between two times.
func (p *Pyroscope) FlameGraph(ctx context.Context, profileType string, s Selector, start, end time.Time) (*Frame, error) {
	return p.flameGraph(ctx, "SelectMergeStacktraces", map[string]any{
		"profileTypeID": profileType, "labelSelector": s.String(),
		"start": start.UnixMilli(), "end": end.UnixMilli(),
	})
}

func (p *Pyroscope) flameGraph(ctx context.Context, method string, request map[string]any) (*Frame, error) {
	var answer struct {
		Flamegraph struct {
			Names  []string `json:"names"`
			Levels []struct {
				Values []string `json:"values"`
			} `json:"levels"`
		} `json:"flamegraph"`
	}
	if err := p.call(ctx, "/querier.v1.QuerierService/"+method, nil, request, into(&answer)); err != nil {
		return nil, err
	}
	root := &Frame{Name: "total"}
	parents := []*Frame{}
	for depth, level := range answer.Flamegraph.Levels {
		frames, err := decodeLevel(level.Values, answer.Flamegraph.Names)
		if err != nil {
			return nil, fmt.Errorf("%s: level %d: %w", method, depth, err)
		}
		if depth == 0 {
			if len(frames) > 0 {
				root = frames[0]
			}
		} else if err := adopt(parents, frames); err != nil {
			return nil, fmt.Errorf("%s: level %d: %w", method, depth, err)
		}
		parents = frames
	}
	return root, nil
}

// decodeLevel reads one level of a flame graph: four numbers a frame (distance to the frame on its left, total, self,
// index of its name).
func decodeLevel(values, names []string) ([]*Frame, error) {
	var frames []*Frame
	var at int64
	for len(values) >= 4 {
		var n [4]int64
		for i := range n {
			var err error
			if n[i], err = strconv.ParseInt(values[i], 10, 64); err != nil {
				return nil, err
			}
		}
		if n[3] < 0 || n[3] >= int64(len(names)) {
			return nil, fmt.Errorf("name %d of %d", n[3], len(names))
		}
		at += n[0]
		frames = append(frames, &Frame{Name: names[n[3]], Total: n[1], Self: n[2], offset: at})
		at += n[1]
		values = values[4:]
	}
	if len(values) > 0 {
		return nil, fmt.Errorf("%d numbers too many", len(values))
	}
	return frames, nil
}

// adopt adds each frame to the parent above it.
func adopt(parents, frames []*Frame) error {
	i := 0
	for _, f := range frames {
		if f.Total == 0 {
			continue // of no width, at the edge between two parents
		}
		for i < len(parents) && parents[i].offset+parents[i].Total <= f.offset {
			i++
		}
		if i == len(parents) {
			return fmt.Errorf("frame %q has no parent", f.Name)
		}
		parents[i].Children = append(parents[i].Children, f)
	}
	return nil
}

// Profile returns all profiles between two times, merged into one pprof profile. If there are none, it has no samples.
func (p *Pyroscope) Profile(ctx context.Context, profileType string, s Selector, start, end time.Time) (*profile.Profile, error) {
	// The answer has the encoding of the request: a pprof profile in Protocol Buffers.
	request := pyroscopewire.SelectMergeProfile(profileType, s.String(), start, end)
	merged := &profile.Profile{}
	err := p.send(ctx, "/querier.v1.QuerierService/SelectMergeProfile", nil, "application/proto", request, func(b []byte) (err error) {
		if len(b) == 0 {
			return nil
		}
		merged, err = profile.ParseUncompressed(b)
		return err
	})
	return merged, err
}

// Point is a value of a series at a time.
type Point struct {
	Time   time.Time
	Value  float64
	Labels map[string]string // of the series, those that were requested; shared by its points
}

// Totals returns a profile type's totals between two times: a point for each step and combination of values of the named
// labels. A point is at the end of its step. A server with Pyroscope's first storage averages the profiles of a step,
// one with the second adds them up, as it has no average: for values in use, choose a step no longer than a window.
func (p *Pyroscope) Totals(ctx context.Context, profileType string, s Selector, start, end time.Time, step time.Duration, by ...string) ([]Point, error) {
	var answer struct {
		Series []struct {
			Labels []struct{ Name, Value string } `json:"labels"`
			Points []struct {
				Value     float64 `json:"value"`
				Timestamp string  `json:"timestamp"`
			} `json:"points"`
		} `json:"series"`
	}
	err := p.call(ctx, "/querier.v1.QuerierService/SelectSeries", nil, map[string]any{
		"profileTypeID": profileType, "labelSelector": s.String(), "start": start.UnixMilli(), "end": end.UnixMilli(),
		"step": step.Seconds(), "aggregation": "TIME_SERIES_AGGREGATION_TYPE_AVERAGE", "groupBy": by,
	}, into(&answer))
	if err != nil {
		return nil, err
	}
	var points []Point
	for _, series := range answer.Series {
		labels := make(map[string]string, len(series.Labels))
		for _, l := range series.Labels {
			labels[l.Name] = l.Value
		}
		for _, pt := range series.Points {
			ms, err := strconv.ParseInt(pt.Timestamp, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("SelectSeries: timestamp %q", pt.Timestamp)
			}
			points = append(points, Point{time.UnixMilli(ms), pt.Value, labels})
		}
	}
	return points, nil
}

// LabelValues returns the values of a label between two times.
func (p *Pyroscope) LabelValues(ctx context.Context, name string, start, end time.Time) ([]string, error) {
	var answer struct {
		Names []string `json:"names"`
	}
	err := p.call(ctx, "/querier.v1.QuerierService/LabelValues", nil,
		map[string]any{"name": name, "start": start.UnixMilli(), "end": end.UnixMilli()}, into(&answer))
	return answer.Names, err
}

// ProfileTypes returns the types that have data between two times.
func (p *Pyroscope) ProfileTypes(ctx context.Context, start, end time.Time) ([]string, error) {
	var answer struct {
		ProfileTypes []struct {
			ID string `json:"ID"`
		} `json:"profileTypes"`
	}
	err := p.call(ctx, "/querier.v1.QuerierService/ProfileTypes", nil,
		map[string]any{"start": start.UnixMilli(), "end": end.UnixMilli()}, into(&answer))
	var ids []string
	for _, t := range answer.ProfileTypes {
		ids = append(ids, t.ID)
	}
	return ids, err
}

// Series returns the label sets that match between two times.
func (p *Pyroscope) Series(ctx context.Context, s Selector, start, end time.Time) ([]map[string]string, error) {
	var answer struct {
		LabelsSet []struct {
			Labels []struct{ Name, Value string } `json:"labels"`
		} `json:"labelsSet"`
	}
	err := p.call(ctx, "/querier.v1.QuerierService/Series", nil,
		map[string]any{"matchers": []string{s.String()}, "start": start.UnixMilli(), "end": end.UnixMilli()}, into(&answer))
	var series []map[string]string
	for _, set := range answer.LabelsSet {
		labels := map[string]string{}
		for _, l := range set.Labels {
			labels[l.Name] = l.Value
		}
		series = append(series, labels)
	}
	return series, err
}
