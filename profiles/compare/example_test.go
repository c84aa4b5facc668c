package compare_test

import (
	"context"
	"fmt"
	"log"

	"spanflame/profiles"
	"spanflame/profiles/compare"
)

func ExampleCompare() {
	before := sequence(cpu(map[string]float64{"main;parse": 2, "main;render": 6}))
	after := sequence(cpu(map[string]float64{"main;parse": 3, "main;render": 6}))
	report, err := compare.Compare(context.Background(), before, after, compare.Options{})
	if err != nil {
		log.Fatal(err)
	}
	for _, m := range report.Metrics {
		for _, c := range m.Top(2) {
			fmt.Println(c.Name, m.Format(float64(c.Cum.Before)), m.Format(float64(c.Cum.After)), m.Change(c.Cum))
		}
	}
	fmt.Println(report.Notes[0])
	// Output:
	// parse 200 ms/s 300 ms/s +50.0 %
	// main 800 ms/s 900 ms/s +12.5 %
	// cpu: 1 window before and 1 after: too few for a significance test, which needs 4 on each side
}

// A saved directory of any size is read one window at a time.
func ExampleCompare_saved() {
	dir, err := profiles.Open("saved")
	if err != nil {
		fmt.Println("no profiles are saved")
		return
	}
	ctx := context.Background()
	version := func(v string) profiles.Query {
		return profiles.Query{Service: "shop", Labels: map[string]string{"service_version": v}}
	}
	report, err := compare.Compare(ctx, dir.Windows(ctx, version("1.2")), dir.Windows(ctx, version("1.3")), compare.Options{})
	if err != nil {
		log.Fatal(err)
	}
	rule, err := compare.ParseRule("cpu:+10%@p<0.01")
	if err != nil {
		log.Fatal(err)
	}
	verdict := report.Check([]compare.Rule{rule})
	fmt.Println(verdict.Broken, verdict.Undecided)
	// Output: no profiles are saved
}
