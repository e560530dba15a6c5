package suite

import (
	"encoding"
	"hash"
	"sync"
)

// hmacState computes HMAC (RFC 2104) again and again without allocating: crypto/hmac makes half a
// dozen objects for every key, and a handshake has as many keys.
type hmacState struct {
	inner, outer hash.Hash
	pad          []byte // a block
	sum          []byte // of the inner hash
	counter      [1]byte

	// The hashes when the key was written, for the same key again; nil: not kept.
	innerKeyed, outerKeyed []byte
}

// hmacPool hands out states with one hash.
func hmacPool(h func() hash.Hash) *sync.Pool {
	return &sync.Pool{New: func() any {
		s := &hmacState{inner: h(), outer: h()}
		s.pad = make([]byte, s.inner.BlockSize())
		s.sum = make([]byte, 0, s.inner.Size())
		return s
	}}
}

const innerPad, outerPad = 0x36, 0x5c

// setKey begins a MAC with a key. again: more than one MAC is to be made with it.
func (s *hmacState) setKey(key []byte, again bool) {
	s.inner.Reset()
	s.outer.Reset()
	clear(s.pad)
	if len(key) > len(s.pad) {
		s.outer.Write(key)
		s.outer.Sum(s.pad[:0])
		s.outer.Reset()
	} else {
		copy(s.pad, key)
	}
	for i := range s.pad {
		s.pad[i] ^= innerPad
	}
	s.inner.Write(s.pad)
	for i := range s.pad {
		s.pad[i] ^= innerPad ^ outerPad
	}
	s.outer.Write(s.pad)
	clear(s.pad)
	if again {
		s.innerKeyed = keep(s.inner, s.innerKeyed)
		s.outerKeyed = keep(s.outer, s.outerKeyed)
	}
}

// keep writes down the state of a hash of the standard library, all of which can.
func keep(h hash.Hash, b []byte) []byte {
	b, err := h.(encoding.BinaryAppender).AppendBinary(b[:0])
	if err != nil {
		panic("suite: the state of a hash cannot be kept: " + err.Error())
	}
	return b
}

func restore(h hash.Hash, b []byte) {
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(b); err != nil {
		panic("suite: the state of a hash cannot be restored: " + err.Error())
	}
}

// Write adds to the MAC's text.
func (s *hmacState) Write(p []byte) { s.inner.Write(p) }

// appendSum appends the MAC to dst and ends it.
func (s *hmacState) appendSum(dst []byte) []byte {
	s.sum = s.inner.Sum(s.sum[:0])
	s.outer.Write(s.sum)
	return s.outer.Sum(dst)
}

// next begins another MAC with the same key; see setKey.
func (s *hmacState) next() {
	restore(s.inner, s.innerKeyed)
	restore(s.outer, s.outerKeyed)
}

// wipe leaves nothing of the key that can be reached.
func (s *hmacState) wipe() {
	s.inner.Reset()
	s.outer.Reset()
	clear(s.sum[:cap(s.sum)])
	clear(s.innerKeyed)
	clear(s.outerKeyed)
}
