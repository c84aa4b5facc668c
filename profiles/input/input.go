// Package input turns an argument of a command line into a series of windows. The argument is a file, a directory or a
// pattern of files, the output of benchmarks, a running service's /debug/pprof, or a query of a Pyroscope server. The commands "spanflame compare"
// and "spanflame leaks" use it, and "spanflame merge" uses it for saved profiles. Programs that know where their profiles
// are should use package profiles instead, which does not use the network.
package input

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"spanflame/internal/format"
	"spanflame/internal/redact"
	"spanflame/profiles"
)

// Options select profiles from the place that an argument names.
type Options struct {
	// Query selects saved profiles. Its times also apply to a Pyroscope query without times, and its first type to a
	// live address that names no type.
	Query profiles.Query
	// Windows is the number of profiles to record from a live address, 1 by default.
	Windows int
	// Length is the duration of each of them, 10 s by default.
	Length time.Duration
	// Step is the length of the windows into which a Pyroscope query is divided, with a resolution of a tenth of a second.
	// The default is a twentieth of its time range.
	Step time.Duration
	// Damaged, if it is not nil, is called for each unusable file of a directory; the file is left out.
	Damaged func(profiles.Damaged)
	// Listed, if it is not nil, is called with the saved profiles that were found, before any of them is read.
	Listed func([]profiles.Entry)
}

const (
	defaultLength = 10 * time.Second
	defaultSteps  = 20
	maxWindows    = 100_000
	maxLabels     = 10 // in an error
)

// Validate returns an error that names the wrong option.
func (o Options) Validate() error {
	switch {
	case o.Windows < 0 || o.Windows > maxWindows:
		return fmt.Errorf("%d windows: want 1 to %d", o.Windows, maxWindows)
	case o.Length < 0 || o.Length > 0 && o.Length < time.Second:
		return fmt.Errorf("length %v of a window: want 1s or more", o.Length)
	case o.Step < 0 || o.Step > 0 && o.Step < time.Second:
		return fmt.Errorf("step %v: want 1s or more", o.Step)
	}
	return nil
}

// Open returns the windows that an argument names, in the order of time. Windows of a live address are recorded one by one
// as the caller reads them.
func Open(ctx context.Context, argument string, o Options) (iter.Seq2[profiles.Window, error], error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if argument == "" {
		return nil, errors.New("no profile is named: want a file, a directory, a pattern or an address")
	}
	if !strings.Contains(argument, "://") {
		if windows, err := benchmarks(argument); windows != nil || err != nil && !errors.Is(err, fs.ErrNotExist) {
			return windows, err
		}
		return files(ctx, argument, o)
	}
	u, err := url.Parse(argument)
	switch {
	case err != nil: // which may quote a password
		return nil, wrongAddress(argument)
	case u.Host == "":
		return nil, fmt.Errorf("address %q has no host", redact.URL(argument))
	case u.Scheme == "pyroscope", isWeb(u) && u.Query().Has("query"):
		return pyroscope(ctx, u, o, time.Now())
	case isWeb(u) && strings.Contains(u.Path, debugPath):
		return live(ctx, u, o)
	}
	return nil, wrongAddress(argument)
}

func wrongAddress(argument string) error {
	return fmt.Errorf(`address %q: want http://HOST/debug/pprof/… for a running service, `+
		`or pyroscope://HOST/?query=TYPE{label="value"}&from=now-1h&until=now`, redact.URL(argument))
}

func isWeb(u *url.URL) bool { return u.Scheme == "http" || u.Scheme == "https" }

// files reads saved profiles. It is an error if a file that the argument names directly is unusable.
func files(ctx context.Context, argument string, o Options) (iter.Seq2[profiles.Window, error], error) {
	var unusable error
	entries, err := List(ctx, o.Query, func(d profiles.Damaged, named bool) {
		switch {
		case o.Damaged == nil || named:
			if unusable == nil {
				unusable = d
			}
		default:
			o.Damaged(d)
		}
	}, argument)
	if unusable != nil {
		return nil, fmt.Errorf("%w; %s", unusable, wantFile)
	}
	if err != nil {
		return nil, err
	}
	if services := profiles.ServiceNames(entries); len(services) > 1 {
		return nil, fmt.Errorf("%s has profiles of several services, select one with --service: %s", argument, strings.Join(services, ", "))
	}
	if o.Listed != nil {
		o.Listed(entries)
	}
	windows := profiles.Read(ctx, entries)
	if o.Damaged != nil {
		windows = profiles.WithoutDamaged(windows, o.Damaged)
	}
	return windows, nil
}

// wantFile is the part of an error that describes usable files.
const wantFile = "want a profile in pprof's format, as agents, /debug/pprof and go test -cpuprofile write it"

// List returns the saved profiles that match a query in files, directories, and patterns of both, sorted by their start.
// It calls damaged for each unusable file; named is true if an argument names the file directly. If nothing matches, the
// error has the query and describes the profiles that exist.
func List(ctx context.Context, q profiles.Query, damaged func(d profiles.Damaged, named bool), arguments ...string) ([]profiles.Entry, error) {
	var paths []string
	for _, argument := range arguments {
		_, missing := os.Stat(argument)
		if !errors.Is(missing, fs.ErrNotExist) { // an existing name may contain characters of a pattern
			paths = append(paths, argument)
			continue
		}
		found, err := filepath.Glob(argument)
		shown := redact.Argument(argument)
		switch {
		case err != nil:
			return nil, fmt.Errorf("pattern %q: %w", shown, err)
		case len(found) == 0 && strings.ContainsAny(argument, patternCharacters):
			return nil, fmt.Errorf("no file matches %s", shown)
		case len(found) == 0:
			return nil, fmt.Errorf("%s: %w: want a profile, a directory that has some, or a pattern such as 'saved/*.pb.gz'", shown, errors.Unwrap(missing))
		}
		paths = append(paths, found...)
	}
	entries, unusable, err := profiles.Find(ctx, q, paths...)
	if err != nil {
		return nil, err
	}
	for i := range paths {
		paths[i] = filepath.Clean(paths[i]) // as in the results of Find
	}
	for _, d := range unusable {
		damaged(d, slices.Contains(paths, d.Path))
	}
	if len(entries) == 0 {
		return nil, none(ctx, strings.Join(arguments, ", "), q, paths, len(unusable))
	}
	return entries, nil
}

// patternCharacters are the special characters of a pattern.
const patternCharacters = `*?[`

// none returns the error for a query without results, which describes the query and the profiles that exist. Unusable is
// the number of unusable files.
func none(ctx context.Context, argument string, q profiles.Query, paths []string, unusable int) error {
	entries, _, err := profiles.Find(ctx, profiles.Query{}, paths...)
	switch {
	case err != nil:
		return err
	case len(entries) == 0 && unusable > 0:
		return fmt.Errorf("%s: %w: all files that there are (%d) cannot be used; %s", argument, profiles.ErrNone, unusable, wantFile)
	case len(entries) == 0:
		return fmt.Errorf("%s: %w: no file there is named %s or begins as a profile does", argument, profiles.ErrNone, profiles.FileNames())
	}
	var asked, types []string
	if q.Service != "" {
		asked = append(asked, fmt.Sprintf("service %q", q.Service))
	}
	for _, t := range q.Types {
		asked = append(asked, fmt.Sprintf("type %s", profiles.TypeName(t)))
	}
	for _, name := range slices.Sorted(maps.Keys(q.Labels)) {
		asked = append(asked, fmt.Sprintf("label %s=%q", name, q.Labels[name]))
	}
	for _, t := range []struct {
		name string
		at   time.Time
	}{{"from", q.From}, {"to", q.To}} {
		if !t.at.IsZero() {
			asked = append(asked, t.name+" "+t.at.UTC().Format(time.DateTime))
		}
	}
	var from, to time.Time
	labels := map[string]bool{} // the labels of the query, with existing values
	for _, e := range entries {
		types = append(types, profiles.TypeName(e.Type))
		if profiles.HasTime(e.Start) && from.IsZero() {
			from = e.Start // they are sorted
		}
		if profiles.HasTime(e.Start) && e.End.After(to) {
			to = e.End
		}
		for name := range q.Labels {
			if value, ok := e.Labels[name]; ok {
				labels[fmt.Sprintf("%s=%q", name, value)] = true
			}
		}
	}
	slices.Sort(types)
	there := "found " + format.Count(len(entries), "profile")
	if services := profiles.ServiceNames(entries); len(services) > 0 {
		there += " of " + strings.Join(services, ", ")
	}
	there += ", of the types " + strings.Join(slices.Compact(types), ", ")
	if !from.IsZero() {
		there += fmt.Sprintf(", from %s to %s", from.UTC().Format(time.DateTime), to.UTC().Format(time.DateTime+" MST"))
	}
	if len(labels) > 0 {
		have := slices.Sorted(maps.Keys(labels))
		there += ", with the labels " + strings.Join(have[:min(len(have), maxLabels)], ", ")
	}
	return fmt.Errorf("%s: %w %s: %s", argument, profiles.ErrNone, strings.Join(asked, ", "), there)
}
