//go:build !race

package workload

// maxGoroutines is how many goroutines of the fault many-goroutines there are at the same time.
const maxGoroutines = maxCustomers
