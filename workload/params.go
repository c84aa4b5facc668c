package workload

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// maxEchoed limits how many bytes of a wrong value an error repeats.
const maxEchoed = 64

// param is an integer query parameter: its name, its default and its range.
type param struct {
	name     string
	fallback int
	min, max int
}

func (p param) allowed() string { return fmt.Sprintf("an integer from %d to %d", p.min, p.max) }

func (p param) reject(value, why string) error {
	value = truncate(value, maxEchoed)
	return &apiError{
		status:    http.StatusBadRequest,
		Message:   fmt.Sprintf("parameter %s=%q %s: allowed is %s", p.name, value, why, p.allowed()),
		Parameter: p.name,
		Value:     value,
		Allowed:   p.allowed(),
	}
}

// parse parses the parameter's values from the query.
func (p param) parse(values []string) (int, error) {
	switch len(values) {
	case 0:
		return p.fallback, nil
	case 1:
	default:
		return 0, p.reject(strings.Join(values, ","), fmt.Sprintf("is given %d times", len(values)))
	}
	n, err := strconv.Atoi(values[0])
	switch {
	case err != nil:
		return 0, p.reject(values[0], "is not an integer") // not a number, or beyond 64 bits
	case n < p.min || n > p.max:
		return 0, p.reject(values[0], "is out of range")
	}
	return n, nil
}

// queryInts reads exactly the given parameters from the request's query, in their order. Other parameters are
// refused too: a misspelt name would otherwise silently mean the default.
func queryInts(r *http.Request, params ...param) ([]int, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, &apiError{status: http.StatusBadRequest, Message: "malformed query: " + truncate(err.Error(), maxEchoed)}
	}
	ints := make([]int, len(params))
	for i, p := range params {
		if ints[i], err = p.parse(query[p.name]); err != nil {
			return nil, err
		}
		delete(query, p.name)
	}
	for name, values := range query {
		return nil, unknownParam(name, strings.Join(values, ","), params)
	}
	return ints, nil
}

func unknownParam(name, value string, params []param) error {
	allowed := "no parameter"
	if len(params) > 0 {
		names := make([]string, len(params))
		for i, p := range params {
			names[i] = p.name + " (" + p.allowed() + ")"
		}
		allowed = strings.Join(names, ", ")
	}
	name, value = truncate(name, maxEchoed), truncate(value, maxEchoed)
	return &apiError{
		status:    http.StatusBadRequest,
		Message:   fmt.Sprintf("unknown parameter %s=%q: allowed is %s", name, value, allowed),
		Parameter: name,
		Value:     value,
		Allowed:   allowed,
	}
}
