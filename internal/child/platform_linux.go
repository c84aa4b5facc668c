package child

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// attributes puts a child into its own process group, so that Ctrl-C in a terminal reaches only this process, which
// then ends its children. It has the kernel kill the child if the thread that started it ends, so that no child
// outlives a killed parent. The caller keeps that thread alive.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// awaitStopped returns when the last thread of the child pid has stopped after SIGSTOP; sending the signal returns
// earlier. It also returns if the child has ended, which Wait then reports.
func awaitStopped(pid int) error {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ECHILD): // Ended and reaped.
			return nil
		default:
			return err
		}
	}
}
