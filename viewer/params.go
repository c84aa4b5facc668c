package viewer

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"spanflame/viewer/source"

	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/profiles"
)

// Names of the flame graphs' types in addresses.
const (
	typeWall = "wall"
	typeCPU  = "cpu"
)

// profileTypes are the types of profiles, by their names in addresses, in the order in which they are shown.
var profileTypes = []profileType{
	{typeWall, record.Wall, "wall clock of slow requests"},
	{typeCPU, record.CPU, "CPU"},
	{"memory", record.Memory, "memory"},
	{"mutex", record.Mutex, "mutex contention"},
	{"block", record.Block, "blocking"},
	{"goroutines", record.Goroutine, "goroutines"},
}

type profileType struct {
	Name  string
	Type  record.Type
	Words string
}

// maxTypeName limits the name of a type in an address, in bytes.
const maxTypeName = 1_000

// parseType parses the name of a type: one of profileTypes, or a type of another tool.
func parseType(name string) (profileType, error) {
	for _, t := range profileTypes {
		if t.Name == name {
			return t, nil
		}
	}
	if name == "" || len(name) > maxTypeName || format.Clean(name, maxTypeName) != name {
		return profileType{}, badRequest("There is no profile type %q: want wall, cpu, memory, mutex, block, goroutines or that of a profile.", name)
	}
	return otherType(record.Type(name)), nil
}

// otherType is a type that is not one of profileTypes, or only some of the kinds of one.
func otherType(t record.Type) profileType {
	words := string(t)
	for _, known := range profileTypes {
		if kind, ok := strings.CutPrefix(words, string(known.Type)+" ("); ok {
			words = known.Words + " (" + kind
		}
	}
	return profileType{string(t), t, words}
}

// typesIn returns the types of contents: profileTypes first, then others by name.
func typesIn(contents []source.Content) []profileType {
	var all []profileType
	for _, t := range profileTypes {
		if slices.ContainsFunc(contents, func(c source.Content) bool { return c.Type == t.Type }) {
			all = append(all, t)
		}
	}
	known := len(all)
	for _, c := range contents {
		isKnown := slices.ContainsFunc(profileTypes, func(t profileType) bool { return t.Type == c.Type })
		if !isKnown && !slices.ContainsFunc(all, func(t profileType) bool { return t.Type == c.Type }) {
			all = append(all, otherType(c.Type))
		}
	}
	slices.SortFunc(all[known:], func(a, b profileType) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// mainSamples are the sample types that the words of a type stand for.
var mainSamples = map[record.Type]string{
	record.CPU: "cpu", record.Wall: "wall", record.Memory: "inuse_space", record.Mutex: "delay", record.Block: "delay", record.Goroutine: "goroutine",
}

// of names the values of a sample type: by the words of the type if these stand for it, and else by its own name.
func (t profileType) of(sampleType string) string {
	if mainSamples[t.Type] == sampleType {
		return t.Words
	}
	return format.Clean(sampleType, 100)
}

// ranges are the time ranges of a form, by how long ago they start.
var ranges = []option{
	{"15m", "last 15 minutes"}, {"1h", "last hour"}, {"6h", "last 6 hours"}, {"24h", "last 24 hours"}, {"168h", "last 7 days"}, {"", "any time"},
}

// option is an option of a list in a form.
type option struct{ Value, Words string }

// period is a time range. A zero time does not restrict.
type period struct {
	Last, From, To string // as given in the address
	from, to       time.Time
}

// Ranges returns the time ranges of the form.
func (period) Ranges() []option { return ranges }

// words describes the time range.
func (p period) words(z zone) string {
	switch {
	case p.from.IsZero() && p.to.IsZero():
		return "at any time"
	case p.to.IsZero():
		return "since " + z.clock(p.from)
	case p.from.IsZero():
		return "until " + z.clock(p.to)
	}
	return "from " + z.clock(p.from) + " to " + z.clock(p.to)
}

// longestAgo limits a time range that is given by its length.
const longestAgo = 10 * 365 * 24 * time.Hour

// parsePeriod parses last, or from and to.
func parsePeriod(q url.Values, prefix string, now time.Time) (period, error) {
	p := period{Last: q.Get(prefix + "last"), From: q.Get(prefix + "from"), To: q.Get(prefix + "to")}
	if p.Last != "" {
		d, err := time.ParseDuration(p.Last)
		if err != nil || d <= 0 || d > longestAgo {
			return p, badRequest("%slast=%q: want a duration such as 15m or 24h.", prefix, p.Last)
		}
		p.from, p.to = now.Add(-d), now
		return p, nil
	}
	var err error
	if p.from, err = parseTime(p.From, now); err != nil {
		return p, badRequest("%sfrom: %v", prefix, err)
	}
	if p.to, err = parseTime(p.To, now); err != nil {
		return p, badRequest("%sto: %v", prefix, err)
	}
	if !p.from.IsZero() && !p.to.IsZero() && p.to.Before(p.from) {
		return p, badRequest("The time range ends at %s, before its start at %s.", p.To, p.From)
	}
	return p, nil
}

// parseTime parses a time, or how long before now it was. Empty is the zero time.
func parseTime(v string, now time.Time) (time.Time, error) {
	if strings.TrimSpace(v) == "" {
		return time.Time{}, nil
	}
	return profiles.ParseTime(v, now)
}

// parseMin parses a duration; a number without a unit is in milliseconds.
func parseMin(v string) (time.Duration, error) {
	if v == "" {
		return 0, nil
	}
	if ms, err := strconv.ParseUint(v, 10, 32); err == nil {
		return time.Duration(ms) * time.Millisecond, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		return 0, badRequest("min=%q: want a duration such as 250ms, or milliseconds.", v)
	}
	return d, nil
}

// parseFrame parses the number of the frame to which a flame graph is zoomed.
func parseFrame(q url.Values, name string) (int, error) {
	v := q.Get(name)
	if v == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		return 0, badRequest("%s=%q: want the number of a frame.", name, v)
	}
	return int(n), nil
}

// parseID parses an ID of n hexadecimal digits.
func parseID(v string, n int) (string, error) {
	v = strings.ToLower(v)
	if len(v) != n || strings.Trim(v, "0123456789abcdef") != "" {
		return "", badRequest("%q is no id: want %d hexadecimal digits.", v, n)
	}
	return v, nil
}

// Lengths of IDs in hexadecimal digits.
const traceDigits, spanDigits = 32, 16

// parameters returns the parameters of a request, all of which must be allowed and given once.
func parameters(r *http.Request, allowed ...string) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("The address cannot be read: %v", err)
	}
	return q, allow(q, allowed...)
}

func allow(q url.Values, allowed ...string) error {
	names := make([]string, 0, len(q))
	for name := range q {
		names = append(names, name)
	}
	slices.SortFunc(names, cmp.Compare[string])
	for _, name := range names {
		if !slices.Contains(allowed, name) {
			return badRequest("There is no parameter %q: want %s.", name, strings.Join(allowed, ", "))
		}
		if len(q[name]) > 1 {
			return badRequest("The parameter %q is given %d times.", name, len(q[name]))
		}
	}
	return nil
}

// encodeSpec encodes the parameters of a flame graph as one element of a path. Below it are pprof's pages, which have
// parameters of their own.
func encodeSpec(q url.Values) string { return base64.RawURLEncoding.EncodeToString([]byte(q.Encode())) }

func decodeSpec(spec string) (url.Values, error) {
	b, err := base64.RawURLEncoding.DecodeString(spec)
	if err != nil {
		return nil, badRequest("The address of this flame graph is not whole.")
	}
	q, err := url.ParseQuery(string(b))
	if err != nil {
		return nil, badRequest("The address of this flame graph is not whole.")
	}
	return q, nil
}

// ofService is the service and the time range of a page, and the services that have profiles in that range.
type ofService struct {
	Service  string // empty if there is none
	Services []string
	Period   period // as given in the address
	source   source.Source
}

// LeftOut describes the profiles that cannot be used.
func (of ofService) LeftOut() string { return of.source.LeftOut() }

// known returns why a page is empty: there is no such service, or otherwise.
func (of ofService) known(otherwise string) string {
	if slices.Contains(of.Services, of.Service) || len(of.Services) == 0 {
		return otherwise
	}
	return fmt.Sprintf(
		"There are no profiles of a service %q. There are of: %s.", format.Clean(of.Service, 160),
		format.Clean(strings.Join(of.Services, ", "), 400),
	)
}

// chooseService reads service, last, from and to from q. Without a service it chooses that of the slowest request, or the
// first.
func (s *server) chooseService(ctx context.Context, q url.Values, now time.Time) (of ofService, err error) {
	of.Service, of.source = q.Get("service"), s.source
	if of.Period, err = parsePeriod(q, "", now); err != nil {
		return of, err
	}
	if of.Services, err = s.source.Services(ctx, of.Period.from, of.Period.to); err != nil {
		return of, err
	}
	if of.Service == "" && len(of.Services) > 0 {
		of.Service = of.Services[0]
		// Without traces it is the first.
		if found, err := s.source.Search(
			ctx, source.Filter{From: of.Period.from, To: of.Period.to, Limit: 1},
		); err == nil && len(found.Traces) > 0 && slices.Contains(of.Services, found.Traces[0].Service) {
			of.Service = found.Traces[0].Service
		}
	}
	return of, nil
}
