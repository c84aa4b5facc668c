package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHealthSaysWhatItWants(t *testing.T) {
	want := "health: want one URL, such as http://127.0.0.1:8080/readyz, got 0; see spanflame health --help"
	if _, _, err := execute(t, "health"); err == nil || err.Error() != want || exitCode(err) != 1 {
		t.Errorf("%v, want %q", err, want)
	}
}

func TestHealth(t *testing.T) {
	status := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "why", status) }))
	defer server.Close()
	if err := checkHealth(t.Context(), server.URL); err != nil {
		t.Errorf("status 200: %v", err)
	}
	status = http.StatusServiceUnavailable
	if err := checkHealth(t.Context(), server.URL); err == nil || !strings.Contains(err.Error(), `status 503: "why`) {
		t.Errorf("status 503: %v", err)
	}
	server.Close()
	if err := checkHealth(t.Context(), server.URL); err == nil {
		t.Error("nobody listens: no error")
	}
}
