package viewer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"spanflame/internal/format"
	"spanflame/profiles"
	"spanflame/viewer/source"
)

// sendFile sends a selection's profile as a file. The name is without its ending; none is the answer if there is no profile.
func (s *server) sendFile(w http.ResponseWriter, r *http.Request, sel source.Selection, name, none string) error {
	b, err := once(r.Context(), s, fmt.Sprintf("download %q", sel), func(ctx context.Context) ([]byte, error) {
		p, err := s.source.Profile(ctx, sel) // not the shared one: writing a profile changes it
		if err != nil {
			return nil, err
		}
		var b bytes.Buffer
		err = p.Write(&b)
		return b.Bytes(), err
	})
	if errors.Is(err, profiles.ErrNone) {
		return refusal{http.StatusNotFound, none}
	}
	if err != nil {
		return err
	}
	return send(w, b, name)
}

// send sends an encoded profile as a file.
func send(w http.ResponseWriter, b []byte, name string) error {
	w.Header().Set("Content-Type", "application/vnd.google.protobuf+gzip")
	w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="%s.pb.gz"`, name))
	_, _ = w.Write(b) // a client that is gone need not have it
	return nil
}

// download sends a span's profile as a file.
func (s *server) download(w http.ResponseWriter, r *http.Request) error {
	typ, ok := strings.CutSuffix(r.PathValue("file"), ".pb.gz")
	if !ok {
		return refusal{http.StatusNotFound, "There is no such file: want wall.pb.gz or cpu.pb.gz."}
	}
	sp, t, err := s.spanOf(r, typ)
	if err != nil {
		return err
	}
	sel := source.OfSpan(sp, t.Type)
	return s.sendFile(w, r, sel, sp.ID+"-"+t.Name, "The span has no such profile.")
}

// quoteShell quotes an argument for a POSIX shell, so that a command line can be copied as shown.
func quoteShell(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./=:%@+,") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// arguments returns files as arguments for a shell. It is not ok if there are none, too many to type, or one whose name
// would deceive the eye.
func arguments(files []string) (list string, ok bool) {
	if len(files) > listedWindows {
		return "", false
	}
	for _, f := range files {
		if format.Clean(f, len(f)) != f {
			return "", false
		}
		list += " " + quoteShell(f)
	}
	return list, len(files) > 0
}
