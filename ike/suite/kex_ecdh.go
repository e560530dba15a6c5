package suite

import (
	"crypto/ecdh"
)

// ecdhPrivate is X25519 (RFC 8031) or an ECP group (RFC 5903).
type ecdhPrivate struct {
	id  uint16
	key *ecdh.PrivateKey
}

func ecdhCurve(id uint16) ecdh.Curve {
	switch id {
	case KEECP256:
		return ecdh.P256()
	case KEECP384:
		return ecdh.P384()
	case KEECP521:
		return ecdh.P521()
	}
	return ecdh.X25519()
}

// ecpLen is the length in octets of one coordinate (RFC 5903, section 7).
func ecpLen(id uint16) int {
	switch id {
	case KEECP384:
		return 48
	case KEECP521:
		return 66
	}
	return 32
}

// newECDH does not call ecdh.Curve.GenerateKey, which ignores the source that it is given since
// Go 1.26: the same octets must give the same exchange in a replay.
func newECDH(id uint16, source func(int) ([]byte, error)) ([]byte, kexPrivate, error) {
	curve := ecdhCurve(id)
	// FIPS 186-5, A.2.2: draw until the scalar is in range. For P-521 the seven unused bits
	// are cleared, and each of these groups then accepts more than half of all values.
	for range 128 {
		b, err := source(ecpLen(id))
		if err != nil {
			return nil, nil, err
		}
		if len(b) != ecpLen(id) {
			return nil, nil, wrap(ErrKeyLength, "private value of %d octets, %s has %d", len(b), KEName(id), ecpLen(id))
		}
		if id == KEECP521 {
			b[0] &= 1
		}
		key, err := curve.NewPrivateKey(b)
		clear(b)
		if err != nil {
			continue // zero, or not below the order
		}
		public := key.PublicKey().Bytes()
		if id != KEX25519 {
			public = public[1:] // x | y without the 0x04 of SEC 1
		}
		return public, &ecdhPrivate{id, key}, nil
	}
	return nil, nil, wrap(ErrKeyLength, "128 random values in a row are no private key of %s: the random source is broken", KEName(id))
}

func (p *ecdhPrivate) shared(peer []byte) (Secret, error) {
	if want, _ := PublicLen(p.id); len(peer) != want {
		return Secret{}, badLength(p.id, len(peer), want)
	}
	encoded := peer
	if p.id != KEX25519 {
		encoded = append([]byte{4}, peer...)
	}
	// RFC 6989, section 2.3: NewPublicKey refuses coordinates outside of the field and points
	// outside of the curve; the groups have cofactor 1 and the encoding cannot say infinity.
	public, err := ecdhCurve(p.id).NewPublicKey(encoded)
	if err != nil {
		return Secret{}, wrap(ErrPublicValue, "not a point of %s", KEName(p.id))
	}
	// RFC 8031, section 2.2: ECDH refuses the all-zero result of low-order points.
	s, err := p.key.ECDH(public)
	if err != nil {
		return Secret{}, wrap(ErrPublicValue, "low-order point of %s", KEName(p.id))
	}
	return NewSecret(s), nil
}

// wipe drops the key: crypto/ecdh offers no way to overwrite it.
func (p *ecdhPrivate) wipe() { p.key = nil }
