//go:build compose

package e2e

import (
	"archive/tar"
	"bytes"
	"debug/buildinfo"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/template"

	"go.yaml.in/yaml/v4"

	"spanflame/stack/servers"
)

// standIn is an image made of programs of this machine, for an image that the engine does not have.
type standIn struct {
	what    string            // what it really is
	config  []string          // its part of a Dockerfile
	files   map[string]string // by their paths in the image, those of this machine; a directory with all below
	texts   map[string]string // further files by their paths, as they are written
	folders map[string]folder // empty directories: what is mounted there takes their owner and mode
}

// folder holds the owner and the mode of a directory.
type folder struct {
	owner int
	mode  int64
}

// tmp is the directory /tmp of most images.
var tmp = folder{0, 0o1777}

// standInLabel marks the images that this test made, so that none is mistaken for a real one.
const standInLabel = "spanflame.stand-in"

// standIns are the recipes by the images' names, without tags.
var standIns = map[string]func(t *testing.T) standIn{
	"spanflame":            spanflameImage,
	"spanflame-collector":  collectorImage,
	"grafana/pyroscope":    pyroscopeImage,
	"grafana/tempo":        tempoImage,
	"grafana/loki":         lokiImage,
	"jaegertracing/jaeger": jaegerImage,
	"prom/alertmanager":    alertmanagerImage,
	"prom/prometheus":      prometheusImage,
	"postgres":             postgresImage,
}

// provideImage makes sure that the engine has the image, and reports whether it does. It uses pulled and built
// images as they are, and logs each stand-in that it makes.
func (e engine) provideImage(t *testing.T, reference string) bool {
	t.Helper()
	if label, err := e.try(t, nil, "docker", "image", "inspect", "--format", `{{index .Config.Labels "`+standInLabel+`"}}`, reference); err == nil && label == "" {
		t.Logf("%s: the engine has it", reference)
		return true
	}
	name, _, _ := strings.Cut(reference, ":")
	recipe, ok := standIns[name]
	if !ok {
		t.Logf("%s: not there, and there is no stand-in: left out", reference)
		return false
	}
	image := recipe(t)
	t.Logf("%s: not there, replaced by %s", reference, image.what)
	e.load(t, reference, image)
	t.Cleanup(func() {
		if _, err := e.try(t, nil, "docker", "image", "rm", reference); err != nil {
			t.Error(err)
		}
	})
	return true
}

// load loads the image into the engine, without a builder.
func (e engine) load(t *testing.T, reference string, image standIn) {
	t.Helper()
	command := []string{"docker", "import", "--change", "LABEL " + standInLabel + "=true"}
	for _, line := range image.config {
		command = append(command, "--change", line)
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(image.write(w)) }()
	_, err := e.try(t, r, append(command, "-", reference)...)
	r.CloseWithError(fs.ErrClosed) // End the writer if the command ended early.
	if err != nil {
		t.Fatal(err)
	}
}

// write writes the image's files as a tar archive.
func (image standIn) write(w io.Writer) error {
	out := tar.NewWriter(w)
	for _, dir := range slices.Sorted(maps.Keys(image.folders)) {
		is := image.folders[dir]
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: is.mode, Uid: is.owner, Gid: is.owner}); err != nil {
			return err
		}
	}
	for name, text := range image.texts {
		if err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(text))}); err != nil {
			return err
		}
		if _, err := io.WriteString(out, text); err != nil {
			return err
		}
	}
	for name, source := range image.files {
		if err := filepath.WalkDir(source, func(file string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			below, err := filepath.Rel(source, file)
			if err != nil {
				return err
			}
			return add(out, path.Join(name, filepath.ToSlash(below)), file)
		}); err != nil {
			return err
		}
	}
	return out.Close()
}

// add adds one file or directory, owned by root. Of a link it adds the target.
func add(out *tar.Writer, name, file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	header, err := tar.FileInfoHeader(info, "")
	if err != nil {
		return err
	}
	header.Name, header.Uid, header.Gid, header.Uname, header.Gname = name, 0, 0, "", ""
	if err := out.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(out, f)
	return err
}

// programs returns the files for an image by their paths there, including the libraries that they are linked to.
func programs(t *testing.T, files map[string]string) map[string]string {
	t.Helper()
	all := maps.Clone(files)
	for _, file := range files {
		maps.Copy(all, libraries(file))
	}
	return all
}

// libraries returns the libraries that a program is linked to, or none if it is linked statically.
func libraries(file string) map[string]string {
	linked, err := exec.Command("ldd", file).Output()
	if err != nil {
		return nil // ldd fails this way for a statically linked program.
	}
	all := map[string]string{}
	for _, path := range library.FindAllString(string(linked), -1) {
		all[path] = path
	}
	return all
}

var library = regexp.MustCompile(`/\S+\.so\S*`)

// server builds a server and returns the name of its release.
func server(t *testing.T, name string) (binary, release string) {
	t.Helper()
	binary, err := servers.Build(t.Context(), name, servers.BuildOptions{Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	return binary, info.Main.Path + " " + info.Main.Version
}

// ours builds a program of this module, statically linked.
func ours(t *testing.T, pkg string) (binary string) {
	t.Helper()
	binary = filepath.Join(t.TempDir(), path.Base(pkg))
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	return binary
}

func spanflameImage(t *testing.T) standIn {
	return standIn{
		what:    "this checkout's program",
		config:  []string{`ENTRYPOINT ["/spanflame"]`},
		files:   map[string]string{"/spanflame": ours(t, "spanflame/cmd/spanflame")},
		folders: map[string]folder{"/data": {65532, 0o750}},
	}
}

func collectorImage(t *testing.T) standIn {
	binary, _ := server(t, servers.Collector)
	return standIn{
		what:   "the Collector of stack/servers/collector",
		config: []string{`ENTRYPOINT ["/otelcol"]`},
		files:  programs(t, map[string]string{"/otelcol": binary, "/spanflame": ours(t, "spanflame/cmd/spanflame")}),
	}
}

func jaegerImage(t *testing.T) standIn {
	binary, release := server(t, servers.Jaeger)
	return standIn{
		what:    release,
		config:  []string{`ENTRYPOINT ["/cmd/jaeger/jaeger-linux"]`, "ENV PATH=/bin"},
		files:   programs(t, map[string]string{"/cmd/jaeger/jaeger-linux": binary, "/bin/wget": ours(t, "spanflame/e2e/compose/server")}),
		folders: map[string]folder{"/tmp": tmp},
	}
}

func lokiImage(t *testing.T) standIn {
	binary, release := server(t, servers.Loki)
	return standIn{
		what:    release,
		config:  []string{`ENTRYPOINT ["/usr/bin/loki"]`},
		files:   programs(t, map[string]string{"/usr/bin/loki": binary}),
		folders: map[string]folder{"/loki": {10001, 0o750}, "/tmp": tmp},
	}
}

func alertmanagerImage(t *testing.T) standIn {
	binary, release := server(t, servers.Alertmanager)
	tool, _ := server(t, servers.Amtool)
	return standIn{
		what:    release,
		config:  []string{`ENTRYPOINT ["/bin/alertmanager"]`, "ENV PATH=/bin"},
		files:   programs(t, map[string]string{"/bin/alertmanager": binary, "/bin/amtool": tool}),
		folders: map[string]folder{"/alertmanager": {65534, 0o750}, "/tmp": tmp},
	}
}

func prometheusImage(t *testing.T) standIn {
	binary, release := server(t, servers.Prometheus)
	tool, _ := server(t, servers.Promtool)
	return standIn{
		what:    release,
		config:  []string{`ENTRYPOINT ["/bin/prometheus"]`, "ENV PATH=/bin"},
		files:   programs(t, map[string]string{"/bin/prometheus": binary, "/bin/promtool": tool}),
		folders: map[string]folder{"/prometheus": {65534, 0o750}, "/tmp": tmp},
	}
}

// pyroscopeImage contains an older release, which needs the configuration of the native stack. Its paths are
// relative to the directory where the volume is mounted.
func pyroscopeImage(t *testing.T) standIn {
	binary, release := server(t, servers.Pyroscope)
	entry := ours(t, "spanflame/e2e/compose/server")
	return standIn{
		what:    release,
		config:  []string{`ENTRYPOINT ["/usr/bin/pyroscope"]`, "ENV PYROSCOPE_V2=1", "WORKDIR /data"},
		files:   programs(t, map[string]string{"/server": binary, "/usr/bin/pyroscope": entry, "/usr/bin/profilecli": entry}),
		texts:   map[string]string{"/overlay.yaml": overlay(t, servers.Pyroscope, "server")},
		folders: map[string]folder{"/data": {10001, 0o750}, "/tmp": tmp},
	}
}

func tempoImage(t *testing.T) standIn {
	binary, release := server(t, servers.Tempo)
	return standIn{
		what:    release,
		config:  []string{`ENTRYPOINT ["/tempo"]`},
		files:   programs(t, map[string]string{"/server": binary, "/tempo": ours(t, "spanflame/e2e/compose/server")}),
		texts:   map[string]string{"/overlay.yaml": overlay(t, servers.Tempo, "server", "distributor", "storage")},
		folders: map[string]folder{"/var/tempo": {10001, 0o750}, "/tmp": tmp},
	}
}

// containerPorts are the ports for the overlays of the native stack. In its own container, each server uses the
// ports of its documentation.
type containerPorts struct{}

var portNumbers = map[string]int{
	"pyroscope": 4040, "pyroscope-grpc": 9095, "pyroscope-raft": 9099,
	"tempo": 3200, "tempo-grpc": 9095, "otlp-grpc": 4317, "otlp-http": 4318,
}

func (containerPorts) Port(name string) int    { return portNumbers[name] }
func (containerPorts) Sends(string) bool       { return false } // the service map is tested with the native stack
func (containerPorts) Addr(name string) string { return fmt.Sprintf("127.0.0.1:%d", portNumbers[name]) }

// overlay returns what the native stack changes in a server's configuration because of its release. It omits the
// blocks with addresses and paths, which the compose file sets here.
func overlay(t *testing.T, name string, without ...string) string {
	t.Helper()
	tmpl, err := template.ParseFiles(filepath.Join("..", "stack", "servers", "config", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := tmpl.Execute(&text, containerPorts{}); err != nil {
		t.Fatal(err)
	}
	var blocks map[string]any
	if err := yaml.Unmarshal(text.Bytes(), &blocks); err != nil {
		t.Fatal(err)
	}
	for _, block := range without {
		delete(blocks, block)
	}
	out, err := yaml.Marshal(blocks)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// postgresImage contains Debian's PostgreSQL.
func postgresImage(t *testing.T) standIn {
	const versions = "/usr/lib/postgresql/*/bin/postgres"
	found, err := filepath.Glob(versions)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		install(t, "postgres", "postgresql")
		if found, err = filepath.Glob(versions); err != nil || len(found) == 0 {
			t.Fatalf("the package postgresql has no %s: %v", versions, err)
		}
	}
	bin := filepath.Dir(found[len(found)-1])
	release, err := exec.Command(found[len(found)-1], "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	version := filepath.Base(filepath.Dir(bin))
	files := programs(t, map[string]string{"/bin/sh": "/bin/sh"})
	maps.Copy(files, libraries(filepath.Join(bin, "postgres")))
	maps.Copy(files, libraries(filepath.Join(bin, "initdb")))
	for _, dir := range []string{filepath.Dir(bin), filepath.Join("/usr/share/postgresql", version), "/usr/share/zoneinfo"} {
		files[dir] = dir
	}
	return standIn{
		what:   strings.TrimSpace(string(release)) + " of Debian",
		config: []string{`ENTRYPOINT ["/entrypoint.sh"]`, "ENV PGDATA=/var/lib/postgresql/data", "ENV PATH=" + bin + ":/bin"},
		files:  files,
		texts: map[string]string{
			"/etc/passwd":    "postgres:x:999:999::/var/lib/postgresql:/bin/sh\n",
			"/entrypoint.sh": read(t, "compose/postgres.sh"),
		},
		folders: map[string]folder{"/var/lib/postgresql/data": {999, 0o700}, "/tmp": tmp},
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
