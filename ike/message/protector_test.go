package message_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"errors"

	"wardgate/ike/message"
)

// gcmProtector is ENCR_AES_GCM_16 (RFC 5282) with an IV that the test dictates.
type gcmProtector struct {
	aead cipher.AEAD
	salt []byte
	iv   []byte // 8 octets
}

func newGCM(keymat []byte) *gcmProtector {
	block, err := aes.NewCipher(keymat[:len(keymat)-4])
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return &gcmProtector{aead: aead, salt: keymat[len(keymat)-4:], iv: make([]byte, 8)}
}

func (p *gcmProtector) SealedLen(n int) int { return 8 + n + 1 + 16 }

func (p *gcmProtector) AppendSealed(dst, aad, plaintext []byte) ([]byte, error) {
	nonce := append(bytes.Clone(p.salt), p.iv...)
	dst = append(dst, p.iv...)
	return p.aead.Seal(dst, nonce, append(bytes.Clone(plaintext), 0), aad), nil
}

func (p *gcmProtector) Open(aad, sealed []byte) ([]byte, error) {
	if len(sealed) < 8+1+16 {
		return nil, errors.New("too short")
	}
	nonce := append(bytes.Clone(p.salt), sealed[:8]...)
	plain, err := p.aead.Open(nil, nonce, sealed[8:], aad)
	if err != nil {
		return nil, err
	}
	return unpad(plain)
}

func unpad(b []byte) ([]byte, error) {
	n := int(b[len(b)-1])
	if n+1 > len(b) {
		return nil, errors.New("bad pad length")
	}
	return b[:len(b)-n-1], nil
}

// cbcProtector is ENCR_AES_CBC with AUTH_HMAC_SHA2_256_128, encrypt then MAC.
type cbcProtector struct {
	block cipher.Block
	mac   []byte
	iv    []byte // 16 octets
}

func newCBC(encr, integ []byte) *cbcProtector {
	block, err := aes.NewCipher(encr)
	if err != nil {
		panic(err)
	}
	return &cbcProtector{block: block, mac: integ, iv: make([]byte, 16)}
}

func (p *cbcProtector) SealedLen(n int) int { return 16 + (n+1+15)/16*16 + 16 }

func (p *cbcProtector) icv(parts ...[]byte) []byte {
	h := hmac.New(sha256.New, p.mac)
	for _, b := range parts {
		h.Write(b)
	}
	return h.Sum(nil)[:16]
}

func (p *cbcProtector) AppendSealed(dst, aad, plaintext []byte) ([]byte, error) {
	padded := bytes.Clone(plaintext)
	pad := (16 - (len(plaintext)+1)%16) % 16
	padded = append(padded, make([]byte, pad)...)
	padded = append(padded, byte(pad))
	cipher.NewCBCEncrypter(p.block, p.iv).CryptBlocks(padded, padded)
	dst = append(append(dst, p.iv...), padded...)
	// The aad argument and what dst holds are the same octets: header to generic header.
	return append(dst, p.icv(aad, p.iv, padded)...), nil
}

func (p *cbcProtector) Open(aad, sealed []byte) ([]byte, error) {
	if len(sealed) < 48 || len(sealed)%16 != 0 {
		return nil, errors.New("bad length")
	}
	n := len(sealed) - 16
	if !hmac.Equal(p.icv(aad, sealed[:n]), sealed[n:]) {
		return nil, errors.New("bad ICV")
	}
	plain := make([]byte, n-16)
	cipher.NewCBCDecrypter(p.block, sealed[:16]).CryptBlocks(plain, sealed[16:n])
	return unpad(plain)
}

// The protectors of the package's own tests.
var (
	testGCM = newGCM(bytes.Repeat([]byte{7}, 36))
	testCBC = newCBC(bytes.Repeat([]byte{7}, 32), bytes.Repeat([]byte{9}, 32))
)

var (
	_ message.Protector = testGCM
	_ message.Protector = testCBC
)
