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

// defaultListen is where the pages are, so that their address stays the same over runs.
const defaultListen = "127.0.0.1:7070"

// servePages serves the viewer from now on until the end, which closes ln.
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

// listen takes the address for the pages, or instead of a default that is taken a free port.
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
		d.console.progressf("%s is taken: the pages get a free port", defaultListen)
		ln, err = net.Listen("tcp", "127.0.0.1:0")
	}
	return ln, err
}
