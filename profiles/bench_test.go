package profiles_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"spanflame/internal/record"
	"spanflame/profiles"
)

// fill saves n CPU profiles of 15 s, one after the other, of 400 samples each: stacks of 20 frames of 2,000
// functions, the hot ones often, a third of them of some span. Every hundredth is the same.
func fill(b *testing.B, dir string, n int) (paths []string) {
	b.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	stacks := make([][]string, 3000)
	for i := range stacks {
		for range 20 {
			stacks[i] = append(stacks[i], fmt.Sprintf("example.org/shop/pkg%d.(*Type).Function%d", random.IntN(40), random.IntN(2000)))
		}
	}
	var zipped [100][]byte
	for i := range n {
		m := meta(record.CPU)
		m.Start = noon.Add(time.Duration(i) * 15 * time.Second)
		m.End = m.Start.Add(15 * time.Second)
		if i < len(zipped) {
			var samples []stack
			for j := range 400 {
				s := stack{frames: stacks[int(random.ExpFloat64()*400)%len(stacks)], value: 1e7}
				if j%3 == 0 {
					s.spanID = fmt.Sprintf("%016x", i*10+j%10)
				}
				samples = append(samples, s)
			}
			zipped[i] = gzipped(b, newProfile(m.Type, m.Start, 15*time.Second, samples...))
		}
		paths = append(paths, saveZipped(b, dir, m, zipped[i%len(zipped)]))
	}
	return paths
}

// BenchmarkMerge merges 1,000 files: by the Merger, and by google/pprof's reader and merger in batches of 64,
// which is how "go tool pprof" does it.
func BenchmarkMerge(b *testing.B) {
	paths := fill(b, b.TempDir(), 1000)
	b.Run("spanflame", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var m profiles.Merger
			for _, path := range paths {
				if err := m.AddFile(path); err != nil {
					b.Fatal(err)
				}
			}
			if _, err := m.Profile(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("pprof", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var batch []*profile.Profile
			for i, path := range paths {
				f, err := os.Open(path)
				if err != nil {
					b.Fatal(err)
				}
				p, err := profile.Parse(f)
				f.Close()
				if err != nil {
					b.Fatal(err)
				}
				if batch = append(batch, p); len(batch) == 64 || i == len(paths)-1 {
					sum, err := profile.Merge(batch)
					if err != nil {
						b.Fatal(err)
					}
					batch = append(batch[:0], sum)
				}
			}
		}
	})
}

// BenchmarkDir is of a directory with 10,000 profiles, which are 42 hours.
func BenchmarkDir(b *testing.B) {
	dir := b.TempDir()
	zipped := gzipped(b, newProfile(record.CPU, noon, 15*time.Second, stack{[]string{"main.a"}, "00000000000000aa", 1e7}))
	for i := range 10_000 {
		m := meta(record.CPU)
		m.Start = noon.Add(time.Duration(i) * 15 * time.Second)
		m.End = m.Start.Add(15 * time.Second)
		saveZipped(b, dir, m, zipped)
	}
	all := func(b *testing.B, d *profiles.Dir) {
		if entries, _, err := d.List(b.Context(), profiles.Query{}); err != nil || len(entries) != 10_000 {
			b.Fatal(len(entries), err)
		}
	}
	b.Run("list first", func(b *testing.B) {
		for b.Loop() {
			all(b, open(b, dir))
		}
	})
	known := open(b, dir)
	b.Run("list again", func(b *testing.B) {
		for b.Loop() {
			all(b, known)
		}
	})
	span := func(b *testing.B, d *profiles.Dir) {
		at := noon.Add(5000 * 15 * time.Second)
		q := profiles.Query{Service: "shop", From: at, To: at.Add(time.Minute)}
		if _, err := d.Span(b.Context(), q, "00000000000000aa"); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("span first", func(b *testing.B) {
		for b.Loop() {
			span(b, open(b, dir))
		}
	})
	b.Run("span again", func(b *testing.B) {
		for b.Loop() {
			span(b, known)
		}
	})
}
