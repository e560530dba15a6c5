package suite

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"hash"
	"io"
	"sync/atomic"

	"golang.org/x/crypto/chacha20poly1305"
)

// Protector protects the SK and SKF payloads of one direction of an IKE SA (RFC 7296, section
// 3.14; RFC 7383): it adds and checks IV, padding, pad length and integrity check value. aad is
// always the message from the first octet of the IKE header to the last octet before the IV,
// with the final lengths in it: with AEAD it is the additional data (RFC 5282, section 5.1), with
// CBC the beginning of what the HMAC covers.
//
// AppendSealed and Open may be called by several goroutines; AEAD IVs come from one counter and
// are never used twice under a key.
//
// What it keeps between messages is the key, not the cipher that is made of it, which is fifteen times
// as large and quickly made, while most IKE SAs are silent most of the time.
type Protector struct {
	encr uint16
	key  Secret // the salt behind it with AEAD

	counter atomic.Uint64 // AEAD: IVs used so far

	// AES-CBC with HMAC; nil with AEAD.
	cbc *cbcHMAC

	wiped atomic.Bool // neither seals nor opens any more
}

// cbcHMAC is what AES-CBC with HMAC needs beside the key.
type cbcHMAC struct {
	integ  Secret
	hash   func() hash.Hash
	icvLen int
	rand   io.Reader
}

const (
	aeadIVLen  = 8  // RFC 5282, section 3; RFC 7634, section 2
	aeadTagLen = 16 // the ICV of 16 octets, the only one that RFC 5282 leaves mandatory
)

// NewProtector makes the protection of one direction with the negotiated transforms: encr is
// SK_ei or SK_er (salt included), integ SK_ai or SK_ar, empty with AEAD. rand is read for the
// IVs of AES-CBC only and must be safe for the goroutines that seal. Key octets are copied.
// Errors wrap ErrUnsupported or ErrKeyLength.
func NewProtector(c Chosen, encr, integ Secret, rand io.Reader) (*Protector, error) {
	encrLen, integLen, err := keyLengths(c)
	if err != nil {
		return nil, err
	}
	if isIIV(c.Encr) {
		return nil, wrap(ErrUnsupported, "%s in IKE: implicit IVs are for ESP only (RFC 8750)", TransformName(TransformSpec{TypeENCR, c.Encr, c.KeyBits}))
	}
	if encr.Len() != encrLen || integ.Len() != integLen {
		return nil, wrap(ErrKeyLength, "%d octets of encryption key and %d of integrity key came, %s has %d and %d",
			encr.Len(), integ.Len(), TransformName(TransformSpec{TypeENCR, c.Encr, c.KeyBits}), encrLen, integLen)
	}
	p := &Protector{encr: c.Encr, key: encr.Clone()}
	if isAEAD(c.Encr) {
		return p, nil
	}
	if rand == nil {
		return nil, wrap(ErrUnsupported, "AES-CBC without a random source")
	}
	b := &cbcHMAC{integ: integ.Clone(), rand: rand}
	switch c.Integ {
	case IntegHMACSHA256128:
		b.hash, b.icvLen = sha256.New, 16
	case IntegHMACSHA384192:
		b.hash, b.icvLen = sha512.New384, 24
	case IntegHMACSHA512256:
		b.hash, b.icvLen = sha512.New, 32
	}
	p.cbc = b
	return p, nil
}

// aead makes the cipher of one message, and its nonce, of which the IV is still missing.
func (p *Protector) aead() (a cipher.AEAD, nonce [saltLen + aeadIVLen]byte, err error) {
	key := p.key.Bytes()
	if len(key) < saltLen {
		return nil, nonce, ErrWiped
	}
	copy(nonce[:], key[len(key)-saltLen:])
	key = key[:len(key)-saltLen]
	if p.encr == EncrChaCha20Poly1305 {
		if a, err = chacha20poly1305.New(key); err != nil {
			return nil, nonce, wrap(ErrKeyLength, "%v", err)
		}
		return a, nonce, nil
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, nonce, wrap(ErrKeyLength, "%v", err)
	}
	if a, err = cipher.NewGCM(block); err != nil {
		return nil, nonce, wrap(ErrUnsupported, "%v", err)
	}
	return a, nonce, nil
}

// overhead returns the octets around the ciphertext.
func (p *Protector) overhead() int {
	if p.cbc == nil {
		return aeadIVLen + aeadTagLen
	}
	return aes.BlockSize + p.cbc.icvLen
}

// SealedLen returns how many octets AppendSealed appends for a plaintext of n: IV, ciphertext
// with padding and pad length, ICV. The payload length in aad is 4 more (SKF: 8 more).
func (p *Protector) SealedLen(n int) int {
	if p.cbc == nil {
		return p.overhead() + n + 1
	}
	return p.overhead() + n + cbcPadding(n) + 1
}

// cbcPadding is the number of padding octets for n octets of plaintext; with AEAD none is needed
// (RFC 5282, section 3).
func cbcPadding(n int) int {
	return (aes.BlockSize - (n+1)%aes.BlockSize) % aes.BlockSize
}

// MaxPlaintext returns the longest plaintext whose SealedLen is at most sealedLen, and -1 where
// not even an empty one fits.
func (p *Protector) MaxPlaintext(sealedLen int) int {
	room := sealedLen - p.overhead()
	if p.cbc != nil {
		room -= room % aes.BlockSize
	}
	return max(room-1, -1)
}

// AppendSealed appends IV | ciphertext | ICV to dst. aad may be the content of dst; plaintext
// must not overlap the free capacity of dst. Errors wrap ErrIVExhausted or ErrWiped, or are those of
// the random source; dst is then returned as it came.
func (p *Protector) AppendSealed(dst, aad, plaintext []byte) ([]byte, error) {
	if p.wiped.Load() {
		return dst, ErrWiped
	}
	if p.cbc == nil {
		return p.sealAEAD(dst, aad, plaintext)
	}
	return p.sealCBC(dst, aad, plaintext)
}

// Open checks and decrypts IV | ciphertext | ICV and returns the inner payloads without padding
// in fresh memory; sealed is not changed. Errors wrap ErrOpen and do not tell which check failed
// where that would help an attacker.
func (p *Protector) Open(aad, sealed []byte) ([]byte, error) {
	if p.wiped.Load() {
		return nil, ErrWiped
	}
	if n := p.SealedLen(0); len(sealed) < n {
		return nil, wrap(ErrOpen, "%d octets came, at least %d are needed", len(sealed), n)
	}
	var plain []byte
	var err error
	if p.cbc == nil {
		plain, err = p.openAEAD(aad, sealed)
	} else {
		plain, err = p.openCBC(aad, sealed)
	}
	if err != nil {
		return nil, err
	}
	// RFC 7296, section 3.14: the last octet counts the padding before it; its content is free.
	n := len(plain) - 1 - int(plain[len(plain)-1])
	if n < 0 {
		return nil, wrap(ErrOpen, "pad length %d in %d octets of plaintext", plain[len(plain)-1], len(plain))
	}
	return plain[:n], nil
}

func (p *Protector) sealAEAD(dst, aad, plaintext []byte) ([]byte, error) {
	iv := p.counter.Add(1)
	if iv == 0 {
		p.counter.Store(^uint64(0)) // stays exhausted
		return dst, ErrIVExhausted
	}
	aead, nonce, err := p.aead()
	if err != nil {
		return dst, err
	}
	binary.BigEndian.PutUint64(nonce[saltLen:], iv)
	out := grow(dst, p.SealedLen(len(plaintext)))
	out = append(out, nonce[saltLen:]...)
	start := len(out)
	out = append(out, plaintext...)
	out = append(out, 0) // pad length
	return aead.Seal(out[:start], nonce[:], out[start:], aad), nil
}

func (p *Protector) openAEAD(aad, sealed []byte) ([]byte, error) {
	aead, nonce, err := p.aead()
	if err != nil {
		return nil, err
	}
	copy(nonce[saltLen:], sealed)
	plain, err := aead.Open(nil, nonce[:], sealed[aeadIVLen:], aad)
	if err != nil {
		return nil, wrap(ErrOpen, "integrity check failed")
	}
	return plain, nil
}

func (p *Protector) sealCBC(dst, aad, plaintext []byte) ([]byte, error) {
	block, err := aes.NewCipher(p.key.Bytes())
	if err != nil {
		return dst, wrap(ErrKeyLength, "%v", err)
	}
	// RFC 7296, section 3.14 and RFC 3602, section 3: the IV must not be predictable.
	var iv [aes.BlockSize]byte
	if _, err := io.ReadFull(p.cbc.rand, iv[:]); err != nil {
		return dst, wrap(err, "reading an IV of %d octets", len(iv))
	}
	pad := cbcPadding(len(plaintext))
	out := grow(dst, p.SealedLen(len(plaintext)))
	from := len(out)
	out = append(out, iv[:]...)
	start := len(out)
	out = append(out, plaintext...)
	for range pad {
		out = append(out, 0)
	}
	out = append(out, byte(pad))
	cipher.NewCBCEncrypter(block, iv[:]).CryptBlocks(out[start:], out[start:])
	return append(out, p.icv(aad, out[from:])...), nil
}

func (p *Protector) openCBC(aad, sealed []byte) ([]byte, error) {
	cut := len(sealed) - p.cbc.icvLen
	body, icv := sealed[:cut], sealed[cut:]
	// Verify before decrypt: nothing of a forged payload is looked at.
	if subtle.ConstantTimeCompare(p.icv(aad, body), icv) != 1 {
		return nil, wrap(ErrOpen, "integrity check failed")
	}
	iv, ct := body[:aes.BlockSize], body[aes.BlockSize:]
	if len(ct)%aes.BlockSize != 0 {
		return nil, wrap(ErrOpen, "ciphertext of %d octets is not a multiple of %d", len(ct), aes.BlockSize)
	}
	block, err := aes.NewCipher(p.key.Bytes())
	if err != nil {
		return nil, wrap(ErrKeyLength, "%v", err)
	}
	plain := make([]byte, len(ct))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, ct)
	return plain, nil
}

// icv is the truncated HMAC over aad | IV | ciphertext.
func (p *Protector) icv(aad, body []byte) []byte {
	m := hmac.New(p.cbc.hash, p.cbc.integ.Bytes())
	m.Write(aad)
	m.Write(body)
	return m.Sum(nil)[:p.cbc.icvLen]
}

// Wipe overwrites what can be reached of the keys. Afterwards the Protector neither seals nor
// opens (ErrWiped); nobody may be doing either at the moment of the call.
func (p *Protector) Wipe() {
	p.wiped.Store(true)
	p.key.Wipe()
	if p.cbc != nil {
		p.cbc.integ.Wipe()
	}
}

// grow makes room for n more octets.
func grow(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	out := make([]byte, len(b), len(b)+n)
	copy(out, b)
	return out
}
