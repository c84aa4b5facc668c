package viewer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Bounds of a connection.
const (
	headerTime = 10 * time.Second // until a request's header is read
	wholeTime  = time.Minute      // until the request is read, or the answer written
	idleTime   = 2 * time.Minute
	stopTime   = 5 * time.Second // for pages that are being made at the end
)

// Serve serves pages at a listener, which it closes, until ctx ends. What goes wrong with single connections is
// logged.
func Serve(ctx context.Context, ln net.Listener, pages http.Handler, log *slog.Logger) error {
	server := &http.Server{
		Handler: pages, ReadHeaderTimeout: headerTime, ReadTimeout: wholeTime, WriteTimeout: wholeTime, IdleTimeout: idleTime,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve the pages: %w", err)
	case <-ctx.Done():
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	err := server.Shutdown(stopping)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close() // who still reads a page has to do without
	}
	<-served
	return err
}
