package pprofwire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/gzip"
)

// ErrTooLarge reports that a profile is larger than the reader's limit.
var ErrTooLarge = errors.New("too large")

// NoTime is the modification time of compressed data that has none: klauspost/compress writes the zero time.Time as
// some time in 2042.
var NoTime = time.Unix(0, 0)

// IsGzip reports whether b begins as gzip does.
func IsGzip(b []byte) bool { return len(b) >= 2 && b[0] == 0x1f && b[1] == 0x8b }

// Gzip compresses b at the lowest level: the agent's time is the host's.
func Gzip(b []byte) []byte { return new(Gzipper).Gzip(b) }

// Gzipper compresses several profiles, one after the other, with the same memory. The zero value is ready for use.
type Gzipper struct{ zip *gzip.Writer }

// Gzip compresses b at the lowest level.
func (g *Gzipper) Gzip(b []byte) []byte {
	var out bytes.Buffer
	if g.zip == nil {
		g.zip, _ = gzip.NewWriterLevel(&out, gzip.BestSpeed) // fails only for a level that does not exist
	} else {
		g.zip.Reset(&out)
	}
	g.zip.ModTime = NoTime
	_, _ = g.zip.Write(b) // to memory, which does not fail
	_ = g.zip.Close()
	return out.Bytes()
}

// Gunzip decompresses b, which may have at most limit bytes decompressed. Above that the error wraps ErrTooLarge.
func Gunzip(b []byte, limit int64) ([]byte, error) {
	var out bytes.Buffer
	if err := new(Gunzipper).Gunzip(&out, b, limit); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// Gunzipper decompresses several profiles, one after the other, with the same memory. The zero value is ready for
// use.
type Gunzipper struct{ zip *gzip.Reader }

// Gunzip replaces the contents of to with the decompressed b. If they are larger than limit bytes, the error wraps
// ErrTooLarge.
func (g *Gunzipper) Gunzip(to *bytes.Buffer, b []byte, limit int64) error {
	var err error
	if g.zip == nil {
		g.zip, err = gzip.NewReader(bytes.NewReader(b))
	} else {
		err = g.zip.Reset(bytes.NewReader(b))
	}
	if err != nil {
		return err
	}
	to.Reset()
	to.Grow(expected(b, limit))
	n, err := to.ReadFrom(io.LimitReader(g.zip, limit+1))
	if err == nil && n > limit {
		err = fmt.Errorf("%w: more than %d bytes decompressed", ErrTooLarge, limit)
	}
	return err
}

// expected returns how many bytes b says that it has decompressed, as far as that can be true: a buffer that has to
// grow takes three times as much.
func expected(b []byte, limit int64) int {
	const (
		trailer = 4    // bytes, the length in the last 32 bits of a member
		most    = 1032 // times that anything can be compressed
	)
	if len(b) < trailer {
		return 0
	}
	length := int64(binary.LittleEndian.Uint32(b[len(b)-trailer:]))
	return int(min(length, most*int64(len(b)), limit)) + bytes.MinRead
}
