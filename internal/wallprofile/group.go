package wallprofile

import (
	"regexp"
	"strings"
)

var (
	position = regexp.MustCompile(` \([^\s()]+:\d+\)`)
	partOf   = regexp.MustCompile(`\d+ ms of it`)
	number   = regexp.MustCompile(`( \d[\d.]*:\d+)|(^| )\(?\d[\d.,]*( (ms|s|%))?\)?`) // or an address, which is kept
	byCaller = regexp.MustCompile(calledBy + `\S*[^\s,]`)
)

const calledBy = ", called by "

// WithoutCaller returns what WithoutNumbers returned without the caller of the last function: that is how the request came to
// wait, and what it waited for is the same for all callers.
func WithoutCaller(cause string) string { return byCaller.ReplaceAllString(cause, "") }

// WithoutNumbers returns what the diagnoses of one cause have in common: the text of a diagnosis after its duration and the
// name of its span, without numbers, such as "waiting for a mutex in main.reserve: mostly in sql.(*Tx).Commit". Who was
// waited for is left out where the text says what they did: a queue has others in front each time.
func WithoutNumbers(diagnosis, span string) string {
	if _, rest, ok := strings.Cut(diagnosis, " "+span+": "); ok {
		diagnosis = rest
	}
	diagnosis = position.ReplaceAllString(diagnosis, "")
	text := number.ReplaceAllString(partOf.ReplaceAllString(diagnosis, "mostly"), "$1$2")
	text = strings.ReplaceAll(strings.Join(strings.Fields(text), " "), " : mostly ", ": mostly ")
	if end := strings.LastIndex(text, ": mostly "); end >= 0 {
		for _, l := range links[NoLink+1:] {
			verb, _, _ := strings.Cut(l, " ")
			kept := ""
			if l == links[BusyWith] { // which is no wait for one of them
				verb, kept = "the CPUs busy", ", the CPUs busy"
			}
			if start := strings.Index(text[:end], ", "+verb+" "); start >= 0 {
				return text[:start] + kept + text[end:]
			}
		}
	}
	return text
}

// streams are functions that send or receive a part of a stream on behalf of a server's handler.
var streams = []string{"net/http.(*response).FlushError", "net/http.(*http2responseWriter).FlushError", "google.golang.org/grpc.(*serverStream)."}

// hijack takes a connection over from the server, as WebSockets do: what is read from it then may come at any time.
const hijack = "net/http.(*response).Hijack"

// Streams reports whether a function sends or receives a part of a stream on behalf of a server's handler, or takes the
// connection over.
func Streams(function string) bool { return function == hijack || hasPrefix(function, streams) }

// Idle reports whether a goroutine that waited at a place did so for something that may come at any time: for no lock, no
// answer and nothing else that has a name, except the next message of a stream. Over is whether its handler has taken the
// connection over.
func (p Place) Idle(over bool) bool {
	switch byLeaf[p.Leaf] {
	case WaitSelect, WaitReceive, WaitCond, WaitSleep, WaitOther:
		return p.For == "" || p.For == grpcMessage
	case WaitNetwork:
		return over && p.For == ""
	}
	return false
}

// TakesOver reports whether a function takes a connection over from the server.
func TakesOver(function string) bool { return function == hijack }
