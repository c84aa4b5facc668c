package wall

import (
	"log/slog"
	"maps"
	"slices"
	"time"

	"spanflame/internal/wallprofile"
)

const (
	// defaultLogLines is enough to see what the slow spans of a name have in common.
	defaultLogLines = 5

	// maxLoggedNames limits the span names that are counted in a minute. Further names count as one.
	maxLoggedNames = 100
)

// diagnosisLog logs the diagnoses of the first slow spans of each name in a minute, and the number of the others at its
// end: a service that is slow all the time would fill its log otherwise. It belongs to the recorder's goroutine.
type diagnosisLog struct {
	to    *slog.Logger
	lines int // for each name and minute; negative: none

	ends  time.Time // of the minute
	names map[string]*nameLog
}

// nameLog has the counts for one name in the current minute.
type nameLog struct {
	logged, further int
	longest         time.Duration // of those further
}

// add logs a diagnosis, or counts it.
func (l *diagnosisLog) add(now time.Time, d *Diagnosis) {
	if l.lines < 0 {
		return
	}
	l.flush(now)
	if l.names == nil {
		l.names, l.ends = map[string]*nameLog{}, now.Add(time.Minute)
	}
	name := d.Name
	if l.names[name] == nil && len(l.names) >= maxLoggedNames {
		name = "" // of all further names
	}
	n := l.names[name]
	if n == nil {
		n = &nameLog{}
		l.names[name] = n
	}
	if n.logged < l.lines {
		n.logged++
		d.log(l.to)
		return
	}
	n.further++
	n.longest = max(n.longest, d.Duration)
}

// flush logs the numbers of diagnoses that were not logged, if the minute is over.
func (l *diagnosisLog) flush(now time.Time) {
	if !now.Before(l.ends) {
		l.end()
	}
}

// end ends the minute.
func (l *diagnosisLog) end() {
	for _, name := range slices.Sorted(maps.Keys(l.names)) {
		n := l.names[name]
		if n.further == 0 {
			continue
		}
		of := slog.String(wallprofile.SpanName, name)
		if name == "" {
			of = slog.Bool("other_names", true)
		}
		l.to.Info("further slow spans captured; their diagnoses are in the profiles", of,
			slog.Int("further", n.further), slog.Int64("longest_ms", n.longest.Round(time.Millisecond).Milliseconds()))
	}
	l.names = nil
}
