package source

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"

	"spanflame/internal/format"
	"spanflame/internal/traces"
	"spanflame/internal/wallprofile"
)

// Limits of the index of a directory's traces.
const (
	maxIndexed     = 200_000                // traces and their kept spans; the oldest traces are forgotten first
	maxTraceBytes  = 64 << 20               // of lines that are read for one trace
	maxTraceLines  = 256                    // that are read for one trace
	refreshBudget  = 2 * time.Second        // of reading new lines, for one request; the next one continues
	refreshEvery   = 200 * time.Millisecond // how old the index may be
	readAtOnce     = 256 << 10              // bytes
	maxIndexedText = 512                    // bytes of a name in the index
)

// traceIndex indexes the trace files of a directory: for each trace it has what a list of traces shows, and where its
// lines are. It reads only what was added since it last looked, newest files first, and does not keep whole spans: a trace
// is read again from its lines.
type traceIndex struct {
	root   *os.Root      // nothing outside it is opened
	dir    string        // below root; it need not exist yet
	nextTo bool          // the files next to dir count, too
	most   int           // maxIndexed
	budget time.Duration // refreshBudget

	refreshing chan struct{} // holds one token, which guards reading files
	mu         sync.RWMutex  // guards what follows
	files      map[string]*traceFile
	traces     map[string]*indexedTrace
	indexed    int       // kept spans of all traces
	refreshed  time.Time // when the files were last looked at
	unread     int64     // bytes that are not read yet
	damaged    int       // lines that could not be read
	forgotten  int       // traces left out for maxIndexed
	forgotTo   int64     // when the last of them ended
}

// traceFile is one file, as far as it has been read.
type traceFile struct {
	name     string // path below the root
	read     int64  // bytes that have been read: whole lines, and the start of one that is too long
	skipping bool   // inside a line that is too long
	size     int64  // when it was looked at
	time     time.Time
	gone     bool
}

// ends are the ends of the names of files with traces: lines of OTLP JSON, to which a program may be writing, and files that
// are read as a whole.
var ends = []string{".jsonl", ".json", ".jsonl.gz", ".json.gz"}

func isTraceName(name string) bool {
	return slices.ContainsFunc(ends, func(end string) bool { return strings.HasSuffix(name, end) })
}

// whole reports whether a file is read as a whole.
func (f *traceFile) whole() bool { return !strings.HasSuffix(f.name, ends[0]) }

// ofTraces reports whether a file is in the directory of traces. One next to it need not be of traces.
func (f *traceFile) ofTraces() bool { return path.Dir(f.name) != "." }

// line is the place of a line with spans of a trace, or of a document, in the decompressed file.
type line struct {
	file   *traceFile
	offset int64
	length int
}

// indexedTrace is the part of a trace that is kept.
type indexedTrace struct {
	id         string
	start, end int64 // ns since 1970
	spans      int
	errors     int
	entries    []indexedSpan // spans without a parent in their line, and spans with a profile
	lines      []line
	rooted     bool // the first entry is the root
}

// indexedSpan is the part of a span that is kept.
type indexedSpan struct {
	id, parent, service, name string
	version                   string // of the service
	kind                      string
	start, end                int64
	marked                    bool // see Marked
	unsampled                 bool // it was saved because it was slow, as faster ones were not
}

func (e indexedSpan) took() time.Duration { return time.Duration(e.end - e.start) }

func newTraceIndex(root *os.Root, dir string, nextTo bool) *traceIndex {
	x := &traceIndex{
		root: root, dir: dir, nextTo: nextTo, most: maxIndexed, budget: refreshBudget, refreshing: make(chan struct{}, 1),
		files: make(map[string]*traceFile), traces: make(map[string]*indexedTrace),
	}
	x.refreshing <- struct{}{}
	return x
}

// refresh reads what is new, or as much of it as its time allows, unless that was done just now.
func (x *traceIndex) refresh(ctx context.Context) error { return x.read(ctx, refreshEvery) }

// read is refresh if the last one is so long ago.
func (x *traceIndex) read(ctx context.Context, every time.Duration) error {
	select {
	case <-x.refreshing:
		defer func() { x.refreshing <- struct{}{} }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	x.mu.RLock()
	fresh := time.Since(x.refreshed) < every
	x.mu.RUnlock()
	if fresh {
		return nil
	}
	todo, err := x.look()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(x.budget)
	var unread int64
	for i, f := range todo {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if i > 0 && time.Now().After(deadline) {
			unread += f.size - f.read
			continue
		}
		rest, err := x.readNew(f, deadline)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // removed in the meantime because of its age
			return fmt.Errorf("read traces: %w", err)
		}
		unread += rest
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.forget()
	x.unread, x.refreshed = unread, time.Now()
	return nil
}

// look lists the directory and returns the files that have new contents, newest first. It drops what was read from files
// that are gone or were replaced.
func (x *traceIndex) look() ([]*traceFile, error) {
	var todo []*traceFile
	seen := make(map[string]bool)
	dropped := false
	// add looks at a file.
	add := func(name string, e fs.DirEntry) {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || !isTraceName(name) {
			return
		}
		seen[name] = true
		f := x.files[name]
		changed := f == nil || f.size != info.Size() || !f.time.Equal(info.ModTime())
		if f != nil && (info.Size() < f.read || f.whole() && changed) {
			f.gone, dropped, f = true, true, nil
		}
		if f == nil {
			f = &traceFile{name: name}
			x.files[name] = f
		}
		if changed || f.read < f.size {
			f.size, f.time = info.Size(), info.ModTime()
			todo = append(todo, f)
		}
	}
	dirs := []string{x.dir}
	if x.nextTo {
		dirs = append(dirs, ".")
	}
	for len(dirs) > 0 {
		dir := dirs[0]
		dirs = dirs[1:]
		entries, err := fs.ReadDir(x.root.FS(), dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list traces: %w", err)
		}
		for _, e := range entries {
			switch name := path.Join(dir, e.Name()); {
			case !e.IsDir():
				add(name, e)
			case dir == x.dir:
				dirs = append(dirs, name) // of a service
			}
		}
	}
	for name, f := range x.files {
		if !seen[name] {
			f.gone, dropped = true, true
			delete(x.files, name)
		}
	}
	if dropped {
		x.mu.Lock()
		x.drop()
		x.mu.Unlock()
	}
	// The name of a file begins with the time at which it was opened.
	slices.SortFunc(todo, func(a, b *traceFile) int {
		return cmp.Or(cmp.Compare(path.Base(b.name), path.Base(a.name)), cmp.Compare(a.name, b.name))
	})
	return todo, nil
}

// drop removes the lines of files that are gone from the index.
func (x *traceIndex) drop() {
	for id, t := range x.traces {
		t.lines = slices.DeleteFunc(t.lines, func(l line) bool { return l.file.gone })
		if len(t.lines) == 0 {
			x.indexed -= len(t.entries)
			delete(x.traces, id)
		}
	}
}

// readWhole reads a file that is not a growing one of lines.
func (x *traceIndex) readWhole(f *traceFile) error {
	text, err := x.contents(f)
	if err != nil && !errors.Is(err, errUnreadable) {
		return err
	}
	f.read = f.size
	found := false
	for at, valueErr := range traces.All(text) {
		if err = errors.Join(err, valueErr); err == nil {
			found = x.addLine(line{f, int64(at.Offset), at.Length}, text[at.Offset:at.Offset+at.Length]) || found
		}
	}
	if err != nil && (found || f.ofTraces()) {
		x.countDamaged()
	}
	return nil
}

// errUnreadable reports a file whose contents cannot be used.
var errUnreadable = errors.New("it is too large or damaged")

// contents returns the contents of a file that is read as a whole, decompressed.
func (x *traceIndex) contents(f *traceFile) ([]byte, error) {
	file, err := x.root.Open(f.name)
	if err != nil {
		return nil, err
	}
	defer file.Close() // it was only read
	from := io.Reader(file)
	if strings.HasSuffix(f.name, ".gz") {
		if from, err = gzip.NewReader(file); err != nil {
			return nil, errUnreadable
		}
	}
	text, err := io.ReadAll(io.LimitReader(from, maxTraceBytes+1))
	if err != nil || len(text) > maxTraceBytes {
		return nil, errUnreadable
	}
	return text, nil
}

// readNew reads whole lines from where it last stopped. A last line without an end is left for later: it is being written.
// It returns how many bytes it left because the deadline was reached.
func (x *traceIndex) readNew(f *traceFile, deadline time.Time) (int64, error) {
	if f.whole() {
		return 0, x.readWhole(f)
	}
	file, err := x.root.Open(f.name)
	if err != nil {
		return 0, err
	}
	defer file.Close() // it was only read
	if _, err := file.Seek(f.read, io.SeekStart); err != nil {
		return 0, err
	}
	var pending []byte // of a line whose end has not been read yet
	buf := make([]byte, readAtOnce)
	at := f.read // where pending starts in the file
	for {
		n, err := file.Read(buf)
		for rest := buf[:n]; len(rest) > 0; {
			i := bytes.IndexByte(rest, '\n')
			if i < 0 {
				pending = append(pending, rest...)
				break
			}
			pending, rest = append(pending, rest[:i+1]...), rest[i+1:]
			if !f.skipping {
				x.addLine(line{f, at, len(pending)}, pending)
			}
			at += int64(len(pending))
			f.read, f.skipping, pending = at, false, pending[:0]
		}
		if len(pending) > traces.MaxLine {
			if !f.skipping {
				x.countDamaged()
			}
			at += int64(len(pending))
			f.read, f.skipping, pending = at, true, nil
		}
		switch {
		case err == io.EOF:
			return 0, nil
		case err != nil:
			return 0, err
		case time.Now().After(deadline):
			return max(f.size-f.read, 1), nil
		}
	}
}

func (x *traceIndex) countDamaged() {
	x.mu.Lock()
	x.damaged++
	x.mu.Unlock()
}

// addLine adds the spans of a line to the index, and reports whether there are any.
func (x *traceIndex) addLine(at line, text []byte) bool {
	if len(bytes.TrimSpace(text)) == 0 {
		return false
	}
	spans, err := traces.Unmarshal(text)
	if err != nil {
		if at.file.ofTraces() {
			x.countDamaged()
		}
		return false
	}
	x.add(at, spans)
	return len(spans) > 0
}

// add adds spans to the index, which are all at one place.
func (x *traceIndex) add(at line, spans []traces.Span) {
	services := make(map[string]string, len(spans)) // by span id
	for _, s := range spans {
		services[s.ID] = s.Service
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, s := range spans {
		t := x.traces[s.TraceID]
		if t == nil {
			t = &indexedTrace{id: s.TraceID, start: s.Start.UnixNano(), end: s.End.UnixNano()}
			x.traces[s.TraceID] = t
		}
		t.spans++
		if s.Error {
			t.errors++
		}
		t.start, t.end = min(t.start, s.Start.UnixNano()), max(t.end, s.End.UnixNano())
		if n := len(t.lines); n == 0 || t.lines[n-1] != at {
			t.lines = append(t.lines, at)
		}
		// A span whose parent is in the same batch is inside its service.
		parent, here := services[s.ParentID]
		root, most := s.ParentID == "" && !t.rooted, maxEntries
		if !Marked(s) {
			most = maxUnmarked
		}
		if !root && (here && parent == s.Service && !Marked(s) || len(t.entries) >= most) {
			continue
		}
		e := indexedSpan{
			id: s.ID, parent: strings.Clone(s.ParentID), service: shorten(s.Service), name: shorten(s.Name),
			version: shorten(s.Resource["service.version"]), kind: s.Kind, unsampled: s.Attributes[wallprofile.UnsampledAttribute] != "",
			start: s.Start.UnixNano(), end: s.End.UnixNano(), marked: Marked(s),
		}
		if root {
			t.rooted = true
			t.entries = slices.Insert(t.entries, 0, e)
		} else {
			t.entries = append(t.entries, e)
		}
		x.indexed++
	}
}

// maxEntries limits the spans that are kept of one trace, and maxUnmarked those without a profile: a request often ends in
// a later batch than hundreds of its queries. The root is always kept.
const (
	maxEntries  = 200
	maxUnmarked = maxEntries / 2
)

// shorten copies the start of a name, so that the index does not keep the whole line in memory.
func shorten(s string) string {
	return strings.Clone(s[:min(len(s), maxIndexedText)])
}

// forget drops the oldest traces beyond the limit.
func (x *traceIndex) forget() {
	if x.indexed+len(x.traces) <= x.most {
		return
	}
	oldest := make([]*indexedTrace, 0, len(x.traces))
	for _, t := range x.traces {
		oldest = append(oldest, t)
	}
	slices.SortFunc(oldest, func(a, b *indexedTrace) int { return cmp.Compare(a.start, b.start) })
	for _, t := range oldest {
		if x.indexed+len(x.traces) <= x.most*9/10 { // below the limit, so that this is rare
			return
		}
		delete(x.traces, t.id)
		x.indexed -= len(t.entries)
		x.forgotten++
		x.forgotTo = max(x.forgotTo, t.end)
	}
}

// root returns the entry that the trace is named after.
func (t *indexedTrace) root() indexedSpan {
	if len(t.entries) == 0 {
		return indexedSpan{}
	}
	if t.rooted {
		return t.entries[0]
	}
	return slices.MinFunc(t.entries, func(a, b indexedSpan) int { return cmp.Compare(a.start, b.start) })
}

// main returns the span to diagnose: the longest with a profile by which a request entered a service, or else the longest
// with a profile.
func (t *indexedTrace) main() traces.Span {
	var best indexedSpan
	entered := false
	for _, e := range t.entries {
		if !e.marked {
			continue
		}
		enters := !slices.ContainsFunc(t.entries, func(up indexedSpan) bool { return up.id == e.parent && up.service == e.service })
		if best.id == "" || enters && !entered || enters == entered && e.took() > best.took() {
			best, entered = e, enters
		}
	}
	if best.id == "" {
		return traces.Span{}
	}
	return best.span(t.id)
}

// span returns what is known of a span.
func (e indexedSpan) span(traceID string) traces.Span {
	return traces.Span{TraceID: traceID, ID: e.id, Service: e.service, Name: e.name, Kind: e.kind, Start: time.Unix(0, e.start), End: time.Unix(0, e.end)}
}

// search returns the matching traces, slowest first.
func (x *traceIndex) search(f Filter) Found {
	x.mu.RLock()
	defer x.mu.RUnlock()
	name := strings.ToLower(f.Name)
	var found Found
	for _, t := range x.traces {
		if d := time.Duration(t.end - t.start); d < f.Min || !within(t.start, f) {
			continue
		}
		if f.Service != "" || name != "" {
			if !slices.ContainsFunc(t.entries, func(e indexedSpan) bool {
				return (f.Service == "" || e.service == f.Service) && strings.Contains(strings.ToLower(e.name), name)
			}) {
				continue
			}
		}
		root := t.root()
		if f.leavesOut(root.name) {
			continue
		}
		found.Traces = append(found.Traces, Summary{
			TraceID: t.id, Service: root.service, Name: root.name, Start: time.Unix(0, t.start),
			Duration: time.Duration(t.end - t.start), Spans: t.spans, Errors: t.errors,
		})
	}
	slices.SortFunc(found.Traces, func(a, b Summary) int {
		return cmp.Or(cmp.Compare(b.Duration, a.Duration), cmp.Compare(a.TraceID, b.TraceID))
	})
	found.Traces = found.Traces[:min(len(found.Traces), f.Limit)]
	for i, t := range found.Traces {
		found.Traces[i].Main = x.traces[t.TraceID].main()
	}
	if x.unread > 0 {
		found.Notes = append(found.Notes, fmt.Sprintf("Older traces are still being read (%s left): load the page again.", format.Bytes(x.unread)))
	}
	if x.damaged > 0 {
		found.Notes = append(found.Notes, fmt.Sprintf("Lines of the trace files that cannot be read and are left out: %d.", x.damaged))
	}
	if x.forgotten > 0 {
		found.Notes = append(found.Notes, fmt.Sprintf("The oldest traces are left out, as there are too many: %d.", x.forgotten))
	}
	return found
}

// within reports whether a time is in the filter's range.
func within(ns int64, f Filter) bool {
	return (f.From.IsZero() || ns >= f.From.UnixNano()) && (f.To.IsZero() || ns <= f.To.UnixNano())
}

// captured returns the marked spans that match, the latest first.
func (x *traceIndex) captured(f Filter) []traces.Span {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var found []traces.Span
	for _, t := range x.traces {
		for _, e := range t.entries {
			if e.marked && within(e.start, f) && (f.Service == "" || e.service == f.Service) && (f.Name == "" || e.name == f.Name) && t.recorded(e, f) {
				found = append(found, e.span(t.id))
			}
		}
	}
	slices.SortFunc(found, func(a, b traces.Span) int {
		return cmp.Or(b.Start.Compare(a.Start), cmp.Compare(a.ID, b.ID))
	})
	return found[:min(len(found), f.Limit)]
}

// complete reports whether all files were read when they were last looked at.
func (x *traceIndex) complete() bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.unread == 0
}

// requests returns the matching spans by which requests entered their service, without those that the sampler decided
// against, of which only slow ones are saved. It returns none if some are forgotten.
func (x *traceIndex) requests(f Filter) (found []traces.Span, err error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.unread > 0 {
		return nil, ErrReading
	}
	if x.forgotten > 0 && (f.From.IsZero() || f.From.UnixNano() <= x.forgotTo) {
		return nil, nil
	}
	for _, t := range x.traces {
		for _, e := range t.entries {
			enters := !e.unsampled && (e.parent == "" || e.kind == "server" || e.kind == "consumer")
			if enters && within(e.start, f) && (f.Service == "" || e.service == f.Service) && (f.Name == "" || e.name == f.Name) &&
				(f.Version == "" || e.version == f.Version) {
				found = append(found, e.span(t.id))
			}
		}
	}
	return found, nil
}

// recorded reports whether a span can have a profile, given how long recorded requests take. All spans between a marked
// span and the entry to its service are marked, too, as they take at least as long.
func (t *indexedTrace) recorded(e indexedSpan, f Filter) bool {
	request := e
	for range t.entries { // the parents of spans can form a circle
		i := slices.IndexFunc(t.entries, func(up indexedSpan) bool { return up.id == request.parent && up.service == request.service })
		if i < 0 {
			break
		}
		request = t.entries[i]
	}
	inside := request.id != e.id
	return request.took() >= f.Slow && (!inside || !f.Requests && e.took() >= min(f.Child, f.Slow))
}

// trace reads the spans of a trace from its lines.
func (x *traceIndex) trace(ctx context.Context, id string) ([]traces.Span, error) {
	x.mu.RLock()
	var lines []line
	if t := x.traces[id]; t != nil {
		lines = slices.Clone(t.lines)
	}
	x.mu.RUnlock()
	var spans []traces.Span
	seen := make(map[string]bool)
	total := 0
	var reader lineReader
	for _, l := range lines[:min(len(lines), maxTraceLines)] {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if total += l.length; total > maxTraceBytes {
			break
		}
		text, err := reader.read(x, l)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errUnreadable) {
			continue // removed or replaced after it was indexed
		}
		if err != nil {
			return nil, fmt.Errorf("read trace %s: %w", id, err)
		}
		all, err := traces.Unmarshal(text)
		if err != nil {
			continue // replaced: it could be read when it was indexed
		}
		for _, s := range all {
			if s.TraceID == id && !seen[s.ID] {
				seen[s.ID] = true
				spans = append(spans, s)
			}
		}
	}
	sortByStart(spans)
	return spans, nil
}

// lineReader reads lines, and remembers the last file that it read as a whole.
type lineReader struct {
	file *traceFile
	text []byte
}

func (r *lineReader) read(x *traceIndex, l line) ([]byte, error) {
	if l.file.whole() {
		return r.readWhole(x, l)
	}
	file, err := x.root.Open(l.file.name)
	if err != nil {
		return nil, err
	}
	defer file.Close() // it was only read
	text := make([]byte, l.length)
	_, err = file.ReadAt(text, l.offset)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return text, err
}

func (r *lineReader) readWhole(x *traceIndex, l line) ([]byte, error) {
	if r.file != l.file {
		text, err := x.contents(l.file)
		if err != nil {
			return nil, err
		}
		r.file, r.text = l.file, text
	}
	end := l.offset + int64(l.length)
	if end > int64(len(r.text)) {
		return nil, io.ErrUnexpectedEOF
	}
	return r.text[l.offset:end], nil
}
