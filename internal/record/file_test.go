package record_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
)

const limit = 1 << 20

func gz(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	if _, err := zw.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// sample is a record whose profile is a real one.
func sample(t testing.TB) record.Record {
	t.Helper()
	cpu := &profile.ValueType{Type: "cpu", Unit: "nanoseconds"}
	fn := &profile.Function{ID: 1, Name: "main.burn"}
	loc := &profile.Location{ID: 1, Line: []profile.Line{{Function: fn, Line: 7}}}
	start := time.Date(2026, 1, 2, 15, 4, 5, 123456789, time.UTC)
	p := &profile.Profile{
		SampleType: []*profile.ValueType{cpu}, PeriodType: cpu, Period: 1e7,
		TimeNanos: start.UnixNano(), DurationNanos: 15e9,
		Sample:   []*profile.Sample{{Location: []*profile.Location{loc}, Value: []int64{42e7}}},
		Location: []*profile.Location{loc}, Function: []*profile.Function{fn},
	}
	var b bytes.Buffer
	if err := p.WriteUncompressed(&b); err != nil {
		t.Fatal(err)
	}
	return record.Record{
		Meta: record.Meta{
			Service: `größe,"{shop}"`, Type: record.CPU, Start: start, End: start.Add(15 * time.Second),
			Labels: map[string]string{"service_version": "1.2.3", "region": "<eu & \u2028 more>"},
		},
		Profile: gz(t, b.Bytes()),
	}
}

func encode(t testing.TB, r record.Record) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := record.Encode(&b, r); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func same(a, b record.Record) bool {
	return a.Service == b.Service && a.Type == b.Type && a.Start.Equal(b.Start) && a.End.Equal(b.End) &&
		maps.Equal(a.Labels, b.Labels) && bytes.Equal(a.Profile, b.Profile)
}

func TestRoundTrip(t *testing.T) {
	r := sample(t)
	file := encode(t, r)
	got, err := record.Decode(bytes.NewReader(file), limit)
	if err != nil {
		t.Fatal(err)
	}
	if !same(got, r) {
		t.Errorf("got %+v, want %+v", got.Meta, r.Meta)
	}
	if again := encode(t, got); !bytes.Equal(again, file) {
		t.Error("a record read back is written differently")
	}
	if _, err := record.Decode(iotest.OneByteReader(bytes.NewReader(file)), limit); err != nil {
		t.Errorf("byte by byte: %v", err)
	}
}

func TestTimesKeepTheInstantWhateverTheZone(t *testing.T) {
	r := sample(t)
	r.Start = r.Start.In(time.FixedZone("east", 7*3600))
	got, err := record.Decode(bytes.NewReader(encode(t, r)), limit)
	if err != nil || !got.Start.Equal(r.Start) {
		t.Fatalf("start %v, error %v; want %v", got.Start, err, r.Start)
	}
}

func TestMetaIsReadWithoutTheProfile(t *testing.T) {
	r := sample(t)
	file := encode(t, r)
	head := file[:len(file)-len(r.Profile)]
	m, err := record.DecodeMeta(bytes.NewReader(head))
	if err != nil || m.Service != r.Service || !maps.Equal(m.Labels, r.Labels) {
		t.Fatalf("got %+v, %v", m, err)
	}
}

func TestAnyReaderOfGzipSeesTheProfile(t *testing.T) {
	r := sample(t)
	zr, err := gzip.NewReader(bytes.NewReader(encode(t, r)))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(zr)
	if err != nil {
		t.Fatal(err)
	}
	p, err := profile.ParseData(raw)
	if err != nil || len(p.Sample) != 1 {
		t.Fatalf("%v, %v", p, err)
	}
}

func TestGoToolPprofOpensTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), sample(t).FileName())
	if err := os.WriteFile(file, encode(t, sample(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "tool", "pprof", "-top", file)
	cmd.Env = append(os.Environ(), "PPROF_TMPDIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("main.burn")) || !bytes.Contains(out, []byte("420ms")) {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestValidateNamesWhatIsWrong(t *testing.T) {
	for _, tc := range []struct {
		want  string
		spoil func(*record.Meta)
	}{
		{"service name is empty", func(m *record.Meta) { m.Service = "" }},
		{"service name", func(m *record.Meta) { m.Service = "a\xff" }},
		{"type", func(m *record.Meta) { m.Type = "" }},
		{"type", func(m *record.Meta) { m.Type = "Heap" }},
		{"type", func(m *record.Meta) { m.Type = "../up" }},
		{"type", func(m *record.Meta) { m.Type = record.Type(strings.Repeat("a", 65)) }},
		{"start", func(m *record.Meta) { m.Start = time.Time{} }},
		{"start", func(m *record.Meta) { m.Start = time.Date(2262, 1, 1, 0, 0, 0, 0, time.UTC); m.End = m.Start }},
		{"end", func(m *record.Meta) { m.End = m.Start.Add(-1) }},
		{"end", func(m *record.Meta) { m.End = m.Start.AddDate(300, 0, 0) }},
		{"label", func(m *record.Meta) { m.Labels = map[string]string{"a": "\xff"} }},
		{"label", func(m *record.Meta) { m.Labels = map[string]string{"\xff": "a"} }},
		{"at most", func(m *record.Meta) { m.Labels = map[string]string{"a": strings.Repeat("x", 1<<16)} }},
	} {
		m := sample(t).Meta
		if err := m.Validate(); err != nil {
			t.Fatal(err)
		}
		tc.spoil(&m)
		if err := m.Validate(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+.80v: got %v, want an error with %q", m, err, tc.want)
		}
	}
}

func TestTheLargestMetadataFits(t *testing.T) {
	r := sample(t)
	r.Labels = map[string]string{"a": ""}
	lo, hi := 0, 1<<16
	for lo < hi { // the longest value that Validate takes
		mid := (lo + hi + 1) / 2
		r.Labels["a"] = strings.Repeat("x", mid)
		if r.Validate() == nil {
			lo = mid
		} else {
			hi = mid - 1
		}
	}
	r.Labels["a"] = strings.Repeat("x", lo)
	got, err := record.Decode(bytes.NewReader(encode(t, r)), limit)
	if err != nil || got.Labels["a"] != r.Labels["a"] {
		t.Fatal(err)
	}
}

func TestEncodeRefusesWhatIsNoGzip(t *testing.T) {
	r := sample(t)
	r.Profile = []byte("plain")
	if err := record.Encode(io.Discard, r); err == nil {
		t.Fatal("no error")
	}
}

func TestEncodeReportsTheWritersError(t *testing.T) {
	r := sample(t)
	size := len(encode(t, r))
	for n := range size {
		if err := record.Encode(&shortWriter{n}, r); !errors.Is(err, io.ErrShortWrite) {
			t.Fatalf("after %d of %d bytes: %v", n, size, err)
		}
	}
}

type shortWriter struct{ left int }

func (w *shortWriter) Write(b []byte) (int, error) {
	if len(b) > w.left {
		return w.left, io.ErrShortWrite
	}
	w.left -= len(b)
	return len(b), nil
}

func TestDamage(t *testing.T) {
	r := sample(t)
	file := encode(t, r)
	headLen := len(file) - len(r.Profile)
	own, err := gzip.NewReader(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	member := func(extra, content []byte) []byte {
		var b bytes.Buffer
		zw := gzip.NewWriter(&b)
		zw.Extra = extra
		zw.Write(content)
		zw.Close()
		return b.Bytes()
	}
	subfield := func(id, body string) []byte {
		return append(binary.LittleEndian.AppendUint16([]byte(id), uint16(len(body))), body...)
	}
	flip := func(i int) []byte {
		b := bytes.Clone(file)
		b[i] ^= 1
		return b
	}
	for name, tc := range map[string]struct {
		file []byte
		want error
	}{
		"an empty file":                          {nil, record.ErrDamaged},
		"a file of zeros":                        {make([]byte, 4096), record.ErrDamaged},
		"text":                                   {[]byte("hello, world"), record.ErrDamaged},
		"cut in the header":                      {file[:20], record.ErrDamaged},
		"cut after the metadata":                 {file[:headLen], record.ErrDamaged},
		"cut in the profile":                     {file[:len(file)-1], record.ErrDamaged},
		"bytes behind the profile":               {append(bytes.Clone(file), 0), record.ErrDamaged},
		"a bit turned in the profile":            {flip(len(file) - 9), record.ErrDamaged},
		"a bit turned in the empty member":       {flip(headLen - 1), record.ErrDamaged},
		"the tail zero-filled by a power cut":    {append(bytes.Clone(file[:headLen+8]), make([]byte, len(r.Profile)-8)...), record.ErrDamaged},
		"a profile of another tool":              {r.Profile, record.ErrForeign},
		"another tool's subfield":                {member(subfield("XX", "y"), nil), record.ErrForeign},
		"a subfield longer than the field":       {member([]byte{'S', 'F', 255, 255, '{'}, nil), record.ErrForeign},
		"metadata that is no JSON":               {member(subfield("SF", "nope"), nil), record.ErrDamaged},
		"metadata without a service":             {member(subfield("SF", "{}"), nil), record.ErrDamaged},
		"a first member that holds data":         {member(own.Extra, []byte("x")), record.ErrDamaged},
		"a profile larger than the reader wants": {file, record.ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			max := int64(limit)
			if tc.want == record.ErrTooLarge {
				max = int64(len(r.Profile)) - 1
			}
			if _, err := record.Decode(bytes.NewReader(tc.file), max); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

func TestDecodeKeepsTheReadersError(t *testing.T) {
	broken := errors.New("input/output error")
	file := encode(t, sample(t))
	for n := range len(file) {
		r := io.MultiReader(bytes.NewReader(file[:n]), iotest.ErrReader(broken))
		if _, err := record.Decode(r, limit); !errors.Is(err, broken) || errors.Is(err, record.ErrDamaged) {
			t.Fatalf("after %d of %d bytes: %v", n, len(file), err)
		}
	}
}

func TestADeclaredLengthAloneTakesNoMemory(t *testing.T) {
	meta := `{"service":"a","type":"wall","start":"2026-01-02T00:00:00Z","end":"2026-01-02T00:00:00Z","length":1000000000000}`
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	zw.Extra = append(binary.LittleEndian.AppendUint16([]byte("SF"), uint16(len(meta))), meta...)
	zw.Close()
	if _, err := record.Decode(&b, 1<<50); !errors.Is(err, record.ErrDamaged) {
		t.Fatal(err)
	}
}

func TestFileNamesSortByTimeAndReadBack(t *testing.T) {
	m := sample(t).Meta
	var names []string
	for _, d := range []time.Duration{0, 1, time.Microsecond, time.Second, time.Hour, 300 * 24 * time.Hour} {
		m := m
		m.Start = m.Start.Add(d)
		name := m.FileName()
		names = append(names, name)
		n, err := record.ParseFileName(name)
		if err != nil || !n.Start.Equal(m.Start) || n.Type != m.Type || n.String() != name {
			t.Errorf("%s: %+v, %v", name, n, err)
		}
	}
	if !slices.IsSorted(names) {
		t.Error(names)
	}
	if a, b := m.FileName(), m.FileName(); a == b {
		t.Errorf("two records of one Meta share the name %s", a)
	}
}

func FuzzDecode(f *testing.F) {
	r := sample(f)
	file := encode(f, r)
	f.Add(file)
	f.Add(file[:len(file)/2])
	f.Add(r.Profile)
	f.Add(make([]byte, 64))
	f.Fuzz(func(t *testing.T, file []byte) {
		got, err := record.Decode(bytes.NewReader(file), limit)
		if err != nil {
			if !errors.Is(err, record.ErrDamaged) && !errors.Is(err, record.ErrForeign) && !errors.Is(err, record.ErrTooLarge) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		m, err := record.DecodeMeta(bytes.NewReader(file))
		if err != nil || m.Service != got.Service {
			t.Fatalf("DecodeMeta %+v, %v", m, err)
		}
		again, err := record.Decode(bytes.NewReader(encode(t, got)), limit)
		if err != nil || !same(again, got) {
			t.Fatalf("%+v became %+v, %v", got.Meta, again.Meta, err)
		}
	})
}

func FuzzParseFileName(f *testing.F) {
	f.Add(sample(f).FileName())
	f.Add("20260102T150405.000000000Z-wall-00000000.pb.gz")
	f.Add("x-y-z.pb.gz")
	f.Fuzz(func(t *testing.T, name string) {
		n, err := record.ParseFileName(name)
		if err == nil && (n.String() != name || filepath.Base(name) != name || time.Unix(0, n.Start.UnixNano()).UTC() != n.Start) {
			t.Fatalf("%q became %+v", name, n)
		}
	})
}
