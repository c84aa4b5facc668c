package scrape

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/pprofwire"
)

// Limits of a profile, in bytes.
const (
	maxAnswer  = 8 << 20   // as it is sent
	maxProfile = 64 << 20  // uncompressed
	maxMemory  = 128 << 20 // as google/pprof has it in memory
)

// failure is why a profile was not fetched, with one of a few reasons, by which it is counted.
type failure struct {
	reason string
	err    error
}

func (f failure) Error() string { return f.reason + ": " + f.err.Error() }

func (f failure) Unwrap() error { return f.err }

// The reasons of failures.
const (
	unreachable = "unreachable"
	timedOut    = "timeout"
	broken      = "broken off"
	wrongTLS    = "tls"
	credentials = "credentials"
	notFound    = "not found"
	busy        = "cpu profiler in use"
	tooLong     = "window too long" // for the write timeout of the target's server
	otherStatus = "status"
	tooLarge    = "too large"
	noProfile   = "not a profile"
	tooShort    = "too short" // a profile of the CPU, for the window

	severalProcesses = "several processes" // behind the address
)

// client fetches profiles from all targets.
type client struct {
	http    *http.Client
	user    string
	pass    string
	token   string
	timeout time.Duration
}

func newClient(cfg Config) (client, error) {
	switch {
	case cfg.User != "" && cfg.Token != "":
		return client{}, errors.New("both a user and a token are set: choose one")
	case cfg.User == "" && cfg.Password != "":
		return client{}, errors.New("a password is set without its user")
	}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return client{}, fmt.Errorf("authorities of targets: %w", err)
		}
		tlsConfig.RootCAs = x509.NewCertPool()
		if !tlsConfig.RootCAs.AppendCertsFromPEM(pem) {
			return client{}, fmt.Errorf("authorities of targets: %s holds no PEM certificate", cfg.CAFile)
		}
	}
	return client{
		user: cfg.User, pass: cfg.Password, token: cfg.Token, timeout: cfg.Timeout,
		http: &http.Client{
			Transport: &http.Transport{
				TLSClientConfig:     tlsConfig,
				ForceAttemptHTTP2:   true,
				MaxIdleConnsPerHost: 2, // one for the CPU, whose requests take a window
				IdleConnTimeout:     2 * time.Minute,
				TLSHandshakeTimeout: cfg.Timeout,
				DisableCompression:  true, // profiles are compressed already
			},
			// A redirect would send the credentials to the address in the answer.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// fetch returns a profile, compressed as it was sent, which the target takes a time to record.
func (c client) fetch(ctx context.Context, url string, takes time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, takes+c.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, failure{unreachable, err}
	}
	switch {
	case c.user != "":
		req.SetBasicAuth(c.user, c.pass)
	case c.token != "":
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	req.Header.Set("User-Agent", "spanflame")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, transportFailure(ctx, err, unreachable)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // the status is what counts
		return nil, statusFailure(resp, strings.TrimSpace(string(said)))
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, transportFailure(ctx, err, broken)
	case len(b) > maxAnswer:
		return nil, failure{tooLarge, fmt.Errorf("more than %d bytes", maxAnswer)}
	}
	return b, nil
}

func transportFailure(ctx context.Context, err error, otherwise string) failure {
	var (
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		header    tls.RecordHeaderError
		timeout   net.Error
	)
	reason := otherwise
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		reason = timedOut
	case errors.As(err, &authority), errors.As(err, &host), errors.As(err, &invalid), errors.As(err, &header),
		strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		reason = wrongTLS
	}
	return failure{reason, err}
}

func statusFailure(resp *http.Response, said string) failure {
	reason := otherStatus
	switch {
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		reason = credentials
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusMethodNotAllowed || resp.StatusCode == http.StatusNotImplemented:
		reason = notFound
	case strings.Contains(said, "already in use"): // as net/http/pprof says it
		reason = busy
	case strings.Contains(said, "WriteTimeout"):
		reason = tooLong
	}
	return failure{reason, fmt.Errorf("%s: %.200q", resp.Status, said)}
}

// unpack returns an uncompressed profile that has a sample type, or why it is none.
func unpack(b []byte, sampleType string) ([]byte, error) {
	raw, err := pprofwire.Gunzip(b, maxProfile)
	if errors.Is(err, pprofwire.ErrTooLarge) {
		return nil, failure{tooLarge, fmt.Errorf("more than %d bytes uncompressed", maxProfile)}
	}
	if err != nil {
		return nil, failure{noProfile, err}
	}
	switch weight, err := pprofwire.Weigh(raw); {
	case err != nil:
		return nil, failure{noProfile, err}
	case weight > maxMemory:
		return nil, failure{tooLarge, fmt.Errorf("it takes about %d bytes of memory, the limit is %d", weight, maxMemory)}
	}
	p, err := profile.ParseUncompressed(raw)
	if err == nil {
		err = p.CheckValid()
	}
	if err != nil {
		return nil, failure{noProfile, err}
	}
	for _, t := range p.SampleType {
		if t.Type == sampleType {
			return raw, nil
		}
	}
	return nil, failure{noProfile, fmt.Errorf("it has no samples of the type %s", sampleType)}
}

// reasonOf returns the reason by which a failure is counted.
func reasonOf(err error) string {
	if f, ok := errors.AsType[failure](err); ok {
		return f.reason
	}
	return "error"
}

// userinfo finds credentials in an address anywhere in a text.
var userinfo = regexp.MustCompile(`://[^/@\s"]*@`)

// clean returns the text of an error for the log and the pages: one line, without passwords.
func clean(err error) string {
	text := userinfo.ReplaceAllString(err.Error(), "://")
	return strings.ToValidUTF8(strings.Join(strings.Fields(text), " "), "\uFFFD")
}
