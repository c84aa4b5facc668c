package incident

import (
	"archive/zip"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/flate"

	"spanflame/internal/incidentfile"
	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
)

// collector writes one bundle.
type collector struct {
	k     *Keeper
	about incidentfile.Incident
	zip   *zip.Writer

	windows []record.Record // profiles that are not of spans, by type and time
	wall    []record.Record // profiles of slow spans
	slow    []Slow
	samples []sample
}

// write collects everything and writes it. What cannot be had is listed in the bundle: the error is that of w alone.
func (c *collector) write(ctx context.Context, w io.Writer) error {
	began := time.Now()
	c.zip = zip.NewWriter(w)
	// Fast rather than small: the service needs the CPU now.
	c.zip.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriter(w, flate.BestSpeed) })

	// The ring first: it forgets.
	ring := &lazy{create: func() (io.Writer, error) { return c.entry(incidentfile.Trace, zip.Deflate) }}
	if err := c.k.o.Trace(ring); ring.err != nil {
		return ring.err
	} else if err != nil {
		c.missing(incidentfile.Trace, err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := c.k.o.Settle(ctx); err != nil {
		c.missing("the slow requests of the last second", err)
	}
	if err := c.k.o.EndWindows(ctx, c.about.Trigger); err != nil {
		c.missing("the profiles of the last seconds", err)
	}
	c.take()
	c.about.Took = time.Since(began).Round(time.Millisecond).String()

	for _, r := range slices.Concat(c.windows, c.wall) {
		if err := c.profile(r); err != nil {
			return err
		}
	}
	for _, part := range []struct {
		name  string
		write func(io.Writer) error
	}{
		{incidentfile.Metrics, func(w io.Writer) error { return writeSamples(w, c.samples) }},
		{incidentfile.Slow, c.writeSlow}, {incidentfile.Build, writeBuild}, {incidentfile.Settings, c.writeSettings},
		{incidentfile.About, c.writeAbout}, {incidentfile.Index, c.writePage},
	} {
		e, err := c.entry(part.name, zip.Deflate)
		if err == nil {
			err = part.write(e)
		}
		if err != nil {
			return err
		}
	}
	return c.zip.Close()
}

// take copies what is kept in memory.
func (c *collector) take() {
	k := c.k
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, rs := range k.windows {
		c.windows = append(c.windows, rs...)
	}
	slices.SortFunc(c.windows, func(a, b record.Record) int {
		if a.Type != b.Type {
			return strings.Compare(string(a.Type), string(b.Type))
		}
		return a.Start.Compare(b.Start)
	})
	c.wall, c.slow, c.samples = slices.Clone(k.wall), slices.Clone(k.slow), slices.Clone(k.samples)
	for t, is := range k.tooLarge {
		if is {
			c.about.Missing = append(c.about.Missing, fmt.Sprintf("the last profile of type %s: it is larger than %d MiB", t, maxProfile>>20))
		}
	}
	slices.Sort(c.about.Missing)
}

func (c *collector) missing(what string, err error) {
	c.about.Missing = append(c.about.Missing, fmt.Sprintf("%s: %v", what, err))
}

// entry begins a file in the bundle.
func (c *collector) entry(name string, method uint16) (io.Writer, error) {
	return c.zip.CreateHeader(&zip.FileHeader{Name: name, Method: method, Modified: c.about.At})
}

// lazy begins an entry with the first write, and keeps its error apart from those of the writer.
type lazy struct {
	create func() (io.Writer, error)
	w      io.Writer
	err    error
}

func (l *lazy) Write(b []byte) (n int, err error) {
	if l.w == nil {
		if l.w, l.err = l.create(); l.err != nil {
			return 0, l.err
		}
	}
	n, l.err = l.w.Write(b)
	return n, l.err
}

// profile adds a record's file, which is compressed already.
func (c *collector) profile(r record.Record) error {
	r = r.Commented()
	if err := r.Validate(); err != nil {
		c.missing("a profile of type "+string(r.Type), err)
		return nil
	}
	e, err := c.entry(incidentfile.Profiles+r.FileName(), zip.Store)
	if err != nil {
		return err
	}
	return record.Encode(e, r)
}

func (c *collector) writeSlow(w io.Writer) error {
	out := csv.NewWriter(w)
	_ = out.Write([]string{"start", "milliseconds", "name", "trace_id", wallprofile.SpanID, "diagnosis"}) // Flush keeps the error
	for _, s := range c.slow {
		_ = out.Write([]string{
			s.Start.UTC().Format(time.RFC3339Nano), strconv.FormatFloat(float64(s.Duration)/1e6, 'f', 3, 64), s.Name, s.TraceID, s.SpanID, s.Diagnosis,
		})
	}
	out.Flush()
	return out.Error()
}

func (c *collector) writeAbout(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(c.about)
}

func (c *collector) writeSettings(w io.Writer) error {
	for _, s := range c.k.o.Settings {
		if _, err := fmt.Fprintf(w, "%s=%s\n", s[0], printable(s[1], maxSetting)); err != nil {
			return err
		}
	}
	return nil
}

// maxSetting limits the value of a setting, in bytes.
const maxSetting = 4 << 10

// writeBuild writes how the program was built, and where it runs.
func writeBuild(w io.Writer) error {
	info, ok := debug.ReadBuildInfo()
	if ok {
		// The linker's flags can set variables to secrets.
		info.Settings = slices.DeleteFunc(slices.Clone(info.Settings), func(s debug.BuildSetting) bool {
			return strings.HasSuffix(strings.ToLower(s.Key), "ldflags")
		})
	}
	host, _ := os.Hostname()
	_, err := fmt.Fprintf(w, "host\t%s\npid\t%d\nsystem\t%s/%s\ncpus\t%d\nGOMAXPROCS\t%d\nGOGC\t%s\nGOMEMLIMIT\t%s\nGODEBUG\t%s\n\n%s",
		host, os.Getpid(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.GOMAXPROCS(0),
		os.Getenv("GOGC"), os.Getenv("GOMEMLIMIT"), os.Getenv("GODEBUG"), info)
	return err
}
