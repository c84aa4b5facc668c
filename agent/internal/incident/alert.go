package incident

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"spanflame/internal/record"
)

// maxAlert limits the body of an alert, and maxDetail what of it a bundle has, in bytes.
const (
	maxAlert  = 1 << 20
	maxDetail = 200
)

// alert is what is used of what an Alertmanager sends to a webhook.
type alert struct {
	Alerts []struct {
		Status string            `json:"status"`
		Labels map[string]string `json:"labels"`
	} `json:"alerts"`
}

// firing returns the names of the alerts that fire, for this service or for no service in particular. It is empty if there
// are none.
func firing(body io.Reader, service string) (string, error) {
	b, err := io.ReadAll(io.LimitReader(body, maxAlert+1))
	if err != nil {
		return "", fmt.Errorf("read the alert: %w", err)
	}
	if len(b) > maxAlert {
		return "", fmt.Errorf("the alert is longer than %d bytes", maxAlert)
	}
	var a alert
	if err := json.Unmarshal(b, &a); err != nil {
		return "", fmt.Errorf("the alert is not what an Alertmanager sends: %w", err)
	}
	if a.Alerts == nil {
		return "", errors.New(`the alert is not what an Alertmanager sends: it has no "alerts"`)
	}
	var names []string
	for _, one := range a.Alerts {
		of := one.Labels[record.ServiceLabel]
		if one.Status == "firing" && (of == "" || of == service) {
			names = append(names, cmp.Or(one.Labels["alertname"], "an alert without a name"))
		}
	}
	return printable(strings.Join(names, ", "), maxDetail), nil
}

// printable makes text of one line of at most n bytes.
func printable(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '\ufffd'
	}, s[:min(len(s), n)])
	return strings.ToValidUTF8(s, "\ufffd")
}
