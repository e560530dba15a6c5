package tun

import (
	"encoding/binary"
	"math/bits"

	"golang.org/x/sys/cpu"
)

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

// onesSum returns the folded one's complement sum (RFC 1071) of b plus initial, not inverted.
func onesSum(b []byte, initial uint16) uint16 {
	var sum uint64 // of 32-bit words: no overflow below 16 GB
	switch {
	case useAVX512 && len(b) >= minAVX512:
		sum = sumAVX512(&b[0], len(b))
	case useAVX2 && len(b) >= minAVX2:
		n := len(b) &^ 31
		sum = sumAVX2(&b[0], n)
		for b = b[n:]; len(b) >= 4; b = b[4:] {
			sum += uint64(binary.LittleEndian.Uint32(b))
		}
		for i, v := range b {
			sum += uint64(v) << (8 * i)
		}
	default:
		return scalarSum(b, initial)
	}
	return bits.ReverseBytes16(fold(sum + uint64(bits.ReverseBytes16(initial))))
}
