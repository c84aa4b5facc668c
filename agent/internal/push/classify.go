package push

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"spanflame/internal/redact"
)

// Outcome is the result of a push, which decides what to do with the record next.
type Outcome int

const (
	// Accepted: the server has it.
	Accepted Outcome = iota + 1
	// Permanent: the server will never accept this record. Set it aside with the reason.
	Permanent
	// TooOld: the server refuses the record's time. Keep it as a file; the reason names the setting.
	TooOld
	// Throttled: too much at a time for the server. Send again after RetryAfter, or after a pause.
	Throttled
	// Transient: the network, the server or the configuration is at fault, not the record. Send again later.
	Transient
)

func (o Outcome) String() string {
	switch o {
	case Accepted:
		return "accepted"
	case Permanent:
		return "permanent"
	case TooOld:
		return "too_old"
	case Throttled:
		return "throttled"
	case Transient:
		return "transient"
	}
	return "outcome " + strconv.Itoa(int(o))
}

// Result is the answer to one Push.
type Result struct {
	Outcome    Outcome
	Status     int           // of HTTP; 0 if there was no answer
	Reason     string        // one short line for an operator: printable, without secrets; empty if accepted
	RetryAfter time.Duration // as the server asked, at most an hour; 0 if it did not
	Changes    Changes       // labels that were not sent unchanged
}

const (
	maxReasonBytes = 512
	maxRetryAfter  = time.Hour
)

var errTimeout = errors.New("no answer within the timeout")

// answer is the part of a response that decides.
type answer struct {
	from        string // what should have answered
	wants       string // the content type of its answers
	status      int
	contentType string
	refused     string // why the server did not accept all that it was sent, in an answer of success; else empty
	retryAfter  string
	location    string
	body        []byte
}

// Pyroscope's words, where the status alone does not decide: it answers with the same status for a limit that passes
// and for one that never does.
var (
	rateWords    = regexp.MustCompile(`(?i)push rate limit|rate.?limit|too many requests|limit of .* reached`)
	seriesWords  = regexp.MustCompile(`(?i)active series limit`)
	sizeWords    = regexp.MustCompile(`(?i)larger than (configured )?max|exceeds (the )?(size|body|samples count) ?limit`)
	windowWords  = regexp.MustCompile(`(?i)ingestion window|too old|too far in the (past|future)`)
	schemeWords  = regexp.MustCompile(`(?i)HTTP request (was sent )?to (an )?HTTPS`)
	windowBounds = regexp.MustCompile(`profile timestamp: ([^,]+),.* ends at ([^)]+)`)
)

// classify returns the outcome of any answer. clean makes the server's text safe to show.
func classify(a answer, now time.Time, clean func(string) string) Result {
	said, code := a.said()
	res := Result{Status: a.status, RetryAfter: retryAfter(a.retryAfter, now)}
	outcome := func(o Outcome, format string, args ...any) Result {
		res.Outcome, res.Reason = o, clean(fmt.Sprintf(format, args...))
		return res
	}
	switch s := a.status; {
	case s/100 == 2 && !strings.HasPrefix(a.contentType, a.wants):
		return outcome(Transient, "answered %d with content type %q: not the answer of a %s; check the server's URL", s, a.contentType, a.from)
	case s/100 == 2 && a.refused != "":
		return outcome(Permanent, "not accepted in full: %s", a.refused)
	case s/100 == 2:
		res.Outcome = Accepted
		return res
	case s/100 == 3:
		return outcome(Transient, "redirected to %q (%d), which is not followed: set the server's URL to the address it means", redact.URL(a.location), s)
	case s == http.StatusUnauthorized || s == http.StatusForbidden || code == "unauthenticated" || code == "permission_denied":
		return outcome(Transient, "the server refuses the credentials (%d): %s; check user, password, token and tenant", s, said)
	case s == http.StatusProxyAuthRequired:
		return outcome(Transient, "the proxy refuses the credentials (%d): %s; check HTTPS_PROXY and HTTP_PROXY", s, said)
	case seriesWords.MatchString(said):
		// 429, yet no pause helps this record, and at the head of the queue it would only delay the others.
		return outcome(Permanent, "%s (limits.max_global_series_per_tenant)", said)
	case s == http.StatusTooManyRequests && sizeWords.MatchString(said), s == http.StatusRequestEntityTooLarge:
		return outcome(Permanent, "too large (%d): %s", s, said)
	case s == http.StatusTooManyRequests || code == "resource_exhausted":
		return outcome(Throttled, "throttled (%d): %s", s, said)
	case (s == http.StatusBadRequest || s == http.StatusUnprocessableEntity) && windowWords.MatchString(said):
		return outcome(TooOld, "%s; %s", said, windowAdvice(said))
	case (s == http.StatusBadRequest || s == http.StatusUnprocessableEntity) && rateWords.MatchString(said):
		return outcome(Throttled, "throttled (%d): %s", s, said)
	case s == http.StatusBadRequest && schemeWords.MatchString(said):
		return outcome(Transient, "the server speaks TLS: set the server's URL to https://")
	case s == http.StatusBadRequest, s == http.StatusUnprocessableEntity:
		return outcome(Permanent, "refused (%d): %s", s, said)
	case s == http.StatusNotFound, s == http.StatusMethodNotAllowed, s == http.StatusUnsupportedMediaType, s == http.StatusNotImplemented, code == "unimplemented":
		return outcome(Transient, "no %s at this address (%d): %s; check the server's URL", a.from, s, said)
	default: // 5xx, 408, and what no server should answer: none of it is due to the record
		return outcome(Transient, "answered %d: %s", s, said)
	}
}

// said returns the server's words and, where the answer is a Connect error, its code.
func (a answer) said() (text, code string) {
	var e struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	if json.Unmarshal(a.body, &e) == nil && e.Code != "" {
		if e.Message == "" {
			return e.Code, e.Code
		}
		return e.Message, e.Code
	}
	if len(a.body) == 0 {
		return http.StatusText(a.status), ""
	}
	return string(a.body), ""
}

// windowAdvice names the setting by which the server refused a record's time. The server's clock decides, so the times
// are read from its answer.
func windowAdvice(said string) string {
	const older = "raise limits.reject_older_than at the server to take it later"
	const newer = "check both clocks, or raise limits.reject_newer_than at the server"
	m := windowBounds.FindStringSubmatch(said)
	if m == nil {
		return older
	}
	const layout = "2006-01-02 15:04:05.999999999 -0700 MST"
	at, err1 := time.Parse(layout, m[1])
	end, err2 := time.Parse(layout, m[2])
	if err1 == nil && err2 == nil && !at.Before(end) {
		return newer
	}
	return older
}

// retryAfter reads seconds or a date (RFC 9110). A value that cannot be read, or a time in the past, is 0.
func retryAfter(value string, now time.Time) time.Duration {
	if value == "" {
		return 0
	}
	var d time.Duration
	if s, err := strconv.ParseUint(value, 10, 31); err == nil {
		d = time.Duration(s) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		d = at.Sub(now)
	}
	return max(0, min(d, maxRetryAfter))
}

// transportReason returns, for an operator, why there was no answer.
func transportReason(ctx context.Context, err error) string {
	var (
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		header   tls.RecordHeaderError
		outer    *url.Error
	)
	if errors.As(err, &outer) {
		err = outer.Err // the rest repeats the address
	}
	switch timeout := net.Error(nil); {
	case errors.Is(context.Cause(ctx), errTimeout):
		return errTimeout.Error() + ": " + err.Error()
	case ctx.Err() != nil:
		return "stopped before the answer came"
	case errors.As(err, &unknown):
		return err.Error() + "; set the CA file if the server's certificate is signed by an authority of your own"
	case errors.As(err, &hostname):
		return err.Error() + "; check the host in the server's URL"
	case errors.As(err, &header):
		return err.Error() + "; if the server does not speak TLS set its URL to http://"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout: " + err.Error()
	}
	return err.Error()
}

// userinfo finds credentials in an address anywhere in a text, such as a proxy's in an error.
var userinfo = regexp.MustCompile(`://[^/@\s"]*@`)

// clean makes text from outside safe for logs, metrics and files: one short line, printable, no secrets.
func (c *Client) clean(s string) string {
	s = userinfo.ReplaceAllString(c.secrets.Replace(s), "://")
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= maxReasonBytes {
		return s
	}
	// Pyroscope repeats all labels first and gives the reason last: both ends matter.
	const gap = " ... "
	tail := s[len(s)-maxReasonBytes/2:]
	for !utf8.RuneStart(tail[0]) {
		tail = tail[1:]
	}
	return cut(s, maxReasonBytes-len(gap)-len(tail)) + gap + tail
}

// cut shortens s to at most n bytes without breaking a rune.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
