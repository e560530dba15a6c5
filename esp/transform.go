package esp

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"math/bits"
	"reflect"
	"sync"
	"sync/atomic"

	"golang.org/x/crypto/chacha20poly1305"

	"wardgate/esp/aesgcm"
)

// transform is what both directions of an SA share: the suite's sizes, and the keys in form of a
// small stock of workers. The sizes are immutable.
type transform struct {
	spi   uint32
	esn   bool
	encr  uint16
	ivLen int
	icv   int
	align int // padding makes payload and trailer a multiple of this

	// idle holds workers that nobody uses. A worker is owned by whoever took it out, so its
	// scratch and its cipher state need no lock; taking one is a compare-and-swap.
	idle   [8]atomic.Pointer[worker]
	closed atomic.Bool

	mu   sync.Mutex   // guards what follows; taken on the slow path only
	keys keySet       // for further workers; wiped by Close
	aead cipher.AEAD  // shared by the workers, stateless
	gcm  *aesgcm.AEAD // aead, where it has code of its own for packets
	live int          // workers that exist; the last one that goes wipes aead
}

// ivLenGCM is the IV's length with AES-GCM (RFC 4106 section 3.1) and ChaCha20-Poly1305
// (RFC 7634 section 2), unless it is implicit (RFC 8750).
const ivLenGCM = 8

// keySet holds keys. It is never printed: no field of it is exported and none is reachable.
type keySet struct {
	encr, integ []byte
	salt        [saltLen]byte
}

func (k *keySet) wipe() {
	clear(k.encr)
	clear(k.integ)
	clear(k.salt[:])
	*k = keySet{}
}

// worker is the state for sealing or opening one packet at a time. The arrays lie on the heap
// because slices of them pass through interfaces.
type worker struct {
	aead  cipher.AEAD
	gcm   *aesgcm.AEAD // as in transform
	nonce [12]byte     // salt, IV (RFC 4106 section 4, RFC 7634 section 2)
	aad   [12]byte     // with ESN: SPI, high and low half of the sequence number
	cbc   *cbcHMAC     // instead of aead
}

func (t *transform) init(p *Params) error {
	if err := p.check(); err != nil {
		return err
	}
	encr, withIV := explicit(p.Encr)
	t.spi, t.esn, t.encr = p.SPI, p.ESN, encr
	key := p.Key
	if encr == EncrAESCBC {
		t.ivLen, t.align, t.icv = aes.BlockSize, aes.BlockSize, len(p.IntegKey)/2 // RFC 4868 section 2.3: half the key
	} else {
		t.align, t.icv = 4, 16
		if withIV {
			t.ivLen = ivLenGCM
		}
		key = key[:len(key)-saltLen]
		copy(t.keys.salt[:], p.Key[len(key):])
	}
	t.keys.encr = append([]byte(nil), key...)
	t.keys.integ = append([]byte(nil), p.IntegKey...)

	switch encr {
	case EncrAESGCM16:
		aead, err := newGCM(t.keys.encr)
		if err != nil {
			return err
		}
		t.aead = aead
		if g, ok := aead.(*aesgcm.AEAD); ok && g.Accelerated() != "std" {
			t.gcm = g
		}
	case EncrChaCha20Poly1305:
		var err error
		if t.aead, err = chacha20poly1305.New(t.keys.encr); err != nil {
			return err
		}
	}
	w, err := t.newWorker()
	if err != nil {
		return err
	}
	t.idle[0].Store(w)
	return nil
}

// newWorker makes one more worker. The caller holds mu or is init.
func (t *transform) newWorker() (*worker, error) {
	w := &worker{aead: t.aead, gcm: t.gcm}
	copy(w.nonce[:], t.keys.salt[:])
	binary.BigEndian.PutUint32(w.aad[:], t.spi)
	if t.encr == EncrAESCBC {
		var err error
		if w.cbc, err = newCBCHMAC(t.keys.encr, t.keys.integ); err != nil {
			return nil, err
		}
	}
	t.live++
	return w, nil
}

// get hands out a worker; put must follow. ErrClosed after Close.
func (t *transform) get() (*worker, error) {
	if !t.closed.Load() {
		for i := range t.idle {
			s := &t.idle[i]
			if w := s.Load(); w != nil && s.CompareAndSwap(w, nil) {
				// Close may have come in between: it either saw this worker and wiped it, and
				// then the swap failed, or left it to put.
				return w, nil
			}
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed.Load() {
		return nil, ErrClosed
	}
	return t.newWorker()
}

func (t *transform) put(w *worker) {
	if !t.closed.Load() {
		for i := range t.idle {
			s := &t.idle[i]
			if s.Load() == nil && s.CompareAndSwap(nil, w) {
				if t.closed.Load() {
					t.drain() // Close may have passed this slot before the worker came back
				}
				return
			}
		}
	}
	t.mu.Lock()
	t.drop(w)
	t.mu.Unlock()
}

// close makes get fail, and wipes all keys: those in use are wiped when their user is done.
func (t *transform) close() {
	t.mu.Lock()
	t.closed.Store(true)
	t.keys.wipe()
	t.mu.Unlock()
	t.drain()
}

func (t *transform) drain() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.idle {
		if w := t.idle[i].Swap(nil); w != nil {
			t.drop(w)
		}
	}
}

// drop wipes a worker that its caller owns. The caller holds mu.
func (t *transform) drop(w *worker) {
	if w.cbc != nil {
		w.cbc.wipe()
	}
	*w = worker{}
	t.live--
	if t.live == 0 && t.closed.Load() && t.aead != nil {
		if gcm, ok := t.aead.(*aesgcm.AEAD); ok {
			gcm.Wipe()
		} else {
			wipeObject(t.aead)
		}
		t.aead, t.gcm = nil, nil
	}
}

// wipeObject zeroes the struct behind a cipher of the standard library, which holds its expanded
// key by value and has no method for this. The object must not be used again.
func wipeObject(o any) {
	if v := reflect.ValueOf(o); v.Kind() == reflect.Pointer && !v.IsNil() {
		v.Elem().SetZero()
	}
}

// padLen returns the octets of padding for an inner packet of n octets (RFC 4303 section 2.4).
func (t *transform) padLen(n int) int {
	return -(n + trailerLen) & (t.align - 1)
}

func (t *transform) headroom() int { return headerLen + t.ivLen }

func (t *transform) tailroom() int { return t.align - 1 + trailerLen + t.icv }

// seal makes buf[start:] an ESP packet. The inner packet lies at start+headroom and is n octets
// long; the room was checked. It returns the end of the packet.
func (t *transform) seal(w *worker, buf []byte, start, n int, next uint8, seq uint64) (end int) {
	// RFC 4106 section 3.1, RFC 7634 section 2: any IV that never repeats under one key; the
	// sequence number never does.
	if w.gcm != nil {
		return t.sealGCM(w, buf, start, n, next, seq, seq)
	}
	iv := buf[start+headerLen : start+headerLen+t.ivLen]
	switch {
	case w.cbc != nil:
		w.cbc.makeIV(iv, seq)
	case len(iv) > 0:
		binary.BigEndian.PutUint64(iv, seq)
	}
	return t.sealWithIV(w, buf, start, n, next, seq)
}

// trailer writes padding, pad length and next header behind n octets at body, and returns the end
// of all that (RFC 4303 section 2.4: the padding is 1, 2, 3 …).
func (t *transform) trailer(buf []byte, body, n int, next uint8) (end int) {
	pad := t.padLen(n)
	tail := body + n
	for i := range pad {
		buf[tail+i] = byte(i + 1)
	}
	buf[tail+pad] = byte(pad)
	buf[tail+pad+1] = next
	return tail + pad + trailerLen
}

// sealGCM is seal for AES-GCM on machines that have code of their own for it. Header and IV are
// written last: see aesgcm.SealInPlace.
func (t *transform) sealGCM(w *worker, buf []byte, start, n int, next uint8, seq, iv uint64) (end int) {
	body := start + headerLen + t.ivLen
	end = t.trailer(buf, body, n, next) + t.icv
	nonce, aad, aadLen := t.gcmWords(w, seq, iv)
	w.gcm.SealInPlace(buf[body:end:end], nonce, aad, aadLen)
	h := buf[start:body:body]
	binary.BigEndian.PutUint32(h, t.spi)
	binary.BigEndian.PutUint32(h[4:], uint32(seq))
	if t.ivLen > 0 {
		binary.BigEndian.PutUint64(h[headerLen:], iv)
	}
	return end
}

// iv returns the IV of the packet pkt, whose sequence number is seq, of an AEAD cipher.
func (t *transform) iv(pkt []byte, seq uint64) uint64 {
	if t.ivLen == 0 {
		return seq // RFC 8750, section 4
	}
	return binary.BigEndian.Uint64(pkt[headerLen:])
}

// gcmWords returns nonce and additional data (RFC 4106 sections 4 and 5) as aesgcm takes them.
func (t *transform) gcmWords(w *worker, seq, iv uint64) (nonce, aad aesgcm.Words, aadLen int) {
	x := bits.ReverseBytes64(iv)
	nonce.Lo = uint64(binary.LittleEndian.Uint32(w.nonce[:])) | x<<32 // the salt comes first
	nonce.Hi = x >> 32
	spi := uint64(bits.ReverseBytes32(t.spi))
	if t.esn {
		x = bits.ReverseBytes64(seq)
		return nonce, aesgcm.Words{Lo: spi | x<<32, Hi: x >> 32}, 12
	}
	return nonce, aesgcm.Words{Lo: spi | uint64(bits.ReverseBytes32(uint32(seq)))<<32}, headerLen
}

// sealWithIV is seal with the IV already in its place.
func (t *transform) sealWithIV(w *worker, buf []byte, start, n int, next uint8, seq uint64) (end int) {
	body := start + headerLen + t.ivLen
	if w.gcm != nil {
		return t.sealGCM(w, buf, start, n, next, seq, t.iv(buf[start:], seq))
	}
	tail := t.trailer(buf, body, n, next)
	end = tail + t.icv

	h := buf[start : start+headerLen : start+headerLen]
	binary.BigEndian.PutUint32(h, t.spi)
	binary.BigEndian.PutUint32(h[4:], uint32(seq))
	if w.cbc != nil {
		w.cbc.seal(buf[start:end:end], body-start, t.icv, seq, t.esn)
		return end
	}
	binary.BigEndian.PutUint64(w.nonce[saltLen:], t.iv(buf[start:], seq))
	aad := h
	if t.esn {
		aad = w.aad[:]
		binary.BigEndian.PutUint64(aad[4:], seq)
	}
	w.aead.Seal(buf[body:body:end], w.nonce[:], buf[body:tail], aad)
	return end
}

// open verifies and decrypts the ESP packet pkt in place, whose length and SPI were checked, and
// returns the range of payload, padding and trailer.
func (t *transform) open(w *worker, pkt []byte, seq uint64) (start, end int, ok bool) {
	start, end = headerLen+t.ivLen, len(pkt)-t.icv
	if w.cbc != nil {
		return start, end, w.cbc.open(pkt, start, t.icv, seq, t.esn)
	}
	if w.gcm != nil {
		nonce, aad, aadLen := t.gcmWords(w, seq, t.iv(pkt, seq))
		return start, end, w.gcm.OpenInPlace(pkt[start:], nonce, aad, aadLen)
	}
	binary.BigEndian.PutUint64(w.nonce[saltLen:], t.iv(pkt, seq))
	aad := pkt[:headerLen:headerLen]
	if t.esn {
		aad = w.aad[:]
		binary.BigEndian.PutUint64(aad[4:], seq)
	}
	_, err := w.aead.Open(pkt[start:start:len(pkt)], w.nonce[:], pkt[start:], aad)
	return start, end, err == nil
}

// minLen is the shortest ESP packet of the suite.
func (t *transform) minLen() int {
	return headerLen + t.ivLen + t.align + t.icv
}
