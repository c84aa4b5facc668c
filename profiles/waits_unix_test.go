//go:build unix

package profiles_test

import (
	"context"
	"net"
	"syscall"
	"testing"
	"time"

	"spanflame/internal/wallprofile"
)

// A server whose queue of connections is full does not answer those who dial.
func TestWaitedForADial(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := listener.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = syscall.Listen(int(fd), 0) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	const dials = 8 // the queue has room for some
	for range dials {
		go waiter(func() {
			if c, err := new(net.Dialer).DialContext(ctx, "tcp", listener.Addr().String()); err == nil {
				<-ctx.Done()
				_ = c.Close()
			}
			ended <- struct{}{}
		})
	}
	const want = "a connection to be made"
	for deadline := time.Now().Add(20 * time.Second); found(wallprofile.WaitNetwork)[want] == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("nothing waits for %s, but %v", want, found(wallprofile.WaitNetwork))
		}
	}
	cancel()
	for range dials {
		<-ended
	}
	_ = listener.Close()
}
