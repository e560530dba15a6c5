//go:build wardgate_nocipher

package esp

import "crypto/cipher"

// Cipherless: this build is the limit that the benchmark compares with, the same pipeline with the
// cipher left out. Nothing is encrypted and nothing is checked. No policy and no setting leads
// here, only the build tag; internal/archtest holds that no target that ships sets it.
const Cipherless = true

type noCipher struct{}

func newGCM([]byte) (cipher.AEAD, error) { return noCipher{}, nil }

func (noCipher) NonceSize() int { return 12 }
func (noCipher) Overhead() int  { return 16 }

// Seal leaves the plaintext where it lies: package esp only ever seals in place.
func (noCipher) Seal(dst, _, plaintext, _ []byte) []byte {
	return dst[:len(dst)+len(plaintext)+16]
}

func (noCipher) Open(dst, _, ciphertext, _ []byte) ([]byte, error) {
	return dst[:len(dst)+len(ciphertext)-16], nil
}
