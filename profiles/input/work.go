package input

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"spanflame/internal/record"
	"spanflame/internal/redact"
)

const (
	workTimeout   = 30 * time.Second
	maxWorkAnswer = 1 << 20 // bytes
)

// windowVariable is replaced by the length of a window in the expression of Work.
const windowVariable = "$window"

// Work returns a function that queries a Prometheus server for the work done in a window: the value at its end of an
// expression such as "sum(increase(http_server_request_duration_seconds_count[$window]))".
func Work(ctx context.Context, address, expression string) (func(record.Meta) (float64, error), error) {
	u, err := url.Parse(address)
	if err != nil || !isWeb(u) || u.Host == "" {
		return nil, fmt.Errorf("address of Prometheus %q: want http://HOST:PORT", redact.URL(address))
	}
	if !strings.Contains(expression, windowVariable) {
		return nil, fmt.Errorf("work expression %q: want one with [%s], which is the length of each window", expression, windowVariable)
	}
	u = u.JoinPath("api/v1/query")
	client := &http.Client{Timeout: workTimeout}
	return func(m record.Meta) (float64, error) {
		length := m.End.Sub(m.Start)
		if length < time.Second {
			return 0, fmt.Errorf("the window is %v long: want 1s or more", length)
		}
		ask := *u
		ask.RawQuery = url.Values{
			"query": {strings.ReplaceAll(expression, windowVariable, strconv.FormatInt(length.Milliseconds(), 10)+"ms")},
			"time":  {strconv.FormatFloat(float64(m.End.UnixMilli())/1000, 'f', 3, 64)},
		}.Encode()
		return askWork(ctx, client, &ask)
	}, nil
}

// askWork makes an instant query, which must return one value.
func askWork(ctx context.Context, client *http.Client, u *url.URL) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var answer struct {
		Error string
		Data  struct {
			Result []struct{ Value [2]any }
		}
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxWorkAnswer)).Decode(&answer); err != nil {
		return 0, fmt.Errorf("%s: status %d: no answer of Prometheus: %w", u.Redacted(), resp.StatusCode, err)
	}
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s: status %d: %.200q", u.Redacted(), resp.StatusCode, answer.Error)
	}
	if n := len(answer.Data.Result); n != 1 {
		return 0, fmt.Errorf("%s: %d values: want one, such as of sum(…)", u.Redacted(), n)
	}
	text, ok := answer.Data.Result[0].Value[1].(string)
	if !ok {
		return 0, fmt.Errorf("%s: the value is %v: want a number", u.Redacted(), answer.Data.Result[0].Value[1])
	}
	value, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: the value is %q: want a number", u.Redacted(), text)
	}
	return value, nil
}
