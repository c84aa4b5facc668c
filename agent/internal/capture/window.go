package capture

import (
	"time"

	"spanflame/internal/pprofwire"
)

// maxProfileBytes is the size of the largest profile that is captured, uncompressed. Readers have the same limit.
const maxProfileBytes = 512 << 20

// stamp returns an uncompressed profile with the window's start and length. A profile that is read at the end of a window
// has that moment as its time; a server finds profiles by their time alone, and those of one window belong together.
func stamp(raw []byte, begun, end time.Time) ([]byte, error) {
	stamped, err := pprofwire.AppendWithout(make([]byte, 0, len(raw)+32), raw, pprofwire.ProfileTime, pprofwire.ProfileDuration)
	if err != nil {
		return nil, err
	}
	out := pprofwire.Encoder(stamped)
	out.Number(pprofwire.ProfileTime, uint64(begun.UnixNano()))
	out.Number(pprofwire.ProfileDuration, uint64(end.Sub(begun)))
	return out, nil
}
