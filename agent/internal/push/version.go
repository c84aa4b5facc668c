package push

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The server's version decides one thing: before 2.1 Pyroscope makes a series of every trace_id.
const (
	versionPath    = "/api/v1/status/buildinfo"
	versionTTL     = time.Hour
	versionPause   = time.Minute // between requests to a server that does not answer, or not well
	versionTimeout = 2 * time.Second
)

// version is the server's last answer.
type version struct {
	asked time.Time
	ok    bool // it answered, and no request has failed since
	keeps bool // 2.1 or later
}

// keepsTraceID reports whether the server keeps trace_id with the sample. It asks the server on first use, every hour
// and after failures. A server that does not answer counts as old: that loses a label, and never makes a series of each
// trace.
func (c *Client) keepsTraceID(ctx context.Context) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	age := time.Since(c.version.asked)
	if !c.version.asked.IsZero() && (age < versionPause || c.version.ok && age < versionTTL) {
		return c.version.ok && c.version.keeps
	}
	v, ok := c.askVersion(ctx)
	c.version = version{asked: time.Now(), ok: ok, keeps: atLeast(v, 2, 1)}
	return c.version.keeps
}

// forgetVersion makes the next use ask again, but not more often than every versionPause.
func (c *Client) forgetVersion() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version.ok = false
}

func (c *Client) askVersion(ctx context.Context) (string, bool) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+versionPath, nil)
	if err != nil {
		return "", false
	}
	req.Header = c.header.Clone()
	resp, err := c.http.Do(req)
	if err != nil {
		return "", false
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err != nil || resp.StatusCode != http.StatusOK {
		return "", false
	}
	var info struct {
		Data struct {
			Version string `json:"version"`
		} `json:"data"`
	}
	if json.Unmarshal(body, &info) != nil {
		return "", false
	}
	return info.Data.Version, true
}

// atLeast reports whether a version such as "2.1.0", "v2.2.1-rc.0" or "2.1" is that one or a later one. One that cannot
// be read is not.
func atLeast(v string, major, minor int) bool {
	a, rest, ok := strings.Cut(strings.TrimPrefix(v, "v"), ".")
	if !ok {
		return false
	}
	b, _, _ := strings.Cut(rest, ".")
	b, _, _ = strings.Cut(b, "-")
	ma, err1 := strconv.Atoi(a)
	mi, err2 := strconv.Atoi(b)
	if err1 != nil || err2 != nil {
		return false
	}
	return ma > major || ma == major && mi >= minor
}
