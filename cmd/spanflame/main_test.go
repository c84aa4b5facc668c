package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"spanflame/workload/load"
)

// execute runs one command line and returns what it wrote.
func execute(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	err = run(t.Context(), &out, &errs, args...)
	return out.String(), errs.String(), err
}

func TestLoadReports(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer server.Close()
	args := []string{"load", "--target", server.URL, "--rate", "100", "--duration", "100ms", "--mix", "checkout=1"}
	stdout, _, err := execute(t, args...)
	if err != nil || !strings.Contains(stdout, "10 of 10 requests sent") {
		t.Errorf("table: %v\n%s", err, stdout)
	}
	stdout, _, err = execute(t, append(args, "--format", "json")...)
	var report load.Report
	if jsonErr := json.Unmarshal([]byte(stdout), &report); err != nil || jsonErr != nil || report.Sent != 10 {
		t.Errorf("json: %v, %v\n%s", err, jsonErr, stdout)
	}
}

func TestLoadFailsWhenEveryRequestFailed(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	stdout, _, err := execute(t, "load", "--target", server.URL, "--rate", "100", "--duration", "50ms", "--mix", "checkout=1")
	if !errors.Is(err, errAllFailed) || !strings.Contains(stdout, "404×5") {
		t.Errorf("%v, want %v, and a report all the same:\n%s", err, errAllFailed, stdout)
	}
}

func TestWrongCommandLines(t *testing.T) {
	for want, args := range map[string][]string{
		`target "ftp://x"`:                       {"load", "--target", "ftp://x"},
		"rate 0":                                 {"load", "--rate", "0"},
		"duration 0s":                            {"load", "--duration", "0"},
		`unknown endpoint "tea"`:                 {"load", "--mix", "tea=1"},
		`role "till"`:                            {"workload", "--role", "till"},
		`listen address "nowhere"`:               {"workload", "--listen", "nowhere"},
		"duration 1s: must be":                   {"demo", "--duration", "1s"},
		"rate -1: must be above 0":               {"demo", "--rate", "-1"},
		"unknown command":                        {"brew"},
		"unknown flag":                           {"load", "--sugar"},
		`--format "pdf": want one of json, text`: {"load", "--format", "pdf"},
		`"extra"`:                                {"version", "extra"},
	} {
		if _, _, err := execute(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("spanflame %s: %v, want an error with %q", strings.Join(args, " "), err, want)
		}
	}
}

func TestExitCode(t *testing.T) {
	for want, err := range map[int]error{
		1: errAllFailed,
		3: fmt.Errorf("compare: %w", exitError{3, errors.New("slower")}),
	} {
		if got := exitCode(err); got != want {
			t.Errorf("%v: exit code %d, want %d", err, got, want)
		}
	}
}

func TestVersion(t *testing.T) {
	if stdout, _, err := execute(t, "version"); err != nil || !strings.HasPrefix(stdout, "spanflame ") || !strings.Contains(stdout, "go1.") {
		t.Errorf("%q, %v", stdout, err)
	}
}
