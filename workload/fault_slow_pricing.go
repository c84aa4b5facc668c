package workload

import (
	_ "embed"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"spanflame/workload/faults"
)

// addSlowPricing adds the fault that the tariff is compiled for each item.
func (s *Service) addSlowPricing() {
	s.slowPricing = s.addFault(&fault{is: faults.Fault{
		Name:     "slow-pricing",
		Kind:     faults.CPU,
		Does:     "the tariff is parsed and its patterns are compiled again for each item of a basket",
		Repair:   "the tariff is compiled once, when the service starts",
		Function: "spanflame/workload.compileTariff",
		Victim:   faults.Request{Method: "POST", Path: "/api/checkout?items=6", PerSecond: 5},
		Span:     "pricing",
	}})
}

// handlingFee looks up the product in the tariff.
func (s *Service) handlingFee(sku string) (cents int64, err error) {
	t := s.tariff
	if s.slowPricing.on() { // the fault: the tariff is the same for every item
		if t, err = compileTariff(tariffText); err != nil {
			return 0, err
		}
	}
	return t.feeFor(sku), nil
}

// tariffText lists the fees for handling, in a format for people.
//
//go:embed tariff.txt
var tariffText string

// tariff is a compiled tariffText.
type tariff []tariffLine

// tariffLine is the fee for the SKUs of one pattern.
type tariffLine struct {
	sku *regexp.Regexp
	fee int64 // cents
}

// anyText is the regular expression for * in a pattern: any characters of a SKU, or none.
const anyText = `[\pL\pN._-]*`

// compileTariff parses the lines of a tariff, each a pattern and a fee. It takes about 12 ms, because a class of
// all letters in both cases is long. It is not inlined, so that flame graphs show it under its caller.
//
//go:noinline
func compileTariff(text string) (tariff, error) {
	var t tariff
	// Not a loop over an iterator: flame graphs would show its body as a separate function.
	for _, line := range strings.Split(text, "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] == "#" {
			continue
		}
		if len(fields) != 2 {
			return nil, fmt.Errorf("tariff line %q: must be a pattern and a fee", strings.TrimSpace(line))
		}
		fee, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("tariff line %q: fee: %w", strings.TrimSpace(line), err)
		}
		pattern := strings.ReplaceAll(regexp.QuoteMeta(fields[0]), `\*`, anyText)
		sku, err := regexp.Compile("^(?i:" + pattern + ")$")
		if err != nil {
			return nil, fmt.Errorf("tariff line %q: pattern: %w", strings.TrimSpace(line), err)
		}
		t = append(t, tariffLine{sku: sku, fee: fee})
	}
	return t, nil
}

// feeFor returns the fee of the first line that matches the SKU, or 0 if none matches.
func (t tariff) feeFor(sku string) int64 {
	for _, line := range t {
		if line.sku.MatchString(sku) {
			return line.fee
		}
	}
	return 0
}
