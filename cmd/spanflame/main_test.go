package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"spanflame/workload"
	"spanflame/workload/faults"
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

// Any service can be driven: its path, query, method, headers and body are as the flags say.
func TestLoadOfAnyService(t *testing.T) {
	file := filepath.Join(t.TempDir(), "order.json")
	if err := os.WriteFile(file, []byte(`{"tea": 2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	var got atomic.Pointer[string]
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		got.Store(new(fmt.Sprint(r.Method, " ", r.Host, r.URL, " ", r.Header["X-Kind"], " ", string(body), err)))
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	for _, tt := range []struct {
		url   string
		flags []string
		want  string
	}{
		{server.URL, nil, "GET " + host + "/ [] <nil>"},
		{server.URL + "/a%20b?c=d", []string{"--method", "DELETE"}, "DELETE " + host + "/a%20b?c=d [] <nil>"},
		{server.URL + "/orders", []string{"--body", "tea", "--header", "x-kind: a", "--header", "X-Kind:b", "--header", "Host: shop"},
			"POST shop/orders [a b] tea<nil>"},
		{server.URL + "/orders", []string{"--body", "@" + file, "--method", "PUT"}, "PUT " + host + `/orders [] {"tea": 2}<nil>`},
	} {
		stdout, _, err := execute(t, append([]string{"load", "--url", tt.url, "--rate", "100", "--duration", "10ms"}, tt.flags...)...)
		if err != nil || !strings.Contains(stdout, "1 of 1 requests sent") {
			t.Errorf("%s: %v\n%s", tt.url, err, stdout)
		}
		if request := got.Load(); request == nil || *request != tt.want {
			t.Errorf("%s %q: got %v, want %s", tt.url, tt.flags, request, tt.want)
		}
	}
}

// startServices starts both services and returns their addresses.
func startServices(t *testing.T) (storefront, inventory string) {
	t.Helper()
	serve := func(cfg workload.Config) string {
		cfg.Logger = slog.New(slog.DiscardHandler)
		s, err := workload.New(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		server := httptest.NewServer(s)
		t.Cleanup(server.Close)
		return server.URL
	}
	inventory = serve(workload.Config{Role: workload.Inventory})
	return serve(workload.Config{Role: workload.Storefront, InventoryURL: inventory, Database: filepath.Join(t.TempDir(), "orders.db")}), inventory
}

// A fault is on during the load, with its settings and the requests that show it, and off afterwards.
func TestLoadWithAFault(t *testing.T) {
	storefront, inventory := startServices(t)
	isOn := func(name string) bool {
		found, err := faults.Find(t.Context(), name, storefront, inventory)
		if err != nil {
			t.Fatal(err)
		}
		return found.Fault.On
	}
	for name, paths := range map[string][]string{
		"report-lock?report_ms=1": {"/api/report", "/api/prices"},
		"inventory/lock-convoy":   {"/api/checkout?items=1"},
	} {
		ctx, interrupt := context.WithCancel(t.Context())
		var out, errs bytes.Buffer
		ended := make(chan error)
		go func() {
			ended <- run(ctx, &out, &errs, "load", "--target", storefront, "--inventory", inventory, "--fault", name, "--duration", "1h", "--format", "json")
		}()
		only, _, _ := strings.Cut(name, "?")
		for !isOn(only) {
			select {
			case err := <-ended:
				t.Fatalf("the load ended: %v\n%s", err, &errs)
			default:
			}
		}
		interrupt()
		if err := <-ended; err != nil {
			t.Errorf("load: %v\n%s", err, &errs)
		}
		if isOn(only) {
			t.Errorf("%s is on after the load was interrupted", only)
		}
		var report load.Report
		if err := json.Unmarshal(out.Bytes(), &report); err != nil || len(report.Endpoints) != len(paths) {
			t.Fatalf("%v\n%s", err, &out)
		}
		for i, e := range report.Endpoints {
			if e.Path != paths[i] {
				t.Errorf("%s: requests to %s, want %s", name, e.Path, paths[i])
			}
		}
	}
	for want, fault := range map[string]string{
		`fault "earthquake": must be one of inventory/`: "earthquake",
		`parameter report_ms="0" is out of range`:       "report-lock?report_ms=0",
	} {
		if _, _, err := execute(t, "load", "--target", storefront, "--inventory", inventory, "--fault", fault); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error with %q", fault, err, want)
		}
	}
	_, _, err := execute(t, "load", "--target", storefront, "--inventory", inventory, "--fault", "report-lock", "--concurrency", "-1")
	if err == nil || isOn("report-lock") {
		t.Errorf("with a wrong setting: %v; the fault is on: %v", err, isOn("report-lock"))
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
		`url "tea"`:                              {"load", "--url", "tea"},
		`url "http://host/?…"`:                   {"load", "--url", "http://host/#top"},
		"require --url":                          {"load", "--body", "tea"},
		"were all set":                           {"load", "--url", "http://host", "--mix", "cpu=1"},
		`invalid method "A B"`:                   {"load", "--url", "http://host", "--method", "A B"},
		"want 'Name: value'":                     {"load", "--url", "http://host", "--header", "tea"},
		"--body: open none":                      {"load", "--url", "http://host", "--body", "@none"},
		`"extra"`:                                {"version", "extra"},
	} {
		if _, _, err := execute(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("spanflame %s: %v, want an error with %q", strings.Join(args, " "), err, want)
		}
	}
}

// A token is the password in an address, and what is printed ends in logs of CI.
func TestNoCommandPrintsAPassword(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{
		{"view", "http://any:SECRET@127.0.0.1:1/?x=1"},
		{"view", "http://any:SECRET@127.0.0.1:1"},
		{"view", "http://any:SECRET@127.0.0.1:1", "--tempo", "http://127.0.0.1:1", "--pyroscope", "http://127.0.0.1:1"},
		{"view", "HTTP://any:SECRET@127.0.0.1:1"},
		{"view", "--tempo", "any:SECRET@host", "--pyroscope", "http://127.0.0.1:1"},
		{"view", dir, "--grafana", "ftp://any:SECRET@host"},
		{"view", dir, "--base", "http://any:SECRET@127.0.0.1:1"},
		{"slow", "--dir", "http://any:SECRET@127.0.0.1:1"},
		{"why", "--dir", "http://any:SECRET@127.0.0.1:1"},
		{"why", "--dir", "http://any:SECRET@127.0.0.1:1", "--tail", "GET /"},
		{"mcp", "--dir", "http://any:SECRET@127.0.0.1:1"},
		{"compare", "http://any:SECRET@127.0.0.1:1/", dir},
		{"compare", "http://any:SECRET @127.0.0.1:1/debug/pprof/heap", dir},
		{"leaks", "http://any:SECRET/@127.0.0.1:1/debug/pprof/heap"},
		{"merge", "http://any:SECRET@127.0.0.1:1/debug/pprof/heap"},
		{"load", "--url", "http://any:SECRET@127.0.0.1:1/#x"},
		{"load", "--target", "ftp://any:SECRET@127.0.0.1:1"},
		{"load", "--target", "http://any:SECRET @127.0.0.1:1", "--fault", "report-lock"},
		{"load", "--target", "http://any:SECRET@127.0.0.1:1", "--fault", "report-lock"},
		{"load", "--target", "http://any:SECRET@127.0.0.1:1", "--rate", "100", "--duration", "10ms", "--format", "json"},
		{"health", "http://any:SECRET @127.0.0.1:1"},
		{"health", "http://any:SECRET@127.0.0.1:1"},
	} {
		stdout, stderr, err := execute(t, args...)
		if err == nil || strings.Contains(stdout+stderr+err.Error(), "SECRET") {
			t.Errorf("%q: %v\n%s%s", args, err, stdout, stderr)
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
