package child

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// StartLogged is like Start, but appends the command's output to a file, which WithLog quotes. The caller may close
// the file as soon as StartLogged has returned.
func StartLogged(cmd *exec.Cmd, log *os.File) (*Process, error) {
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = log, log
	p, err := Start(cmd)
	if err != nil {
		return nil, err
	}
	p.log, p.logStart = log.Name(), from
	return p, nil
}

// WithLog adds the last lines of the process's output to err. The process must have been started by StartLogged.
func (p *Process) WithLog(err error) error {
	lines, logErr := Tail(p.log, p.logStart)
	if logErr != nil {
		return errors.Join(err, logErr)
	}
	return fmt.Errorf("%w; the last lines of %s:\n%s", err, p.log, lines)
}

// tailLimit limits how many bytes of a log an error message quotes.
const tailLimit = 4 << 10

// Tail returns the last lines of the file at path after the offset from, at most 4 KiB.
func Tail(path string, from int64) (lines string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return "", err
	}
	cut := size-tailLimit > from
	if cut {
		from = size - tailLimit
	}
	b, err := io.ReadAll(io.NewSectionReader(f, from, tailLimit))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	lines = string(b)
	if cut {
		_, lines, _ = strings.Cut(lines, "\n") // the first line is incomplete
	}
	return strings.TrimRight(lines, "\n"), nil
}
