package push

import (
	"encoding/binary"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"spanflame/agent/internal/identity"
	"spanflame/internal/otlpwire"
	"spanflame/internal/pprofwire"
	"spanflame/internal/pyroscopewire"
	"spanflame/internal/record"
)

// Protocol is how profiles are sent.
type Protocol string

// The protocols.
const (
	Pyroscope Protocol = ""              // Pyroscope's own
	OTLPHTTP  Protocol = "http/protobuf" // OTLP over HTTP
	OTLPGRPC  Protocol = "grpc"          // OTLP over gRPC
)

// protocol is what distinguishes a protocol from the others.
type protocol struct {
	path    string            // below the server's address
	full    bool              // the configuration's URL has the path, which may be another one
	headers map[string]string // of a request
	adds    int               // labels that Pyroscope adds to those that it is sent
	http    *http.Protocols   // nil for those that the server chooses
	encode  func(labels []pyroscopewire.Label, typ record.Type, profile []byte) (body []byte, err error)
	read    func(resp *http.Response, body []byte) answer
}

var protocols = map[Protocol]protocol{
	Pyroscope: {
		path:    "/push.v1.PusherService/Push",
		headers: map[string]string{"Content-Type": pyroscopeType, "Connect-Protocol-Version": "1"},
		encode: func(labels []pyroscopewire.Label, _ record.Type, profile []byte) ([]byte, error) {
			return pyroscopewire.Push(labels, profile), nil
		},
		read: func(resp *http.Response, body []byte) answer {
			return newAnswer(resp, body, "Pyroscope push service", pyroscopeType)
		},
	},
	OTLPHTTP: {
		path:    otlpwire.Path,
		full:    true,
		headers: map[string]string{"Content-Type": otlpType, "Content-Encoding": "gzip"},
		adds:    otlpAdds,
		encode: func(labels []pyroscopewire.Label, typ record.Type, profile []byte) ([]byte, error) {
			request, err := otlpRequest(labels, typ, profile)
			return pprofwire.Gzip(request), err
		},
		read: readOTLP,
	},
	OTLPGRPC: {
		path:    otlpwire.Method,
		headers: map[string]string{"Content-Type": grpcType, "Te": "trailers", "Grpc-Encoding": "gzip"},
		adds:    otlpAdds,
		http:    http2(),
		encode: func(labels []pyroscopewire.Label, typ record.Type, profile []byte) ([]byte, error) {
			request, err := otlpRequest(labels, typ, profile)
			return grpcMessage(pprofwire.Gzip(request)), err
		},
		read: readGRPC,
	},
}

func newAnswer(resp *http.Response, body []byte, from, wants string) answer {
	return answer{
		from:        from,
		wants:       wants,
		status:      resp.StatusCode,
		contentType: resp.Header.Get("Content-Type"),
		retryAfter:  resp.Header.Get("Retry-After"),
		location:    resp.Header.Get("Location"),
		body:        body,
	}
}

const (
	pyroscopeType = "application/proto"

	otlpService = "OTLP service for profiles"
	otlpType    = "application/x-protobuf"

	// otlpAdds is what Pyroscope adds to the labels of a profile by OTLP: __otel__, __delta__ to all types, and the
	// service's name under a second name.
	otlpAdds = 3
)

// otlpRequest returns the request for a profile. Labels that are attributes on the other signals have the same names here.
func otlpRequest(labels []pyroscopewire.Label, typ record.Type, profile []byte) ([]byte, error) {
	raw, err := decompress(profile)
	if err != nil {
		return nil, err
	}
	p, err := parse(raw)
	if err != nil {
		return nil, err
	}
	var resource []otlpwire.Attribute
	for _, l := range labels {
		if strings.HasPrefix(l.Name, "__") {
			continue // Pyroscope sets these itself
		}
		name := l.Name
		if i := slices.IndexFunc(identity.Keys, func(key string) bool { return identity.Label(key) == name }); i >= 0 {
			name = identity.Keys[i]
		}
		resource = append(resource, otlpwire.Attribute{Name: name, Value: l.Value})
	}
	return otlpwire.Request(resource, typ, p)
}

// readOTLP reads an answer over HTTP.
func readOTLP(resp *http.Response, body []byte) answer {
	a := newAnswer(resp, body, otlpService, otlpType)
	switch {
	case a.status/100 == 2:
		a.refused = refused(body)
	case strings.HasPrefix(a.contentType, otlpType):
		a.body = []byte(otlpwire.Message(body))
	}
	a.status = pyroscopeStatus(a.status, string(a.body))
	return a
}

// refused returns why a server did not accept all profiles of a request, as its answer says.
func refused(answer []byte) string {
	switch n, why, err := otlpwire.Rejected(answer); {
	case err != nil:
		return "the answer cannot be read: " + err.Error()
	case n > 0:
		return fmt.Sprintf("%d profiles rejected: %s", n, why)
	}
	return ""
}

// pyroscopeStatus returns the status of the same answer by Pyroscope's own protocol. By OTLP it answers all errors except
// those of validation with 500.
func pyroscopeStatus(status int, text string) int {
	if status == http.StatusInternalServerError && (rateWords.MatchString(text) || sizeWords.MatchString(text) || windowWords.MatchString(text)) {
		return http.StatusUnprocessableEntity
	}
	return status
}

const grpcType = "application/grpc"

// http2 is what gRPC needs, encrypted or not.
func http2() *http.Protocols {
	var p http.Protocols
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	return &p
}

// grpcPrefix is the length of what stands before each message: whether it is compressed, and its length.
const grpcPrefix = 5

// grpcMessage returns a compressed message with its prefix.
func grpcMessage(compressed []byte) []byte {
	b := make([]byte, grpcPrefix, grpcPrefix+len(compressed))
	b[0] = 1
	binary.BigEndian.PutUint32(b[1:], uint32(len(compressed)))
	return append(b, compressed...)
}

// grpcStatus has the HTTP statuses that mean the same as statuses of gRPC. The others are errors of the server.
var grpcStatus = map[int]int{
	3: http.StatusBadRequest, 5: http.StatusNotFound, 7: http.StatusForbidden, 8: http.StatusTooManyRequests,
	9: http.StatusBadRequest, 12: http.StatusNotImplemented, 14: http.StatusServiceUnavailable, 16: http.StatusUnauthorized,
}

// readGRPC reads an answer over gRPC, whose status is in the trailer, or in the header if there is nothing else.
func readGRPC(resp *http.Response, body []byte) answer {
	a := newAnswer(resp, body, otlpService, grpcType)
	if a.status != http.StatusOK || !strings.HasPrefix(a.contentType, grpcType) {
		return a
	}
	from := resp.Trailer
	if from.Get("Grpc-Status") == "" {
		from = resp.Header
	}
	status, err := strconv.Atoi(from.Get("Grpc-Status"))
	switch {
	case err != nil:
		a.status, a.body = http.StatusBadGateway, []byte("the answer has no gRPC status")
	case status == 0 && len(body) >= grpcPrefix:
		message := body[grpcPrefix:]
		if body[0] == 1 { // compressed, as the request was
			message, err = pprofwire.Gunzip(message, maxAnswerBytes)
		}
		if a.refused = refused(message); err != nil {
			a.refused = "the answer cannot be read: " + err.Error()
		}
	case status != 0:
		message, err := url.PathUnescape(from.Get("Grpc-Message"))
		if err != nil {
			message = from.Get("Grpc-Message")
		}
		a.body = fmt.Appendf(nil, "%s (gRPC status %d)", message, status)
		a.status = http.StatusInternalServerError
		if s, ok := grpcStatus[status]; ok {
			a.status = s
		}
		a.status = pyroscopeStatus(a.status, message)
	}
	return a
}
