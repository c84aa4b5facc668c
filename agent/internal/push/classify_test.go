package push

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var plain = &Client{secrets: hide(nil)}

// TestAnswers holds every kind of answer. Those of Pyroscope are as version 1.21.1 gave them.
func TestAnswers(t *testing.T) {
	connect := func(code, message string) string { return `{"code":"` + code + `","message":"` + message + `"}` }
	const proto, js, html = "application/proto", "application/json", "text/html"
	const window = `profile with labels '{__name__=\"process_cpu\", service_name=\"x\"}' is outside of ingestion window (profile timestamp: `
	const bounds = ` +0000 UTC, the ingestion window starts at 2026-11-22 11:38:02.566 +0000 UTC and ends at 2026-11-22 12:48:02.566 +0000 UTC)`
	for _, tc := range []struct {
		name   string
		status int
		ctype  string
		body   string
		want   Outcome
		says   string // part of the reason
	}{
		{"accepted", 200, proto, "", Accepted, ""},
		{"accepted with parameters", 200, "application/proto; x=y", "", Accepted, ""},
		{"a web page", 200, html, "<html>Welcome</html>", Transient, "check the server's URL"},
		{"no content type", 200, "", "", Transient, "check the server's URL"},

		// Pyroscope on the profile.
		{"empty service name", 400, js, connect("invalid_argument", `invalid labels '{__name__=\"process_cpu\"}' with error: service name is not provided`),
			Permanent, "service name is not provided"},
		{"label name", 400, js, connect("invalid_argument", `invalid labels '{http-route=\"v\"}' with error: invalid label name 'http-route'`), Permanent,
			"invalid label name"},
		{"too many labels", 400, js, connect("invalid_argument", `profile series '{}' has 31 label names; limit 30`), Permanent, "limit 30"},
		{"too many samples", 400, js, connect("invalid_argument",
			`the profile with labels '{}' exceeds the samples count limit (max_profile_stacktrace_samples, actual: 16001, limit: 16000)`), Permanent, "16001"},
		{"too large uncompressed", 400, js, connect("invalid_argument", `uncompressed profile payload size exceeds limit of 4.2 MB`), Permanent, "4.2 MB"},
		{"no samples types", 400, js, connect("invalid_argument", "empty profile"), Permanent, "empty profile"},
		{"two hours old", 400, js, connect("invalid_argument", window+"2026-11-22 10:37:02.545"+bounds), TooOld, "limits.reject_older_than"},
		{"twenty minutes ahead", 400, js, connect("invalid_argument", window+"2026-11-22 12:57:02.545"+bounds), TooOld, "limits.reject_newer_than"},
		{"old, by /ingest's status", 422, "text/plain", "profile is outside of ingestion window", TooOld, "limits.reject_older_than"},
		{"unprocessable", 422, "text/plain", "nonsense", Permanent, "nonsense"},
		{"a body that is no request", 400, js, connect("invalid_argument", "unmarshal message: proto: illegal wireType 7"), Permanent, "unmarshal"},

		// Pyroscope on the rate.
		{"rate", 429, js, connect("resource_exhausted", "push rate limit (4.0 MiB) exceeded while adding 1.8 MiB"), Throttled, "push rate limit"},
		{"rate, by /ingest's status", 422, "text/plain", "push rate limit (4.0 MiB) exceeded while adding 1.8 MiB", Throttled, "push rate limit"},
		{"quota", 429, js, connect("resource_exhausted", "limit of 1.0 GiB/day reached, next reset at 2026-11-23T00:00:00Z"), Throttled, "next reset"},
		{"a proxy's rate", 429, html, "slow down", Throttled, "slow down"},
		{"active series", 429, js, connect("resource_exhausted", "Maximum active series limit exceeded (5000/5000), reduce the number of active streams"),
			Permanent, "limits.max_global_series_per_tenant"},
		{"message size", 429, js, connect("resource_exhausted", "message size 9 is larger than configured max 8"), Permanent, "larger than configured max"},
		{"a proxy's body size", 413, html, "<h1>413 Request Entity Too Large</h1>", Permanent, "too large"},

		// Who may push, and where.
		{"unauthenticated", 401, js, connect("unauthenticated", "no org id"), Transient, "check user, password, token and tenant"},
		{"forbidden", 403, html, "", Transient, "Forbidden"},
		{"proxy", 407, html, "", Transient, "HTTPS_PROXY"},
		{"wrong path", 404, "text/plain", "404 page not found\n", Transient, "check the server's URL"},
		{"wrong method", 405, "", "", Transient, "check the server's URL"},
		{"wrong content type", 415, "", "", Transient, "check the server's URL"},
		{"unimplemented", 501, js, connect("unimplemented", "x"), Transient, "check the server's URL"},
		{"http to https, Go", 400, "text/plain", "Client sent an HTTP request to an HTTPS server.\n", Transient, "https://"},
		{"http to https, nginx", 400, html, "The plain HTTP request was sent to HTTPS port", Transient, "https://"},
		{"redirect", 307, "", "", Transient, "redirected to \"http://elsewhere/\""},

		// The server's own troubles.
		{"internal", 500, js, connect("internal", "ingester down"), Transient, "ingester down"},
		{"unknown", 500, js, connect("unknown", "gzip reset: EOF"), Transient, "gzip reset"},
		{"bad gateway", 502, html, "<html>bad gateway</html>", Transient, "bad gateway"},
		{"unavailable", 503, js, connect("unavailable", "starting"), Transient, "starting"},
		{"deadline", 504, js, connect("deadline_exceeded", ""), Transient, "deadline_exceeded"},
		{"request timeout", 408, "", "", Transient, "Request Timeout"},
		{"unheard of", 999, "", "", Transient, "999"},
		{"no status", 0, "", "", Transient, "0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := answer{wants: pyroscopeType, status: tc.status, contentType: tc.ctype, body: []byte(tc.body), location: "http://user:secret@elsewhere/"}
			got := classify(a, time.Now(), plain.clean)
			if got.Outcome != tc.want || !strings.Contains(got.Reason, tc.says) || got.Status != tc.status {
				t.Errorf("got %v %q, want %v with %q", got.Outcome, got.Reason, tc.want, tc.says)
			}
			if strings.Contains(got.Reason, "secret") {
				t.Errorf("a secret is shown: %q", got.Reason)
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"":                              0,
		"0":                             0,
		"7":                             7 * time.Second,
		"86400":                         time.Hour,
		"-1":                            0,
		"1.5":                           0,
		"99999999999999999999":          0,
		"soon":                          0,
		"Fri, 02 Jan 2026 03:04:35 GMT": 30 * time.Second,
		"Fri, 02 Jan 2026 03:03:35 GMT": 0,
		"Fri, 02 Jan 2027 03:03:35 GMT": time.Hour,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("%q: got %v, want %v", value, got, want)
		}
	}
}

func TestReasonsAreFitToBeShown(t *testing.T) {
	c := &Client{secrets: hide([]string{"hunter2", "", "eu"})}
	for in, want := range map[string]string{
		"one\ntwo\r\n\tthree":              "one two three",
		"bell\a and \x1b[31mred":           "bell and [31mred",
		"token hunter2 eu":                 "token [hidden] eu",
		"proxy http://me:pw@proxy:1 fails": "proxy http://proxy:1 fails",
		"bad \xff byte":                    "bad \uFFFD byte",
	} {
		if got := c.clean(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	long := c.clean("labels '" + strings.Repeat("ü", 2000) + "' with error: the point")
	if len(long) > maxReasonBytes || !utf8.ValidString(long) || !strings.HasPrefix(long, "labels '") || !strings.HasSuffix(long, "the point") {
		t.Errorf("%d bytes: %q", len(long), long)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(200, "application/proto", "", "", "")
	f.Add(400, "application/json", "", "", `{"code":"invalid_argument","message":"x"}`)
	f.Add(429, "", "3", "", "\xff\x00")
	f.Add(301, "", "", "http://a:b@c/", "")
	f.Fuzz(func(t *testing.T, status int, contentType, retry, location, body string) {
		a := answer{wants: pyroscopeType, status: status, contentType: contentType, retryAfter: retry, location: location, body: []byte(body)}
		got := classify(a, time.Now(), plain.clean)
		if got.Outcome < Accepted || got.Outcome > Transient || got.RetryAfter < 0 || got.RetryAfter > maxRetryAfter {
			t.Fatalf("%+v", got)
		}
		if (got.Outcome == Accepted) != (got.Reason == "") || len(got.Reason) > maxReasonBytes || !utf8.ValidString(got.Reason) ||
			strings.ContainsAny(got.Reason, "\n\r\x00\x1b") {
			t.Fatalf("reason %q", got.Reason)
		}
		if got.Outcome == Accepted && status/100 != 2 {
			t.Fatalf("%d is accepted", status)
		}
	})
}
