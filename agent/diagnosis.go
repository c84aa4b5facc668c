package agent

import (
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"google.golang.org/protobuf/encoding/protowire"

	"spanflame/agent/internal/wall"
	"spanflame/internal/record"
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
	d.comments = append(d.comments, "span_id="+of.SpanID+" "+of.Sentence)
}

// put saves a record, with the comments if it is the one of these spans.
func (d *diagnoses) put(r record.Record) {
	if r.Labels["span_scope"] == "root" {
		// A profile that cannot be read goes as it is: whoever reads it will say so.
		if commented, err := withComments(r.Profile, d.comments); err == nil {
			r.Profile = commented
		}
		d.comments = nil
	}
	d.save(r)
}

// Fields of pprof's Profile message, both repeated: the texts of the profile, and the indexes of those that
// are comments.
const (
	fieldText    protowire.Number = 6
	fieldComment protowire.Number = 13
)

// withComments returns a compressed profile with comments. It appends them: joined protobuf messages are one
// message, and joined gzip members one file. So the samples are neither decoded nor encoded anew, which would
// cost as much again as making the profile.
func withComments(profile []byte, comments []string) ([]byte, error) {
	zr, err := gzip.NewReader(bytes.NewReader(profile))
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	message, err := io.ReadAll(zr)
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	texts := uint64(0)
	for len(message) > 0 {
		field, _, n := protowire.ConsumeField(message)
		if n < 0 {
			return nil, fmt.Errorf("profile: %w", protowire.ParseError(n))
		}
		if field == fieldText {
			texts++
		}
		message = message[n:]
	}
	var more []byte
	for i, c := range comments {
		more = protowire.AppendTag(more, fieldText, protowire.BytesType)
		more = protowire.AppendString(more, c)
		more = protowire.AppendTag(more, fieldComment, protowire.VarintType)
		more = protowire.AppendVarint(more, texts+uint64(i))
	}
	out := bytes.NewBuffer(bytes.Clone(profile)) // the record's receivers share it
	zw := gzip.NewWriter(out)
	if _, err := zw.Write(more); err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	if err := zw.Close(); err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	return out.Bytes(), nil
}
