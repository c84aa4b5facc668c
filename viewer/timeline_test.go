package viewer

import (
	"slices"
	"testing"
	"time"

	"spanflame/viewer/source"
)

func TestTimeline(t *testing.T) {
	from := time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)
	at := func(minutes ...int) (some []source.Summary) {
		for _, m := range minutes {
			some = append(some, source.Summary{Start: from.Add(time.Duration(m) * time.Minute)})
		}
		return some
	}
	hour := period{from: from, to: from.Add(time.Hour)}
	axis := newTimeline(hour, at(10))
	bars, words := axis.of(at(1, 40, 41, 42, 60, 90)) // the bars are of 2.5 minutes
	want := []timelineRect{{0, 11, 5}, {16 * timelineBar, 0, 16}, {23 * timelineBar, 6, 10}}
	if !slices.Equal(bars, want) || words != "1 in the earlier half of the time, 5 in the later" {
		t.Errorf("%v, %s; want %v", bars, words, want)
	}
	if got := axis.words(zone{}); got != "2026-01-02 15:00:00 to 2026-01-02 16:00:00" {
		t.Errorf("the axis is %s", got)
	}
	if axis := newTimeline(period{}, at(20, 5, 50)); !axis.From.Equal(from.Add(5*time.Minute)) || !axis.To.Equal(from.Add(50*time.Minute)) {
		t.Errorf("without a period, the axis is %v", axis)
	}
	if bars, _ := newTimeline(period{}, at(7)).of(at(7)); len(bars) != 1 || bars[0].X != 0 {
		t.Errorf("of one trace, the bars are %v", bars)
	}
	if bars, _ := newTimeline(period{}, nil).of(nil); len(bars) > 0 {
		t.Errorf("of no traces, the bars are %v", bars)
	}
}
