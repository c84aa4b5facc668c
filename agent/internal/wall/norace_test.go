//go:build !race

package wall

// heavy is how many messages a burst of noise has: about three million events a second on two cores.
const heavy = 400
