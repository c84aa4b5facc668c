package telemetry

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"slices"

	"go.opentelemetry.io/otel/trace"

	"spanflame/internal/wallprofile"
)

// logHandler adds the trace id and span id of the context to each record, at the top level even if groups are
// open, because log stores look for them there.
type logHandler struct {
	slog.Handler                                   // with every group and attribute
	base         slog.Handler                      // without them
	open         []func(slog.Handler) slog.Handler // turn base into Handler, from the first group on
}

// newLogHandler returns a handler that writes JSON lines to w, each with the labels.
func newLogHandler(w io.Writer, labels map[string]string) slog.Handler {
	var attrs []slog.Attr
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		attrs = append(attrs, slog.String(name, labels[name]))
	}
	base := slog.NewJSONHandler(w, nil).WithAttrs(attrs)
	return logHandler{Handler: base, base: base}
}

func (h logHandler) Handle(ctx context.Context, r slog.Record) error {
	sc := trace.SpanContextFromContext(ctx)
	if !sc.IsValid() {
		return h.Handler.Handle(ctx, r)
	}
	ids := []slog.Attr{slog.String(wallprofile.TraceID, sc.TraceID().String()), slog.String(wallprofile.SpanID, sc.SpanID().String())}
	if len(h.open) == 0 {
		r = r.Clone()
		r.AddAttrs(ids...)
		return h.Handler.Handle(ctx, r)
	}
	handler := h.base.WithAttrs(ids)
	for _, wrap := range h.open {
		handler = wrap(handler)
	}
	return handler.Handle(ctx, r)
}

func (h logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	wrap := func(inner slog.Handler) slog.Handler { return inner.WithAttrs(attrs) }
	if len(h.open) == 0 {
		base := wrap(h.base)
		return logHandler{Handler: base, base: base}
	}
	return h.with(wrap)
}

func (h logHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return h.with(func(inner slog.Handler) slog.Handler { return inner.WithGroup(name) })
}

func (h logHandler) with(wrap func(slog.Handler) slog.Handler) slog.Handler {
	return logHandler{Handler: wrap(h.Handler), base: h.base, open: append(slices.Clip(h.open), wrap)}
}
