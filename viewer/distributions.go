package viewer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"spanflame/internal/format"
	"spanflame/profiles/compare"
	"spanflame/viewer/source"
)

// route is the requests of one name to a service.
type route struct{ service, name string }

// distributions has how long all sampled requests took, whether they were slow or not, sorted; empty if the source does not
// have them all, or has not read them yet.
type distributions map[route][]time.Duration

// distributions returns those of the requests in the time of f.
func (s *server) distributions(ctx context.Context, f source.Filter) (distributions, error) {
	requests, err := s.source.Requests(ctx, source.Filter{Service: f.Service, From: f.From, To: f.To})
	if err != nil && !errors.Is(err, source.ErrReading) {
		return nil, err
	}
	d := make(distributions)
	for _, r := range requests {
		at := route{r.Service, r.Name}
		d[at] = append(d[at], r.Duration())
	}
	for _, took := range d {
		slices.Sort(took)
	}
	return d, nil
}

// of describes all sampled requests of a name, empty if they are not known.
func (d distributions) of(service, name string) (requests, median, p99 string) {
	took := compare.NewDurations(d[route{service, name}])
	if took.Requests == 0 {
		return "", "", ""
	}
	return fmt.Sprint(took.Requests), format.Duration(took.Median), format.Duration(took.P99)
}
