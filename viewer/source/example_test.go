package source_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"spanflame/internal/record"
	"spanflame/profiles"
	"spanflame/viewer/source"
)

// A source is read without any page: here a directory of recorded profiles.
func ExampleOpen() {
	ctx := context.Background()
	dir, err := source.Open(ctx, "../../examples/slow-pricing")
	if err != nil {
		log.Fatal(err)
	}
	defer dir.Close() // it was only read

	contents, err := dir.Contents(ctx, "storefront", time.Time{}, time.Time{})
	if err != nil {
		log.Fatal(err)
	}
	for _, c := range contents {
		fmt.Println(c.Type, c.Version)
	}
	for _, version := range []string{"slow-pricing", "repaired"} {
		sel := source.Selection{Service: "storefront", Version: version, Type: record.CPU}
		windows, err := dir.Windows(ctx, sel)
		if err != nil {
			log.Fatal(err)
		}
		p, err := dir.Profile(ctx, sel)
		if err != nil {
			log.Fatal(err)
		}
		total := time.Duration(profiles.Total(p, profiles.DefaultSampleIndex(p), nil))
		fmt.Printf("%s: %d windows, %v of CPU\n", version, len(windows), total.Round(time.Second))
	}
	// Output:
	// process_cpu slow-pricing
	// process_cpu repaired
	// slow-pricing: 12 windows, 24s of CPU
	// repaired: 12 windows, 12s of CPU
}
