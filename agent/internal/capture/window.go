package capture

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of perftools.profiles.Profile.
const (
	timeNanos     protowire.Number = 9
	durationNanos protowire.Number = 10
)

// stamp returns the profile with the window's start and length. What is read at the end of a window has that
// moment written in it; a server finds profiles by their time alone, and those of one window belong together.
// The profile comes from the runtime, so nothing else bounds its size.
func stamp(gz []byte, begun, end time.Time) ([]byte, error) {
	zr, err := gzip.NewReader(bytes.NewReader(gz))
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	raw, err := io.ReadAll(zr)
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	stamped := make([]byte, 0, len(raw)+32)
	for len(raw) > 0 {
		num, _, n := protowire.ConsumeField(raw)
		if n < 0 {
			return nil, fmt.Errorf("read: %w", protowire.ParseError(n))
		}
		if num != timeNanos && num != durationNanos {
			stamped = append(stamped, raw[:n]...)
		}
		raw = raw[n:]
	}
	stamped = protowire.AppendTag(stamped, timeNanos, protowire.VarintType)
	stamped = protowire.AppendVarint(stamped, uint64(begun.UnixNano()))
	stamped = protowire.AppendTag(stamped, durationNanos, protowire.VarintType)
	stamped = protowire.AppendVarint(stamped, uint64(end.Sub(begun)))

	var out bytes.Buffer
	zw, err := gzip.NewWriterLevel(&out, gzip.BestSpeed) // the level of the runtime's own
	if err != nil {
		return nil, err
	}
	if _, err := zw.Write(stamped); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	if err := zw.Close(); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	return out.Bytes(), nil
}
