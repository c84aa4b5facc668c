package profiles

import (
	"bytes"

	"github.com/google/pprof/profile"

	"spanflame/internal/pprofwire"
	"spanflame/internal/wallprofile"
)

// Diagnosed is what the agent saved about a span with its wall-clock profile.
type Diagnosed struct {
	SpanID, Text string
	Lasts        bool // see Lasts
}

// Diagnoses reads what the agent saved about the spans of a file, within the limits of ReadFile. It reads the samples only
// if one of the spans may be of a stream, and takes a fraction of the time of ReadFile otherwise. The error is Damaged.
func Diagnoses(path string) ([]Diagnosed, error) {
	r := newReader()
	_, data, err := r.read(path)
	if err != nil {
		return nil, Damaged{Path: path, Err: err}
	}
	comments, streams, err := skim(data)
	if err != nil {
		return nil, Damaged{Path: path, Err: invalid(err)}
	}
	var p *profile.Profile
	if streams {
		if p, err = parse(data); err != nil {
			return nil, Damaged{Path: path, Err: err}
		}
	}
	var all []Diagnosed
	for _, c := range comments {
		id, text, ok := wallprofile.ParseComment(string(c))
		if ok {
			all = append(all, Diagnosed{SpanID: id, Text: text, Lasts: p != nil && Lasts(ByLabel(p, wallprofile.SpanID, id))})
		}
	}
	return all, nil
}

// skim returns the comments of a profile in its wire form, and whether a function of it streams.
func skim(data []byte) (comments [][]byte, streams bool, err error) {
	var texts [][]byte
	var numbers []uint64
	m := pprofwire.NewMessage(data)
	for m.Next() {
		switch m.Field {
		case pprofwire.ProfileString:
			text := m.Bytes()
			texts = append(texts, text)
			streams = streams || bytes.Contains(text, []byte(".(*")) && wallprofile.Streams(string(text))
		case pprofwire.ProfileComment:
			numbers = m.Varints(numbers)
		}
	}
	for _, n := range numbers {
		if n < uint64(len(texts)) {
			comments = append(comments, texts[n])
		}
	}
	return comments, streams, m.Err()
}

// lastingShare is the share of its own time for which a request that is meant to last is idle.
const lastingShare = 0.9

// Lasts reports whether the wall-clock profile of a span is that of a request which is meant to last, such as server-sent
// events or a stream of messages: it sent or received parts, and was idle between them. How long it took says nothing.
func Lasts(p *profile.Profile) bool {
	var idle, idleIfOver, whole int64
	streams, over := false, false
	for _, s := range p.Sample {
		at, own := WhereOf(s)
		if !own || len(s.Value) == 0 {
			continue
		}
		whole += s.Value[0]
		if at.At.Idle(false) {
			idle += s.Value[0]
		}
		if at.At.Idle(true) {
			idleIfOver += s.Value[0]
		}
		for _, l := range s.Location {
			for _, line := range l.Line {
				if line.Function != nil && wallprofile.Streams(line.Function.Name) {
					streams, over = true, over || wallprofile.TakesOver(line.Function.Name)
				}
			}
		}
	}
	if over {
		idle = idleIfOver
	}
	return streams && float64(idle) >= lastingShare*float64(whole)
}
