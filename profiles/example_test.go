package profiles_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"spanflame/internal/record"
	"spanflame/profiles"
)

// exampleDir is a directory as an agent leaves it: three windows of CPU profiles and one wall-clock profile
// of two spans.
func exampleDir() (dir string, remove func()) {
	dir, err := os.MkdirTemp("", "spanflame-example")
	if err != nil {
		log.Fatal(err)
	}
	write := func(m record.Meta, stacks ...stack) {
		var zipped, file bytes.Buffer
		if err := newProfile(m.Type, m.Start, m.End.Sub(m.Start), stacks...).Write(&zipped); err != nil {
			log.Fatal(err)
		}
		if err := record.Encode(&file, record.Record{Meta: m, Profile: zipped.Bytes()}); err != nil {
			log.Fatal(err)
		}
		path := filepath.Join(dir, "profiles", filepath.FromSlash(m.SavedPath()))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			log.Fatal(err)
		}
		if err := os.WriteFile(path, file.Bytes(), 0o644); err != nil {
			log.Fatal(err)
		}
	}
	for i := range 3 {
		start := noon.Add(time.Duration(i) * 15 * time.Second)
		write(record.Meta{Service: "shop", Type: record.CPU, Start: start, End: start.Add(15 * time.Second)},
			stack{[]string{"main.price", "main.checkout"}, "00000000000000aa", 2e9}, stack{[]string{"main.render"}, "", 1e9})
	}
	write(record.Meta{Service: "shop", Type: record.Wall, Start: noon.Add(20 * time.Second), End: noon.Add(21 * time.Second)},
		stack{[]string{"[waiting: mutex]", "sync.(*Mutex).Lock", "main.reserve", "span: POST /checkout"}, "00000000000000aa", 571e6},
		stack{[]string{"main.price", "span: POST /checkout"}, "00000000000000aa", 41e6},
		stack{[]string{"[waiting: sleep]", "main.poll", "span: GET /status"}, "00000000000000bb", 200e6})
	return dir, func() {
		if err := os.RemoveAll(dir); err != nil {
			log.Print(err)
		}
	}
}

func ExampleDir_List() {
	saved, remove := exampleDir()
	defer remove()
	dir, err := profiles.Open(saved)
	if err != nil {
		log.Fatal(err)
	}
	entries, damaged, err := dir.List(context.Background(), profiles.Query{
		Service: "shop", From: noon.Add(15 * time.Second), To: noon.Add(time.Minute),
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range entries {
		fmt.Println(e.Start.Format(time.TimeOnly), e.Service, e.Type)
	}
	fmt.Println(len(damaged), "damaged")
	// Output:
	// 12:00:15 shop process_cpu
	// 12:00:20 shop wall
	// 12:00:30 shop process_cpu
	// 0 damaged
}

func ExampleDir_Services() {
	saved, remove := exampleDir()
	defer remove()
	dir, err := profiles.Open(saved)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(dir.Services(context.Background()))
	// Output: [shop] <nil>
}

func ExampleDir_Span() {
	saved, remove := exampleDir()
	defer remove()
	dir, err := profiles.Open(saved)
	if err != nil {
		log.Fatal(err)
	}
	wall := profiles.Query{Service: "shop", Types: []record.Type{record.Wall}, From: noon, To: noon.Add(time.Minute)}
	p, err := dir.Span(context.Background(), wall, "00000000000000aa")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(profiles.Diagnose(p, "POST /checkout", 612*time.Millisecond))
	// Output: 612 ms POST /checkout: 571 ms (93 %) waiting for a mutex in main.reserve (shop.go:3)
}

func ExampleMerge() {
	saved, remove := exampleDir()
	defer remove()
	dir, err := profiles.Open(saved)
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	windows := dir.Windows(ctx, profiles.Query{Types: []record.Type{record.CPU}})
	sum, err := profiles.Merge(ctx, profiles.WithoutDamaged(windows, func(d profiles.Damaged) { log.Print(d) }))
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range sum.Sample {
		fmt.Println(s.Location[0].Line[0].Function.Name, time.Duration(s.Value[0]))
	}
	// Output:
	// main.price 6s
	// main.render 3s
}

func ExampleMerger() {
	saved, remove := exampleDir()
	defer remove()
	entries, _, err := profiles.Find(context.Background(), profiles.Query{Types: []record.Type{record.CPU}}, saved)
	if err != nil {
		log.Fatal(err)
	}
	merger := profiles.Merger{DropLabels: true}
	for _, e := range entries {
		if err := merger.AddFile(e.Path); err != nil {
			log.Fatal(err)
		}
	}
	var file bytes.Buffer
	if err := merger.Write(&file); err != nil {
		log.Fatal(err)
	}
	p, err := profiles.Parse(&file)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(entries), "profiles of", time.Duration(p.DurationNanos))
	// Output: 3 profiles of 45s
}

func ExampleReadFile() {
	saved, remove := exampleDir()
	defer remove()
	entries, _, err := profiles.Find(context.Background(), profiles.Query{Types: []record.Type{record.Wall}}, saved)
	if err != nil {
		log.Fatal(err)
	}
	w, err := profiles.ReadFile(entries[0].Path)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(w.Service, w.Type, w.Start.Format(time.TimeOnly), len(w.Profile.Sample), "samples")
	status := profiles.ByLabel(w.Profile, "span_id", "00000000000000bb")
	fmt.Println(profiles.Diagnose(status, "GET /status", 200*time.Millisecond))
	// Output:
	// shop wall 12:00:20 3 samples
	// 200 ms GET /status: 200 ms (100 %) sleeping in main.poll (shop.go:7)
}
