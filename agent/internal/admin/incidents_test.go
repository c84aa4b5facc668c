package admin

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"testing"
)

// fakeIncidents has one bundle.
type fakeIncidents struct{ broken bool }

func (f fakeIncidents) Request(context.Context) (string, io.ReadCloser, error) {
	if f.broken {
		return "", nil, errors.New("the disk is full")
	}
	return "one", io.NopCloser(strings.NewReader("contents")), nil
}

func (f fakeIncidents) Alert(body io.Reader) (string, error) {
	b, err := io.ReadAll(body)
	if string(b) != "fire" {
		return "", errors.New("no alert")
	}
	return "received", err
}

func (f fakeIncidents) IDs() ([]string, error) { return []string{"one"}, nil }

func (f fakeIncidents) Open(id string) (io.ReadCloser, error) {
	switch id {
	case "one":
		return io.NopCloser(strings.NewReader("contents")), nil
	case "gone":
		return nil, fs.ErrNotExist
	}
	return nil, errors.New("no ID")
}

func TestIncidents(t *testing.T) {
	url := start(t, func(o *Options) { o.Incidents = fakeIncidents{} })
	broken := start(t, func(o *Options) { o.Incidents = fakeIncidents{broken: true} })
	for _, test := range []struct {
		method, url, body string
		status            int
		want              string
		headers           []string
	}{
		{"POST", url + "/incidents", "", 200, "contents", nil},
		{"POST", broken + "/incidents", "", 503, "the disk is full\n", nil},
		{"GET", url + "/incidents", "", 200, "one\n", nil},
		{"GET", url + "/incidents", "", 200, "[\"one\"]\n", []string{"Accept", "application/json"}},
		{"GET", url + "/incidents/one", "", 200, "contents", nil},
		{"GET", url + "/incidents/gone", "", 404, "incident \"gone\": unknown; /incidents lists all\n", nil},
		{"GET", url + "/incidents/..%2fone", "", 400, "no ID\n", nil},
		{"POST", url + "/incidents/alert", "fire", 200, "received\n", nil},
		{"POST", url + "/incidents/alert", "water", 400, "no alert\n", nil},
		{"POST", url + "/incidents", "", 403, "", []string{"Sec-Fetch-Site", "cross-site"}},
		{"POST", url + "/incidents/alert", "fire", 403, "", []string{"Origin", "http://attacker.example"}},
	} {
		req, err := http.NewRequestWithContext(t.Context(), test.method, test.url, strings.NewReader(test.body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(test.headers); i += 2 {
			req.Header.Set(test.headers[i], test.headers[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != test.status || test.want != "" && string(b) != test.want {
			t.Errorf("%s %s: %d %q, %v", test.method, test.url, resp.StatusCode, b, err)
		}
	}
	none := start(t, nil)
	if status, _, _ := get(t, none+"/incidents"); status != 404 {
		t.Errorf("without bundles: %d", status)
	}
}
