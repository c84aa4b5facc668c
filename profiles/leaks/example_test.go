package leaks_test

import (
	"context"
	"fmt"
	"log"

	"spanflame/profiles/leaks"
)

func ExampleFind() {
	windows := steps(20, func(minute int) int64 { return int64(minute+1) << 20 })
	report, err := leaks.Find(context.Background(), windows, leaks.Options{Limit: 100 << 20})
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range report.Suspects {
		fmt.Printf("%s gains %.0f KiB a minute\n", s.Site, s.BytesPerMinute/1024)
	}
	fmt.Println("full at", report.Processes[0].LimitAt.Format("15:04"))
	// Output:
	// main.hold gains 1024 KiB a minute
	// full at 16:40
}
