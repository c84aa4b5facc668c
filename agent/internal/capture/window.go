package capture

// maxProfileBytes is the size of the largest profile that is captured, uncompressed. Readers have the same limit.
const maxProfileBytes = 512 << 20
