package faultproxy

import (
	"bytes"
	"net/http"
	"strings"
	"time"

	"github.com/google/pprof/profile"
	collector "go.opentelemetry.io/proto/otlp/collector/profiles/v1development"
	"google.golang.org/protobuf/proto"

	"spanflame/internal/otlpwire"
	"spanflame/internal/pprofwire"
	"spanflame/internal/pyroscopewire"
)

// The paths of requests that carry a profile.
const (
	pushPath   = "/push.v1.PusherService/Push"
	ingestPath = "/ingest"
)

func carriesProfile(path string) bool {
	return path == pushPath || path == ingestPath || path == otlpwire.Path
}

// Profile identifies a profile and holds its totals. A profile sent to /ingest has only a Name.
type Profile struct {
	Name   string            // the profile type, such as process_cpu; for /ingest the application's name
	Labels map[string]string // of its series, without the name
	Start  time.Time         // TimeNanos of the pprof
	Length time.Duration     // DurationNanos of the pprof
	Totals map[string]int64  // by Pyroscope's name of the profile type: sum of the samples that have a stack
	Err    error             // why it could not be read
}

// readProfile reads the profile of a request.
func readProfile(r *http.Request, body []byte) Profile {
	if r.URL.Path == ingestPath {
		name, _, _ := strings.Cut(r.URL.Query().Get("name"), "{")
		return Profile{Name: name}
	}
	p := Profile{Labels: map[string]string{}}
	if r.URL.Path == otlpwire.Path {
		p.Err = p.readOTLP(body)
		return p
	}
	labels, raw, err := pyroscopewire.ReadPush(body)
	for _, l := range labels {
		if l.Name == "__name__" {
			p.Name = l.Value
		} else {
			p.Labels[l.Name] = l.Value
		}
	}
	if err == nil {
		err = p.ReadPprof(raw)
	}
	p.Err = err
	return p
}

// readOTLP reads the request of one record: a profile for each of its sample types.
func (p *Profile) readOTLP(gz []byte) error {
	body, err := pprofwire.Gunzip(gz, maxRequest)
	if err != nil {
		return err
	}
	var request collector.ExportProfilesServiceRequest
	if err := proto.Unmarshal(body, &request); err != nil {
		return err
	}
	of, d := request.ResourceProfiles[0], request.Dictionary
	for _, a := range of.Resource.Attributes {
		p.Labels[strings.ReplaceAll(a.Key, ".", "_")] = a.Value.GetStringValue()
	}
	p.Totals = map[string]int64{}
	for _, one := range of.ScopeProfiles[0].Profiles {
		p.Start, p.Length = time.Unix(0, int64(one.TimeUnixNano)), time.Duration(one.DurationNano)
		text := func(i int32) string { return d.StringTable[i] }
		typ, unit, factor := text(one.SampleType.TypeStrindex), text(one.SampleType.UnitStrindex), int64(1)
		p.Name = text(one.PeriodType.TypeStrindex)
		if p.Name == "cpu" { // as Pyroscope reads it
			p.Name, typ, unit, factor = "process_cpu", "cpu", "nanoseconds", one.Period
		}
		id := strings.Join([]string{p.Name, typ, unit, text(one.PeriodType.TypeStrindex), text(one.PeriodType.UnitStrindex)}, ":")
		for _, s := range one.Samples {
			if s.StackIndex > 0 {
				p.Totals[id] += s.Values[0] * factor
			}
		}
	}
	return nil
}

// ReadPprof fills in what the pprof says; the name must be known.
func (p *Profile) ReadPprof(gz []byte) error {
	prof, err := profile.Parse(bytes.NewReader(gz))
	if err != nil {
		return err
	}
	p.Start, p.Length = time.Unix(0, prof.TimeNanos), time.Duration(prof.DurationNanos)
	p.Totals = map[string]int64{}
	period := prof.PeriodType
	if period == nil {
		period = &profile.ValueType{}
	}
	for i, st := range prof.SampleType {
		id := strings.Join([]string{p.Name, st.Type, st.Unit, period.Type, period.Unit}, ":")
		for _, s := range prof.Sample {
			if len(s.Location) > 0 {
				p.Totals[id] += s.Value[i]
			}
		}
	}
	return nil
}
