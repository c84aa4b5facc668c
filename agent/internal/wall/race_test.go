//go:build race

package wall

// heavy is how many messages a burst of noise has: as many as the converter can follow under the race
// detector, which slows it down more than it does the noise.
const heavy = 40
