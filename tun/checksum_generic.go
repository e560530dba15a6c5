//go:build !amd64

package tun

// wordSum returns the sum of b's little-endian words, not folded.
func wordSum(b []byte) uint64 { return scalarSum(b) }

// moveSum copies src to dst, of the same length, and returns src's wordSum. The two may overlap.
func moveSum(dst, src []byte) uint64 {
	sum := scalarSum(src)
	copy(dst, src)
	return sum
}
