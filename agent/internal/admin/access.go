package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// sameOrigin refuses requests that a page of another site makes a browser send. The page could not read the response,
// but it could start profiles that slow the process down.
func sameOrigin(next http.Handler) http.Handler {
	var protection http.CrossOriginProtection
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The library does not check GET requests, since most of them have no effect.
		check := r.WithContext(r.Context())
		check.Method = http.MethodPost
		if err := protection.Check(check); err != nil {
			http.Error(w, fmt.Sprintf("%s: refused, because a page of another site sent the request: %v; open the address directly", r.URL.Path, err),
				http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// authorized requires the token, if it is not empty.
func authorized(token string, next http.Handler) http.Handler {
	if token == "" {
		return next
	}
	want := sha256.Sum256([]byte(token)) // so that the comparison does not reveal the length
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok {
			_, given, ok = r.BasicAuth()
		}
		if got := sha256.Sum256([]byte(given)); !ok || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Add("WWW-Authenticate", "Bearer")
			w.Header().Add("WWW-Authenticate", `Basic realm="spanflame"`)
			http.Error(w, "wrong or missing token: send it as a bearer token, or as the password of basic authentication", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// knownHost refuses requests for other host names than these, localhost and IP addresses. A web page could otherwise
// make a name of its own resolve to this listener (DNS rebinding), which is not possible with an IP address.
func knownHost(names []string, next http.Handler) http.Handler {
	known := map[string]bool{"localhost": true}
	for _, name := range names {
		known[canonical(name)] = true
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err != nil && !known[canonical(host)] {
			http.Error(w, fmt.Sprintf("unknown host %q: use localhost, an IP address, or a name in SPANFLAME_ADMIN_HOSTS", host),
				http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// canonical returns the one form of a host name: DNS ignores case and a dot at the end.
func canonical(host string) string { return strings.TrimSuffix(strings.ToLower(host), ".") }
