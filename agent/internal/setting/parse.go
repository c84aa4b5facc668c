package setting

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Text is any text.
func Text(text string) (string, error) { return text, nil }

// Duration is a duration above zero, as [time.ParseDuration] reads it, or a whole number of days.
func Duration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16) // 65535 days are within a duration
		d = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || d <= 0 {
		return 0, errors.New(`a duration above zero with its unit, like "15s" or "7d"`)
	}
	return d, nil
}

// Seconds is a duration above zero, whose unit is the second if it has none.
func Seconds(text string) (time.Duration, error) {
	if n, err := strconv.ParseUint(text, 10, 31); err == nil && n > 0 {
		return time.Duration(n) * time.Second, nil
	}
	d, err := Duration(text)
	if err != nil {
		return 0, fmt.Errorf("%w, or a number of seconds", err)
	}
	return d, nil
}

// Bool is true or false.
func Bool(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, errors.New("true or false")
}

// Whole is a whole number above zero.
func Whole(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n <= 0 {
		return 0, errors.New("a whole number above zero, like 1000")
	}
	return n, nil
}

// Bytes is a whole number of bytes above zero, with or without a unit: B, a multiple of 1000 like MB or M, or one of 1024
// like MiB or Mi.
func Bytes[T int | int64](text string) (T, error) {
	digits := strings.TrimRightFunc(text, unicode.IsLetter)
	n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
	factor, ok := unitOfBytes(text[len(digits):])
	if err != nil || !ok || n <= 0 || n > math.MaxInt64/factor || int64(T(n*factor)) != n*factor {
		return 0, errors.New("a whole number of bytes above zero, like 1048576 or 64MiB")
	}
	return T(n * factor), nil
}

func unitOfBytes(unit string) (factor int64, ok bool) {
	prefix, binary := strings.CutSuffix(strings.TrimSuffix(strings.ToLower(unit), "b"), "i")
	power := strings.Index(" kmgt", prefix)
	switch {
	case prefix == "":
		return 1, !binary
	case len(prefix) > 1 || power < 0:
		return 0, false
	}
	base := int64(1000)
	if binary {
		base = 1024
	}
	for factor = 1; power > 0; power-- {
		factor *= base
	}
	return factor, true
}

// Share is a number above 0 and up to 1, also as a percentage.
func Share(text string) (float64, error) {
	number, percent := strings.CutSuffix(text, "%")
	f, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if percent {
		f /= 100
	}
	if err != nil || !(f > 0 && f <= 1) {
		return 0, errors.New(AShare)
	}
	return f, nil
}

// AShare describes what [Share] reads.
const AShare = "a share above 0 and up to 1, like 0.01 or 1%"

// List is items separated by commas; empty ones are left out.
func List[T ~string](text string) ([]T, error) {
	var items []T
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, T(item))
		}
	}
	return items, nil
}

// Pairs are name=value pairs separated by commas.
func Pairs(text string) (map[string]string, error) {
	items, _ := List[string](text)
	m := make(map[string]string, len(items))
	for _, item := range items {
		k, v, ok := strings.Cut(item, "=")
		if k = strings.TrimSpace(k); !ok || k == "" {
			return nil, errors.New("name=value pairs separated by commas")
		}
		m[k] = strings.TrimSpace(v)
	}
	return m, nil
}

// Attributes are pairs whose values may be percent-encoded, as in W3C Baggage.
func Attributes(text string) (map[string]string, error) {
	m, err := Pairs(text)
	for k, v := range m {
		if m[k], err = url.PathUnescape(v); err != nil {
			return nil, fmt.Errorf("a percent-encoded value for %s", k)
		}
	}
	return m, err
}

// JSONObject is a JSON object of strings.
func JSONObject(text string) (map[string]string, error) {
	var m map[string]string
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return nil, errors.New(`a JSON object of strings, like {"X-Name":"value"}`)
	}
	return m, nil
}

// EncodedPairs describes what [Attributes] reads.
const EncodedPairs = "name=value pairs separated by commas, values percent-encoded"

// IsURL reports whether s is the address of an HTTP server, to which a path can be appended: it has no query.
func IsURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.RawQuery == "" && !u.ForceQuery && u.Fragment == ""
}

// NoneOrURL reports whether s is empty or the address of an HTTP server.
func NoneOrURL(s string) bool { return s == "" || IsURL(s) }
