// Package child runs programs that must not outlive this one. The packages that run the real servers and the
// services of the workload use it. It neither restarts programs nor knows when they are ready: its callers do that.
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
	done chan struct{} // closed when the process has ended and was reaped
	err  error         // how it ended; read it after done is closed

	log      string // the file for its output, set by StartLogged
	logStart int64  // offset of its first line
}

// Start starts the command in a process group of its own, so that Ctrl-C in a terminal reaches only this
// process, which then ends its children in order. On Linux the kernel kills the child when this process
// dies. The command's SysProcAttr is replaced.
//
// The goroutine that starts the child stays on its thread until the process has ended, because the kernel kills the
// child when the thread that started it ends.
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

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Ended reports whether the process has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Err returns how the process ended: nil for exit status 0, and while it runs.
func (p *Process) Err() error {
	if !p.Ended() {
		return nil
	}
	return p.err
}

// Signal sends the signals one after the other. It does nothing if the process has ended.
func (p *Process) Signal(signals ...os.Signal) error {
	for _, sig := range signals {
		if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
	}
	return nil
}

// Status describes how the process ended; it is empty while the process runs.
func (p *Process) Status() string {
	if !p.Ended() {
		return ""
	}
	return p.cmd.ProcessState.String()
}

// Pause stops the process (SIGSTOP). On Linux it returns when every thread has stopped.
func (p *Process) Pause() error {
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return awaitStopped(p.PID())
}

// Resume continues a paused process.
func (p *Process) Resume() error { return p.cmd.Process.Signal(syscall.SIGCONT) }

// Stop asks the process to end and waits until it has ended. If ctx ends first, Stop kills the process and returns
// an error. Err returns how the process ended otherwise. A paused process is resumed, so that it handles the
// signal.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.Signal(syscall.SIGTERM, syscall.SIGCONT); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		err := fmt.Errorf("it did not end normally, so it was killed: %w", context.Cause(ctx))
		return errors.Join(err, p.Kill())
	}
}

// Kill kills the process and waits until it has ended.
func (p *Process) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}
