package wallprofile

import (
	"iter"
	"strings"
)

// waits has what the functions of libraries wait for, the most specific ones first: whichever row comes first and is on
// the stack below the service's own code says it. A row with files is also for system calls, and one that is through for
// whatever these functions call, as a driver may be the service's own.
var waits = []struct {
	what      string
	files     bool
	through   bool
	functions []string // their beginnings
}{
	{"a file to reach the disk (fsync)", true, false, []string{"os.(*File).Sync", "internal/poll.(*FD).Fsync", "syscall.Fsync", "syscall.Fdatasync"}},
	{"a child process", true, false, []string{"os.(*Process).Wait", "os/exec.(*Cmd).Wait"}},
	{"a host's address (DNS)", false, false, []string{"net.(*Resolver)."}},
	{"a TLS handshake", false, false, []string{"crypto/tls.(*Conn).handshakeContext", "crypto/tls.(*Conn).HandshakeContext"}},
	{"a connection to be made", false, false, []string{"net.(*sysDialer).", "net.(*Dialer)."}},
	{"a free connection of database/sql's pool", false, false, []string{"database/sql.(*DB).conn"}},
	{"a free connection of pgxpool", false, false, []string{"github.com/jackc/puddle/v2.(*Pool[...]).", "github.com/jackc/pgx/v5/pgxpool.(*Pool).Acquire"}},
	{dbCommit, false, true, []string{"database/sql.(*Tx).Commit"}},
	{dbAnswer, false, true, []string{"database/sql.ctxDriver", "database/sql.(*Rows).", "database/sql.(*Tx).Rollback"}},
	{dbAnswer, false, false, []string{"github.com/jackc/pgx/v5"}},
	{grpcAnswer, false, false, []string{"google.golang.org/grpc.(*ClientConn).Invoke", "google.golang.org/grpc.invoke"}},
	{grpcMessage, false, false, []string{"google.golang.org/grpc.newClientStream", "google.golang.org/grpc.(*clientStream).",
		"google.golang.org/grpc.(*serverStream)."}},
	{httpBody, false, false, []string{"net/http.(*bodyEOFSignal).Read", "net/http.(*http2transportResponseBody).Read",
		"net/http.http2transportResponseBody.Read"}},
	{httpConnection, false, false, []string{"net/http.(*Transport).getConn"}},
	{httpAnswer, false, false, []string{"net/http.(*persistConn).roundTrip", "net/http.(*http2ClientConn).", "net/http.(*http2clientStream)."}},
	{"the body of the request", false, false, []string{"net/http.(*body).Read", "net/http.(*http2requestBody).Read"}},
	{"a slow client to take the answer", false, false, []string{"net/http.(*response).", "net/http.checkConnErrorWriter.Write", "net/http.(*chunkWriter).",
		"net/http.(*http2responseWriter)."}},
	{"a rate limiter", false, false, []string{"golang.org/x/time/rate.(*Limiter)."}},
	{"a line of the log to be written", true, false, []string{"log.(*Logger).", "log/slog.(*Logger).", "log/slog.(*commonHandler).", "log/slog.(*handleState)."}},
}

// What the clients of databases and of other services wait for.
const (
	dbAnswer = "the database's answer"
	dbCommit = "the database to commit"

	httpConnection = "a connection for an HTTP call"

	httpAnswer  = "the answer of an HTTP call"
	httpBody    = "the body of an HTTP answer"
	grpcAnswer  = "the answer of a gRPC call"
	grpcMessage = "a message of a gRPC stream"
)

// IsAnswer reports whether what a goroutine waits for comes from another service.
func IsAnswer(what string) bool {
	return what == httpAnswer || what == httpBody || what == grpcAnswer || what == grpcMessage
}

// callees are modules whose functions work on behalf of their callers also where their files are not known, as in a span's
// profile from a server, as far as what they wait for is concerned.
var callees = []string{"github.com/jackc/", "google.golang.org/grpc", "golang.org/x/"}

// WaitedFor returns what a goroutine waits for, such as "a free connection of database/sql's pool", from its state and its
// stack, whose functions are given from the innermost outwards with their files. It is empty if the state says it best.
func WaitedFor(leaf string, stack iter.Seq2[string, string]) string {
	kind := KindOf(leaf)
	if kind != KindWaiting && kind != KindSyscall || leaf == WaitSleep.Leaf() {
		return ""
	}
	found, own := len(waits), false
	for function, file := range stack {
		own = own || !OnBehalf(function, file) && !hasPrefix(function, callees)
		for i, w := range waits[:found] {
			if (w.files || kind == KindWaiting) && (w.through || !own) && hasPrefix(function, w.functions) {
				found = i
				break
			}
		}
	}
	if found == len(waits) {
		return ""
	}
	return waits[found].what
}

func hasPrefix(s string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

const waitedForPrefix = "[for: "

// WaitedForFrame returns the frame below a wait that says what it was for.
func WaitedForFrame(what string) string { return waitedForPrefix + what + "]" }

// IsWaitedFor reports whether a frame is one of WaitedForFrame.
func IsWaitedFor(frame string) bool { return strings.HasPrefix(frame, waitedForPrefix) }
