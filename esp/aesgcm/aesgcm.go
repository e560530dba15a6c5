package aesgcm

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"unsafe"
)

// Sizes in octets (RFC 4106 sections 3 and 4, RFC 5282 section 4).
const (
	NonceSize = 12
	TagSize   = 16
)

// maxText is the longest text under one nonce, in octets (SP 800-38D section 5.2.1.1).
const maxText = ((1 << 32) - 2) * aes.BlockSize

// ErrAuth says that the tag is wrong: another key, nonce or additional data, or a forgery.
var ErrAuth = errors.New("aesgcm: message authentication failed")

// AEAD is AES-GCM under one key. It implements [cipher.AEAD] and may be used by several
// goroutines at once, until Wipe.
type AEAD struct {
	impl implementation
	code int         // rounds of the block cipher: 10, 12 or 14; 10 more for ymm
	s    *schedule   // where impl is one of ours
	std  cipher.AEAD // where it is the standard library's
}

type implementation uint8

const (
	wiped implementation = iota
	std
	ymm // VAES and VPCLMULQDQ with AVX2
	zmm // and with AVX-512
)

// New makes an AEAD with a key of 16, 24 or 32 octets. It keeps no reference to key.
func New(key []byte) (*AEAD, error) {
	return newAs(usable[0], key)
}

// newAs makes an AEAD of a given kind, which the machine must be able to run.
func newAs(impl implementation, key []byte) (*AEAD, error) {
	switch len(key) {
	case 16, 24, 32:
	default:
		return nil, fmt.Errorf("aesgcm: a key of %d octets: want 16, 24 or 32", len(key))
	}
	if impl != std {
		a := &AEAD{impl: impl, code: len(key)/4 + 6, s: newSchedule(key)}
		if impl == ymm {
			a.code += 10
		}
		return a, nil
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("aesgcm: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	wipeObject(block)
	if err != nil {
		return nil, fmt.Errorf("aesgcm: %w", err)
	}
	return &AEAD{impl: std, std: aead}, nil
}

// Accelerated names what does the work on this machine: "vaes-avx512", "vaes-avx2", or "std" for
// the standard library.
func (a *AEAD) Accelerated() string {
	switch a.impl {
	case zmm:
		return "vaes-avx512"
	case ymm:
		return "vaes-avx2"
	case std:
		return "std"
	default:
		return "wiped"
	}
}

// NonceSize returns 12.
func (a *AEAD) NonceSize() int { return NonceSize }

// Overhead returns 16.
func (a *AEAD) Overhead() int { return TagSize }

// Wipe zeroes everything that depends on the key. Nobody may be using the AEAD, and who uses it
// afterwards panics.
func (a *AEAD) Wipe() {
	if a.s != nil {
		*a.s = schedule{}
	}
	wipeObject(a.std)
	*a = AEAD{}
}

// Seal encrypts and authenticates plaintext, authenticates aad, and appends ciphertext and tag to
// dst. dst[len(dst):] may be plaintext exactly, or must not overlap it. Seal panics where the
// standard library does: on a nonce that is not 12 octets long, and on overlaps.
func (a *AEAD) Seal(dst, nonce, plaintext, aad []byte) []byte {
	if a.impl <= std {
		return a.mustStd().Seal(dst, nonce, plaintext, aad)
	}
	if len(nonce) != NonceSize {
		panic("aesgcm: the nonce must be 12 octets long")
	}
	if uint64(len(plaintext)) > maxText {
		panic("aesgcm: message too large for one nonce")
	}
	n := len(plaintext)
	ret, out := extend(dst, n+TagSize)
	checkOverlap(out, plaintext, aad)
	sealVector(a.s, a.code, unsafe.SliceData(out), unsafe.SliceData(plaintext), n, nonceWords(nonce), a.aadWords(aad), len(aad), &out[n])
	return ret
}

// Open verifies ciphertext, which ends with the tag, and aad, and appends the plaintext to dst.
// dst[len(dst):] may be ciphertext exactly, or must not overlap it. With [ErrAuth], or the
// standard library's error where that does the work, the room for the plaintext is zeroed.
func (a *AEAD) Open(dst, nonce, ciphertext, aad []byte) ([]byte, error) {
	if a.impl <= std {
		return a.mustStd().Open(dst, nonce, ciphertext, aad)
	}
	if len(nonce) != NonceSize {
		panic("aesgcm: the nonce must be 12 octets long")
	}
	n := len(ciphertext) - TagSize
	if n < 0 || uint64(n) > maxText {
		return nil, ErrAuth
	}
	ret, out := extend(dst, n)
	checkOverlap(out, ciphertext, aad)
	if !openVector(a.s, a.code, unsafe.SliceData(out), unsafe.SliceData(ciphertext), n, nonceWords(nonce), a.aadWords(aad), len(aad), &ciphertext[n]) {
		clear(out) // the text was decrypted beside the check
		return nil, ErrAuth
	}
	return ret, nil
}

// Words are up to 16 octets as two little-endian numbers, missing octets being zero: the nonce, or
// additional data. So they travel in registers.
type Words struct{ Lo, Hi uint64 }

// SealInPlace is Seal for packets: it encrypts buf up to its last 16 octets, which become the
// tag. The first aadLen octets (0 to 16) of aad are the additional data.
//
// A header that has just been written octet by octet, or word by word, and is then read as a
// vector makes the processor wait until all of it has reached the cache, which takes as long as
// encrypting a small packet. Hence the words; and hence a caller does best to write what stands
// before the text after sealing it.
func (a *AEAD) SealInPlace(buf []byte, nonce, aad Words, aadLen int) {
	n := len(buf) - TagSize
	if n < 0 || uint64(n) > maxText || uint(aadLen) > 16 {
		panic("aesgcm: SealInPlace needs 16 octets for the tag, and takes at most 16 of additional data")
	}
	if a.impl <= std {
		s := newScratch(nonce, aad)
		a.mustStd().Seal(buf[:0], s[:NonceSize], buf[:n], s[16:16+aadLen])
		return
	}
	text := unsafe.SliceData(buf)
	sealVector(a.s, a.code, text, text, n, nonce, aad, aadLen, &buf[n])
}

// OpenInPlace is Open for packets: buf is ciphertext and tag; see SealInPlace. On false the room
// of the text is zeroed.
func (a *AEAD) OpenInPlace(buf []byte, nonce, aad Words, aadLen int) bool {
	n := len(buf) - TagSize
	if uint(aadLen) > 16 {
		panic("aesgcm: OpenInPlace takes at most 16 octets of additional data")
	}
	if n < 0 || uint64(n) > maxText {
		return false
	}
	if a.impl <= std {
		s := newScratch(nonce, aad)
		_, err := a.mustStd().Open(buf[:0], s[:NonceSize], buf, s[16:16+aadLen])
		return err == nil
	}
	text := unsafe.SliceData(buf)
	if !openVector(a.s, a.code, text, text, n, nonce, aad, aadLen, &buf[n]) {
		clear(buf[:n])
		return false
	}
	return true
}

// newScratch is words as octets: the nonce's, then the additional data's. The standard library
// wants them on the heap; callers that mind use Seal and Open where nothing is accelerated.
func newScratch(nonce, aad Words) *[32]byte {
	s := new([32]byte)
	for i, w := range [4]uint64{nonce.Lo, nonce.Hi, aad.Lo, aad.Hi} {
		binary.LittleEndian.PutUint64(s[8*i:], w)
	}
	return s
}

func nonceWords(b []byte) Words {
	return Words{binary.LittleEndian.Uint64(b), uint64(binary.LittleEndian.Uint32(b[8:]))}
}

// aadWords returns the last block of additional data, with the hash of what comes before it added.
func (a *AEAD) aadWords(b []byte) Words {
	switch len(b) {
	case 8: // ESP (RFC 4106 section 5)
		return Words{Lo: binary.LittleEndian.Uint64(b)}
	case 12: // ESP with extended sequence numbers
		return Words{binary.LittleEndian.Uint64(b), uint64(binary.LittleEndian.Uint32(b[8:]))}
	}
	return a.longAAD(b)
}

func (a *AEAD) longAAD(b []byte) (w Words) {
	if blocks := (len(b) - 1) / aes.BlockSize; blocks > 0 {
		w = hashBlocks(a.s, &b[0], blocks)
		b = b[blocks*aes.BlockSize:]
	}
	var last [aes.BlockSize]byte
	copy(last[:], b)
	w.Lo ^= binary.LittleEndian.Uint64(last[:])
	w.Hi ^= binary.LittleEndian.Uint64(last[8:])
	return w
}

func (a *AEAD) mustStd() cipher.AEAD {
	if a.impl == wiped {
		panic("aesgcm: used after Wipe")
	}
	return a.std
}

// extend returns dst with n more octets, and these. It allocates only if they do not fit.
func extend(dst []byte, n int) (all, more []byte) {
	total := len(dst) + n
	if cap(dst) >= total {
		all = dst[:total]
	} else {
		all = make([]byte, total)
		copy(all, dst)
	}
	return all, all[len(dst):]
}

// checkOverlap panics unless in lies where out does or apart from it, and aad apart from it:
// cipher.AEAD's rules.
func checkOverlap(out, in, aad []byte) {
	if overlap(out, in) && unsafe.SliceData(out) != unsafe.SliceData(in) {
		panic("aesgcm: output and input overlap, but do not begin at the same place")
	}
	if overlap(out, aad) {
		panic("aesgcm: output and additional data overlap")
	}
}

func overlap(x, y []byte) bool {
	// The addresses stay valid: both slices are alive, and only compared.
	a, b := uintptr(unsafe.Pointer(unsafe.SliceData(x))), uintptr(unsafe.Pointer(unsafe.SliceData(y)))
	return len(x) > 0 && len(y) > 0 && a < b+uintptr(len(y)) && b < a+uintptr(len(x))
}

// wipeObject zeroes the struct behind a cipher of the standard library, which holds its expanded
// key by value and has no method for this.
func wipeObject(o any) {
	if v := reflect.ValueOf(o); v.Kind() == reflect.Pointer && !v.IsNil() {
		v.Elem().SetZero()
	}
}
