package push

import (
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/profiles/v1development"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip" // every server of OTLP has it
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"spanflame/internal/otlpwire"
	"spanflame/internal/pprofwire"
)

// otlpServer is a server of OTLP by the protocol's own code. It has the last request.
type otlpServer struct {
	collector.UnimplementedProfilesServiceServer
	request *collector.ExportProfilesServiceRequest
	header  map[string][]string
	answer  *collector.ExportProfilesServiceResponse
	err     error
}

func (s *otlpServer) Export(ctx context.Context, r *collector.ExportProfilesServiceRequest) (*collector.ExportProfilesServiceResponse, error) {
	s.header, _ = metadata.FromIncomingContext(ctx)
	s.request = r
	return s.answer, s.err
}

// overGRPC serves s and returns its URL.
func overGRPC(t *testing.T, s *otlpServer) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	g := grpc.NewServer()
	collector.RegisterProfilesServiceServer(g, s)
	done := make(chan error)
	go func() { done <- g.Serve(listener) }()
	t.Cleanup(func() {
		g.Stop()
		must(t, <-done)
	})
	return "http://" + listener.Addr().String()
}

// overHTTP serves s and returns the full URL.
func overHTTP(t *testing.T, s *otlpServer, path string) string {
	t.Helper()
	return server(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != path {
			http.NotFound(w, r) // as the question for the version, which no Collector answers
			return
		}
		body, err := io.ReadAll(r.Body)
		if err == nil && r.Header.Get("Content-Encoding") == "gzip" && r.Header.Get("Content-Type") == otlpType {
			body, err = pprofwire.Gunzip(body, maxProfileBytes)
		}
		s.header, s.request = r.Header, &collector.ExportProfilesServiceRequest{}
		if err == nil {
			err = proto.Unmarshal(body, s.request)
		}
		if err != nil {
			t.Error(err)
		}
		answer := proto.Message(s.answer)
		if s.err != nil {
			answer = status.Convert(s.err).Proto()
			w.Header().Set("Content-Type", otlpType)
			w.WriteHeader(map[codes.Code]int{codes.InvalidArgument: 400, codes.Unavailable: 503}[status.Code(s.err)])
		}
		w.Header().Set("Content-Type", otlpType)
		b, err := proto.Marshal(answer)
		must(t, err)
		_, _ = w.Write(b)
	}).URL + path
}

// TestOTLP: a server of the protocol's own code reads a record as it was, and its answers have their outcome.
func TestOTLP(t *testing.T) {
	for name, tc := range map[string]struct {
		protocol Protocol
		serve    func(t *testing.T, s *otlpServer) string
	}{
		"HTTP":           {OTLPHTTP, func(t *testing.T, s *otlpServer) string { return overHTTP(t, s, otlpwire.Path) }},
		"HTTP elsewhere": {OTLPHTTP, func(t *testing.T, s *otlpServer) string { return overHTTP(t, s, "/profiles/of/shop") }},
		"gRPC":           {OTLPGRPC, overGRPC},
	} {
		t.Run(name, func(t *testing.T) {
			s := &otlpServer{answer: &collector.ExportProfilesServiceResponse{}}
			c := client(t, Config{Protocol: tc.protocol, URL: tc.serve(t, s), Headers: map[string]string{"X-Key": "k"}})
			r := cpuRecord()
			r.Labels = map[string]string{"region": "eu", "service_instance_id": "a-1", "deployment_environment_name": "prod"}
			r.Profile = pack(newProfile(2, func(i int) map[string][]string {
				return map[string][]string{"span_id": {"010203040506070" + string('0'+rune(i))}, "trace_id": {strings.Repeat("ab", 16)}}
			}))
			if res := c.Push(t.Context(), r); res.Outcome != Accepted || res.Changes.TraceIDs != 2 {
				t.Fatalf("%+v", res)
			}
			if got := s.header["X-Key"]; len(got) != 1 && len(s.header["x-key"]) != 1 {
				t.Errorf("the server saw the headers %v", s.header)
			}
			of := s.request.ResourceProfiles[0]
			resource := map[string]string{}
			for _, a := range of.Resource.Attributes {
				resource[a.Key] = a.Value.GetStringValue()
			}
			want := map[string]string{"service.name": r.Service, "region": "eu", "service.instance.id": "a-1", "deployment.environment.name": "prod"}
			if !maps.Equal(resource, want) {
				t.Errorf("the resource is %v, want %v", resource, want)
			}
			p := of.ScopeProfiles[0].Profiles
			if len(p) != 1 || len(p[0].Samples) != 2 || len(s.request.Dictionary.LinkTable) != 3 || len(s.request.Dictionary.LinkTable[1].TraceId) > 0 {
				t.Errorf("profiles %v, links %v, want one with two samples, and links to two spans without their trace", p, s.request.Dictionary.LinkTable)
			}

			s.answer.PartialSuccess = &collector.ExportProfilesPartialSuccess{RejectedProfiles: 1, ErrorMessage: "no room"}
			if res := c.Push(t.Context(), r); res.Outcome != Permanent || !strings.Contains(res.Reason, "1 profiles rejected: no room") {
				t.Errorf("rejected: %+v", res)
			}
			s.err = status.Error(codes.InvalidArgument, "100% wrong: größer")
			if res := c.Push(t.Context(), r); res.Outcome != Permanent || !strings.Contains(res.Reason, "100% wrong: größer") {
				t.Errorf("invalid: %+v", res)
			}
			s.err = status.Error(codes.Unavailable, "busy")
			if res := c.Push(t.Context(), r); res.Outcome != Transient || !strings.Contains(res.Reason, "busy") {
				t.Errorf("unavailable: %+v", res)
			}
		})
	}
}

// TestOTLPAnswers has what differs from the answers of TestAnswers. The texts of Pyroscope are as version 1.21.1 gave them.
func TestOTLPAnswers(t *testing.T) {
	overHTTP := func(status int, contentType, body string) answer {
		return readOTLP(&http.Response{StatusCode: status, Header: http.Header{"Content-Type": {contentType}}}, []byte(body))
	}
	overGRPC := func(status, message string) answer {
		return readGRPC(&http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {grpcType}},
			Trailer: http.Header{"Grpc-Status": {status}, "Grpc-Message": {message}}}, nil)
	}
	const failed = "failed to make a GRPC request: "
	for name, tc := range map[string]struct {
		answer
		want Outcome
		says string
	}{
		"accepted":                {overHTTP(200, otlpType, ""), Accepted, ""},
		"accepted over gRPC":      {overGRPC("0", ""), Accepted, ""},
		"a web page":              {overHTTP(200, "text/html", "\x08"), Transient, "check the server's URL"},
		"no content type":         {overHTTP(200, "", ""), Transient, "check the server's URL"},
		"a page in place of gRPC": {readGRPC(&http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/html"}}}, nil), Transient, "check the"},
		"gRPC without a status":   {readGRPC(&http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {grpcType}}}, nil), Transient, "no gRPC status"},
		"no profiles there":       {overHTTP(404, "text/plain", "404 page not found"), Transient, "no OTLP service for profiles"},
		"no profiles over gRPC":   {overGRPC("12", "unknown service"), Transient, "no OTLP service for profiles"},
		"rate":                    {overHTTP(500, "text/plain", failed+"push rate limit (4.0 MiB) exceeded while adding 1.8 MiB"), Throttled, "push rate limit"},
		"rate over gRPC":          {overGRPC("2", failed+"push rate limit (4.0 MiB) exceeded while adding 1.8 MiB"), Throttled, "push rate limit"},
		"too old":                 {overHTTP(400, "text/plain", failed+"profile is outside of ingestion window"), TooOld, "reject_older_than"},
		"too old over gRPC":       {overGRPC("2", failed+"profile is outside of ingestion window"), TooOld, "reject_older_than"},
		"active series":           {overGRPC("2", failed+"Maximum active series limit exceeded (5000/5000)"), Permanent, "max_global_series"},
		"message size":            {overGRPC("8", "grpc: received message larger than max (5000000 vs. 4194304)"), Permanent, "larger than max"},
		"busy":                    {overGRPC("8", "slow down"), Throttled, "slow down"},
		"credentials":             {overGRPC("16", "no org id"), Transient, "check user, password, token and tenant"},
		"internal":                {overHTTP(500, "text/plain", failed+"ingester down"), Transient, "ingester down"},
		"internal over gRPC":      {overGRPC("13", "boom"), Transient, "boom"},
		"a damaged status":        {overGRPC("14", "50%"), Transient, "50%"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := classify(tc.answer, time.Now(), plain.clean); got.Outcome != tc.want || !strings.Contains(got.Reason, tc.says) {
				t.Errorf("got %v %q, want %v with %q", got.Outcome, got.Reason, tc.want, tc.says)
			}
		})
	}
}

// TestOTLPLeavesRoomForLabels: Pyroscope adds labels to those that it is sent, and refuses a series above 30.
func TestOTLPLeavesRoomForLabels(t *testing.T) {
	s := &otlpServer{answer: &collector.ExportProfilesServiceResponse{}}
	c := client(t, Config{Protocol: OTLPGRPC, URL: overGRPC(t, s)})
	r := cpuRecord()
	for i := range 40 {
		r.Labels["label_"+string('A'+rune(i))] = "x"
	}
	if res := c.Push(t.Context(), r); res.Outcome != Accepted || res.Changes.Dropped == 0 {
		t.Fatalf("%+v", res)
	}
	// With these, the name of the profile, __otel__, __delta__ and service_name.
	if n := len(s.request.ResourceProfiles[0].Resource.Attributes) + 4; n != maxLabels {
		t.Errorf("the series has %d labels, want %d", n, maxLabels)
	}
}
