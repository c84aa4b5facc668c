package pprofwire

import "time"

// Stamp returns an uncompressed profile with the window's start and length. A profile that is read at the end of a window
// has that moment as its time; a server finds profiles by their time alone, and those of one window belong together.
func Stamp(raw []byte, begun, end time.Time) ([]byte, error) {
	stamped, err := AppendWithout(make([]byte, 0, len(raw)+32), raw, ProfileTime, ProfileDuration)
	if err != nil {
		return nil, err
	}
	out := Encoder(stamped)
	out.Number(ProfileTime, uint64(begun.UnixNano()))
	out.Number(ProfileDuration, uint64(end.Sub(begun)))
	return out, nil
}
