package viewer

import (
	"errors"
	"net/http"
	"time"

	"spanflame/internal/format"
	"spanflame/internal/record"
	"spanflame/internal/wallprofile"
	"spanflame/profiles"
	"spanflame/profiles/why"
	"spanflame/viewer/source"
)

// listedBlamed limits the rows of the page of who makes others wait.
const listedBlamed = 50

// waitsPage is the data of the page of who makes others wait.
type waitsPage struct {
	head
	Service  string
	Period   period
	Services []string
	Blamed   []listedBlame
	More     int // that are not shown
}

// listedBlame is a route, or a goroutine of none, that made other requests wait.
type listedBlame struct {
	Took, Width  string // Width is of the bar, in percent
	Service, Who string
	Path         string // of the spans of the route; empty if it is not known
	Requests     string // that waited, in words; empty if it is not known how many
	Waited       string // the function in which they did
	Function     string // in which the time was spent; empty if it is not known
	State        string
}

func (s *server) waits(w http.ResponseWriter, r *http.Request) error {
	q, err := parameters(r, "service", "last", "from", "to")
	if err != nil {
		return err
	}
	page := waitsPage{head: head{Title: "Who makes others wait", Current: "traces"}, Service: q.Get("service")}
	if page.Period, err = parsePeriod(q, "", time.Now()); err != nil {
		return err
	}
	if page.Services, err = s.source.Services(r.Context(), page.Period.from, page.Period.to); err != nil {
		return err
	}
	services := page.Services
	if page.Service != "" {
		services = []string{page.Service}
	}
	var ranking why.Ranking
	for _, service := range services {
		p, err := s.load(r.Context(), s.source, source.Selection{Service: service, Type: record.Wall, From: page.Period.from, To: page.Period.to})
		if errors.Is(err, profiles.ErrNone) {
			continue
		}
		if err != nil {
			return err
		}
		ranking.Add(service, p)
	}
	page.More = max(0, len(ranking.Blamed)-listedBlamed)
	for _, b := range ranking.Blamed[:len(ranking.Blamed)-page.More] {
		l := listedBlame{
			Took: format.Duration(time.Duration(b.Took)), Width: format.Percent(float64(b.Took) / float64(max(1, ranking.Blamed[0].Took))),
			Service: b.Service, Who: b.Request, Waited: format.Clean(wallprofile.Short(b.Waited), 200),
			Function: format.Clean(wallprofile.Short(b.Function), 200), State: format.Clean(b.State, 100),
		}
		switch {
		case b.Request != "":
			l.Path = NamePath(b.Service, b.Request)
		case b.Alone != "":
			l.Who = wallprofile.Short(b.Alone)
		default:
			l.Who = "a request without a name"
		}
		if b.Requests > 0 {
			l.Requests = format.Count(b.Requests, "request")
		}
		page.Blamed = append(page.Blamed, l)
	}
	return s.render(w, http.StatusOK, "waits.html", page)
}
