package demo

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"spanflame/internal/record"
)

// fault is one of the storefront, and where it shows in profiles.
type fault struct {
	name     string // its name, for switching it
	function string // the function that causes it
	within   string // a function that must be in the stack too, or ""
	profile  record.Type
	sample   string // the profile's sample type, in nanoseconds
	shows    string // description of the time
	span     string // the name of the spans that it makes slow
}

// faults are those that the demo switches on and then off, which repairs them.
var faults = []fault{
	{
		name: "slow-pricing", function: "spanflame/workload.compileTariff",
		profile: record.CPU, sample: "cpu", shows: "on the CPU in", span: "pricing",
	},
	{
		name: "lock-convoy", function: "spanflame/workload.(*Service).settleHoldingTill", within: "sync.(*Mutex).Lock",
		profile: record.Block, sample: "delay", shows: "waiting for the lock in", span: "POST /api/checkout",
	},
}

func faultNames() string {
	var names []string
	for _, f := range faults {
		names = append(names, f.name)
	}
	return strings.Join(names, ", ")
}

// switchFaults switches all faults on or off.
func (d *demo) switchFaults(ctx context.Context, on bool) error {
	method := http.MethodDelete
	if on {
		method = http.MethodPut
	}
	for _, f := range faults {
		if err := request(ctx, method, d.workload.Storefront.URL+"/faults/"+f.name); err != nil {
			return fmt.Errorf("switch %s: %w", f.name, err)
		}
	}
	return nil
}

func request(ctx context.Context, method, url string) error {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 500)) // as much of it as can be read
		return fmt.Errorf("%s %s: status %d: %q", method, url, resp.StatusCode, b)
	}
	return nil
}
