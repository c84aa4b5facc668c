package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.40.0"
	"go.opentelemetry.io/otel/trace"
)

// statusCancelled is logged for a request whose client went away; the client does not see it. It is below 500
// because the service did nothing wrong.
const statusCancelled = 499

// The routes of health checks.
const (
	healthPattern = "GET /healthz"
	readyPattern  = "GET /readyz"
)

// maxLoggedPath limits how many bytes of a path are logged, so that a hostile path cannot make a log line long.
const maxLoggedPath = 256

// handler answers one route. It returns a value to encode as JSON, or an error: an *apiError sets the status, any
// other error is a 500.
type handler func(r *http.Request) (any, error)

// apiError is an answer other than 200. Its exported fields are sent to the client.
type apiError struct {
	status    int
	Message   string `json:"error"`
	Parameter string `json:"parameter,omitempty"`
	Value     string `json:"value,omitempty"`
	Allowed   string `json:"allowed,omitempty"`
	cause     error  // for the log and the span, not for the client
}

func (e *apiError) Error() string {
	if e.cause != nil {
		return e.Message + ": " + e.cause.Error()
	}
	return e.Message
}

func (e *apiError) Unwrap() error { return e.cause }

// handle registers h for a ServeMux pattern.
func (s *Service) handle(pattern string, h handler) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		out := w.(*response) // observe is the only way to the mux
		body, err := h(r)
		if err != nil {
			out.fail(r.Context(), err)
			return
		}
		out.reply(http.StatusOK, body)
	})
}

// isProbe reports whether r asks a health endpoint. Such requests would only distort the latencies and fill up the
// traces.
func (s *Service) isProbe(r *http.Request) bool {
	_, pattern := s.mux.Handler(r)
	return pattern == healthPattern || pattern == readyPattern
}

// ServeHTTP limits the request's time and body before any other code handles it.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	r = r.WithContext(ctx)
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	s.traced.ServeHTTP(w, r)
}

// observe runs inside the server span. It sets the trace's id on the response and writes the request's log line. It
// passes r itself on, not a copy, because the mux leaves the matched pattern in it, which otelhttp reads afterwards
// for the span's name and the metric's route.
func (s *Service) observe(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	ctx := r.Context()
	if sc := trace.SpanContextFromContext(ctx); sc.HasTraceID() {
		w.Header().Set("X-Trace-ID", sc.TraceID().String())
	}
	out := &response{ResponseWriter: w}
	s.dispatch(out, r)
	if out.status < http.StatusBadRequest && s.isProbe(r) {
		return
	}
	if route := route(r); route != "" { // otelhttp learns the route too late to put it on the span
		trace.SpanFromContext(ctx).SetAttributes(semconv.HTTPRoute(route))
	}

	level := slog.LevelInfo
	attrs := []slog.Attr{
		slog.String("http_method", truncate(r.Method, maxLoggedPath)),
		slog.String("http_path", truncate(r.URL.Path, maxLoggedPath)),
		slog.String("http_route", route(r)),
		slog.Int("http_status", out.status),
		slog.Float64("duration_seconds", time.Since(start).Seconds()),
	}
	if out.err != nil {
		attrs = append(attrs, slog.String("error", out.err.Error()))
	}
	if out.stack != nil {
		attrs = append(attrs, slog.String("stack", string(out.stack)))
	}
	if out.status >= http.StatusInternalServerError {
		level = slog.LevelError
	}
	s.log.LogAttrs(ctx, level, "HTTP Request Processed", attrs...)
}

// dispatch passes the request to its route. A panic becomes a 500; a request without a route gets the mux's own
// status and headers (404, 405 with Allow, a redirect to the clean path) with a JSON body.
func (s *Service) dispatch(out *response, r *http.Request) {
	defer func() {
		if p := recover(); p != nil {
			out.stack = debug.Stack()
			out.fail(r.Context(), fmt.Errorf("panic: %v", p))
		}
	}()
	if h, pattern := s.mux.Handler(r); pattern == "" {
		answer := statusOnly{header: out.Header()}
		h.ServeHTTP(&answer, r)
		out.reply(answer.status, &apiError{Message: fmt.Sprintf("%s: %s %s", strings.ToLower(http.StatusText(answer.status)),
			truncate(r.Method, maxLoggedPath), truncate(r.URL.Path, maxLoggedPath))})
		return
	}
	s.mux.ServeHTTP(out, r)
}

// route returns the matched pattern without its method, or "" if none matched.
func route(r *http.Request) string {
	_, path, _ := strings.Cut(r.Pattern, " ")
	return path
}

// truncate shortens s to at most limit bytes, without splitting a character.
func truncate(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

// response is the ResponseWriter of every handler. It records what was sent and why.
type response struct {
	http.ResponseWriter
	status int // 0 until the header is sent
	err    error
	stack  []byte // of a panic
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader records the status.
func (w *response) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write sends an implicit 200 first, like every ResponseWriter.
func (w *response) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(b)
}

// reply sends v as JSON, unless it is JSON already. It ignores write errors: the client has gone.
func (w *response) reply(status int, v any) {
	body, encoded := v.(json.RawMessage)
	var err error
	if !encoded {
		body, err = json.Marshal(v)
	}
	if err != nil { // only a programming error: every answer is a struct of plain fields
		status, body, w.err = http.StatusInternalServerError, []byte(`{"error":"internal error"}`), err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(slices.Clip(body), '\n')) // a copy, as others send the same RawMessage
}

// fail sends the answer for err, and marks the span as failed if the service caused the error.
func (w *response) fail(ctx context.Context, err error) {
	w.err = err
	answer := &apiError{status: http.StatusInternalServerError, Message: "internal error: see the service's log lines with this trace id"}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		answer = &apiError{status: statusCancelled, Message: "the request was cancelled"}
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		answer = &apiError{status: http.StatusServiceUnavailable, Message: fmt.Sprintf("the request took longer than %v", requestTimeout)}
	default:
		errors.As(err, &answer)
	}
	if answer.status >= http.StatusInternalServerError {
		span := trace.SpanFromContext(ctx)
		span.RecordError(err)
		span.SetStatus(codes.Error, err.Error())
	}
	if w.status != 0 {
		return // a panic after the header was sent: the status cannot be changed any more
	}
	w.reply(answer.status, answer)
}

// statusOnly is a ResponseWriter that keeps the status and the headers and drops the body.
type statusOnly struct {
	header http.Header
	status int
}

func (w *statusOnly) Header() http.Header         { return w.header }
func (w *statusOnly) WriteHeader(status int)      { w.status = status }
func (w *statusOnly) Write(b []byte) (int, error) { return len(b), nil }

// health is the answer of a health endpoint.
type health struct {
	Status string `json:"status"`
}

func (s *Service) healthz(*http.Request) (any, error) { return health{Status: "ok"}, nil }

// readyz checks the database. It does not check the inventory: taking the storefront out of service because the
// inventory is down would turn one outage into two.
func (s *Service) readyz(r *http.Request) (any, error) {
	if s.orders == nil {
		return health{Status: "ready"}, nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	if err := s.orders.db.PingContext(ctx); err != nil {
		return nil, &apiError{status: http.StatusServiceUnavailable, Message: "the order database does not answer", cause: err}
	}
	return health{Status: "ready"}, nil
}

// inSpan runs f in a child span that fails when f does.
func (s *Service) inSpan(ctx context.Context, name string, f func(context.Context) error) error {
	ctx, span := s.tracer.Start(ctx, name)
	defer span.End()
	err := f(ctx)
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, err.Error())
	}
	return err
}
