package input

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"spanflame/internal/query"
	"spanflame/internal/record"
	"spanflame/profiles"
)

const (
	// livePath is the conventional path of the profiles of Go services.
	livePath = "/debug/pprof"
	// debugPath is the parent path of other profiles, such as /debug/fgprof.
	debugPath = "/debug/"
)

// endpoint is one of the profiles of a live service.
type endpoint struct {
	typ  record.Type
	name string
	over bool // covers a duration, which the parameter seconds sets
}

var endpoints = []endpoint{
	{record.CPU, "profile", true},
	{record.Memory, "heap", false},
	{record.Memory, "allocs", false},
	{record.Goroutine, "goroutine", false},
	{record.Mutex, "mutex", true},
	{record.Block, "block", true},
	{"", "fgprof", true},
}

// live records profiles of a running service, one after another. The address is either that of the index, to which the
// requested type is added, or that of one profile.
func live(ctx context.Context, u *url.URL, o Options) (iter.Seq2[profiles.Window, error], error) {
	length := o.Length
	if length == 0 {
		length = defaultLength
	}
	want := path.Base(u.Path)
	index := strings.HasSuffix(strings.TrimRight(u.Path, "/"), livePath)
	if index {
		want = "profile"
	}
	var e endpoint
	for _, known := range endpoints {
		if index && len(o.Query.Types) > 0 && known.typ == o.Query.Types[0] {
			e = known
			break
		}
		if known.name == want && (!index || len(o.Query.Types) == 0) {
			e = known
		}
	}
	switch {
	case e.name == "" && index:
		return nil, fmt.Errorf("%s: no profile there has the type %s: name its address", u.Redacted(), profiles.TypeName(o.Query.Types[0]))
	case slices.Contains([]string{"trace", "cmdline", "symbol"}, want):
		return nil, fmt.Errorf("%s is not a profile: want one such as profile, heap, goroutine, mutex or block", u.Redacted())
	case e.name == "":
		e.name = want // a profile of an instant, such as threadcreate
	}
	if index {
		u = u.JoinPath(e.name)
	}
	q := u.Query()
	if e.over {
		if given := q.Get("seconds"); given != "" {
			seconds, err := strconv.Atoi(given)
			if err != nil || seconds < 1 || seconds > 3600 {
				return nil, fmt.Errorf("%s: seconds=%s: want 1 to 3600", u.Redacted(), given)
			}
			length = time.Duration(seconds) * time.Second
		}
		q.Set("seconds", strconv.Itoa(int(length.Seconds())))
	}
	q.Del("debug") // selects a text format
	u.RawQuery = q.Encode()
	return func(yield func(profiles.Window, error) bool) {
		for n := range max(1, o.Windows) {
			if n > 0 && !e.over {
				wait := time.NewTimer(length)
				select {
				case <-wait.C:
				case <-ctx.Done():
					wait.Stop()
					yield(profiles.Window{}, ctx.Err())
					return
				}
			}
			w, err := fetch(ctx, u, length, e.typ)
			if !yield(w, err) || err != nil {
				return
			}
		}
	}, nil
}

// fetch requests one profile, of at most a length.
func fetch(ctx context.Context, u *url.URL, length time.Duration, t record.Type) (profiles.Window, error) {
	server := url.URL{Scheme: u.Scheme, User: u.User, Host: u.Host}
	start := time.Now()
	b, err := query.NewListener(server.String()).Get(ctx, u.EscapedPath(), u.Query(), length)
	if err != nil {
		return profiles.Window{}, err // has the address
	}
	p, err := profiles.Parse(bytes.NewReader(b))
	if err != nil {
		return profiles.Window{}, fmt.Errorf("%s: %w", u.Redacted(), err)
	}
	if t == "" {
		t = profiles.TypeOf(p)
	}
	return profiles.Window{Profile: p, Meta: record.Meta{Type: t, Start: start, End: time.Now()}}, nil
}
