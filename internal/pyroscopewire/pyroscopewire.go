// Package pyroscopewire encodes the requests that are sent to Pyroscope in Protocol Buffers, and reads back the one
// that carries a profile. The agent's push, package internal/query and the proxy of the end-to-end tests use it. It
// sends nothing; requests in JSON need no code.
//
// Pyroscope's generated types are not used: they make a service that sends one request link gRPC and the protobuf
// runtime, which is 131 packages and 8.6 MB more (github.com/grafana/pyroscope/api v1.4.0).
package pyroscopewire

import (
	"fmt"
	"time"

	"spanflame/internal/pprofwire"
)

// Field numbers, by message.
const (
	pushSeries pprofwire.Number = 1 // push.v1.PushRequest

	seriesLabels  pprofwire.Number = 1 // push.v1.RawProfileSeries
	seriesSamples pprofwire.Number = 2

	labelName  pprofwire.Number = 1 // types.v1.LabelPair
	labelValue pprofwire.Number = 2

	sampleProfile pprofwire.Number = 1 // push.v1.RawSample

	mergeProfileType pprofwire.Number = 1 // querier.v1.SelectMergeProfileRequest
	mergeSelector    pprofwire.Number = 2
	mergeStart       pprofwire.Number = 3
	mergeEnd         pprofwire.Number = 4
)

// Label is a label of a series.
type Label struct{ Name, Value string }

// Push returns a push.v1.PushRequest with one series of one profile, which is compressed pprof.
func Push(labels []Label, profile []byte) []byte {
	var series, pair pprofwire.Encoder
	for _, l := range labels {
		pair = pair[:0]
		pair.Text(labelName, l.Name)
		pair.Text(labelValue, l.Value)
		series.Bytes(seriesLabels, pair)
	}
	series.Head(seriesSamples, pprofwire.BytesSize(sampleProfile, len(profile)))
	series.Head(sampleProfile, len(profile))
	size := len(series) + len(profile) // the profile is copied once, to its place
	request := make(pprofwire.Encoder, 0, pprofwire.BytesSize(pushSeries, size))
	request.Head(pushSeries, size)
	return append(append(request, series...), profile...)
}

// ReadPush reads a push.v1.PushRequest as Push returns it. The profile is a part of the request.
func ReadPush(request []byte) (labels []Label, profile []byte, err error) {
	m := pprofwire.NewMessage(request)
	for m.Next() {
		if m.Field != pushSeries {
			m.Fail(unknown("PushRequest", m.Field))
		}
		series := pprofwire.NewMessage(m.Bytes())
		for series.Next() {
			switch series.Field {
			case seriesLabels:
				labels = append(labels, readLabel(&series))
			case seriesSamples:
				profile = readSample(&series)
			default:
				series.Fail(unknown("RawProfileSeries", series.Field))
			}
		}
		m.Fail(series.Err())
	}
	return labels, profile, m.Err()
}

func readLabel(series *pprofwire.Message) (l Label) {
	pair := pprofwire.NewMessage(series.Bytes())
	for pair.Next() {
		switch pair.Field {
		case labelName:
			l.Name = string(pair.Bytes())
		case labelValue:
			l.Value = string(pair.Bytes())
		default:
			pair.Fail(unknown("LabelPair", pair.Field))
		}
	}
	series.Fail(pair.Err())
	return l
}

func readSample(series *pprofwire.Message) (profile []byte) {
	sample := pprofwire.NewMessage(series.Bytes())
	for sample.Next() {
		if sample.Field == sampleProfile {
			profile = sample.Bytes()
		} else {
			sample.Fail(unknown("RawSample", sample.Field))
		}
	}
	series.Fail(sample.Err())
	return profile
}

func unknown(message string, field pprofwire.Number) error {
	return fmt.Errorf("%s: unknown field %d", message, field)
}

// SelectMergeProfile returns a querier.v1.SelectMergeProfileRequest. Its answer in Protocol Buffers is a pprof
// profile.
func SelectMergeProfile(profileType, selector string, start, end time.Time) []byte {
	var request pprofwire.Encoder
	request.Text(mergeProfileType, profileType)
	request.Text(mergeSelector, selector)
	request.Number(mergeStart, uint64(start.UnixMilli()))
	request.Number(mergeEnd, uint64(end.UnixMilli()))
	return request
}
