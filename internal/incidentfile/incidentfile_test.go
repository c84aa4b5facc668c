package incidentfile

import (
	"archive/zip"
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestID(t *testing.T) {
	id := NewID(time.Now(), Latency)
	if got, err := ParseFile(id.File()); err != nil || got != id {
		t.Errorf("%v becomes %v: %v", id, got, err)
	}
	earlier := NewID(time.Now().Add(-time.Second), Request)
	if !(earlier.String() < id.String()) {
		t.Errorf("%v is not before %v", earlier, id)
	}
	good := "20260102T150405.000Z-request-0123abcd"
	if _, err := ParseID(good); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{
		"", ".", "..", "../" + good, good + "/..", good + ".zip", "20261302T150405.000Z-request-0123abcd", "20260102T150405.000Z-Request-0123abcd",
		"20260102T150405.000Z--0123abcd", "20260102T150405.000Z-request-0123ABCD", good + "\n", strings.Replace(good, "-request", "/request", 1), good + "\x00",
	} {
		if id, err := ParseID(bad); err == nil {
			t.Errorf("%q is accepted as %v", bad, id)
		}
	}
}

func TestReadHostile(t *testing.T) {
	make := func(name, content string) *zip.Reader {
		var b bytes.Buffer
		w := zip.NewWriter(&b)
		f, err := w.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		r, err := zip.NewReader(bytes.NewReader(b.Bytes()), int64(b.Len()))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if i, err := Read(make(About, `{"id":"x","detail":"<script>","new":1}`)); err != nil || i.Detail != "<script>" {
		t.Errorf("%+v, %v", i, err)
	}
	for what, z := range map[string]*zip.Reader{
		"another file": make("x", "{}"), "a bomb": make(About, strings.Repeat(" ", maxAbout)+"{}"), "no JSON": make(About, "x"),
	} {
		if i, err := Read(z); err == nil {
			t.Errorf("%s is accepted as %+v", what, i)
		}
	}
}
