package capture

import (
	"fmt"
	"time"

	"spanflame/internal/pprofwire"
)

// maxProfileBytes is the largest profile that is captured, in bytes and uncompressed. Readers have the same limit.
const maxProfileBytes = 512 << 20

// stamp returns the profile with the window's start and length. What is read at the end of a window has that
// moment written in it; a server finds profiles by their time alone, and those of one window belong together.
func stamp(gz []byte, begun, end time.Time) ([]byte, error) {
	raw, err := pprofwire.Gunzip(gz, maxProfileBytes)
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	stamped, err := pprofwire.AppendWithout(make([]byte, 0, len(raw)+32), raw, pprofwire.ProfileTime, pprofwire.ProfileDuration)
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	out := pprofwire.Encoder(stamped)
	out.Number(pprofwire.ProfileTime, uint64(begun.UnixNano()))
	out.Number(pprofwire.ProfileDuration, uint64(end.Sub(begun)))
	return pprofwire.Gzip(out), nil
}
