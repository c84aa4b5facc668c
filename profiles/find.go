package profiles

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"
	"github.com/klauspost/compress/gzip"

	"spanflame/internal/pprofwire"
	"spanflame/internal/record"
)

// extensions are the ends of the names that profiles in files usually have.
var extensions = []string{suffix, ".pb", ".pprof", ".pprof.gz", ".prof", ".pgo"}

// HasProfileName reports whether the name of a file is one that profiles usually have: it ends in .pb.gz, .pb, .pprof,
// .pprof.gz, .prof or .pgo. Such a file counts as a profile of a directory, and it is damaged if it is none.
func HasProfileName(name string) bool { return TrimExtension(name) != name }

const (
	// sniffed is the number of bytes that show whether a file of another name is a profile.
	sniffed = 4096
	// sniffedFields is the number of fields that show it, of a file that is longer.
	sniffedFields = 3
)

// LooksLikeProfile reports whether a file begins as a profile in pprof's format does, compressed or not. It reads a few
// bytes and returns false if it cannot.
func LooksLikeProfile(path string) bool {
	f, err := openRegular(path)
	if err != nil {
		return false
	}
	defer f.Close() // it was only read
	head := bufio.NewReaderSize(f, sniffed)
	from := io.Reader(head)
	if start, _ := head.Peek(2); pprofwire.IsGzip(start) {
		if from, err = gzip.NewReader(head); err != nil {
			return false
		}
	}
	b := make([]byte, sniffed)
	n, _ := io.ReadFull(from, b) // most files are longer, and a short one is not a profile
	return beginsAsProfile(b[:n])
}

// beginsAsProfile reports whether the start of a message has the fields of a profile, whatever their order: the runtime
// of Go begins with its samples, locations or times, other tools with the sample types.
func beginsAsProfile(start []byte) bool {
	m := pprofwire.NewMessage(start)
	fields := 0
	for ; m.Next(); fields++ {
		ok := m.IsVarint()
		switch m.Field {
		case pprofwire.ProfileSampleType, pprofwire.ProfileSample, pprofwire.ProfileMapping, pprofwire.ProfileLocation, pprofwire.ProfileFunction,
			pprofwire.ProfilePeriodType:
			ok = m.IsBytes() && isPart(m.Bytes())
		case pprofwire.ProfileString:
			ok = m.IsBytes()
		case pprofwire.ProfileComment:
			ok = ok || m.IsBytes()
		}
		if !ok || m.Field > pprofwire.ProfileDocURL {
			return false
		}
	}
	return fields >= sniffedFields || fields > 0 && m.Err() == nil
}

// isPart reports whether a message may be a part of a profile, none of which has more fields than a mapping.
func isPart(message []byte) bool {
	m := pprofwire.NewMessage(message)
	for m.Next() {
		if m.Field > pprofwire.MappingFlags+3 {
			return false
		}
	}
	return m.Err() == nil
}

// OfAgent reports whether a directory below dir has the profiles of a day that an agent saved to dir, which [Dir] lists, or
// what agents keep there for their next start.
func OfAgent(dir, below string) bool {
	below, err := filepath.Rel(dir, below)
	parts := strings.Split(filepath.ToSlash(below), "/")
	if err == nil && len(parts) == 1 && parts[0] == record.RunsDir {
		return true
	}
	if err != nil || len(parts) != 3 || parts[0] != savedDir {
		return false
	}
	_, err = time.Parse(time.DateOnly, parts[2])
	return err == nil
}

// TrimExtension returns the name of a file without the end that profiles usually have.
func TrimExtension(name string) string {
	for _, ext := range extensions {
		if trimmed, ok := strings.CutSuffix(name, ext); ok && trimmed != "" {
			return trimmed
		}
	}
	return name
}

// FileNames describes the names of HasProfileName.
func FileNames() string { return "*" + strings.Join(extensions, ", *") }

// Find returns the profiles that a query chooses among files and directories, by their start, and the files among them
// that cannot be used. Of a directory it finds what agents saved to it, and the other files there and in directories below
// it that have the name of a profile (see HasProfileName) or look like one. A file given directly may have any name. It is
// not an error if nothing matches.
func Find(ctx context.Context, q Query, paths ...string) ([]Entry, []Damaged, error) {
	var entries []Entry
	var damaged []Damaged
	add := func(path string) {
		switch e, err := entry(path); {
		case errors.Is(err, fs.ErrNotExist): // it was removed since it was listed
		case err != nil:
			damaged = append(damaged, Damaged{Path: path, Err: err})
		case q.Match(e.Meta):
			entries = append(entries, e)
		}
	}
	for _, path := range paths {
		path = filepath.Clean(path)
		info, err := os.Stat(path)
		if err != nil {
			return nil, nil, err
		}
		if !info.IsDir() {
			add(path)
			continue
		}
		d, err := Open(path)
		if err != nil {
			return nil, nil, err
		}
		e, dam, err := d.List(ctx, q)
		if err != nil {
			return nil, nil, err
		}
		entries, damaged = append(entries, e...), append(damaged, dam...)
		err = filepath.WalkDir(path, func(at string, file fs.DirEntry, err error) error {
			if err = cmp.Or(err, ctx.Err()); err != nil {
				return err
			}
			if file.IsDir() {
				if OfAgent(path, at) {
					return fs.SkipDir
				}
				return nil
			}
			name, nameErr := record.ParseFileName(file.Name())
			if file.Type().IsRegular() && (nameErr != nil || q.mayMatch(name.Type, name.Start)) && (HasProfileName(file.Name()) || LooksLikeProfile(at)) {
				add(at)
			}
			return nil
		})
		if err != nil {
			return nil, nil, fmt.Errorf("list profiles: %w", err)
		}
	}
	slices.SortFunc(entries, byStart)
	entries = slices.CompactFunc(entries, func(a, b Entry) bool { return a.Path == b.Path })
	return entries, damaged, nil
}

// entry reads the metadata of a file, saved by an agent or written by another tool.
func entry(path string) (Entry, error) {
	e, err := readEntry(path)
	if !errors.Is(err, record.ErrForeign) && !errors.Is(err, errNotGzip) {
		return e, err
	}
	w, err := ReadFile(path)
	if damaged, ok := errors.AsType[Damaged](err); ok {
		err = damaged.Err // the caller names the file
	}
	if err != nil {
		return e, err
	}
	return Entry{Meta: w.Meta, Path: path, Bytes: e.Bytes, Kind: kindOf(w.Profile)}, nil
}

// kindOf returns the kind of a profile, see [Entry].
func kindOf(p *profile.Profile) string {
	var names []string
	for _, t := range p.SampleType {
		names = append(names, t.Type+"/"+t.Unit)
	}
	if t := p.PeriodType; t != nil && t.Type != "" {
		names = append(names, "period "+t.Type+"/"+t.Unit)
	}
	return strings.Join(names, ", ")
}
