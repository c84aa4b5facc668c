package servers

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
)

// loopback is the only address that servers listen on.
const loopback = "127.0.0.1"

// reserve gives every port of the definitions a number that is free now: the wanted one, or any where 0
// or nothing is wanted. Of several servers with a port of the same name the last one gets the wanted number:
// where there is a Collector, OTLP is for it and not for Tempo. All are held until all are found, so that no
// two get the same. They are let go on return, for the servers to take: another process may be faster, which
// shows when the server starts.
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
					"%s cannot listen on port %d of %s: %w; end what listens there, or choose another port with --%s-port (in code: Options.Ports[%q])",
					d.name, number, loopback, err, p.Name, p.Name))
				continue
			}
			defer l.Close() // On return, not earlier: see above.
			found[d.name][p.Name] = l.Addr().(*net.TCPAddr).Port
		}
	}
	return found, errors.Join(problems...)
}

// validatePorts refuses names that no server knows and numbers that are no port.
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
			return fmt.Errorf("port %s is %d: allowed is 1 to 65535, or 0 for any free one", name, n)
		}
	}
	return nil
}
