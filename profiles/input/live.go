package input

import (
	"context"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"spanflame/internal/record"
	"spanflame/profiles"
)

const (
	// livePath is the conventional path of the profiles of Go services.
	livePath = "/debug/pprof"
	// debugPath is the parent path of other profiles, such as /debug/fgprof.
	debugPath = "/debug/"
)

// slack is the time that a response may take in addition to its profile's duration.
const slack = 30 * time.Second

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
	client := &http.Client{Timeout: length + slack}
	return func(yield func(profiles.Window, error) bool) {
		defer client.CloseIdleConnections()
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
			w, err := fetch(ctx, client, u, e.typ)
			if !yield(w, err) || err != nil {
				return
			}
		}
	}, nil
}

// fetch requests one profile.
func fetch(ctx context.Context, client *http.Client, u *url.URL, t record.Type) (profiles.Window, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return profiles.Window{}, err
	}
	start := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return profiles.Window{}, err // has the address
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300)) // best effort
		return profiles.Window{}, fmt.Errorf("%s: status %d: %.200q", u.Redacted(), resp.StatusCode, text)
	}
	p, err := profiles.Parse(resp.Body)
	if err != nil {
		return profiles.Window{}, fmt.Errorf("%s: %w", u.Redacted(), err)
	}
	if t == "" {
		t = profiles.TypeOf(p)
	}
	return profiles.Window{Profile: p, Meta: record.Meta{Type: t, Start: start, End: time.Now()}}, nil
}
