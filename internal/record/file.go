package record

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/gzip"

	"spanflame/internal/pprofwire"
)

// On disk a record is an ordinary compressed profile with one more gzip member: an empty one in front, whose header has
// the metadata in its Extra field. Readers of gzip join members and ignore the field, so "go tool pprof", "gzip -d" and
// every other tool read the file as a profile. The metadata can be read without decompressing anything, and a profile
// of another tool is recognised at once.
const (
	extraID      = "SF" // the subfield id of RFC 1952 that marks the metadata
	extraHeader  = 4    // subfield id and length
	maxExtra     = 1<<16 - 1
	maxMetaBytes = maxExtra - extraHeader
	fileSuffix   = ".pb.gz"
	timeLayout   = "20060102T150405.000000000Z"
	maxTypeBytes = 64
)

// Errors that callers branch on.
var (
	// ErrForeign means that the bytes are compressed data without our metadata: a profile of another tool.
	ErrForeign = errors.New("no spanflame metadata in the gzip header: not a record")
	// ErrDamaged means that the bytes are not, or no longer, the record that was written.
	ErrDamaged = errors.New("damaged record")
	// ErrTooLarge means that the profile is larger than the reader's limit.
	ErrTooLarge = errors.New("record too large")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is Meta as it is written, with what shows whether the payload is complete.
type header struct {
	Service string            `json:"service"`
	Type    Type              `json:"type"`
	Start   time.Time         `json:"start"`
	End     time.Time         `json:"end"`
	Labels  map[string]string `json:"labels,omitempty"`
	Length  int64             `json:"length"` // bytes of the payload
	CRC32C  uint32            `json:"crc32c"` // of the payload
}

// Validate reports whether the metadata can be written and read back, in its canonical form.
func (m Meta) Validate() error {
	m = m.Canonical()
	switch {
	case m.Service == "":
		return errors.New("record: the service name is empty")
	case !utf8.ValidString(m.Service):
		return fmt.Errorf("record: service name %q is not valid UTF-8", m.Service)
	case !m.Type.valid():
		return fmt.Errorf("record: type %q: want 1 to %d of a-z, 0-9 and _, beginning with a letter", m.Type, maxTypeBytes)
	case !validTime(m.Start):
		return fmt.Errorf("record: start %v: want a year from 1970 to 2261", m.Start)
	case !validTime(m.End) || m.End.Before(m.Start):
		return fmt.Errorf("record: end %v: want a time from the start %v to the year 2261", m.End, m.Start)
	}
	for name, value := range m.Labels {
		if !utf8.ValidString(name) || !utf8.ValidString(value) {
			return fmt.Errorf("record: label %q=%q is not valid UTF-8", name, value)
		}
	}
	meta, err := m.marshal(math.MaxInt64, math.MaxUint32)
	if err != nil {
		return err
	}
	if len(meta) > maxMetaBytes {
		return fmt.Errorf("record: service and labels take %d bytes, at most %d fit into a file's header", len(meta), maxMetaBytes)
	}
	return nil
}

// marshal returns the metadata as it is written, with what shows whether the payload is complete.
func (m Meta) marshal(length int64, sum uint32) ([]byte, error) {
	m = m.Canonical()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	h := header{Service: m.Service, Type: m.Type, Start: m.Start, End: m.End, Labels: m.Labels, Length: length, CRC32C: sum}
	if err := enc.Encode(h); err != nil {
		return nil, fmt.Errorf("record: encode metadata: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// validTime reports whether pprof can express a time: nanoseconds since 1970 in 63 bits.
func validTime(t time.Time) bool {
	year := t.UTC().Year()
	return 1970 <= year && year <= 2261
}

// valid reports whether a type can be part of file names and of the server's profile names.
func (t Type) valid() bool {
	if t == "" || len(t) > maxTypeBytes || t[0] < 'a' || t[0] > 'z' {
		return false
	}
	return strings.Trim(string(t), "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// Encode writes the record as one file.
func Encode(w io.Writer, r Record) error {
	if !pprofwire.IsGzip(r.Profile) {
		return fmt.Errorf("record: the %s profile of %d bytes is not gzip-compressed", r.Type, len(r.Profile))
	}
	if err := r.Validate(); err != nil {
		return err
	}
	meta, err := r.marshal(int64(len(r.Profile)), crc32.Checksum(r.Profile, castagnoli))
	if err != nil {
		return err
	}
	zw := gzip.NewWriter(w)
	zw.ModTime = pprofwire.NoTime
	zw.Extra = append(append(make([]byte, 0, extraHeader+len(meta)), extraID...), 0, 0)
	binary.LittleEndian.PutUint16(zw.Extra[2:], uint16(len(meta)))
	zw.Extra = append(zw.Extra, meta...)
	if err := zw.Close(); err != nil {
		return fmt.Errorf("record: write metadata: %w", err)
	}
	if _, err := w.Write(r.Profile); err != nil {
		return fmt.Errorf("record: write profile: %w", err)
	}
	return nil
}

// Decode reads one file whose profile has at most limit compressed bytes. The error wraps ErrForeign, ErrDamaged or
// ErrTooLarge if the bytes are at fault, and otherwise the reader's own error.
func Decode(r io.Reader, limit int64) (Record, error) {
	br := bufio.NewReader(r) // an io.ByteReader: gzip reads not a byte beyond its member
	h, err := decodeHeader(br)
	if err != nil {
		return Record{}, err
	}
	if h.Length > limit {
		return Record{}, fmt.Errorf("%w: the profile has %d bytes, the limit is %d", ErrTooLarge, h.Length, limit)
	}
	// The length is what the file claims: memory grows with the bytes that are really there.
	var profile bytes.Buffer
	n, err := io.Copy(&profile, io.LimitReader(br, h.Length+1))
	switch {
	case err != nil:
		return Record{}, fmt.Errorf("record: read profile: %w", err)
	case n < h.Length:
		return Record{}, fmt.Errorf("%w: the profile is truncated at %d of %d bytes", ErrDamaged, n, h.Length)
	case n > h.Length:
		return Record{}, fmt.Errorf("%w: bytes follow the profile's %d", ErrDamaged, h.Length)
	}
	if sum := crc32.Checksum(profile.Bytes(), castagnoli); sum != h.CRC32C {
		return Record{}, fmt.Errorf("%w: the profile's CRC-32C is %08x, want %08x", ErrDamaged, sum, h.CRC32C)
	}
	if !pprofwire.IsGzip(profile.Bytes()) {
		return Record{}, fmt.Errorf("%w: the profile is not gzip-compressed", ErrDamaged)
	}
	return Record{Meta: h.meta(), Profile: profile.Bytes()}, nil
}

// DecodeMeta reads the metadata alone, which is the head of the file; it does not check the profile.
func DecodeMeta(r io.Reader) (Meta, error) {
	h, err := decodeHeader(bufio.NewReader(r))
	return h.meta(), err
}

func (h header) meta() Meta {
	return Meta{Service: h.Service, Type: h.Type, Start: h.Start, End: h.End, Labels: h.Labels}
}

// decodeHeader reads the first gzip member and leaves br at the profile.
func decodeHeader(br *bufio.Reader) (header, error) {
	zr, err := gzip.NewReader(br)
	if err != nil {
		return header{}, damage("gzip header", err)
	}
	meta, ok := subfield(zr.Extra)
	if !ok {
		return header{}, ErrForeign
	}
	var h header
	if err := json.Unmarshal(meta, &h); err != nil {
		return header{}, fmt.Errorf("%w: metadata: %v", ErrDamaged, err)
	}
	if h.Length < 0 {
		return header{}, fmt.Errorf("%w: metadata: length %d", ErrDamaged, h.Length)
	}
	if err := h.meta().Validate(); err != nil {
		return header{}, fmt.Errorf("%w: metadata: %v", ErrDamaged, err)
	}
	zr.Multistream(false)
	var one [1]byte
	switch n, err := io.ReadFull(zr, one[:]); {
	case n > 0:
		return header{}, fmt.Errorf("%w: the metadata's gzip member is not empty", ErrDamaged)
	case err != io.EOF:
		return header{}, damage("metadata's gzip member", err)
	}
	return h, nil
}

// damage classifies an error of reading gzip: what the bytes caused is damage, the rest is the reader's own error.
func damage(what string, err error) error {
	var corrupt flate.CorruptInputError
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, gzip.ErrHeader) ||
		errors.Is(err, gzip.ErrChecksum) || errors.As(err, &corrupt) {
		return fmt.Errorf("%w: %s: %v", ErrDamaged, what, err)
	}
	return fmt.Errorf("record: read %s: %w", what, err)
}

// subfield finds the metadata among the subfields of a gzip header.
func subfield(extra []byte) ([]byte, bool) {
	for len(extra) >= extraHeader {
		n := int(binary.LittleEndian.Uint16(extra[2:]))
		body := extra[extraHeader:]
		if n > len(body) {
			return nil, false
		}
		if string(extra[:2]) == extraID {
			return body[:n], true
		}
		extra = body[n:]
	}
	return nil, false
}

// Name is the data in the name of a record's file: enough to list and sort records without opening one.
type Name struct {
	Start time.Time
	Type  Type
	ID    uint32 // distinguishes records of one type and start
}

// Name returns a fresh file name for the record: sortable by start, with a random ID.
func (m Meta) Name() Name {
	return Name{Start: m.Start.UTC(), Type: m.Type, ID: rand.Uint32()}
}

// FileName returns Name as a string, such as "20260102T150405.000000000Z-process_cpu-01ab23cd.pb.gz".
func (m Meta) FileName() string { return m.Name().String() }

func (n Name) String() string {
	return fmt.Sprintf("%s-%s-%08x%s", n.Start.UTC().Format(timeLayout), n.Type, n.ID, fileSuffix)
}

// ParseFileName is the inverse of Name.String. It accepts nothing else.
func ParseFileName(file string) (Name, error) {
	bad := func(what string) (Name, error) {
		return Name{}, fmt.Errorf("record: file name %q: %s", file, what)
	}
	stem, ok := strings.CutSuffix(file, fileSuffix)
	if !ok {
		return bad("does not end in " + fileSuffix)
	}
	parts := strings.Split(stem, "-")
	if len(parts) != 3 {
		return bad("want time-type-id" + fileSuffix)
	}
	start, err := time.Parse(timeLayout, parts[0])
	if err != nil {
		return bad("the time is not like " + timeLayout)
	}
	id, err := strconv.ParseUint(parts[2], 16, 32)
	if err != nil {
		return bad("the id is not 8 hexadecimal digits")
	}
	n := Name{Start: start, Type: Type(parts[1]), ID: uint32(id)}
	if !n.Type.valid() || !validTime(n.Start) || n.String() != file {
		return bad("not a name that this package gives")
	}
	return n, nil
}
