package faultproxy

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/google/pprof/profile"
	"google.golang.org/protobuf/encoding/protowire"
)

// The calls that carry a profile.
const (
	pushPath   = "/push.v1.PusherService/Push"
	ingestPath = "/ingest"
)

func carriesProfile(path string) bool { return path == pushPath || path == ingestPath }

// Profile is what identifies a profile, and what it weighs. One sent to /ingest has a Name alone.
type Profile struct {
	Name   string            // what it measures, such as process_cpu; of /ingest the application's name
	Labels map[string]string // of its series, without the name
	Start  time.Time         // TimeNanos of the pprof
	Length time.Duration     // DurationNanos of the pprof
	Totals map[string]int64  // by Pyroscope's name of the profile type: sum of the samples that have a stack
	Err    error             // why it could not be read
}

// readProfile reads what a request carries.
func readProfile(r *http.Request, body []byte) Profile {
	if r.URL.Path == ingestPath {
		name, _, _ := strings.Cut(r.URL.Query().Get("name"), "{")
		return Profile{Name: name}
	}
	p := Profile{Labels: map[string]string{}}
	raw, err := p.readPush(body)
	if err == nil {
		err = p.ReadPprof(raw)
	}
	p.Err = err
	return p
}

// readPush reads the labels of a push.v1.PushRequest with one series of one profile, and returns its pprof.
func (p *Profile) readPush(body []byte) (raw []byte, err error) {
	err = messages(body, func(_ protowire.Number, series []byte) error {
		return messages(series, func(field protowire.Number, value []byte) error {
			switch field {
			case 1: // a label
				var name, text string
				err := messages(value, func(field protowire.Number, v []byte) error {
					if field == 1 {
						name = string(v)
					} else {
						text = string(v)
					}
					return nil
				})
				if name == "__name__" {
					p.Name = text
				} else {
					p.Labels[name] = text
				}
				return err
			case 2: // a sample, whose first field is the profile
				return messages(value, func(field protowire.Number, v []byte) error {
					if field == 1 {
						raw = v
					}
					return nil
				})
			}
			return nil
		})
	})
	return raw, err
}

// messages calls f for every field of a message that holds bytes.
func messages(b []byte, f func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if typ != protowire.BytesType {
			return fmt.Errorf("field %d is no message", num)
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := f(num, v); err != nil {
			return err
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
