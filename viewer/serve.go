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

// Limits of a connection.
const (
	headerTime = 10 * time.Second // to read a request's header
	wholeTime  = time.Minute      // to read a request, and to write an answer
	idleTime   = 2 * time.Minute
	stopTime   = 5 * time.Second // for the pages that are being made when serving ends
)

// Serve serves pages at a listener, which it closes, until ctx ends. It logs failures of single connections.
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
		err = server.Close() // pages that are still being sent are cut off
	}
	<-served
	return err
}
