package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spanflame/internal/incidentfile"
)

func TestIncident(t *testing.T) {
	t.Chdir(t.TempDir())
	name := incidentfile.NewID(time.Now(), incidentfile.Request).File()
	disposition, status, cut := "", http.StatusOK, false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); r.Method != http.MethodPost || r.URL.Path != "/incidents" || password != "token" {
			t.Errorf("%s %s with the password %q", r.Method, r.URL, password)
		}
		w.Header().Set("Content-Disposition", disposition)
		if cut {
			w.Header().Set("Content-Length", "100")
		}
		w.WriteHeader(status)
		fmt.Fprint(w, "a bundle")
	}))
	defer server.Close()
	address := strings.Replace(server.URL, "http://", "http://any:token@", 1)
	do := func(args ...string) (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), &out, &out, append([]string{"incident"}, args...)...)
		if err != nil && strings.Contains(err.Error(), "token") {
			t.Errorf("the error has the token: %v", err)
		}
		return out.String(), err
	}
	disposition = `attachment; filename="` + name + `"`
	if out, err := do(address); err != nil || !strings.Contains(out, name) {
		t.Errorf("%q, %v", out, err)
	}
	if b, err := os.ReadFile(name); err != nil || string(b) != "a bundle" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := do(address); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("a file that exists: %v", err)
	}
	if _, err := do(address, "--output", "other.zip"); err != nil {
		t.Error(err)
	}
	cut = true
	if _, err := do(address, "--output", "cut.zip"); err == nil {
		t.Error("a bundle that is cut off is taken")
	}
	cut = false
	for _, hostile := range []string{"", "inline", `attachment; filename="../evil.zip"`, `attachment; filename="/etc/evil"`} {
		disposition = hostile
		if _, err := do(address); err == nil {
			t.Errorf("the name %q is accepted", hostile)
		}
	}
	status = http.StatusServiceUnavailable
	if _, err := do(address); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("a refusal: %v", err)
	}
	if _, err := do("127.0.0.1"); err == nil {
		t.Error("no address is accepted")
	}
	if files, err := filepath.Glob("*"); err != nil || len(files) != 2 {
		t.Errorf("%v, %v", files, err)
	}
}
