package workload

import (
	_ "embed"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// tariffText is what the shop charges for handling, as the people who decide it write it.
//
//go:embed tariff.txt
var tariffText string

// tariff is a tariffText that was compiled.
type tariff []tariffLine

// tariffLine is the fee for the SKUs of one pattern.
type tariffLine struct {
	sku *regexp.Regexp
	fee int64 // cents
}

// anyText is what * stands for in a pattern: nothing, or anything that a SKU may be made of.
const anyText = `[\pL\pN._-]*`

// compileTariff reads the lines of a tariff, each a pattern and a fee. It takes some 12 ms, because a class of
// all letters in either case is a long one. Kept from being inlined so that flame graphs show it under its
// caller.
//
//go:noinline
func compileTariff(text string) (tariff, error) {
	var t tariff
	// Not over an iterator: its body would stand in flame graphs as a function of its own.
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

// feeFor is the fee of the first line that fits the SKU, nothing where none does.
func (t tariff) feeFor(sku string) int64 {
	for _, line := range t {
		if line.sku.MatchString(sku) {
			return line.fee
		}
	}
	return 0
}
