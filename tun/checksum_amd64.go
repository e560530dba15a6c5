package tun

import "golang.org/x/sys/cpu"

// The shortest slices, in octets, for which the vector instructions are faster.
const (
	minAVX2   = 160
	minAVX512 = 64
)

var (
	useAVX2 = cpu.X86.HasAVX2
	// VBMI2 came with the processors that do not lower their clock for wide registers.
	useAVX512 = cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VBMI2 && cpu.X86.HasBMI2
)

//go:noescape
func sumAVX2(p *byte, n int) uint64

//go:noescape
func sumAVX512(p *byte, n int) uint64

//go:noescape
func moveSumAVX2(dst, src *byte, n int) uint64

//go:noescape
func moveSumAVX512(dst, src *byte, n int) uint64

// wordSum returns the sum of b's little-endian words, not folded, which is exact for less than
// 16 GB.
func wordSum(b []byte) uint64 {
	if useAVX512 && len(b) >= minAVX512 {
		return sumAVX512(&b[0], len(b))
	}
	if useAVX2 && len(b) >= minAVX2 {
		n := len(b) &^ 31
		return sumAVX2(&b[0], n) + scalarSum(b[n:])
	}
	return scalarSum(b)
}

// moveSum copies src to dst, of the same length, and returns src's wordSum. The two may overlap if
// dst begins behind src.
func moveSum(dst, src []byte) uint64 {
	dst = dst[:len(src)]
	if useAVX512 && len(src) >= minAVX512 {
		return moveSumAVX512(&dst[0], &src[0], len(src))
	}
	if useAVX2 && len(src) >= minAVX2 {
		n := len(src) &^ 31
		sum := scalarSum(src[n:])
		copy(dst[n:], src[n:])
		return sum + moveSumAVX2(&dst[0], &src[0], n)
	}
	sum := scalarSum(src)
	copy(dst, src)
	return sum
}
