//go:build race

package workload

// maxGoroutines is how many goroutines of the fault many-goroutines there are at the same time. The race detector ends a
// program with more than 8128.
const maxGoroutines = 4000
