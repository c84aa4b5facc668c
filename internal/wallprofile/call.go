package wallprofile

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Call is what a client span asked of a database or of another service.
type Call struct {
	kind *callKind // nil for no call
	what string    // how a statement begins, as it is in the span, or "GET inventory:8080"

	statement bool
	names     bool // double quotes in the statement are those of names
}

// callKind is a kind of calls. During one, what it waits for is one of the waits, or has no name.
type callKind struct {
	name, plural string
	waits        []string
}

var callKinds = []*callKind{
	{"query", "queries", []string{dbAnswer, dbCommit}},
	{"HTTP call", "HTTP calls", []string{httpAnswer, httpBody, httpConnection}},
	{"gRPC call", "gRPC calls", []string{grpcAnswer, grpcMessage}},
}

// CallOf returns the call of a client span, from its attributes by OpenTelemetry's conventions, of today or older ones. An
// attribute that the span does not have is empty. The call keeps a copy of what it needs, not the attributes.
func CallOf(attribute func(key string) string) Call {
	c := callOf(attribute)
	c.what = strings.Clone(c.what[:min(len(c.what), maxAsked)])
	return c
}

func callOf(attribute func(key string) string) Call {
	first := func(keys ...string) (value string) {
		for _, key := range keys {
			if value = attribute(key); value != "" {
				break
			}
		}
		return value
	}
	if statement := first("db.query.text", "db.statement"); statement != "" {
		names := slices.Contains(quoteNames, first("db.system.name", "db.system"))
		return Call{kind: callKinds[0], what: statement, statement: true, names: names}
	}
	if operation := first("db.query.summary", "db.operation.name", "db.operation"); operation != "" {
		return Call{kind: callKinds[0], what: strings.TrimSpace(operation + " " + first("db.collection.name", "db.sql.table"))}
	}
	if method := attribute("rpc.method"); method != "" {
		if service := attribute("rpc.service"); service != "" && !strings.Contains(method, "/") {
			method = service + "/" + method
		}
		return Call{kind: callKinds[2], what: method}
	}
	method := first("http.request.method", "http.method")
	if method == "" {
		return Call{}
	}
	host, port := first("server.address", "net.peer.name"), first("server.port", "net.peer.port")
	if u, err := url.Parse(first("url.full", "http.url")); host == "" && err == nil {
		host, port = u.Hostname(), u.Port()
	}
	if port != "" {
		port = ":" + port
	}
	return Call{kind: callKinds[1], what: strings.TrimSpace(method + " " + host + port)}
}

// Frame returns the frame below that of the span, such as "query: SELECT name FROM article WHERE id = ?", empty for no call.
func (c Call) Frame() string {
	if c.kind == nil {
		return ""
	}
	what := c.what
	if c.statement {
		what = statement(what, c.names)
	}
	if what = shorten(what); what == "" {
		return ""
	}
	return c.kind.name + ": " + what
}

// callIn takes a frame of Frame apart; the kind is nil for any other frame.
func callIn(frame string) (kind *callKind, what string) {
	for _, k := range callKinds {
		if rest, ok := strings.CutPrefix(frame, k.name); ok {
			if what, ok := strings.CutPrefix(rest, ": "); ok {
				return k, what
			}
		}
	}
	return nil, ""
}

// IsCall reports whether a frame is one of [Call.Frame].
func IsCall(frame string) bool {
	kind, _ := callIn(frame)
	return kind != nil
}

// during reports whether the time at a place was a part of the call whose frame is above it: it ran for the call, or waited for
// its answer. The wait for a connection of a pool is no part of a query.
func (p Place) during(frame string) bool {
	kind, _ := callIn(frame)
	switch {
	case kind == nil:
		return false
	case p.For != "":
		return slices.Contains(kind.waits, p.For)
	}
	return KindOf(p.Leaf) == KindRunning || KindOf(p.Leaf) == KindSyscall
}

// Call returns the frame of the call to which nearly all of the time at a place belongs, of the time by frame, which is empty
// outside of calls. Of a call that was made several times, by the counts, a quarter is enough if there was no other one: the
// rest is what the function did before and after each. It is empty if there is none.
func (p Place) Call(calls map[string]time.Duration, counts map[string]int) (frame string) {
	var whole time.Duration
	for _, took := range calls {
		whole += took
	}
	frame, ok := NearlyAll(calls, whole)
	if within := whole - calls[""]; !ok && 4*within >= whole {
		for one, took := range calls {
			if counts[one] > 1 && Nearly(took, within) {
				frame = one
			}
		}
	}
	if !p.during(frame) {
		return ""
	}
	return frame
}

// InCalls returns what a diagnosis says of the calls in which the time passed, such as ", in 48 queries one after the other:
// SELECT …". It is empty without a frame. The number is 0 if it is not known.
func InCalls(frame string, n int) string {
	switch kind, what := callIn(frame); {
	case kind == nil:
		return ""
	case n > 1:
		return fmt.Sprintf(", in %d %s one after the other: %s", n, kind.plural, what)
	default:
		return fmt.Sprintf(", in the %s %s", kind.name, what)
	}
}

// Limits of what a call keeps, in bytes, and of what its frame shows of it, in characters.
const (
	maxAsked = 2000
	maxCall  = 100
)

// sqlWords begin the statements that are shown. Others may have values without quotes, as those of Redis.
var sqlWords = []string{"SELECT", "INSERT", "UPDATE", "DELETE", "WITH", "MERGE", "REPLACE", "CALL", "COPY", "BEGIN", "COMMIT", "ROLLBACK", "FETCH"}

const value = `(?:\?|[$:@]\w+)`

var (
	list     = regexp.MustCompile(`\(` + value + `(?: ?, ?` + value + `)+\)`)
	lists    = regexp.MustCompile(`\(` + value + `\)(?: ?, ?\(` + value + `\))+|\(…\)(?: ?, ?\(…\))+`)
	selected = regexp.MustCompile(`(?i)^(SELECT )(.*?)( FROM )`)
)

// quoteNames are databases for which text in double quotes is a name. To others it may be a value.
var quoteNames = []string{"postgresql", "cockroachdb", "aws.redshift", "redshift", "oracle.db", "oracle"}

// statement returns an SQL statement without its values and comments, and with lists of values as "(…)", so that statements
// which differ in values alone are equal. Of a statement in another language, only its first word is left.
func statement(s string, names bool) string {
	s = withoutValues(s, names)
	words := strings.Fields(s)
	switch {
	case len(words) == 0 || !isWord(words[0][0]):
		return ""
	case !slices.Contains(sqlWords, strings.ToUpper(words[0])):
		return words[0]
	}
	s = lists.ReplaceAllString(list.ReplaceAllString(strings.Join(words, " "), "(…)"), "(…)")
	if utf8.RuneCountInString(s) > maxCall {
		s = selected.ReplaceAllString(s, "${1}…${3}")
	}
	return s
}

// withoutValues replaces the values of a statement by question marks, and comments by spaces. What is not closed goes on to the
// end, and so does text in quotes with a backslash: whether that is before a quote which does not close it depends on the
// database and its settings.
func withoutValues(s string, names bool) string {
	var b strings.Builder
	for len(s) > 0 {
		c, n := s[0], 1
		switch {
		case c == '\'' || c == '"' || c == '`':
			closed := false
			if n, closed = quoted(s); closed && (c == '`' || c == '"' && names) {
				b.WriteString(s[:n])
			} else {
				b.WriteByte('?')
			}
		case strings.HasPrefix(s, "--"):
			n = until(s, "\n")
			b.WriteByte(' ')
		case strings.HasPrefix(s, "/*"):
			n = until(s, "*/")
			b.WriteByte(' ')
		case c == '$' && dollar.MatchString(s):
			tag := dollar.FindString(s)
			n = len(tag) + until(s[len(tag):], tag)
			b.WriteByte('?')
		case c == '$' || c == ':' || c == '@' || isWord(c):
			digit := '0' <= c && c <= '9'
			for n < len(s) && (isWord(s[n]) || digit && s[n] == '.') {
				n++
			}
			switch {
			case digit:
				b.WriteByte('?')
			case n > 2 || n == len(s) || s[n] != '\'': // and not the N of N'…'
				b.WriteString(s[:n])
			}
		default:
			b.WriteByte(c)
		}
		s = s[n:]
	}
	return b.String()
}

var dollar = regexp.MustCompile(`^\$(?:[A-Za-z_]\w*)?\$`) // quotes of PostgreSQL

func isWord(c byte) bool {
	return c == '_' || c >= utf8.RuneSelf || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// quoted returns the length of the text in quotes with which s begins, and whether that is certain; else it is all of s.
func quoted(s string) (n int, closed bool) {
	for i := 1; i < len(s) && s[i] != '\\'; i++ {
		if s[i] != s[0] {
			continue
		}
		if i+1 == len(s) || s[i+1] != s[0] {
			return i + 1, true
		}
		i++
	}
	return len(s), false
}

// until returns the length of s up to the end of what is in it, or of all of s.
func until(s, what string) int {
	if i := strings.Index(s, what); i >= 0 {
		return i + len(what)
	}
	return len(s)
}

// shorten makes text fit into a frame: printable, and not too long.
func shorten(s string) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n++; n > maxCall {
			b.WriteString("…")
			break
		}
		if !unicode.IsPrint(r) {
			r = unicode.ReplacementChar
		}
		b.WriteRune(r)
	}
	return b.String()
}
