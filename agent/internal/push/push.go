// Package push sends one record to Pyroscope or to a server of OTLP, once, and returns the outcome. The agent's delivery
// loop uses it; the loop owns the queue, the pauses and the retries, so nothing here waits, repeats or remembers a record.
// Every answer of a server, a proxy or the network becomes one of five outcomes in one place (see Outcome).
//
// Of Pyroscope it calls push.v1.PusherService/Push rather than /ingest: the labels of the first need no escaping, so a
// service name with a comma, a brace or a quote arrives unchanged.
package push

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"spanflame/internal/record"
	"spanflame/internal/redact"
)

const (
	userAgent      = "spanflame"
	defaultTimeout = 10 * time.Second
	maxAnswerBytes = 16 << 10 // limit of an answer's size; a Connect error has a few hundred bytes
)

// Config has the address and the credentials. New keeps a copy.
type Config struct {
	Protocol Protocol // how profiles are sent

	// URL is http or https, with a path if a proxy needs one; user:password@ is basic auth. It is the server's base URL,
	// or with OTLPHTTP the full one that profiles are sent to.
	URL string

	BasicAuthUser     string
	BasicAuthPassword string
	BearerToken       string            // instead of basic auth
	TenantID          string            // X-Scope-OrgID
	Headers           map[string]string // sent with every request

	CAFile   string // PEM; trusted in place of the system's authorities
	CertFile string // PEM; client certificate, read at every handshake so that it can be rotated
	KeyFile  string // PEM; its key

	Timeout time.Duration // of one request from dial to the last byte of the answer; 0 is 10 s
}

// String returns the configuration without secrets, for logs and errors.
func (c Config) String() string {
	auth := "none"
	switch u, _ := url.Parse(c.URL); {
	case c.BearerToken != "":
		auth = "bearer"
	case c.BasicAuthUser != "" || u != nil && u.User != nil:
		auth = "basic"
	}
	return fmt.Sprintf("{URL:%s auth:%s tenant:%q headers:%d}", redact.URL(c.URL), auth, c.TenantID, len(c.Headers))
}

// GoString keeps the secrets out of %#v too.
func (c Config) GoString() string { return "push.Config" + c.String() }

// LogValue keeps the secrets out of structured logs too.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText keeps the secrets out of every encoder that asks for text, JSON among them.
func (c Config) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Validate returns an error that names the field, its value unless it is secret, and what is allowed.
func (c Config) Validate() error {
	_, err := c.parseURL()
	if err != nil {
		return err
	}
	_, known := protocols[c.Protocol]
	switch {
	case !known:
		return fmt.Errorf("push: Protocol %q is unknown", c.Protocol)
	case c.BasicAuthUser != "" && c.BearerToken != "":
		return errors.New("push: BasicAuthUser and BearerToken are both set: choose one")
	case c.BasicAuthPassword != "" && c.BasicAuthUser == "":
		return errors.New("push: BasicAuthPassword is set and BasicAuthUser is not: set both or neither")
	case (c.CertFile == "") != (c.KeyFile == ""):
		return fmt.Errorf("push: CertFile %q and KeyFile %q: set both or neither", c.CertFile, c.KeyFile)
	case c.Timeout < 0:
		return fmt.Errorf("push: Timeout %v: want a positive duration, or 0 for %v", c.Timeout, defaultTimeout)
	case !headerValue(c.BearerToken):
		return errors.New("push: BearerToken holds a line break or another control character: want the token alone")
	case !headerValue(c.TenantID):
		return fmt.Errorf("push: TenantID %q holds a control character", c.TenantID)
	}
	for name, value := range c.Headers {
		switch key := http.CanonicalHeaderKey(name); {
		case !headerName(name):
			return fmt.Errorf("push: Headers: %q is not a header name", name)
		case !headerValue(value):
			return fmt.Errorf("push: Headers: the value of %q holds a line break or another control character", name)
		case key == "Content-Type" || key == "Content-Length" || key == "Content-Encoding" || key == "Host" || key == "Transfer-Encoding" || key == "Te":
			return fmt.Errorf("push: Headers: %q is set by every request itself", name)
		case key == "Authorization" && (c.BasicAuthUser != "" || c.BearerToken != ""):
			return fmt.Errorf("push: Headers: %q together with BasicAuthUser or BearerToken: choose one", name)
		case key == "X-Scope-Orgid" && c.TenantID != "":
			return fmt.Errorf("push: Headers: %q together with TenantID: choose one", name)
		}
	}
	return nil
}

// parseURL returns the address without a trailing slash. Its errors never contain a password.
func (c Config) parseURL() (*url.URL, error) {
	bad := func(why string) (*url.URL, error) {
		return nil, fmt.Errorf("push: URL %q: %s; want http://host:port or https://host:port", redact.URL(c.URL), why)
	}
	u, err := url.Parse(c.URL)
	switch {
	case err != nil:
		return bad("cannot be parsed")
	case u.Scheme != "http" && u.Scheme != "https":
		return bad("the scheme is neither http nor https")
	case u.Hostname() == "":
		return bad("the host is missing")
	case u.RawQuery != "" || u.Fragment != "":
		return bad("it has a query or a fragment")
	case u.User != nil && (c.BasicAuthUser != "" || c.BearerToken != ""):
		return bad("it has a user, and BasicAuthUser or BearerToken is set too")
	}
	u.Path = strings.TrimRight(u.Path, "/")
	u.RawPath = ""
	return u, nil
}

func headerName(s string) bool {
	const token = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	return s != "" && strings.Trim(s, token) == ""
}

func headerValue(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
}

// Client sends records to one server. It is safe for concurrent use.
type Client struct {
	protocol
	base    string // address without userinfo and trailing slash
	target  string // where profiles are sent
	header  http.Header
	secrets *strings.Replacer
	timeout time.Duration
	http    *http.Client
	labels  labelLimit

	mu      sync.Mutex
	version version
}

// New checks the configuration and reads the CA file. It does not talk to the server.
func New(c Config) (*Client, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	u, err := c.parseURL()
	if err != nil {
		return nil, err
	}
	user, password := c.BasicAuthUser, c.BasicAuthPassword
	if u.User != nil {
		user = u.User.Username()
		password, _ = u.User.Password()
		u.User = nil
	}

	header := http.Header{"User-Agent": {userAgent}}
	secrets := []string{}
	for name, value := range c.Headers {
		header.Set(name, value)
		secrets = append(secrets, value)
	}
	switch {
	case user != "":
		pair := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
		header.Set("Authorization", "Basic "+pair)
		secrets = append(secrets, password, pair)
	case c.BearerToken != "":
		header.Set("Authorization", "Bearer "+c.BearerToken)
		secrets = append(secrets, c.BearerToken)
	}
	if c.TenantID != "" {
		header.Set("X-Scope-OrgID", c.TenantID)
	}

	tlsConfig, err := c.tls()
	if err != nil {
		return nil, err
	}
	timeout := c.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	protocol := protocols[c.Protocol]
	base := u.String()
	target := base + protocol.path
	if protocol.full {
		base, target = strings.TrimSuffix(base, protocol.path), base
	}
	return &Client{
		protocol: protocol,
		base:     base,
		target:   target,
		header:   header,
		secrets:  hide(secrets),
		timeout:  timeout,
		http: &http.Client{
			Transport: &http.Transport{
				Proxy:               http.ProxyFromEnvironment,
				TLSClientConfig:     tlsConfig,
				ForceAttemptHTTP2:   true, // a custom TLS configuration turns it off
				MaxIdleConnsPerHost: 8,    // one for each that sends at once
				IdleConnTimeout:     90 * time.Second,
				DisableCompression:  true, // answers have a few bytes, and their size is limited as sent
				Protocols:           protocol.http,
			},
			// A redirect would send the credentials to the address in the answer; it is reported instead.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

func (c Config) tls() (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("push: CAFile: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("push: CAFile %q holds no PEM certificate", c.CAFile)
		}
	}
	if c.CertFile != "" {
		load := func() (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("push: CertFile %q and KeyFile %q: %w", c.CertFile, c.KeyFile, err)
			}
			return &cert, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return t, nil
}

// hide returns a replacer of secrets, which a server may repeat in its answer. Values of less than four bytes are left
// alone: they are words like "1" or "eu" rather than secrets, and would garble the text.
func hide(secrets []string) *strings.Replacer {
	var pairs []string
	for _, s := range secrets {
		if len(s) >= 4 {
			pairs = append(pairs, s, "[hidden]")
		}
	}
	return strings.NewReplacer(pairs...)
}

// Close closes the idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Push sends the record once. It returns when ctx or the configured timeout ends, at the latest.
func (c *Client) Push(ctx context.Context, r record.Record) Result {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, errTimeout)
	defer cancel()

	labels, changes := seriesLabels(r.Meta, maxLabels-c.adds)
	profile, err := c.prepare(ctx, r, maxLabels-c.adds-len(labels), &changes)
	if err != nil {
		return Result{Outcome: Permanent, Reason: "the profile cannot be read: " + c.clean(err.Error()), Changes: changes}
	}
	body, err := c.encode(labels, r.Type, profile)
	if err != nil {
		return Result{Outcome: Permanent, Reason: "the profile cannot be encoded: " + c.clean(err.Error()), Changes: changes}
	}
	res := c.send(ctx, body)
	res.Changes = changes
	if res.Outcome == Transient {
		c.forgetVersion() // another version may come back
	}
	return res
}

func (c *Client) send(ctx context.Context, body []byte) Result {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.target, bytes.NewReader(body))
	if err != nil {
		return Result{Outcome: Transient, Reason: c.clean(err.Error())}
	}
	req.Header = c.header.Clone()
	for name, value := range c.headers {
		req.Header.Set(name, value)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return Result{Outcome: Transient, Reason: c.clean(transportReason(ctx, err))}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err != nil && resp.StatusCode/100 == 2 {
		return Result{Outcome: Transient, Status: resp.StatusCode, Reason: c.clean("the answer broke off: " + transportReason(ctx, err))}
	}
	return classify(c.read(resp, text), time.Now(), c.clean)
}
