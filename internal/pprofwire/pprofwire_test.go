package pprofwire

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/pprof/profile"
)

// example returns a recorded profile, decompressed.
func example(t *testing.T) []byte {
	t.Helper()
	files, err := filepath.Glob("../../examples/*/*/*.pb.gz")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d recorded profiles: %v", len(files), err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	raw, err := Gunzip(b, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestMessage(t *testing.T) {
	var b Encoder
	b.Number(ProfileTime, 0) // left out
	b.Number(ProfileTime, 300)
	b.Text(ProfileString, "main.work")
	b.Element(ProfileComment, 0)
	b.Bytes(SampleValue, []byte{0, 5, 0xac, 0x02}) // packed
	m := NewMessage(b)
	var fields []Number
	var numbers []uint64
	for m.Next() {
		fields = append(fields, m.Field)
		switch m.Field {
		case ProfileTime:
			if !m.IsVarint() || m.IsBytes() || m.Varint() != 300 {
				t.Errorf("time %d", m.Varint())
			}
		case ProfileString:
			if m.IsVarint() || !m.IsBytes() || string(m.Bytes()) != "main.work" {
				t.Errorf("string %q", m.Bytes())
			}
		default:
			numbers = m.Varints(numbers)
		}
	}
	if m.Err() != nil || !slices.Equal(fields, []Number{ProfileTime, ProfileString, ProfileComment, SampleValue}) {
		t.Errorf("fields %v, error %v", fields, m.Err())
	}
	if !slices.Equal(numbers, []uint64{0, 0, 5, 300}) {
		t.Errorf("numbers %v", numbers)
	}
	if n := BytesSize(ProfileString, 9); n != 11 {
		t.Errorf("a string of 9 bytes has %d, want 11", n)
	}
}

func TestDamagedMessages(t *testing.T) {
	for name, b := range map[string][]byte{
		"a tag cut off":        {0x80},
		"a number cut off":     {0x48, 0x80},
		"bytes cut off":        {0x32, 5, 'a'},
		"a length beyond all":  {0x32, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f},
		"a fixed number short": {0x4d, 1, 2},
		"a group":              {0x4b},
		"field 0":              {0x00, 1},
	} {
		m := NewMessage(b)
		for m.Next() {
		}
		if m.Err() == nil || m.Next() {
			t.Errorf("%s: error %v", name, m.Err())
		}
	}
	for name, tt := range map[string]struct {
		message []byte
		read    func(*Message)
	}{
		"bytes of a number":      {[]byte{0x48, 1, 0x48, 2}, func(m *Message) { m.Bytes() }},
		"a number of bytes":      {[]byte{0x32, 1, 'a', 0x48, 2}, func(m *Message) { m.Varint() }},
		"packed numbers cut off": {[]byte{0x12, 1, 0x80, 0x48, 2}, func(m *Message) { m.Varints(nil) }},
	} {
		m := NewMessage(tt.message)
		m.Next()
		if tt.read(&m); m.Err() == nil || m.Next() {
			t.Errorf("%s: error %v", name, m.Err())
		}
	}
}

func TestAppendWithout(t *testing.T) {
	raw := example(t)
	got, err := AppendWithout(nil, raw, ProfileTime, ProfileDuration)
	if err != nil {
		t.Fatal(err)
	}
	want, err := profile.ParseUncompressed(raw)
	if err != nil {
		t.Fatal(err)
	}
	p, err := profile.ParseUncompressed(got)
	if err != nil {
		t.Fatal(err)
	}
	if want.TimeNanos == 0 || p.TimeNanos != 0 || p.DurationNanos != 0 {
		t.Errorf("time %d before, %d and %d after", want.TimeNanos, p.TimeNanos, p.DurationNanos)
	}
	want.TimeNanos, want.DurationNanos = 0, 0
	if p.String() != want.String() {
		t.Error("another field was changed")
	}
	if _, err := AppendWithout(nil, raw[:len(raw)-1], ProfileTime); err == nil {
		t.Error("a message cut off: no error")
	}
}

func TestGzip(t *testing.T) {
	raw := example(t)
	var g Gzipper
	for _, b := range [][]byte{raw, nil, raw[:100]} {
		zipped := g.Gzip(b)
		if !IsGzip(zipped) || !bytes.Equal(zipped, Gzip(b)) {
			t.Errorf("%d bytes: not gzip, or different the second time", len(b))
		}
		zr, err := gzip.NewReader(bytes.NewReader(zipped)) // the standard library's
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(zr); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d bytes became %d: %v", len(b), len(got), err)
		}
	}
}

func TestGunzip(t *testing.T) {
	raw := example(t)
	var std bytes.Buffer
	zw := gzip.NewWriter(&std) // the standard library's
	for _, part := range [][]byte{raw[:10], raw[10:]} {
		if _, err := zw.Write(part); err != nil {
			t.Fatal(err)
		}
		if err := zw.Close(); err != nil { // a member each
			t.Fatal(err)
		}
		zw.Reset(&std)
	}
	limit := int64(len(raw))
	if got, err := Gunzip(std.Bytes(), limit); err != nil || !bytes.Equal(got, raw) {
		t.Errorf("at the limit: %d bytes, %v", len(got), err)
	}
	if _, err := Gunzip(std.Bytes(), limit-1); !errors.Is(err, ErrTooLarge) {
		t.Errorf("above the limit: %v", err)
	}
	var g Gunzipper
	var out bytes.Buffer
	for _, bad := range [][]byte{nil, []byte("no gzip"), std.Bytes()[:20]} {
		if err := g.Gunzip(&out, bad, limit); err == nil || errors.Is(err, ErrTooLarge) {
			t.Errorf("%d bytes that are no gzip: %v", len(bad), err)
		}
	}
	if err := g.Gunzip(&out, std.Bytes(), limit); err != nil || !bytes.Equal(out.Bytes(), raw) {
		t.Errorf("after a failure: %d bytes, %v", out.Len(), err)
	}
}

func TestTheSizeThatAFileClaimsIsBounded(t *testing.T) {
	lies := append(Gzip([]byte("small")), 0xff, 0xff, 0xff, 0xff)
	if n := expected(lies, 1<<40); n > 1032*len(lies)+bytes.MinRead {
		t.Errorf("%d bytes are expected of a file of %d", n, len(lies))
	}
	if n := expected(lies, 10); n > 10+bytes.MinRead {
		t.Errorf("%d bytes are expected where the limit is 10", n)
	}
}

func TestInner(t *testing.T) {
	var inner, outer Encoder
	inner.Number(LocationID, 7)
	inner.Number(LocationAddress, 8)
	inner.Number(LocationID, 9)
	outer.Bytes(ProfileLocation, inner)
	m := NewMessage(outer)
	if !m.Next() || m.Inner(LocationID) != 9 || m.Inner(LocationAddress) != 8 || m.Inner(LocationLine) != 0 || m.Err() != nil {
		t.Errorf("%d, %d, %d, error %v", m.Inner(LocationID), m.Inner(LocationAddress), m.Inner(LocationLine), m.Err())
	}
	outer = nil
	outer.Bytes(ProfileLocation, inner[:1]) // a field without its value
	if m = NewMessage(outer); !m.Next() || m.Inner(LocationID) != 0 || m.Err() == nil {
		t.Errorf("a damaged message has the error %v", m.Err())
	}
}
