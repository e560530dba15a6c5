//go:build !wardgate_nocipher

package esp

import (
	"crypto/cipher"

	"wardgate/esp/aesgcm"
)

// Cipherless is true in the benchmark build that leaves AES-GCM out, and in no other.
const Cipherless = false

func newGCM(key []byte) (cipher.AEAD, error) { return aesgcm.New(key) }
