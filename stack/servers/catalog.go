package servers

import (
	"bytes"
	"embed"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"
)

// Names of the servers, as Options.Servers and the command line know them.
const (
	Pyroscope   = "pyroscope"    // profiles, on the storage that survives a kill
	PyroscopeV1 = "pyroscope-v1" // the same server on its first storage, which older installations run
	Tempo       = "tempo"        // traces
)

// Names of the ports that a user may choose, as Options.Ports knows them.
const (
	PortPyroscope = "pyroscope" // Pyroscope's HTTP interface
	PortTempo     = "tempo"     // Tempo's HTTP interface
	PortOTLPGRPC  = "otlp-grpc" // where Tempo takes OTLP over gRPC
	PortOTLPHTTP  = "otlp-http" // where Tempo takes OTLP over HTTP
)

// catalog is everything that is known about each server: a further one is a further entry, a template
// and a directory with a go.mod.
var catalog = []definition{
	{
		name:    Pyroscope,
		module:  "pyroscope",
		main:    "github.com/grafana/pyroscope/cmd/pyroscope",
		typical: 4 * time.Minute,
		ready:   "/ready",
		args:    []string{"-config.file=" + configFile},
		env:     []string{"PYROSCOPE_V2=1"},
		ports:   []Port{{PortPyroscope, 4040}, {"pyroscope-grpc", 0}, {"pyroscope-raft", 0}},
	},
	{
		name:    PyroscopeV1,
		module:  "pyroscope",
		main:    "github.com/grafana/pyroscope/cmd/pyroscope",
		typical: 4 * time.Minute,
		ready:   "/ready",
		args:    []string{"-config.file=" + configFile},
		ports:   []Port{{PortPyroscope, 4040}, {"pyroscope-grpc", 0}},
	},
	{
		name:    Tempo,
		module:  "tempo",
		main:    "github.com/grafana/tempo/cmd/tempo",
		typical: 3 * time.Minute,
		ready:   "/ready",
		args:    []string{"-config.file=" + configFile},
		ports:   []Port{{PortTempo, 3200}, {PortOTLPGRPC, 4317}, {PortOTLPHTTP, 4318}, {"tempo-grpc", 0}},
		// It takes 2 s, unless it was queried less than a minute before: then its query frontend waits for
		// a queue to be removed by the very timer that it has stopped. Its ingester has ended by then.
		endsWithin: 5 * time.Second,
	},
}

// Default names the servers that are started when none is named.
func Default() []string { return []string{Pyroscope, Tempo} }

// Names are the names of all servers.
func Names() []string {
	var names []string
	for _, d := range catalog {
		names = append(names, d.name)
	}
	return names
}

// definition is one entry of the catalog.
type definition struct {
	name    string        // also names the template in config and the directory of the server's data
	module  string        // directory below stack/servers that holds the go.mod
	main    string        // package to build
	typical time.Duration // of a build with cold caches on two cores, for the progress line
	ready   string        // path on the first port that answers 200 when the server can work
	args    []string      // command line, a template each; the working directory has the config.yaml
	env     []string      // beside the parent's environment
	ports   []Port        // the first is the HTTP interface

	// endsWithin, if not 0, is for a server that may never end although its data are safe on disk: Stop
	// kills it after this time, and that is no error.
	endsWithin time.Duration
}

// Port is a port a server listens on.
type Port struct {
	Name    string // key in Options.Ports; the command line's flag is --NAME-port
	Default int    // the number users expect, 0 if nobody but the server itself uses the port
}

// Ports lists the ports a user may choose, each once.
func Ports() []Port {
	var all []Port
	for _, d := range catalog {
		for _, p := range d.ports {
			if p.Default != 0 && !slices.Contains(all, p) {
				all = append(all, p)
			}
		}
	}
	return all
}

// lookup finds the entries of the given names, in their order; no name means the default ones.
func lookup(names []string) ([]definition, error) {
	if len(names) == 0 {
		names = Default()
	}
	var defs []definition
	for i, name := range names {
		n := slices.IndexFunc(catalog, func(d definition) bool { return d.name == name })
		if n < 0 {
			return nil, fmt.Errorf("unknown server %q: known are %s", name, strings.Join(Names(), ", "))
		}
		if slices.Contains(names[:i], name) {
			return nil, fmt.Errorf("server %q is named twice", name)
		}
		defs = append(defs, catalog[n])
	}
	return defs, nil
}

//go:embed config/*.yaml
var configs embed.FS

// addresses are the ports of one server by name, as its template sees them.
type addresses map[string]int

// Port gives the number of the named port.
func (a addresses) Port(name string) (int, error) {
	n, ok := a[name]
	if !ok {
		return 0, fmt.Errorf("the server has no port named %q", name)
	}
	return n, nil
}

// Addr gives the named port as host:port.
func (a addresses) Addr(name string) (string, error) {
	n, err := a.Port(name)
	return net.JoinHostPort(loopback, strconv.Itoa(n)), err
}

// configFile is the name of the configuration in a server's working directory.
const configFile = "config.yaml"

// configure fills in the templates of the server's configuration and command line.
func (d definition) configure(a addresses) (config []byte, args []string, err error) {
	text, err := configs.ReadFile("config/" + d.name + ".yaml")
	if err != nil {
		return nil, nil, fmt.Errorf("configuration of %s: %w", d.name, err)
	}
	if config, err = a.expand(string(text)); err != nil {
		return nil, nil, fmt.Errorf("configuration of %s: %w", d.name, err)
	}
	for _, text := range d.args {
		arg, err := a.expand(text)
		if err != nil {
			return nil, nil, fmt.Errorf("arguments of %s: %w", d.name, err)
		}
		args = append(args, string(arg))
	}
	return config, args, nil
}

// expand fills in one template.
func (a addresses) expand(text string) ([]byte, error) {
	t, err := template.New("").Parse(text)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, a)
	return b.Bytes(), err
}
