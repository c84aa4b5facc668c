package push

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/pprofwire"
	"spanflame/internal/record"
)

// Limits are the sizes above which a profile is split. The zero value fits Pyroscope's defaults.
type Limits struct {
	// Bytes is the most a part takes uncompressed; 0 is 1 MiB. Pyroscope refuses for ever what is above its
	// burst of 2 MiB, and one of just that size waits for a rate budget that no other agent touches: half
	// of it leaves room.
	Bytes int
	// Samples is the most samples of a part; 0 is 16,000, Pyroscope's own limit.
	Samples int
}

const (
	defaultPartBytes   = 1 << 20
	defaultPartSamples = 16_000
	// minSampleBytes is the least one sample takes: tag and length, a location and a value.
	minSampleBytes = 8
)

// Split returns r itself when it is within the limits, and otherwise records of the same window and labels
// whose samples together are r's. Ordinary profiles are not even decompressed. Split before a record is
// spooled: each part is then delivered, and answered, by itself.
//
// The parts' times differ by a millisecond each: Pyroscope takes profiles of one series and time for copies
// of one another and keeps a single one.
func Split(r record.Record, l Limits) ([]record.Record, error) {
	if l.Bytes <= 0 {
		l.Bytes = defaultPartBytes
	}
	if l.Samples <= 0 {
		l.Samples = defaultPartSamples
	}
	size := trailerSize(r.Profile)
	if size <= l.Bytes && size < l.Samples*minSampleBytes {
		return []record.Record{r}, nil
	}
	raw, err := decompress(r.Profile)
	if err != nil {
		return nil, fmt.Errorf("push: split %s profile: %w", r.Type, err)
	}
	s, err := inspect(raw)
	if err != nil {
		return nil, fmt.Errorf("push: split %s profile: %w", r.Type, err)
	}
	if len(raw) <= l.Bytes && s.samples <= l.Samples {
		return []record.Record{r}, nil
	}
	p, err := parse(raw)
	if err != nil {
		return nil, fmt.Errorf("push: split %s profile: %w", r.Type, err)
	}
	var parts []record.Record
	if err := split(r, p, p.Sample, l, &parts); err != nil {
		return nil, fmt.Errorf("push: split %s profile of %d bytes and %d samples: %w", r.Type, len(raw), s.samples, err)
	}
	return parts, nil
}

// split halves the samples until each part fits: what a part takes is only known once it is written,
// for parts repeat the functions they share.
func split(r record.Record, p *profile.Profile, samples []*profile.Sample, l Limits, parts *[]record.Record) error {
	if len(samples) <= l.Samples {
		p.Sample = samples
		part, err := profile.Merge([]*profile.Profile{p}) // leaves behind what these samples do not use
		if err != nil {
			return err
		}
		part.TimeNanos += int64(len(*parts)) * int64(time.Millisecond)
		var raw bytes.Buffer
		if err := part.WriteUncompressed(&raw); err != nil {
			return err
		}
		if raw.Len() <= l.Bytes {
			r.Profile = pprofwire.Gzip(raw.Bytes())
			*parts = append(*parts, r)
			return nil
		}
		if len(samples) == 1 {
			return fmt.Errorf("one sample alone takes %d bytes, the limit is %d", raw.Len(), l.Bytes)
		}
	}
	half := len(samples) / 2
	if err := split(r, p, samples[:half], l, parts); err != nil {
		return err
	}
	return split(r, p, samples[half:], l, parts)
}

// trailerSize returns the uncompressed size that a gzip file of one member gives in its last four bytes,
// and at least the compressed size.
func trailerSize(gz []byte) int {
	if len(gz) < 4 {
		return 0
	}
	return max(int(binary.LittleEndian.Uint32(gz[len(gz)-4:])), len(gz))
}
