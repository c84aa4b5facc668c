package agent

import (
	"bytes"
	"fmt"

	"spanflame/agent/internal/wall"
	"spanflame/internal/pprofwire"
	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

// diagnoses puts what the recorder says of slow spans into their saved profiles, as comments of the form
// "span_id=4466fc8554eaf499 612 ms POST /checkout: …". Who held a lock, for one, cannot be seen in the profile
// itself. The recorder calls both methods from its one goroutine, and add for the spans of a record before it
// emits that.
type diagnoses struct {
	comments []string // of the spans of the next record
	save     func(record.Record)
}

func (d *diagnoses) add(of wall.Diagnosis) {
	d.comments = append(d.comments, wallprofile.Comment(of.SpanID, of.Sentence))
}

// put saves a record, with the comments if it is the one of these spans.
func (d *diagnoses) put(r record.Record) {
	if r.Labels[wallprofile.SpanScope] == wallprofile.ScopeRoot {
		// A profile that cannot be read goes as it is: whoever reads it will say so.
		if commented, err := withComments(r.Profile, d.comments); err == nil {
			r.Profile = commented
		}
		d.comments = nil
	}
	d.save(r)
}

// withComments returns a compressed profile with comments. It appends them: joined protobuf messages are one
// message, and joined gzip members one file. So the samples are neither decoded nor encoded again, which would
// cost as much again as making the profile.
func withComments(profile []byte, comments []string) ([]byte, error) {
	message, err := pprofwire.Gunzip(profile, maxCommentedBytes)
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	texts := uint64(0)
	m := pprofwire.NewMessage(message)
	for m.Next() {
		if m.Field == pprofwire.ProfileString {
			texts++
		}
	}
	if m.Err() != nil {
		return nil, fmt.Errorf("profile: %w", m.Err())
	}
	var more pprofwire.Encoder
	for i, c := range comments {
		more.Text(pprofwire.ProfileString, c)
		more.Element(pprofwire.ProfileComment, texts+uint64(i))
	}
	return append(bytes.Clone(profile), pprofwire.Gzip(more)...), nil // the record's receivers share it
}

// maxCommentedBytes is the size of the largest profile that is commented, in bytes and uncompressed.
const maxCommentedBytes = 512 << 20
