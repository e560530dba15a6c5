package ike

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"math/bits"

	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// Puzzles (RFC 8019): find four different keys of one length for which the PRF of a string that the
// responder chose ends in so many zero bits. Who checks computes the PRF four times, who solves some 4·2^n
// times. The string is the cookie in IKE_SA_INIT (section 7.1.3), and Nr | SPIr in IKE_AUTH (section 7.2.3).

// maxPuzzleString is the longest string: a nonce and an SPI.
const maxPuzzleString = 256 + 8

// puzzlePRFs are the PRFs that puzzles are made for, the best first: what costs us least to check.
var puzzlePRFs = [...]uint16{suite.PRFHMACSHA256, suite.PRFHMACSHA512, suite.PRFHMACSHA384}

// puzzle computes the PRF of one string under many keys, which takes no memory beyond it: HMAC (RFC
// 2104) by hand, since there is nothing to keep from one key to the next.
type puzzle struct {
	prf     uint16
	block   int // of the hash, octets
	longest int // key, octets: the PRF's preferred length (RFC 8019, section 8.2)
	n       int // length of the string
	keyed   int // octets of the pads that the last key changed
	inner   [sha512.BlockSize + maxPuzzleString]byte
	outer   [sha512.BlockSize + sha512.Size]byte
}

// set makes it the puzzle with the string s; false: it cannot be one.
func (z *puzzle) set(prf uint16, s []byte) bool {
	z.block = sha512.BlockSize
	switch prf {
	case suite.PRFHMACSHA256:
		z.block, z.longest = sha256.BlockSize, sha256.Size
	case suite.PRFHMACSHA384:
		z.longest = sha512.Size384
	case suite.PRFHMACSHA512:
		z.longest = sha512.Size
	default:
		return false
	}
	if len(s) == 0 || len(s) > maxPuzzleString {
		return false
	}
	z.prf, z.n, z.keyed = prf, len(s), z.block
	copy(z.inner[z.block:], s)
	return true
}

// zeros returns the number of zero bits at the end of the PRF under key, which is not longer than
// longest.
func (z *puzzle) zeros(key []byte) int {
	for i, k := range key {
		z.inner[i], z.outer[i] = k^0x36, k^0x5c
	}
	for i := len(key); i < z.keyed; i++ {
		z.inner[i], z.outer[i] = 0x36, 0x5c
	}
	z.keyed = len(key)
	in := z.inner[:z.block+z.n]
	switch z.prf {
	case suite.PRFHMACSHA256:
		h := sha256.Sum256(in)
		h = sha256.Sum256(append(z.outer[:z.block], h[:]...))
		return trailingZeros(h[:])
	case suite.PRFHMACSHA384:
		h := sha512.Sum384(in)
		h = sha512.Sum384(append(z.outer[:z.block], h[:]...))
		return trailingZeros(h[:])
	default:
		h := sha512.Sum512(in)
		h = sha512.Sum512(append(z.outer[:z.block], h[:]...))
		return trailingZeros(h[:])
	}
}

// trailingZeros counts the zero bits at the end.
func trailingZeros(b []byte) int {
	n := 0
	for len(b) >= 8 {
		v := binary.BigEndian.Uint64(b[len(b)-8:])
		if v != 0 {
			return n + bits.TrailingZeros64(v)
		}
		n, b = n+64, b[:len(b)-8]
	}
	return n
}

// check returns the number of zero bits that a solution was found for: the smallest of its four keys
// (RFC 8019, section 7.1.4); -1: it is no solution at all, or one with less than least.
func (z *puzzle) check(solution []byte, least int) int {
	size := len(solution) / message.PuzzleKeys
	if size == 0 || size > z.longest || len(solution)%message.PuzzleKeys != 0 {
		return -1
	}
	key := func(i int) []byte { return solution[i*size : (i+1)*size] }
	for i := range message.PuzzleKeys {
		for j := range i {
			if bytes.Equal(key(i), key(j)) {
				return -1
			}
		}
	}
	smallest := z.block * 8
	for i := range message.PuzzleKeys {
		n := z.zeros(key(i))
		if n < least {
			return -1
		}
		smallest = min(smallest, n)
	}
	return smallest
}

// solver looks for a solution, a slice of work at a time.
type solver struct {
	puzzle
	want  int    // zero bits that are enough
	left  uint64 // keys that may still be tried
	next  uint32 // key
	tried uint64
	found [message.PuzzleKeys]foundKey // the best ones, the worst first
}

type foundKey struct {
	zeros int
	key   [4]byte
}

// work tries n keys at most; true: there is no more to do.
func (s *solver) work(n uint64) bool {
	var key [4]byte
	n = min(n, s.left)
	for range n {
		binary.BigEndian.PutUint32(key[:], s.next)
		s.next++
		s.left--
		s.tried++
		z := s.zeros(key[:])
		if s.tried > message.PuzzleKeys && z <= s.found[0].zeros {
			continue
		}
		s.found[0] = foundKey{z, key}
		for i := 1; i < len(s.found) && s.found[i].zeros < z; i++ {
			s.found[i-1], s.found[i] = s.found[i], s.found[i-1]
		}
		if s.tried >= message.PuzzleKeys && s.found[0].zeros >= s.want {
			return true
		}
	}
	return s.left == 0 || s.next == 0
}

// solution returns the best four keys, and how many zero bits they are good for; nil: fewer were tried.
func (s *solver) solution() ([]byte, int) {
	if s.tried < message.PuzzleKeys {
		return nil, 0
	}
	var out []byte
	for _, f := range s.found {
		out = append(out, f.key[:]...)
	}
	return out, s.found[0].zeros
}
