package profiles

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/pprofwire"
	"spanflame/internal/record"
)

// What a file may make its reader do, in bytes.
const (
	maxFileBytes    = 128 << 20 // of the file
	maxProfileBytes = 512 << 20 // of the profile, decompressed
	maxMemory       = 2 << 30   // of the profile as google/pprof has it in memory
)

type limits struct{ file, profile, memory int64 }

// Read reads the listed profiles, one at a time and in their order. A file that cannot be used is yielded as
// an error that wraps Damaged; the next ones follow. One that was removed since it was listed is left out.
func Read(ctx context.Context, entries []Entry) iter.Seq2[Window, error] {
	return func(yield func(Window, error) bool) {
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				yield(Window{}, fmt.Errorf("read saved profiles: %w", err))
				return
			}
			w, err := ReadFile(e.Path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if !yield(w, err) {
				return
			}
		}
	}
}

// ReadFile reads one profile, saved by an agent or written by another tool: of at most 128 MiB, 512 MiB
// decompressed, and 2 GiB as google/pprof has it in memory. The error is Damaged.
func ReadFile(path string) (Window, error) {
	r := newReader()
	m, data, err := r.read(path)
	if err != nil {
		return Window{}, Damaged{Path: path, Err: err}
	}
	p, err := parse(data)
	if err != nil {
		return Window{}, Damaged{Path: path, Err: err}
	}
	if m.Type == "" {
		m = foreignMeta(p)
		p.DurationNanos = int64(m.End.Sub(m.Start)) // which can be added up
	}
	return Window{Meta: m, Profile: p}, nil
}

// Parse reads one profile in pprof's format, compressed or not, within the limits of ReadFile.
func Parse(from io.Reader) (*profile.Profile, error) {
	r := newReader()
	if err := readLimited(&r.file, from, r.limits.file, "profile"); err != nil {
		return nil, err
	}
	data, err := r.wire(r.file.Bytes())
	if err != nil {
		return nil, err
	}
	return parse(data)
}

// reader reads profiles one after the other into the same memory.
type reader struct {
	limits     limits
	file, data bytes.Buffer
	zip        pprofwire.Gunzipper
}

func newReader() *reader {
	return &reader{limits: limits{file: maxFileBytes, profile: maxProfileBytes, memory: maxMemory}}
}

// read returns a file's metadata, which are zero for a file of another tool, and its decompressed profile,
// which is good until the next call.
func (r *reader) read(path string) (record.Meta, []byte, error) {
	f, err := openRegular(path)
	if err != nil {
		return record.Meta{}, nil, err
	}
	defer f.Close() // it was only read
	if err := readLimited(&r.file, f, r.limits.file, "file"); err != nil {
		return record.Meta{}, nil, err
	}
	file := r.file.Bytes()
	rec, err := record.Decode(bytes.NewReader(file), r.limits.file)
	if errors.Is(err, record.ErrForeign) || !pprofwire.IsGzip(file) {
		rec, err = record.Record{Profile: file}, nil
	}
	if err != nil {
		return record.Meta{}, nil, err
	}
	data, err := r.wire(rec.Profile)
	return rec.Meta, data, err
}

// wire returns a profile in its wire form, which is within the limits.
func (r *reader) wire(file []byte) ([]byte, error) {
	data := file
	if pprofwire.IsGzip(file) {
		if err := r.decompress(file); err != nil {
			return nil, err
		}
		data = r.data.Bytes()
	}
	weight, err := pprofwire.Weigh(data)
	if err != nil {
		if converted, ok := fromLegacy(data); ok {
			data = converted
			weight, err = pprofwire.Weigh(data)
		}
	}
	switch {
	case err != nil:
		return nil, invalid(cmp.Or(convertible(data), err))
	case len(data) == 0:
		return nil, invalid(errors.New("it is empty"))
	case weight > r.limits.memory:
		return nil, fmt.Errorf("%w: the profile takes about %d bytes of memory, the limit is %d", record.ErrTooLarge, weight, r.limits.memory)
	}
	return data, nil
}

// convertible returns an error that says how to get a profile from data in a format of Go that has none, or nil.
func convertible(data []byte) error {
	switch start := string(data[:min(len(data), 16)]); {
	case strings.HasPrefix(start, "go 1.") && strings.Contains(start, " trace"):
		return errors.New("it is an execution trace, from which go tool trace -pprof=sync makes a profile (or sched, syscall or net)")
	case strings.HasPrefix(start, "goroutine ") && strings.ContainsAny(start, "0123456789"):
		return errors.New("these are the stacks of /debug/pprof/goroutine?debug=2: ask for debug=1, or for no debug")
	}
	return nil
}

func (r *reader) decompress(file []byte) error {
	switch err := r.zip.Gunzip(&r.data, file, r.limits.profile); {
	case errors.Is(err, pprofwire.ErrTooLarge):
		return tooLarge("decompressed profile", r.limits.profile)
	case err != nil:
		return fmt.Errorf("%w: decompress: %v", record.ErrDamaged, err)
	}
	return nil
}

func tooLarge(what string, limit int64) error {
	return fmt.Errorf("%w: the %s has more than %d bytes, which is the limit", record.ErrTooLarge, what, limit)
}

// maxLegacyBytes limits profiles in older formats, which google/pprof parses before their memory can be estimated.
const maxLegacyBytes = 16 << 20

// fromLegacy converts the older formats that google/pprof reads, such as the text of /debug/pprof/heap?debug=1 and the CPU
// profiles of gperftools, to the wire form of today's.
func fromLegacy(data []byte) (wire []byte, ok bool) {
	if len(data) > maxLegacyBytes {
		return nil, false
	}
	p, err := profile.ParseData(data)
	if err != nil {
		return nil, false
	}
	var b bytes.Buffer
	if err := p.WriteUncompressed(&b); err != nil {
		return nil, false
	}
	return b.Bytes(), true
}

// parse turns a profile's wire form into google/pprof's.
func parse(data []byte) (*profile.Profile, error) {
	p, err := profile.ParseUncompressed(data)
	if err == nil {
		err = p.CheckValid()
	}
	if err != nil {
		return nil, invalid(err)
	}
	return p, nil
}

func invalid(err error) error {
	return fmt.Errorf("%w: not a valid profile in a format of pprof: %v", record.ErrDamaged, err)
}

// readLimited replaces what is in b by all of r, which must be at most limit bytes long.
func readLimited(b *bytes.Buffer, r io.Reader, limit int64, what string) error {
	b.Reset()
	n, err := b.ReadFrom(io.LimitReader(r, limit+1))
	if err == nil && n > limit {
		err = tooLarge(what, limit)
	}
	return err
}

// openRegular opens a regular file: opening a pipe would wait for its writer.
func openRegular(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", info.Name())
	}
	return os.Open(path)
}

// HasTime reports whether the start of a window is known: a profile of another tool need not have a time, and then starts
// with the year 1970.
func HasTime(start time.Time) bool { return start.Unix() > 0 }

// foreignMeta returns what a profile of another tool says of itself. A time that cannot be asked for, and a duration that
// cannot be, count as not given: the time is then 1970-01-01.
func foreignMeta(p *profile.Profile) record.Meta {
	start := time.Unix(0, p.TimeNanos).UTC()
	if start.Year() < firstYear || start.Year() >= lastYear {
		start = time.Unix(0, 0).UTC()
	}
	took := time.Duration(p.DurationNanos)
	if took < 0 || took > longestAgo || start.Add(took).Year() > lastYear {
		took = 0
	}
	return record.Meta{Type: TypeOf(p), Start: start, End: start.Add(took)}
}

// TypeOf returns the type of a profile by its sample types: the first that is of a type that agents capture, else the first.
// Mutex and block profiles have the same sample types: both count as block.
func TypeOf(p *profile.Profile) record.Type {
	for _, st := range p.SampleType {
		switch st.Type {
		case "cpu":
			return record.CPU
		case "inuse_space", "alloc_space":
			return record.Memory
		case "contentions", "delay":
			return record.Block
		case "goroutine":
			return record.Goroutine
		case "goroutineleak":
			return record.GoroutineLeak
		case "wall":
			return record.Wall
		}
	}
	if len(p.SampleType) == 0 {
		return ""
	}
	return record.Type(strings.ToLower(p.SampleType[0].Type))
}
