// Package child runs programs that must not outlive this one: the real servers, and the services of the
// demo and of the end-to-end tests. It neither restarts them nor knows when they are ready: that is for those
// who start them.
package child

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// Process is one run of a program.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed once the process has ended and was reaped
	err  error         // how it ended; to be read after done

	log      string // the file that it prints to, by StartLogged
	logStart int64  // where its own lines begin there
}

// Start starts the command in a process group of its own, so that Ctrl-C in a terminal reaches only this
// process, which then ends its children in order. On Linux the kernel kills the child when this process
// dies. The command's SysProcAttr is replaced.
//
// The goroutine that starts it stays on its thread until the process has ended, because the kernel's
// promise is bound to the thread that started the child.
func Start(cmd *exec.Cmd) (*Process, error) {
	cmd.SysProcAttr = attributes()
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		<-p.done
		return nil, err
	}
	return p, nil
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Ended tells whether the process has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Err is how the process ended: nil for exit status 0, and while it runs.
func (p *Process) Err() error {
	if !p.Ended() {
		return nil
	}
	return p.err
}

// Signal sends the signals one after the other; a process that has ended needs none.
func (p *Process) Signal(signals ...os.Signal) error {
	for _, sig := range signals {
		if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
	}
	return nil
}

// Status is how the process ended, in words; empty while it runs.
func (p *Process) Status() string {
	if !p.Ended() {
		return ""
	}
	return p.cmd.ProcessState.String()
}

// Pause freezes the process. On Linux it returns when every thread has come to a stop.
func (p *Process) Pause() error {
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return awaitStopped(p.PID())
}

// Resume lets a paused process go on.
func (p *Process) Resume() error { return p.cmd.Process.Signal(syscall.SIGCONT) }

// Stop asks the process to end and waits until it has. When ctx ends first it is killed, and the error says
// so; how it ended otherwise is Err's to say. A paused process is resumed, else it would not hear.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.Signal(syscall.SIGTERM, syscall.SIGCONT); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		err := fmt.Errorf("it did not end in order, so it was killed: %w", context.Cause(ctx))
		return errors.Join(err, p.Kill())
	}
}

// Kill ends the process at once, as a power failure would, and waits until it is gone.
func (p *Process) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}
