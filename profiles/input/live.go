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
	// livePath is where Go services have their profiles by convention.
	livePath = "/debug/pprof"
	// debugPath is where they have others, such as /debug/fgprof.
	debugPath = "/debug/"
)

// slack is how much longer than its profile an answer may take.
const slack = 30 * time.Second

// endpoint is one of the profiles of a live service.
type endpoint struct {
	typ  record.Type
	name string
	over bool // it covers a time, which the parameter seconds tells
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

// live takes profiles from a running service, one after another. Its addresses are the index, from which the
// type that was asked for is taken, or that of one profile.
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
		e.name = want // one of an instant, such as threadcreate
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
	q.Del("debug") // a text that no one but people can read
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

// fetch takes one profile.
func fetch(ctx context.Context, client *http.Client, u *url.URL, t record.Type) (profiles.Window, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return profiles.Window{}, err
	}
	start := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return profiles.Window{}, err // it names the address
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300)) // as far as it can be read
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
