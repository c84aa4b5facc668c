package otlpwire

import (
	"encoding/hex"
	"maps"
	"testing"

	"github.com/google/pprof/profile"
	collector "go.opentelemetry.io/proto/otlp/collector/profiles/v1development"
	profiles "go.opentelemetry.io/proto/otlp/profiles/v1development"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"spanflame/internal/record"
)

const (
	span  = "0102030405060708"
	trace = "0102030405060708090a0b0c0d0e0f10"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// made has two sample types, inlined functions, shared locations, samples with and without links, and one without a stack.
func made() *profile.Profile {
	m := &profile.Mapping{ID: 1, Start: 0x400000, Limit: 0x500000, Offset: 0x10, File: "/bin/shop"}
	f := &profile.Function{ID: 1, Name: "main.f", SystemName: "main.f", Filename: "f.go", StartLine: 3}
	g := &profile.Function{ID: 2, Name: "main.g", SystemName: "main.g", Filename: "g.go"}
	leaf := &profile.Location{ID: 1, Mapping: m, Address: 0x400100, Line: []profile.Line{{Function: g, Line: 7, Column: 2}, {Function: f, Line: 9}}}
	root := &profile.Location{ID: 2, Line: []profile.Line{{Function: f, Line: 11}}}
	return &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "contentions", Unit: "count"}, {Type: "delay", Unit: "nanoseconds"}},
		PeriodType: &profile.ValueType{Type: "contentions", Unit: "count"},
		TimeNanos:  1_767_323_045_000_000_006, DurationNanos: 15e9,
		Mapping: []*profile.Mapping{m}, Function: []*profile.Function{f, g}, Location: []*profile.Location{leaf, root},
		Sample: []*profile.Sample{
			{Location: []*profile.Location{leaf, root}, Value: []int64{1, 1 << 40},
				Label: map[string][]string{"span_id": {span}, "trace_id": {trace}, "span_name": {"GET /"}}, NumLabel: map[string][]int64{"bytes": {48}}},
			{Location: []*profile.Location{leaf, root}, Value: []int64{2, 0}, Label: map[string][]string{"span_id": {span}}},
			{Location: []*profile.Location{root}, Value: []int64{4, -8}, Label: map[string][]string{"span_id": {"none"}}},
			{Value: []int64{8, 16}},
		},
	}
}

// read decodes a request with the protocol's generated types.
func read(t *testing.T, request []byte) *collector.ExportProfilesServiceRequest {
	t.Helper()
	var r collector.ExportProfilesServiceRequest
	must(t, proto.Unmarshal(request, &r))
	if len(r.ProtoReflect().GetUnknown()) > 0 {
		t.Error("the request has unknown fields")
	}
	return &r
}

// lines describes the samples of a profile by stack, attributes and link, with their values.
func lines(d *profiles.ProfilesDictionary, p *profiles.Profile) map[string]int64 {
	all := map[string]int64{}
	for _, s := range p.Samples {
		key := ""
		for _, l := range d.StackTable[s.StackIndex].LocationIndices {
			for _, x := range d.LocationTable[l].Lines {
				key += d.StringTable[d.FunctionTable[x.FunctionIndex].NameStrindex] + " "
			}
		}
		for _, a := range s.AttributeIndices {
			key += d.StringTable[d.AttributeTable[a].KeyStrindex] + "=" + d.AttributeTable[a].Value.GetStringValue() + " "
		}
		if s.LinkIndex > 0 {
			key += hex.EncodeToString(d.LinkTable[s.LinkIndex].TraceId) + "/" + hex.EncodeToString(d.LinkTable[s.LinkIndex].SpanId)
		}
		all[key] += s.Values[0]
	}
	return all
}

func request(t *testing.T, resource []Attribute, typ record.Type, p *profile.Profile) []byte {
	t.Helper()
	b, err := Request(resource, typ, p)
	must(t, err)
	return b
}

// TestCPUProfilesWithoutCounts: an accepted request without profiles would count as a delivery.
func TestCPUProfilesWithoutCounts(t *testing.T) {
	cpu, count := &profile.ValueType{Type: "cpu", Unit: "nanoseconds"}, &profile.ValueType{Type: "samples", Unit: "count"}
	for _, p := range []*profile.Profile{
		{SampleType: []*profile.ValueType{cpu}, PeriodType: cpu, Period: 1e7, Sample: []*profile.Sample{{Value: []int64{1e7}}}},
		{SampleType: []*profile.ValueType{count, cpu}, Sample: []*profile.Sample{{Value: []int64{1, 1e7}}}},
	} {
		if b, err := Request(nil, record.CPU, p); err == nil {
			t.Errorf("%v: a request of %d bytes", p, len(b))
		}
	}
}

func TestRequest(t *testing.T) {
	r := read(t, request(t, []Attribute{{"service.name", "shop"}, {"region", "eu"}}, record.Mutex, made()))
	if len(r.ResourceProfiles) != 1 || len(r.ResourceProfiles[0].ScopeProfiles) != 1 {
		t.Fatalf("%v", r)
	}
	of, d := r.ResourceProfiles[0], r.Dictionary
	resource := map[string]string{}
	for _, a := range of.Resource.Attributes {
		resource[a.Key] = a.Value.GetStringValue()
	}
	if !maps.Equal(resource, map[string]string{"service.name": "shop", "region": "eu"}) || of.ScopeProfiles[0].Scope.Name != "spanflame" {
		t.Errorf("%v of %v", resource, of.ScopeProfiles[0].Scope)
	}
	// The first of each table stands for none, and must be empty.
	for name, first := range map[string]proto.Message{
		"mapping": d.MappingTable[0], "location": d.LocationTable[0], "function": d.FunctionTable[0],
		"link": d.LinkTable[0], "attribute": d.AttributeTable[0], "stack": d.StackTable[0],
	} {
		if proto.Size(first) > 0 {
			t.Errorf("the first %s is %v, want it empty", name, first)
		}
	}
	if d.StringTable[0] != "" {
		t.Errorf("the first string is %q", d.StringTable[0])
	}
	if len(d.MappingTable) != 2 || len(d.LocationTable) != 3 || len(d.FunctionTable) != 3 || len(d.StackTable) != 3 || len(d.LinkTable) != 3 {
		t.Errorf("the tables have something twice: %v", d)
	}
	both := of.ScopeProfiles[0].Profiles
	if len(both) != 2 {
		t.Fatalf("%d profiles, want one for each sample type", len(both))
	}
	const g, f = "main.g main.f main.f ", "main.f "
	for i, want := range []struct {
		typ, unit string
		samples   map[string]int64
	}{
		{"contentions", "count", map[string]int64{
			g + "span_name=GET / " + trace + "/" + span: 1, g + "/" + span: 2, f + "span_id=none ": 4, "": 8}},
		{"delay", "nanoseconds", map[string]int64{g + "span_name=GET / " + trace + "/" + span: 1 << 40, f + "span_id=none ": -8, "": 16}},
	} {
		p := both[i]
		if typ := d.StringTable[p.SampleType.TypeStrindex]; typ != want.typ || d.StringTable[p.SampleType.UnitStrindex] != want.unit {
			t.Errorf("profile %d has the sample type %q", i, typ)
		}
		if typ := d.StringTable[p.PeriodType.TypeStrindex]; typ != "mutex" || d.StringTable[p.PeriodType.UnitStrindex] != "count" || p.Period != 1 {
			t.Errorf("profile %d has the period type %q and the period %d", i, typ, p.Period)
		}
		if p.TimeUnixNano != uint64(made().TimeNanos) || p.DurationNano != 15e9 || len(p.ProfileId) != 16 {
			t.Errorf("profile %d is of %d, %d ns, id %x", i, p.TimeUnixNano, p.DurationNano, p.ProfileId)
		}
		if got := lines(d, p); !maps.Equal(got, want.samples) {
			t.Errorf("profile %d has the samples\n%v\nwant\n%v", i, got, want.samples)
		}
	}
	if string(both[0].ProfileId) == string(both[1].ProfileId) {
		t.Error("both profiles have the same ID")
	}
	l := d.LocationTable[1]
	if m := d.MappingTable[l.MappingIndex]; m.MemoryStart != 0x400000 || m.MemoryLimit != 0x500000 || m.FileOffset != 0x10 ||
		d.StringTable[m.FilenameStrindex] != "/bin/shop" {
		t.Errorf("mapping %v", m)
	}
	fn := d.FunctionTable[l.Lines[1].FunctionIndex]
	if l.Address != 0x400100 || l.Lines[0].Line != 7 || l.Lines[0].Column != 2 || d.StringTable[fn.FilenameStrindex] != "f.go" || fn.StartLine != 3 {
		t.Errorf("location %v, function %v", l, fn)
	}
}

// TestCPU: CPU time is sent as samples of a period, which is how Pyroscope reads it.
func TestCPU(t *testing.T) {
	p := made()
	cpu := &profile.ValueType{Type: "cpu", Unit: "nanoseconds"}
	p.SampleType, p.PeriodType, p.Period = []*profile.ValueType{{Type: "samples", Unit: "count"}, cpu}, cpu, 1e7
	r := read(t, request(t, nil, record.CPU, p))
	of, d := r.ResourceProfiles[0].ScopeProfiles[0].Profiles, r.Dictionary
	if len(of) != 1 || d.StringTable[of[0].SampleType.TypeStrindex] != "samples" || d.StringTable[of[0].PeriodType.TypeStrindex] != "cpu" || of[0].Period != 1e7 {
		t.Errorf("%v", of)
	}
}

func TestRejected(t *testing.T) {
	for _, want := range []*collector.ExportProfilesPartialSuccess{nil, {}, {RejectedProfiles: 2, ErrorMessage: "too many"}} {
		answer, err := proto.Marshal(&collector.ExportProfilesServiceResponse{PartialSuccess: want})
		must(t, err)
		n, why, err := Rejected(answer)
		if err != nil || n != want.GetRejectedProfiles() || why != want.GetErrorMessage() {
			t.Errorf("%v: %d %q %v", want, n, why, err)
		}
	}
	if _, _, err := Rejected([]byte("<html>")); err == nil {
		t.Error("a page is read as an answer")
	}
}

func TestMessage(t *testing.T) {
	answer, err := proto.Marshal(status.New(codes.Unavailable, "queue is full").Proto())
	must(t, err)
	for in, want := range map[string]string{string(answer): "queue is full", "<html>": "<html>", "": ""} {
		if got := Message([]byte(in)); got != want {
			t.Errorf("%q is read as %q, want %q", in, got, want)
		}
	}
}
