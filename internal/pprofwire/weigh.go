package pprofwire

// Weigh estimates the memory of google/pprof's form of an uncompressed profile in bytes, without making it: a field of
// two bytes becomes an object of a hundred. The figures are the sizes of its types and of the maps of labels.
func Weigh(data []byte) (int64, error) {
	var sum int64
	m := NewMessage(data)
	for m.Next() {
		switch m.Field {
		case ProfileSample:
			sum += 170
			sub := NewMessage(m.Bytes())
			for sub.Next() {
				switch {
				case sub.IsVarint():
					sum += 24
				case sub.Field == SampleLabel:
					sum += 800
				case sub.IsBytes():
					sum += 24 * int64(countVarints(sub.Bytes()))
				}
			}
			m.Fail(sub.Err())
		case ProfileLocation:
			sum += 100
			sum += 12 * int64(len(m.Bytes())) // a line of four bytes becomes 48
		case ProfileMapping, ProfileFunction:
			sum += 200
		case ProfileString:
			sum += 16 + int64(len(m.Bytes()))
		default:
			sum += 64
			if m.IsBytes() {
				sum += 8 * int64(len(m.Bytes()))
			}
		}
	}
	return sum, m.Err()
}

// countVarints returns how many numbers a packed field has: each ends in a byte below 128.
func countVarints(b []byte) int {
	n := 0
	for _, c := range b {
		if c < 0x80 {
			n++
		}
	}
	return n
}
