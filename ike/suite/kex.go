package suite

import (
	"io"
)

// KeyExchange is the initiator's half of one key exchange: it holds the private value until
// the responder's public value comes. One goroutine at a time may use it.
//
// The shape fits Diffie-Hellman as well as a KEM, where the responder's public value (the
// ciphertext) depends on the initiator's: the responder makes both in one step, Respond.
type KeyExchange struct {
	id      uint16
	public  []byte
	private kexPrivate
}

// kexPrivate is what a group implements. shared checks the length and validity of peer.
type kexPrivate interface {
	shared(peer []byte) (Secret, error)
	wipe()
}

// NewInitiator makes a fresh private value from rand. Errors wrap ErrUnsupported, or are those
// of rand.
func NewInitiator(id uint16, rand io.Reader) (*KeyExchange, error) {
	return initiator(id, func(n int) ([]byte, error) { return randomBytes(rand, n) })
}

// NewInitiatorFromPrivate is NewInitiator with a given private value, for replays and test
// vectors: 32 octets for X25519, the scalar of full length for ECP groups, any exponent of at
// most the length of the prime for MODP, the 64-octet seed d|z for ML-KEM. It is copied.
func NewInitiatorFromPrivate(id uint16, private []byte) (*KeyExchange, error) {
	return initiator(id, fixed(private))
}

func initiator(id uint16, source func(n int) ([]byte, error)) (*KeyExchange, error) {
	var public []byte
	var private kexPrivate
	var err error
	switch id {
	case KEX25519, KEECP256, KEECP384, KEECP521:
		public, private, err = newECDH(id, source)
	case KEMODP2048, KEMODP3072:
		public, private, err = newMODP(id, source)
	case KEMLKEM768, KEMLKEM1024:
		public, private, err = newMLKEM(id, source)
	default:
		return nil, unsupportedKE(id)
	}
	if err != nil {
		return nil, err
	}
	return &KeyExchange{id, public, private}, nil
}

// ID returns the IANA number of the key exchange method.
func (k *KeyExchange) ID() uint16 { return k.id }

// Public returns the key exchange data that is sent, a copy.
func (k *KeyExchange) Public() []byte { return append([]byte(nil), k.public...) }

// Finish computes the shared secret from the responder's key exchange data: g^ir, for ECP groups
// its x coordinate (RFC 5903, section 7), for MODP padded to the length of the prime (RFC 7296,
// section 2.14), for ML-KEM the shared key of 32 octets. Errors wrap ErrPublicValue. It may be
// called again, since the first response to IKE_SA_INIT may be forged.
func (k *KeyExchange) Finish(peer []byte) (Secret, error) {
	if k.private == nil {
		return Secret{}, wrap(ErrPublicValue, "this key exchange was wiped")
	}
	return k.private.shared(peer)
}

// Wipe ends the use of the private value and overwrites what can be reached of it.
func (k *KeyExchange) Wipe() {
	if k.private != nil {
		k.private.wipe()
		k.private = nil
	}
}

// Respond answers an initiator's key exchange data: it returns the data to send back and the
// shared secret, as KeyExchange.Finish does. The private value comes from rand; with ML-KEM it
// comes from crypto/rand, since the standard library allows no other source for encapsulation
// (tests make that one deterministic with testing/cryptotest). Errors wrap ErrUnsupported or
// ErrPublicValue, or are those of rand.
func Respond(id uint16, rand io.Reader, peer []byte) (public []byte, shared Secret, err error) {
	if id == KEMLKEM768 || id == KEMLKEM1024 {
		return encapsulate(id, peer)
	}
	k, err := NewResponder(id, rand, peer)
	if err != nil {
		return nil, Secret{}, err
	}
	defer k.Wipe()
	shared, err = k.Finish(peer)
	if err != nil {
		return nil, Secret{}, err
	}
	return k.public, shared, nil
}

// NewResponder makes a private value for the answer to an initiator's key exchange data, whose length alone
// is looked at: Finish does the rest, later. Not with ML-KEM, whose answer depends on the data. Errors wrap
// ErrUnsupported or ErrPublicValue, or are those of rand.
func NewResponder(id uint16, rand io.Reader, peer []byte) (*KeyExchange, error) {
	want, _ := PublicLen(id)
	if want == 0 || id == KEMLKEM768 || id == KEMLKEM1024 {
		return nil, unsupportedKE(id)
	}
	// Before the costly part: anybody may send anything.
	if len(peer) != want {
		return nil, badLength(id, len(peer), want)
	}
	return NewInitiator(id, rand)
}

// PublicLen returns the lengths in octets of the key exchange data of both sides, 0, 0 for a
// method that is not supported.
func PublicLen(id uint16) (initiator, responder int) {
	switch id {
	case KEX25519:
		return 32, 32
	case KEECP256, KEECP384, KEECP521:
		n := 2 * ecpLen(id)
		return n, n
	case KEMODP2048:
		return 256, 256
	case KEMODP3072:
		return 384, 384
	case KEMLKEM768, KEMLKEM1024:
		return mlkemLens(id)
	}
	return 0, 0
}

func unsupportedKE(id uint16) error {
	return wrap(ErrUnsupported, "key exchange method %d (%s); known are x25519 ecp256 ecp384 ecp521 modp2048 modp3072 mlkem768 mlkem1024", id, KEName(id))
}

// badLength says how long the data of a method must be.
func badLength(id uint16, got, want int) error {
	return wrap(ErrPublicValue, "%d octets of key exchange data came, %s has %d", got, KEName(id), want)
}

// randomBytes reads n octets.
func randomBytes(rand io.Reader, n int) ([]byte, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(rand, b); err != nil {
		return nil, wrap(err, "reading %d random octets", n)
	}
	return b, nil
}

// fixed is a source that returns private once; a second call means that it was refused.
func fixed(private []byte) func(n int) ([]byte, error) {
	used := false
	return func(n int) ([]byte, error) {
		if used {
			return nil, wrap(ErrKeyLength, "the private value is outside of its range")
		}
		used = true
		return append([]byte(nil), private...), nil
	}
}
