package suite

import (
	"crypto/sha256"
	"crypto/sha512"
	"sync"
)

// NonceLen is the length in octets of the nonces that we send: half the key of the longest PRF
// and more than the 16 that RFC 7296, section 2.10 wants.
const NonceLen = 32

// PRF is a negotiated pseudorandom function (RFC 7296, section 2.13): HMAC with SHA-2.
// The zero value is not usable; NewPRF makes one.
type PRF struct {
	id   uint16
	size int
	macs *sync.Pool // of *hmacState
}

var macsSHA256, macsSHA384, macsSHA512 = hmacPool(sha256.New), hmacPool(sha512.New384), hmacPool(sha512.New)

// NewPRF returns the PRF with an IANA number. Errors wrap ErrUnsupported.
func NewPRF(id uint16) (PRF, error) {
	switch id {
	case PRFHMACSHA256:
		return PRF{id, sha256.Size, macsSHA256}, nil
	case PRFHMACSHA384:
		return PRF{id, sha512.Size384, macsSHA384}, nil
	case PRFHMACSHA512:
		return PRF{id, sha512.Size, macsSHA512}, nil
	}
	return PRF{}, wrap(ErrUnsupported, "PRF %s; known are prfsha256 prfsha384 prfsha512", TransformName(TransformSpec{Type: TypePRF, ID: id}))
}

// ID returns the IANA number.
func (p PRF) ID() uint16 { return p.id }

// Size returns the length in octets of the output, which is also the preferred key length.
func (p PRF) Size() int { return p.size }

// CheckNonce checks the length of a peer's nonce: 16 to 256 octets, and at least half the key
// size of the PRF (RFC 7296, section 2.10). Errors wrap ErrNonce.
func (p PRF) CheckNonce(nonce []byte) error {
	low := max(16, p.size/2)
	if len(nonce) < low || len(nonce) > 256 {
		return wrap(ErrNonce, "%d octets, expected %d to 256 for %s", len(nonce), low, TransformName(TransformSpec{Type: TypePRF, ID: p.id}))
	}
	return nil
}

// Sum returns prf(key, data…), the parts of data written one after the other.
func (p PRF) Sum(key Secret, data ...[]byte) []byte { return p.sum(key.Bytes(), data...) }

func (p PRF) sum(key []byte, data ...[]byte) []byte {
	m := p.mac(key, false)
	for _, d := range data {
		m.Write(d)
	}
	out := m.appendSum(make([]byte, 0, p.size))
	p.done(m)
	return out
}

func (p PRF) mac(key []byte, again bool) *hmacState {
	m := p.macs.Get().(*hmacState)
	m.setKey(key, again)
	return m
}

func (p PRF) done(m *hmacState) {
	m.wipe()
	p.macs.Put(m)
}

// Plus returns the first n octets of prf+(key, seed…) (RFC 7296, section 2.13). The counter is
// one octet: n may be at most 255 times Size. Errors wrap ErrKeyLength.
func (p PRF) Plus(key Secret, n int, seed ...[]byte) (Secret, error) {
	if n < 0 || n > 255*p.size {
		return Secret{}, wrap(ErrKeyLength, "%d octets asked of prf+, at most %d are possible", n, 255*p.size)
	}
	// One allocation, so that no outgrown copy of the keys stays behind.
	out := make([]byte, 0, n+p.size)
	m := p.mac(key.Bytes(), n > p.size)
	defer p.done(m)
	var last []byte
	for m.counter[0] = 1; ; m.counter[0]++ {
		m.Write(last)
		for _, s := range seed {
			m.Write(s)
		}
		m.Write(m.counter[:])
		out = m.appendSum(out)
		last = out[len(out)-p.size:]
		if len(out) >= n {
			break
		}
		m.next()
	}
	clear(out[n:])
	return NewSecret(out[:n]), nil
}
