package servers

import (
	"bytes"
	"embed"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"go.yaml.in/yaml/v4"
)

// Names of the servers for Options.Servers and the command line.
const (
	Pyroscope    = "pyroscope"    // profiles, on the second storage, which survives a kill
	PyroscopeV1  = "pyroscope-v1" // the same server on its first storage, which older installations use
	Tempo        = "tempo"        // traces
	Jaeger       = "jaeger"       // traces, for those who search them in its pages
	Alertmanager = "alertmanager" // notifies people of alerts
	Prometheus   = "prometheus"   // metrics, and the alerts on them
	Loki         = "loki"         // logs
	Collector    = "collector"    // receives all signals and sends them to the other servers
)

// Names of the ports that a user may choose, for Options.Ports.
const (
	PortPyroscope    = "pyroscope"    // Pyroscope's HTTP interface
	PortTempo        = "tempo"        // Tempo's HTTP interface
	PortJaeger       = "jaeger"       // Jaeger's HTTP interface
	PortAlertmanager = "alertmanager" // Alertmanager's HTTP interface
	PortPrometheus   = "prometheus"   // Prometheus's HTTP interface
	PortLoki         = "loki"         // Loki's HTTP interface
	PortCollector    = "collector"    // the Collector's health check
	PortOTLPGRPC     = "otlp-grpc"    // OTLP over gRPC: of the Collector if the stack has one, else of Tempo
	PortOTLPHTTP     = "otlp-http"    // OTLP over HTTP: likewise
)

// catalog describes all servers. To add a server, add an entry here, an overlay in config and a directory with a
// go.mod. Servers that send to others come after them.
var catalog = []definition{
	{
		name:    Pyroscope,
		module:  "pyroscope",
		main:    "github.com/grafana/pyroscope/cmd/pyroscope",
		typical: 4 * time.Minute,
		base:    []string{"pyroscope/pyroscope.yaml"},
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
		base:    []string{"pyroscope/pyroscope.yaml"},
		ready:   "/ready",
		args:    []string{"-config.file=" + configFile},
		ports:   []Port{{PortPyroscope, 4040}, {"pyroscope-grpc", 0}},
	},
	{
		name:    Jaeger,
		module:  "jaeger",
		main:    "github.com/jaegertracing/jaeger/cmd/jaeger",
		typical: 4 * time.Minute,
		base:    []string{"jaeger/jaeger.yaml"},
		ready:   "/api/v3/services",
		args:    []string{"--config=" + configFile},
		ports:   []Port{{PortJaeger, 16686}, {"jaeger-grpc", 0}, {"jaeger-otlp", 0}},
	},
	{
		name:    Alertmanager,
		module:  "alertmanager",
		main:    "github.com/prometheus/alertmanager/cmd/alertmanager",
		typical: 2 * time.Minute,
		base:    []string{"alertmanager/alertmanager.yaml"},
		ready:   "/-/ready",
		args: []string{
			"--config.file=" + configFile, "--storage.path=data", `--web.listen-address={{.Addr "alertmanager"}}`,
			"--cluster.listen-address=", // one instance
		},
		ports: []Port{{PortAlertmanager, 9093}},
	},
	{
		name:    Prometheus,
		module:  "prometheus",
		main:    "github.com/prometheus/prometheus/cmd/prometheus",
		typical: 3 * time.Minute,
		base:    []string{"prometheus/prometheus.yaml"},
		ready:   "/-/ready",
		args: []string{
			"--config.file=" + configFile, "--storage.tsdb.path=tsdb", `--web.listen-address={{.Addr "prometheus"}}`,
			"--web.enable-otlp-receiver", "--web.enable-remote-write-receiver", "--enable-feature=exemplar-storage",
		},
		ports:   []Port{{PortPrometheus, 9090}},
		sendsTo: []string{Alertmanager},
	},
	{
		name:      Tempo,
		module:    "tempo",
		main:      "github.com/grafana/tempo/cmd/tempo",
		typical:   3 * time.Minute,
		base:      []string{"tempo/tempo.yaml"},
		ready:     "/ready",
		args:      []string{"-config.file=" + configFile},
		ports:     []Port{{PortTempo, 3200}, {PortOTLPGRPC, 4317}, {PortOTLPHTTP, 4318}, {"tempo-grpc", 0}},
		maySendTo: []string{Prometheus},
		// Shutdown takes 2 s, unless it was queried in the last minute: then its query frontend waits
		// forever for a queue to be removed by a timer that it has stopped. By then its data is on disk.
		endsWithin: 5 * time.Second,
	},
	{
		name:    Loki,
		module:  "loki",
		main:    "github.com/grafana/loki/v3/cmd/loki",
		typical: 3 * time.Minute,
		base:    []string{"loki/loki.yaml"},
		ready:   "/ready",
		args:    []string{"-config.file=" + configFile},
		ports:   []Port{{PortLoki, 3100}, {"loki-grpc", 0}},
	},
	{
		name:    Collector,
		module:  "collector",
		main:    ".",
		typical: 2 * time.Minute,
		base:    []string{"collector/collector.yaml", "collector/profiles.yaml", "collector/jaeger.yaml"},
		ready:   "/",
		args:    []string{"--config=" + configFile, "--feature-gates=service.profilesSupport"},
		ports:   []Port{{PortCollector, 13133}, {PortOTLPGRPC, 4317}, {PortOTLPHTTP, 4318}},
		sendsTo: []string{Pyroscope, Tempo, Jaeger, Prometheus, Loki},
	},
}

// Default returns the servers that are started by default: those that a slow trace and its flame graph need.
// Building them takes half the time of building all.
func Default() []string { return []string{Pyroscope, Tempo} }

// All returns the names of the servers of the whole pipeline.
func All() []string {
	return []string{Pyroscope, Tempo, Jaeger, Alertmanager, Prometheus, Loki, Collector}
}

// Names returns the names of all servers.
func Names() []string {
	var names []string
	for _, d := range catalog {
		names = append(names, d.name)
	}
	return names
}

// definition is one entry of the catalog.
type definition struct {
	name    string        // also names the overlay in config and the directory of the server's data
	module  string        // directory below stack/servers that holds the go.mod
	main    string        // package to build
	typical time.Duration // of a build with cold caches on two cores, for the progress line
	base    []string      // configuration files in deploy that docker-compose.yml mounts; later ones add to the first
	ready   string        // path on the first port that answers 200 when the server is ready
	args    []string      // command line, each argument a template; the working directory has the config.yaml
	env     []string      // added to the parent's environment
	ports   []Port        // the first is the HTTP interface
	sendsTo []string      // servers whose addresses are in its overlay; it starts after them

	// maySendTo are others to which it sends if they run.
	maySendTo []string

	// endsWithin, if not 0, is for a server that may not end by itself although its data is safe on disk: Stop
	// kills it after this time, which is not an error.
	endsWithin time.Duration
}

// Port is a port a server listens on.
type Port struct {
	Name    string // key in Options.Ports; the command line's flag is --NAME-port
	Default int    // the usual number; 0 if only the server itself uses the port
}

// Ports returns the ports that a user may choose, each once.
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

// has reports whether the server has the named port.
func (d definition) has(port string) bool {
	return slices.ContainsFunc(d.ports, func(p Port) bool { return p.Name == port })
}

// lookup returns the entries with the given names, by default the default servers, in the order of their start.
func lookup(names []string) ([]definition, error) {
	if len(names) == 0 {
		names = Default()
	}
	for i, name := range names {
		if !slices.Contains(Names(), name) {
			return nil, fmt.Errorf("unknown server %q: known are %s", name, strings.Join(Names(), ", "))
		}
		if slices.Contains(names[:i], name) {
			return nil, fmt.Errorf("server %q is given twice", name)
		}
	}
	var defs []definition
	for _, d := range catalog {
		if slices.Contains(names, d.name) {
			defs = append(defs, d)
		}
	}
	return defs, nil
}

// checkPeers returns an error if a server sends to one that is not in the set.
func checkPeers(defs []definition) error {
	for _, d := range defs {
		for _, peer := range d.sendsTo {
			if !slices.ContainsFunc(defs, func(o definition) bool { return o.name == peer }) {
				return fmt.Errorf("server %q sends to %q: give both or neither", d.name, peer)
			}
		}
	}
	return nil
}

//go:embed config/*.yaml
var overlays embed.FS

// addresses are the ports of one server by name.
type addresses map[string]int

// Port returns the number of the named port.
func (a addresses) Port(name string) (int, error) {
	n, ok := a[name]
	if !ok {
		return 0, fmt.Errorf("the server has no port named %q", name)
	}
	return n, nil
}

// Addr returns the address of the named port as host:port.
func (a addresses) Addr(name string) (string, error) {
	n, err := a.Port(name)
	return net.JoinHostPort(loopback, strconv.Itoa(n)), err
}

// configFile is the name of the configuration in a server's working directory.
const configFile = "config.yaml"

// configure returns the server's configuration and command line: the files that docker-compose.yml mounts, changed
// by the expanded overlay.
func (d definition) configure(o overlayData) (config []byte, args []string, err error) {
	for _, name := range d.base {
		more, err := os.ReadFile(filepath.Join(o.Deploy, filepath.FromSlash(name)))
		if err == nil {
			config, err = MergeYAML(config, more)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("configuration of %s: %w", d.name, err)
		}
	}
	text, err := overlays.ReadFile("config/" + d.name + ".yaml")
	if err != nil {
		return nil, nil, fmt.Errorf("overlay of %s: %w", d.name, err)
	}
	overlay, err := expand(string(text), o)
	if err != nil {
		return nil, nil, fmt.Errorf("overlay of %s: %w", d.name, err)
	}
	if config, err = MergeYAML(config, overlay); err != nil {
		return nil, nil, fmt.Errorf("configuration of %s: %w", d.name, err)
	}
	for _, text := range d.args {
		arg, err := expand(text, o)
		if err != nil {
			return nil, nil, fmt.Errorf("arguments of %s: %w", d.name, err)
		}
		args = append(args, string(arg))
	}
	return config, args, nil
}

// overlayData is the data for the templates of an overlay and of a command line.
type overlayData struct {
	addresses                      // of the server itself
	peers     map[string]addresses // of the servers that it sends to, by their names
	Deploy    string               // directory of the configuration files that docker-compose.yml mounts
}

// Peer returns the address of the named port of a server that this one sends to, as host:port.
func (o overlayData) Peer(server, port string) (string, error) { return o.peers[server].Addr(port) }

// Sends reports whether this server may send to another one, and that one runs.
func (o overlayData) Sends(server string) bool { return o.peers[server] != nil }

// expand executes a template.
func expand(text string, data any) ([]byte, error) {
	t, err := template.New("").Parse(text)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, data)
	return b.Bytes(), err
}

// MergeYAML applies an overlay to a configuration by the rules of RFC 7396 for JSON: mappings are merged, null
// removes a key, and any other value replaces it.
func MergeYAML(base, overlay []byte) ([]byte, error) {
	var target, patch map[string]any
	if err := yaml.Unmarshal(base, &target); err != nil {
		return nil, err
	}
	if err := yaml.Unmarshal(overlay, &patch); err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	return yaml.Marshal(merge(target, patch))
}

func merge(target, patch map[string]any) map[string]any {
	if target == nil {
		target = map[string]any{}
	}
	for key, value := range patch {
		switch value := value.(type) {
		case nil:
			delete(target, key)
		case map[string]any:
			below, _ := target[key].(map[string]any) // any other value is replaced by a mapping
			target[key] = merge(below, value)
		default:
			target[key] = value
		}
	}
	return target
}
