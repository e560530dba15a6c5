package suite

import (
	"crypto/mlkem"
)

// mlkemPrivate is ML-KEM (FIPS 203) as key exchange: the initiator sends the encapsulation key,
// the responder the ciphertext.
type mlkemPrivate struct {
	id  uint16
	key interface {
		Decapsulate(ciphertext []byte) ([]byte, error)
	}
}

func mlkemLens(id uint16) (encapsulationKey, ciphertext int) {
	if id == KEMLKEM1024 {
		return mlkem.EncapsulationKeySize1024, mlkem.CiphertextSize1024
	}
	return mlkem.EncapsulationKeySize768, mlkem.CiphertextSize768
}

func newMLKEM(id uint16, source func(int) ([]byte, error)) ([]byte, kexPrivate, error) {
	seed, err := source(mlkem.SeedSize)
	if err != nil {
		return nil, nil, err
	}
	defer clear(seed)
	if id == KEMLKEM1024 {
		k, err := mlkem.NewDecapsulationKey1024(seed)
		if err != nil {
			return nil, nil, wrap(ErrKeyLength, "seed of %d octets, ML-KEM has %d", len(seed), mlkem.SeedSize)
		}
		return k.EncapsulationKey().Bytes(), &mlkemPrivate{id, k}, nil
	}
	k, err := mlkem.NewDecapsulationKey768(seed)
	if err != nil {
		return nil, nil, wrap(ErrKeyLength, "seed of %d octets, ML-KEM has %d", len(seed), mlkem.SeedSize)
	}
	return k.EncapsulationKey().Bytes(), &mlkemPrivate{id, k}, nil
}

func (p *mlkemPrivate) shared(ciphertext []byte) (Secret, error) {
	if _, want := mlkemLens(p.id); len(ciphertext) != want {
		return Secret{}, badLength(p.id, len(ciphertext), want)
	}
	// A changed ciphertext gives another secret and no error (implicit rejection, FIPS 203,
	// section 6.3): the exchange then fails at the first SK payload.
	s, err := p.key.Decapsulate(ciphertext)
	if err != nil {
		return Secret{}, wrap(ErrPublicValue, "ciphertext of %s: %v", KEName(p.id), err)
	}
	return NewSecret(s), nil
}

func (p *mlkemPrivate) wipe() { p.key = nil }

// encapsulate is the responder's half. The constructors check the encapsulation key as FIPS 203,
// section 7.2 wants (length and modulus).
func encapsulate(id uint16, peer []byte) ([]byte, Secret, error) {
	if want, _ := mlkemLens(id); len(peer) != want {
		return nil, Secret{}, badLength(id, len(peer), want)
	}
	var shared, ciphertext []byte
	if id == KEMLKEM1024 {
		k, err := mlkem.NewEncapsulationKey1024(peer)
		if err != nil {
			return nil, Secret{}, wrap(ErrPublicValue, "encapsulation key of %s: %v", KEName(id), err)
		}
		shared, ciphertext = k.Encapsulate()
	} else {
		k, err := mlkem.NewEncapsulationKey768(peer)
		if err != nil {
			return nil, Secret{}, wrap(ErrPublicValue, "encapsulation key of %s: %v", KEName(id), err)
		}
		shared, ciphertext = k.Encapsulate()
	}
	return ciphertext, NewSecret(shared), nil
}
