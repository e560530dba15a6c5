package esp

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding"
	"encoding/binary"
	"errors"
	"hash"
)

// cbcHMAC is AES-CBC (RFC 3602) with HMAC-SHA2 (RFC 4868), encrypt-then-MAC. One worker owns it.
type cbcHMAC struct {
	iv   cipher.Block // makes IVs
	enc  settableCBC
	dec  settableCBC
	mac  macState
	ctr  [aes.BlockSize]byte
	high [4]byte
	sum  [sha512.Size]byte
}

// settableCBC is what the standard library's CBC modes are; the method saves an allocation for
// every packet (crypto/tls relies on it too).
type settableCBC interface {
	cipher.BlockMode
	SetIV(iv []byte)
}

var errNoSetIV = errors.New("esp: the CBC mode of this Go release cannot change its IV")

// newCBCHMAC expands the keys; lengths were checked.
func newCBCHMAC(encr, integ []byte) (*cbcHMAC, error) {
	c := new(cbcHMAC)
	block, err := aes.NewCipher(encr)
	if err != nil {
		return nil, err
	}
	defer wipeObject(block)
	var ok bool
	if c.enc, ok = cipher.NewCBCEncrypter(block, c.ctr[:]).(settableCBC); !ok {
		return nil, errNoSetIV
	}
	if c.dec, ok = cipher.NewCBCDecrypter(block, c.ctr[:]).(settableCBC); !ok {
		return nil, errNoSetIV
	}
	// RFC 3602 section 3: the IV must be unpredictable, a counter is not enough. NIST SP 800-38A
	// appendix C: encrypt a nonce. A key of its own for that keeps a peer who chooses plaintext
	// from meeting the same block under the packet key.
	kdf := hmac.New(sha256.New, encr)
	kdf.Write([]byte("wardgate ESP CBC IV"))
	ivKey := kdf.Sum(nil)
	if c.iv, err = aes.NewCipher(ivKey[:16]); err != nil {
		return nil, err
	}
	clear(ivKey)
	return c, c.mac.init(integ)
}

func (c *cbcHMAC) wipe() {
	wipeObject(c.iv)
	wipeObject(c.enc)
	wipeObject(c.dec)
	c.mac.wipe()
	*c = cbcHMAC{}
}

// makeIV writes the IV of the packet seq.
func (c *cbcHMAC) makeIV(iv []byte, seq uint64) {
	binary.BigEndian.PutUint64(c.ctr[8:], seq)
	c.iv.Encrypt(iv, c.ctr[:])
}

// seal encrypts pkt[body:len-icv], whose IV is in its place, and writes the ICV behind it.
func (c *cbcHMAC) seal(pkt []byte, body, icv int, seq uint64, esn bool) {
	end := len(pkt) - icv
	c.enc.SetIV(pkt[headerLen:body])
	c.enc.CryptBlocks(pkt[body:end], pkt[body:end])
	copy(pkt[end:], c.icvOf(pkt[:end], seq, esn))
}

// open verifies the ICV and decrypts; the ciphertext is whole blocks.
func (c *cbcHMAC) open(pkt []byte, body, icv int, seq uint64, esn bool) bool {
	end := len(pkt) - icv
	if subtle.ConstantTimeCompare(c.icvOf(pkt[:end], seq, esn)[:icv], pkt[end:]) != 1 {
		return false
	}
	c.dec.SetIV(pkt[headerLen:body])
	c.dec.CryptBlocks(pkt[body:end], pkt[body:end])
	return true
}

func (c *cbcHMAC) icvOf(data []byte, seq uint64, esn bool) []byte {
	var high []byte
	if esn { // RFC 4303 section 2.2.1: the high half is hashed behind the packet, not sent
		binary.BigEndian.PutUint32(c.high[:], uint32(seq>>32))
		high = c.high[:]
	}
	return c.mac.sum(c.sum[:0], data, high)
}

// macState is HMAC (RFC 2104) over the standard library's hashes. crypto/hmac would do the same,
// but keeps the padded key where it cannot be wiped.
type macState struct {
	h            hash.Hash
	inner, outer []byte // the hash's state after the padded key
}

func (m *macState) init(key []byte) error {
	switch len(key) { // RFC 4868 section 2.1.1: the key is as long as the hash
	case sha256.Size:
		m.h = sha256.New()
	case sha512.Size384:
		m.h = sha512.New384()
	default:
		m.h = sha512.New()
	}
	pad := make([]byte, m.h.BlockSize())
	defer clear(pad)
	var err error
	for _, s := range []struct {
		xor byte
		to  *[]byte
	}{{0x36, &m.inner}, {0x5c, &m.outer}} {
		clear(pad)
		copy(pad, key)
		for i := range pad {
			pad[i] ^= s.xor
		}
		m.h.Reset()
		m.h.Write(pad)
		if *s.to, err = m.h.(encoding.BinaryMarshaler).MarshalBinary(); err != nil {
			return err
		}
	}
	return nil
}

// sum appends HMAC(data, more) to dst, which has the room.
func (m *macState) sum(dst, data, more []byte) []byte {
	u := m.h.(encoding.BinaryUnmarshaler)
	_ = u.UnmarshalBinary(m.inner) // made by the same type: cannot fail
	m.h.Write(data)
	m.h.Write(more)
	in := m.h.Sum(dst)
	_ = u.UnmarshalBinary(m.outer)
	m.h.Write(in)
	return m.h.Sum(dst)
}

func (m *macState) wipe() {
	clear(m.inner)
	clear(m.outer)
	wipeObject(m.h)
	*m = macState{}
}
