//go:build !purego

package aesgcm

import (
	"encoding/binary"
	"math/bits"
)

//go:generate go run ./internal/gen seal_amd64.s

// schedule is what is computed from a key once. It holds no pointers and fills twelve cache
// lines, so that it begins at one. The assembly knows where its fields lie.
type schedule struct {
	// H^33 … H^1, each times x and with its octets reversed. The last vector of a text reads
	// past H^1 for lanes that hold zeroes; what it finds there are round keys.
	powers [33][16]byte
	keys   [15][16]byte
}

// newSchedule expands the key (FIPS 197 section 5.2). Its S-box is the processor's, not a table:
// no address and no branch depends on the key.
func newSchedule(key []byte) *schedule {
	s := new(schedule)
	nk, rounds := len(key)/4, len(key)/4+6
	var last [8]uint32 // the words i-nk … i-1, word j at j%nk
	for i := range 4 * (rounds + 1) {
		w := &last[i%nk]
		switch {
		case i < nk:
			*w = binary.LittleEndian.Uint32(key[4*i:])
		case i%nk == 0:
			*w ^= bits.RotateLeft32(subWord(last[nk-1]), -8) ^ rcon[i/nk-1]
		case nk > 6 && i%nk == 4:
			*w ^= subWord(last[i%nk-1])
		default:
			*w ^= last[i%nk-1]
		}
		binary.LittleEndian.PutUint32(s.keys[i/4][i%4*4:], *w)
	}
	clear(last[:])
	powers(s, rounds)
	return s
}

var rcon = [10]uint32{0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x1b, 0x36}

// subWord puts the S-box to each octet of w.
//
//go:noescape
func subWord(w uint32) uint32

// powers fills s.powers from s.keys.
//
//go:noescape
func powers(s *schedule, rounds int)

// hashBlocks returns GHASH over the n > 0 blocks at p, before more blocks follow.
//
//go:noescape
func hashBlocks(s *schedule, p *byte, n int) (sum Words)

// sealVector encrypts and authenticates n octets. aad is the last block of the additional data,
// with what came before it added; aadLen is the length of all of it. code chooses the code.
//
//go:noescape
func sealVector(s *schedule, code int, dst, src *byte, n int, nonce, aad Words, aadLen int, tag *byte)

// openVector decrypts n octets and reports whether the tag is right; dst is written to in any case.
//
//go:noescape
func openVector(s *schedule, code int, dst, src *byte, n int, nonce, aad Words, aadLen int, tag *byte) (ok bool)

func cpuid(leaf, sub uint32) (a, b, c, d uint32)

// xgetbv returns the low half of XCR0: which registers the operating system saves.
func xgetbv() uint32

// usable holds what this machine runs, the fastest first.
var usable = detect()

// detect asks the processor, rather than golang.org/x/sys/cpu, which on some systems reads files.
func detect() []implementation {
	const (
		// leaf 1, ECX
		pclmulqdq, ssse3, sse41, aesni, osxsave, avx = 1 << 1, 1 << 9, 1 << 19, 1 << 25, 1 << 27, 1 << 28
		leaf1                                        = pclmulqdq | ssse3 | sse41 | aesni | osxsave | avx
		// leaf 7, EBX
		avx2, bmi2, avx512f, avx512dq, avx512bw, avx512vl = 1 << 5, 1 << 8, 1 << 16, 1 << 17, 1 << 30, 1 << 31
		leaf7b                                            = bmi2 | avx512f | avx512dq | avx512bw | avx512vl
		// leaf 7, ECX
		vaes, vpclmulqdq = 1 << 9, 1 << 10
		leaf7c           = vaes | vpclmulqdq
		// XCR0: SSE and AVX; AVX-512's masks, upper halves and upper registers
		ymmState, zmmState = 1<<1 | 1<<2, 1<<5 | 1<<6 | 1<<7
	)
	if top, _, _, _ := cpuid(0, 0); top < 7 {
		return []implementation{std}
	}
	if _, _, c, _ := cpuid(1, 0); c&leaf1 != leaf1 {
		return []implementation{std}
	}
	state := xgetbv()
	_, b, c, _ := cpuid(7, 0)
	switch {
	case c&leaf7c != leaf7c || b&avx2 == 0 || state&ymmState != ymmState:
		return []implementation{std}
	case b&leaf7b != leaf7b || state&zmmState != zmmState:
		return []implementation{ymm, std}
	}
	return []implementation{zmm, ymm, std}
}
