//go:build stack

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
)

// notification is what Alertmanager posts to a webhook, as far as it is read here.
type notification struct {
	Alerts []alert `json:"alerts"`
}

type alert struct {
	Status      string            `json:"status"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// pager is who is notified of alerts.
type pager struct {
	url string

	mu     sync.Mutex
	alerts []alert
}

func newPager(t *testing.T) *pager {
	r := &pager{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var n notification
		if err := json.NewDecoder(http.MaxBytesReader(w, req.Body, 1<<20)).Decode(&n); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.alerts = append(r.alerts, n.Alerts...)
	}))
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

// named writes the receiver's address into the file from which Alertmanager reads it.
func (r *pager) named(t *testing.T, file string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(r.url+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// await returns an alert on the storefront that fires. It calls cause again and again until the receiver has it.
func (r *pager) await(t *testing.T, name string, cause func() error) (found alert) {
	t.Helper()
	eventually(t, name, func() error {
		if err := cause(); err != nil {
			return err
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, a := range r.alerts {
			if a.Status == "firing" && a.Labels["alertname"] == name && a.Labels["service_name"] == "storefront" {
				found = a
				return nil
			}
		}
		return fmt.Errorf("the receiver has only %v", r.alerts)
	})
	return found
}

var waitsFor = regexp.MustCompile(`(?m)^( +for:) \d+m$`)

// quickRules writes the alert rules with a shorter wait before they fire, and returns the file.
func quickRules(t *testing.T) string {
	t.Helper()
	rules, err := os.ReadFile(filepath.Join("..", "deploy", "prometheus", "alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(waitsFor.FindAll(rules, -1)); n < 4 {
		t.Fatalf("%d rules wait before they fire, want 4", n)
	}
	file := filepath.Join(t.TempDir(), "alerts.yaml")
	quick := waitsFor.ReplaceAll(rules, []byte("$1 5s"))
	if err := os.WriteFile(file, quick, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}
