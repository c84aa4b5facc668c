package demo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"syscall"

	"spanflame/viewer"
)

// defaultListen is the address of the pages, the same for each run.
const defaultListen = "127.0.0.1:7070"

// servePages serves the viewer on ln until the demo ends, which closes ln.
func (d *demo) servePages(ln net.Listener) error {
	options := viewer.Options{Log: slog.New(slog.NewTextHandler(&d.console, nil))}
	if host, _, err := net.SplitHostPort(d.Listen); err == nil {
		options.Hosts = []string{host}
	}
	handler, err := viewer.New(d.backend.source, options)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- viewer.Serve(ctx, ln, handler, options.Log) }()
	d.ends = append(d.ends, func(context.Context) error {
		stop()
		return <-served
	})
	d.pages = viewer.URL(ln.Addr())
	d.console.progressf("the pages are at %s", d.pages)
	return nil
}

// listen listens on the address for the pages. If the default address is in use, it listens on a free port.
func (d *demo) listen() (net.Listener, error) {
	if d.Listen != "" {
		ln, err := net.Listen("tcp", d.Listen)
		if err != nil {
			return nil, fmt.Errorf("the pages' address %s: %w; choose another with --listen", d.Listen, err)
		}
		return ln, nil
	}
	ln, err := net.Listen("tcp", defaultListen)
	if errors.Is(err, syscall.EADDRINUSE) {
		d.console.progressf("%s is in use: the pages use a free port", defaultListen)
		ln, err = net.Listen("tcp", "127.0.0.1:0")
	}
	return ln, err
}
