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
	// Bytes is the largest size of a part, uncompressed; 0 is 1 MiB. Pyroscope never accepts more than its burst of
	// 2 MiB, and accepts a part of that size only while no other agent sends anything: half of it leaves room.
	Bytes int
	// Samples is the largest number of samples of a part; 0 is 16,000, Pyroscope's own limit.
	Samples int
}

const (
	defaultPartBytes   = 1 << 20
	defaultPartSamples = 16_000
	// minSampleBytes is the size of the smallest sample: tag and length, a location and a value.
	minSampleBytes = 8
)

// Split returns r itself if it is within the limits, and otherwise records of the same window and labels whose samples
// together are r's. Small profiles are not even decompressed. A record is split before it is spooled, so that each
// part is delivered and answered on its own.
//
// The parts' times differ by a millisecond each: Pyroscope keeps only one of several profiles of the same series and
// time, which it considers copies.
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

// split halves the samples until each part fits: the size of a part is known only when it was written, since parts
// repeat the functions they share.
func split(r record.Record, p *profile.Profile, samples []*profile.Sample, l Limits, parts *[]record.Record) error {
	if len(samples) <= l.Samples {
		p.Sample = samples
		part, err := profile.Merge([]*profile.Profile{p}) // leaves out what these samples do not use
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
			return fmt.Errorf("one sample alone has %d bytes, the limit is %d", raw.Len(), l.Bytes)
		}
	}
	half := len(samples) / 2
	if err := split(r, p, samples[:half], l, parts); err != nil {
		return err
	}
	return split(r, p, samples[half:], l, parts)
}

// trailerSize returns the uncompressed size, which is in the last four bytes of a gzip file of one member, and at
// least the compressed size.
func trailerSize(gz []byte) int {
	if len(gz) < 4 {
		return 0
	}
	return max(int(binary.LittleEndian.Uint32(gz[len(gz)-4:])), len(gz))
}
