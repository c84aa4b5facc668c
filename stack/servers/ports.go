package servers

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
)

// loopback is the only address that the servers listen on.
const loopback = "127.0.0.1"

// reserve finds a free number for every port of the definitions: the wanted number, or any if the wanted number is 0
// or missing. If several servers have a port of the same name, the last one gets the wanted number: with a
// Collector, OTLP goes to the Collector and not to Tempo. All ports are held until all are found, so that they
// differ, and released on return. Another process may then take one of them, which the start of the server detects.
func reserve(defs []definition, want map[string]int) (map[string]addresses, error) {
	found := make(map[string]addresses)
	var problems []error
	for i, d := range defs {
		found[d.name] = make(addresses)
		for _, p := range d.ports {
			number := want[p.Name]
			if slices.ContainsFunc(defs[i+1:], func(o definition) bool { return o.has(p.Name) }) {
				number = 0
			}
			l, err := net.Listen("tcp4", net.JoinHostPort(loopback, strconv.Itoa(number)))
			if err != nil {
				problems = append(problems, fmt.Errorf(
					"%s cannot listen on port %d of %s: %w; stop the process that listens there, or choose another port with --%s-port (in code: Options.Ports[%q])",
					d.name, number, loopback, err, p.Name, p.Name))
				continue
			}
			defer l.Close() // on return, not in the loop: see above
			found[d.name][p.Name] = l.Addr().(*net.TCPAddr).Port
		}
	}
	return found, errors.Join(problems...)
}

// validatePorts returns an error for unknown port names and invalid numbers.
func validatePorts(want map[string]int) error {
	known := make(map[string]bool)
	for _, d := range catalog {
		for _, p := range d.ports {
			known[p.Name] = true
		}
	}
	for name, n := range want {
		if !known[name] {
			return fmt.Errorf("unknown port %q", name)
		}
		if n < 0 || n > 65535 {
			return fmt.Errorf("port %s is %d: allowed is 1 to 65535, or 0 for any free port", name, n)
		}
	}
	return nil
}
