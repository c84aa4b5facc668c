package push

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"spanflame/internal/pprofwire"
	"spanflame/internal/pyroscopewire"
	"spanflame/internal/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func client(t *testing.T, c Config) *Client {
	t.Helper()
	cl, err := New(c)
	must(t, err)
	t.Cleanup(cl.Close)
	return cl
}

// accept answers as Pyroscope does when it has taken a profile.
func accept(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", pyroscopeType)
}

func server(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func cpuRecord() record.Record {
	now := time.Now()
	return record.Record{
		Meta:    record.Meta{Service: `shop,"{größe}"`, Type: record.CPU, Start: now, End: now, Labels: map[string]string{"region": "eu"}},
		Profile: pack(newProfile(3, nil)),
	}
}

// decodeRequest reads what was sent.
func decodeRequest(t *testing.T, body []byte) (labels map[string]string, profile []byte) {
	t.Helper()
	list, profile, err := pyroscopewire.ReadPush(body)
	must(t, err)
	labels = map[string]string{}
	for _, l := range list {
		labels[l.Name] = l.Value
	}
	return labels, profile
}

func TestTheRequestIsWhatPyroscopeReads(t *testing.T) {
	var got *http.Request
	var body []byte
	s := server(t, func(w http.ResponseWriter, r *http.Request) {
		got = r
		body, _ = io.ReadAll(r.Body)
		accept(w, r)
	})
	r := cpuRecord()
	res := client(t, Config{URL: s.URL + "/pyroscope/"}).Push(t.Context(), r)
	if res.Outcome != Accepted || res.Status != 200 || res.Reason != "" {
		t.Fatalf("%+v", res)
	}
	if got.Method != "POST" || got.URL.Path != "/pyroscope/push.v1.PusherService/Push" || got.Header.Get("Content-Type") != "application/proto" {
		t.Errorf("%s %s %v", got.Method, got.URL, got.Header)
	}
	labels, profile := decodeRequest(t, body)
	want := map[string]string{"__name__": "process_cpu", "service_name": r.Service, "region": "eu"}
	if !maps.Equal(labels, want) || !bytes.Equal(profile, r.Profile) {
		t.Errorf("labels %q, profile unchanged: %v", labels, bytes.Equal(profile, r.Profile))
	}
}

func TestAuthentication(t *testing.T) {
	var got http.Header
	s := server(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Header
		accept(w, r)
	})
	withUser := strings.Replace(s.URL, "http://", "http://me:p%40ss@", 1)
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:p@ss"))
	for name, tc := range map[string]struct {
		c    Config
		want map[string]string
	}{
		"none":       {Config{URL: s.URL}, map[string]string{"Authorization": "", "X-Scope-Orgid": ""}},
		"basic":      {Config{URL: s.URL, BasicAuthUser: "me", BasicAuthPassword: "p@ss"}, map[string]string{"Authorization": basic}},
		"in the URL": {Config{URL: withUser}, map[string]string{"Authorization": basic}},
		"bearer":     {Config{URL: s.URL, BearerToken: "tok"}, map[string]string{"Authorization": "Bearer tok"}},
		"tenant":     {Config{URL: s.URL, TenantID: "team-a"}, map[string]string{"X-Scope-OrgID": "team-a"}},
		"extra headers": {Config{URL: s.URL, Headers: map[string]string{"x-a": "1", "authorization": "Custom z"}},
			map[string]string{"X-A": "1", "Authorization": "Custom z"}},
	} {
		t.Run(name, func(t *testing.T) {
			if res := client(t, tc.c).Push(t.Context(), cpuRecord()); res.Outcome != Accepted {
				t.Fatalf("%+v", res)
			}
			for k, v := range tc.want {
				if got.Get(k) != v {
					t.Errorf("%s is %q, want %q", k, got.Get(k), v)
				}
			}
		})
	}
}

func TestValidateNamesTheField(t *testing.T) {
	good := Config{URL: "https://user-less.example:4040/a/"}
	must(t, good.Validate())
	for _, tc := range []struct {
		want  string
		spoil func(*Config)
	}{
		{"URL", func(c *Config) { c.URL = "" }},
		{"URL", func(c *Config) { c.URL = "localhost:4040" }},
		{"URL", func(c *Config) { c.URL = "ftp://h" }},
		{"URL", func(c *Config) { c.URL = "http://" }},
		{"URL", func(c *Config) { c.URL = "http://:4040" }},
		{"URL", func(c *Config) { c.URL = "http://h/?a=b" }},
		{"URL", func(c *Config) { c.URL = "http://me:hunter2@h:port" }},
		{"URL", func(c *Config) { c.URL = "http://me:hunter2@h%zz" }},
		{"URL", func(c *Config) { c.URL = "me:hunter2@h" }},
		{"URL", func(c *Config) { c.URL = "http://me:hunter2@h"; c.BearerToken = "t" }},
		{"BearerToken", func(c *Config) { c.BasicAuthUser, c.BearerToken = "a", "b" }},
		{"BearerToken", func(c *Config) { c.BearerToken = "hunter2\n" }},
		{"BasicAuthUser", func(c *Config) { c.BasicAuthPassword = "hunter2" }},
		{"KeyFile", func(c *Config) { c.CertFile = "c" }},
		{"Timeout", func(c *Config) { c.Timeout = -1 }},
		{"TenantID", func(c *Config) { c.TenantID = "a\r\nb" }},
		{"Headers", func(c *Config) { c.Headers = map[string]string{"a b": ""} }},
		{"Headers", func(c *Config) { c.Headers = map[string]string{"": ""} }},
		{"Headers", func(c *Config) { c.Headers = map[string]string{"a": "hunter2\n"} }},
		{"Headers", func(c *Config) { c.Headers = map[string]string{"content-type": "x"} }},
		{"Headers", func(c *Config) { c.Headers = map[string]string{"authorization": "x"}; c.BearerToken = "y" }},
		{"Headers", func(c *Config) { c.Headers = map[string]string{"x-scope-orgid": "x"}; c.TenantID = "y" }},
	} {
		c := good
		tc.spoil(&c)
		err := c.Validate()
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", tc.want, err)
		}
		if _, err := New(c); err == nil {
			t.Errorf("New takes what Validate does not: %v", c)
		}
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	c := Config{
		URL: "http://alice:hunter2@127.0.0.1:1", Headers: map[string]string{"X-Key": "hunter2-key"},
	}
	d := Config{URL: "http://h", BasicAuthUser: "alice", BasicAuthPassword: "hunter2"}
	e := Config{URL: "http://h", BearerToken: "hunter2"}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "c", c, "d", d, "e", e, "p", &e)
	j, err := json.Marshal([]any{c, d, e, &e})
	must(t, err)
	shown := log.String() + string(j) + fmt.Sprint(c, d, e, &e) + fmt.Sprintf("%+v %#v %s %v", c, d, e, []Config{e})
	cl := client(t, c)
	shown += cl.Push(t.Context(), cpuRecord()).Reason
	echo := server(t, func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, fmt.Sprint("I was sent ", r.Header), http.StatusUnauthorized)
	})
	c.URL = strings.Replace(echo.URL, "http://", "http://alice:hunter2@", 1)
	d.URL, e.URL = echo.URL, echo.URL
	for _, c := range []Config{c, d, e} {
		res := client(t, c).Push(t.Context(), cpuRecord())
		if res.Outcome != Transient || res.Status != 401 {
			t.Errorf("%+v", res)
		}
		shown += res.Reason
	}
	for _, secret := range []string{"hunter2", base64.StdEncoding.EncodeToString([]byte("alice:hunter2"))} {
		if strings.Contains(shown, secret) {
			t.Errorf("%q is in\n%s", secret, shown)
		}
	}
}

func TestARedirectIsReportedAndNotFollowed(t *testing.T) {
	asked := false
	other := server(t, func(w http.ResponseWriter, r *http.Request) { asked = true })
	s := server(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	})
	res := client(t, Config{URL: s.URL, BearerToken: "tok"}).Push(t.Context(), cpuRecord())
	if res.Outcome != Transient || asked || !strings.Contains(res.Reason, other.URL) {
		t.Errorf("%+v, followed: %v", res, asked)
	}
}

func TestNetworkFaultsAreTransient(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	closed := "http://" + listener.Addr().String()
	must(t, listener.Close())
	broken := func(f func(c net.Conn)) string {
		return server(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			f(c)
			c.Close()
		}).URL
	}
	for name, url := range map[string]string{
		"refused": closed,
		"reset":   broken(func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) }),
		"closed":  broken(func(c net.Conn) {}),
		"no HTTP": broken(func(c net.Conn) { io.WriteString(c, "SSH-2.0-x\r\n") }),
		"cut off": broken(func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nContent-Length: 9\r\n\r\n")
		}),
		"an endless header":   broken(func(c net.Conn) { fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX: %s", strings.Repeat("x", 11<<20)) }),
		"a host without name": "http://nonexistent.invalid",
	} {
		t.Run(name, func(t *testing.T) {
			res := client(t, Config{URL: url}).Push(t.Context(), cpuRecord())
			if res.Outcome != Transient || res.Reason == "" {
				t.Errorf("%+v", res)
			}
		})
	}
}

func TestAServerThatNeverAnswers(t *testing.T) {
	hang := make(chan struct{})
	s := server(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-hang
	})
	defer close(hang)
	res := client(t, Config{URL: s.URL, Timeout: 20 * time.Millisecond}).Push(t.Context(), cpuRecord())
	if res.Outcome != Transient || !strings.Contains(res.Reason, errTimeout.Error()) {
		t.Errorf("timeout: %+v", res)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if res := client(t, Config{URL: s.URL}).Push(ctx, cpuRecord()); res.Outcome != Transient || !strings.Contains(res.Reason, "stopped") {
		t.Errorf("cancelled: %+v", res)
	}
}

func TestAnAnswerIsReadWithinBounds(t *testing.T) {
	var sent atomic.Int64
	s := server(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusBadRequest)
		chunk := bytes.Repeat([]byte("x"), 1<<20)
		for range 1 << 10 {
			n, err := w.Write(chunk)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	res := client(t, Config{URL: s.URL}).Push(t.Context(), cpuRecord())
	if res.Outcome != Permanent || len(res.Reason) > maxReasonBytes {
		t.Errorf("%v, %d bytes", res.Outcome, len(res.Reason))
	}
	s.Close()
	if n := sent.Load(); n > 1<<29 {
		t.Errorf("%d bytes of an endless answer were taken", n)
	}
}

func TestConnectionsAreKept(t *testing.T) {
	var conns atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(accept))
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			conns.Add(1)
		}
	}
	s.Start()
	defer s.Close()
	c := client(t, Config{URL: s.URL})
	for range 5 {
		if res := c.Push(t.Context(), cpuRecord()); res.Outcome != Accepted {
			t.Fatalf("%+v", res)
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestAnUnreadableProfileIsNotSent(t *testing.T) {
	s := server(t, func(w http.ResponseWriter, r *http.Request) { t.Error("it was sent") })
	good := cpuRecord()
	bomb := pprofwire.Gzip(make([]byte, maxProfileBytes+1))
	garbage := pprofwire.Gzip([]byte("garbage garbage"))
	nothing := pprofwire.Gzip(nil)
	for name, b := range map[string][]byte{
		"no gzip":            []byte("this is no profile"),
		"nothing":            nil,
		"cut off":            good.Profile[:len(good.Profile)-10],
		"no protobuf":        garbage,
		"empty uncompressed": nothing,
		"a gzip bomb":        bomb,
	} {
		t.Run(name, func(t *testing.T) {
			r := good
			r.Profile = b
			res := client(t, Config{URL: s.URL}).Push(t.Context(), r)
			if res.Outcome != Permanent || res.Status != 0 || !strings.Contains(res.Reason, "cannot be read") {
				t.Errorf("%+v", res)
			}
		})
	}
}

// certificate makes a self-signed client certificate and its key in PEM files.
func certificate(t *testing.T, dir string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	must(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	return certFile, keyFile
}

func TestTLS(t *testing.T) {
	var serials []string
	var proto string
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proto = r.Proto
		if len(r.TLS.PeerCertificates) > 0 {
			serials = append(serials, r.TLS.PeerCertificates[0].SerialNumber.String())
		}
		accept(w, r)
	}))
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.EnableHTTP2 = true
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.StartTLS()
	defer s.Close()
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	must(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600))
	certFile, keyFile := certificate(t, dir)

	if res := client(t, Config{URL: s.URL}).Push(t.Context(), cpuRecord()); res.Outcome != Transient || !strings.Contains(res.Reason, "CA file") {
		t.Errorf("unknown authority: %+v", res)
	}
	if res := client(t, Config{URL: strings.Replace(s.URL, "https", "http", 1)}).Push(t.Context(), cpuRecord()); res.Outcome != Transient ||
		!strings.Contains(res.Reason, "https://") {
		t.Errorf("http to https: %+v", res)
	}
	c := client(t, Config{URL: s.URL, CAFile: ca, CertFile: certFile, KeyFile: keyFile})
	c.http.Transport.(*http.Transport).DisableKeepAlives = true // a handshake for each request
	for range 2 {
		if res := c.Push(t.Context(), cpuRecord()); res.Outcome != Accepted {
			t.Fatalf("%+v", res)
		}
		certificate(t, dir) // rotated
	}
	if len(serials) != 2 || serials[0] == serials[1] || proto != "HTTP/2.0" {
		t.Errorf("client certificates %v, %s", serials, proto)
	}
	for want, c := range map[string]Config{
		"CAFile":   {URL: s.URL, CAFile: keyFile},
		"no such":  {URL: s.URL, CAFile: filepath.Join(dir, "none")},
		"CertFile": {URL: s.URL, CertFile: ca, KeyFile: ca},
	} {
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
