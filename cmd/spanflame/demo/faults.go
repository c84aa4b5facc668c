package demo

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"spanflame/internal/record"
)

// mistake is a fault of the storefront and where it shows.
type mistake struct {
	fault    string // its name, by which it is switched
	function string // whose fault it is
	within   string // a function that must be in the stack too; "" for none
	profile  record.Type
	sample   string // the profile's sample type, in nanoseconds
	shows    string // what the time is
	span     string // the name of the spans that it makes slow
}

// mistakes are those that the demo makes and repairs.
var mistakes = []mistake{
	{
		fault: "slow-pricing", function: "spanflame/workload.compileTariff",
		profile: record.CPU, sample: "cpu", shows: "on the CPU in", span: "pricing",
	},
	{
		fault: "lock-convoy", function: "spanflame/workload.(*Service).settleHoldingTill", within: "sync.(*Mutex).Lock",
		profile: record.Block, sample: "delay", shows: "waiting for the lock in", span: "POST /api/checkout",
	},
}

func faultNames() string {
	var names []string
	for _, m := range mistakes {
		names = append(names, m.fault)
	}
	return strings.Join(names, ", ")
}

// switchFaults switches all mistakes on or off.
func (d *demo) switchFaults(ctx context.Context, on bool) error {
	method := http.MethodDelete
	if on {
		method = http.MethodPut
	}
	for _, m := range mistakes {
		if err := request(ctx, method, d.shop.Storefront.URL+"/faults/"+m.fault); err != nil {
			return fmt.Errorf("switch %s: %w", m.fault, err)
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
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 500)) // as far as it can be read
		return fmt.Errorf("%s %s: status %d: %q", method, url, resp.StatusCode, b)
	}
	return nil
}
