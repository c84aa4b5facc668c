package servers

import (
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// everyPort gives each port of the definition a number.
func everyPort(d definition) addresses {
	a := addresses{}
	for i, p := range d.ports {
		a[p.Name] = 10000 + i
	}
	return a
}

// listensElsewhere matches addresses that are right in a container network and wrong here.
var listensElsewhere = regexp.MustCompile(`0\.0\.0\.0|//(tempo|jaeger|loki|prometheus|alertmanager|pyroscope|collector):|endpoint: tempo`)

func TestEveryConfiguration(t *testing.T) {
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range catalog {
		peers := map[string]addresses{}
		for _, name := range d.sendsTo {
			n := slices.IndexFunc(catalog[:i], func(o definition) bool { return o.name == name })
			if n < 0 {
				t.Fatalf("%s sends to %s, which does not come before it", d.name, name)
			}
			peers[name] = everyPort(catalog[n])
		}
		config, args, err := d.configure(overlayData{everyPort(d), peers, root + "/deploy"})
		if err != nil {
			t.Error(err)
			continue
		}
		if found := listensElsewhere.FindAllString(string(config), -1); len(found) > 0 {
			t.Errorf("%s: the configuration has %q:\n%s", d.name, found, config)
		}
		var top map[string]any
		if err := yaml.Unmarshal(config, &top); err != nil {
			t.Errorf("%s: %v", d.name, err)
		}
		for _, arg := range args {
			if strings.Contains(arg, "{{") {
				t.Errorf("%s: the argument %s is not filled in", d.name, arg)
			}
		}
	}
}

func TestConfigureNamesWhatIsWrong(t *testing.T) {
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	d := catalog[len(catalog)-1]
	if d.name != Collector {
		t.Fatalf("the last server is %s", d.name)
	}
	for want, o := range map[string]overlayData{
		`no port named "collector"`:      {addresses{}, nil, root + "/deploy"},
		`no port named "otlp-grpc"`:      {everyPort(d), nil, root + "/deploy"}, // of Tempo, which is not among the peers
		"configuration of collector: op": {everyPort(d), nil, t.TempDir()},
	} {
		if _, _, err := d.configure(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestMergeYAML(t *testing.T) {
	for _, test := range []struct{ name, base, overlay, want string }{
		{"value replaced", "a: 1\nb: 2", "a: 3", "a: 3\nb: 2\n"},
		{"merged below", "a: {b: 1, c: 2}", "a: {b: 3}", "a:\n    b: 3\n    c: 2\n"},
		{"key added", "a: 1", "b: {c: 2}", "a: 1\nb:\n    c: 2\n"},
		{"key removed", "a: 1\nb: 2", "a: null", "b: 2\n"},
		{"removed below", "a: {b: 1, c: 2}", "a: {b: null}", "a:\n    c: 2\n"},
		{"nothing to remove", "a: 1", "b: {c: null}", "a: 1\nb: {}\n"},
		{"list replaced", "a: [1, 2]", "a: [3]", "a:\n    - 3\n"},
		{"mapping for a value", "a: 1", "a: {b: 2}", "a:\n    b: 2\n"},
		{"value for a mapping", "a: {b: 2}", "a: 1", "a: 1\n"},
		{"overlay of nothing", "a: 1", "# nothing", "a: 1\n"},
		{"base of nothing", "", "a: 1", "a: 1\n"},
	} {
		got, err := MergeYAML([]byte(test.base), []byte(test.overlay))
		if err != nil || string(got) != test.want {
			t.Errorf("%s: %q, %v; want %q", test.name, got, err, test.want)
		}
	}
	for _, test := range []struct{ base, overlay string }{{"a: [", "a: 1"}, {"a: 1", "a: ["}, {"- a", "a: 1"}} {
		if got, err := MergeYAML([]byte(test.base), []byte(test.overlay)); err == nil {
			t.Errorf("%q and %q make %q", test.base, test.overlay, got)
		}
	}
}

func TestWhoTakesOTLP(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close() // Free, and the next to be given to nobody.
	want := map[string]int{PortOTLPGRPC: port}
	for _, test := range []struct {
		servers []string
		taker   string
	}{{All(), Collector}, {[]string{Collector, Tempo}, Collector}, {Default(), Tempo}} {
		defs, err := lookup(test.servers)
		if err != nil {
			t.Fatal(err)
		}
		found, err := reserve(defs, want)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range defs {
			if d.has(PortOTLPGRPC) && (found[d.name][PortOTLPGRPC] == port) != (d.name == test.taker) {
				t.Errorf("of %v, %s takes OTLP on %d, and %s is to take it on %d", test.servers, d.name, found[d.name][PortOTLPGRPC], test.taker, port)
			}
		}
	}
}
