package suite

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"io"
	"sync"
	"testing"
)

var allSK = []string{
	"aes256gcm16-prfsha384-x25519", "aes128gcm16-prfsha256-x25519", "chacha20poly1305-prfsha256-x25519",
	"aes256-sha256-x25519", "aes128-sha384-x25519", "aes256-sha512-x25519",
}

// protectors returns both ends of one direction.
func protectors(tb testing.TB, s string) (seal, open *Protector) {
	tb.Helper()
	c := choose(tb, ProtocolIKE, s)
	keys, err := DeriveIKEKeys(c, CopySecret([]byte("seed")), []byte("Ni"), []byte("Nr"), [8]byte{1}, [8]byte{2})
	if err != nil {
		tb.Fatal(err)
	}
	seal, _, err = keys.Protectors(c, true, testRand(4))
	if err != nil {
		tb.Fatal(err)
	}
	_, open, err = keys.Protectors(c, false, testRand(5))
	if err != nil {
		tb.Fatal(err)
	}
	return seal, open
}

func TestProtector(t *testing.T) {
	for _, s := range allSK {
		t.Run(s, func(t *testing.T) {
			seal, open := protectors(t, s)
			aad := []byte("IKE header and SK header")
			ivs := map[string]bool{}
			for n := 0; n < 70; n++ {
				plain := bytes.Repeat([]byte{0xff}, n)
				msg := bytes.Clone(aad)
				msg, err := seal.AppendSealed(msg, msg, plain)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.HasPrefix(msg, aad) {
					t.Fatal("prefix changed")
				}
				sealed := msg[len(aad):]
				if len(sealed) != seal.SealedLen(n) {
					t.Fatalf("%d octets for %d, SealedLen says %d", len(sealed), n, seal.SealedLen(n))
				}
				iv := string(sealed[:8])
				if ivs[iv] {
					t.Fatal("IV used twice")
				}
				ivs[iv] = true
				before := bytes.Clone(msg)
				got, err := open.Open(aad, sealed)
				if err != nil {
					t.Fatal(err)
				}
				equal(t, "plaintext", got, plain)
				equal(t, "message after Open", msg, before)
				// The longest plaintext for a length: it fits, one more does not.
				for d := range 20 {
					room := len(sealed) + d
					if m := seal.MaxPlaintext(room); seal.SealedLen(m) > room || seal.SealedLen(m+1) <= room {
						t.Fatalf("MaxPlaintext(%d) = %d", room, m)
					}
				}
				// Every changed bit pattern, every truncation, a longer one, another aad.
				for i := range sealed {
					bad := bytes.Clone(sealed)
					bad[i] ^= 0x81
					if _, err := open.Open(aad, bad); !errors.Is(err, ErrOpen) {
						t.Fatalf("octet %d changed: %v", i, err)
					}
					if _, err := open.Open(aad, sealed[:i]); !errors.Is(err, ErrOpen) {
						t.Fatalf("%d octets: %v", i, err)
					}
				}
				if _, err := open.Open(aad, append(bytes.Clone(sealed), 0)); !errors.Is(err, ErrOpen) {
					t.Fatal(err)
				}
				if _, err := open.Open(aad[1:], sealed); !errors.Is(err, ErrOpen) {
					t.Fatal(err)
				}
				// The keys of the other direction do not open it (no reflection).
				if _, err := seal.Open(aad, sealed); err != nil {
					t.Fatal("same direction, same keys:", err)
				}
			}
			if seal.MaxPlaintext(seal.SealedLen(0)-1) != -1 || seal.MaxPlaintext(0) != -1 || seal.MaxPlaintext(-100) != -1 {
				t.Error("MaxPlaintext below the least length")
			}
			_, in, err := func() (*Protector, *Protector, error) {
				c := choose(t, ProtocolIKE, s)
				k, err := DeriveIKEKeys(c, CopySecret([]byte("seed")), []byte("Ni"), []byte("Nr"), [8]byte{1}, [8]byte{2})
				if err != nil {
					return nil, nil, err
				}
				return k.Protectors(c, true, testRand(1))
			}()
			if err != nil {
				t.Fatal(err)
			}
			msg, err := seal.AppendSealed(nil, aad, []byte("hello"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := in.Open(aad, msg); !errors.Is(err, ErrOpen) {
				t.Errorf("reflected message: %v", err)
			}
			seal.Wipe()
			if _, err := seal.AppendSealed(nil, aad, nil); !errors.Is(err, ErrWiped) {
				t.Errorf("after Wipe: %v", err)
			}
			if _, err := seal.Open(aad, msg); !errors.Is(err, ErrWiped) {
				t.Errorf("after Wipe: %v", err)
			}
		})
	}
}

// TestPeerPadding: a peer may pad as it likes, up to 255 octets of any content (RFC 7296,
// section 3.14), but not with more than there is.
func TestPeerPadding(t *testing.T) {
	seal, open := protectors(t, allSK[0])
	raw := func(plain []byte) []byte { // seals without our own pad length
		iv := []byte{0xff, 0, 0, 0, 0, 0, 0, 1}
		aead, nonce, err := seal.aead()
		if err != nil {
			t.Fatal(err)
		}
		copy(nonce[saltLen:], iv)
		return aead.Seal(iv, nonce[:], plain, nil)
	}
	inner := []byte("inner payloads")
	for _, pad := range []int{0, 1, 15, 16, 255} {
		got, err := open.Open(nil, raw(concat(inner, bytes.Repeat([]byte{0xee}, pad), []byte{byte(pad)})))
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "plaintext", got, inner)
	}
	for _, bad := range [][]byte{concat(inner, []byte{byte(len(inner) + 1)}), {1}, {255}} {
		if _, err := open.Open(nil, raw(bad)); !errors.Is(err, ErrOpen) {
			t.Errorf("pad length beyond the plaintext: %v", err)
		}
	}
	if got, err := open.Open(nil, raw(concat(inner, []byte{byte(len(inner))}))); err != nil || len(got) != 0 {
		t.Errorf("all padding: %x %v", got, err)
	}

	// CBC with a valid ICV around a body that is no multiple of the block.
	_, cbc := protectors(t, allSK[3])
	body := make([]byte, 16+17)
	if _, err := cbc.Open(nil, append(body, cbc.icv(nil, body)...)); !errors.Is(err, ErrOpen) {
		t.Errorf("half a block: %v", err)
	}
	// CBC with a pad length beyond the plaintext.
	body = make([]byte, 32)
	block := bytes.Repeat([]byte{200}, 16)
	aesBlock, err := aes.NewCipher(cbc.key.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	cipher.NewCBCEncrypter(aesBlock, body[:aes.BlockSize]).CryptBlocks(body[16:], block)
	if _, err := cbc.Open(nil, append(body, cbc.icv(nil, body)...)); !errors.Is(err, ErrOpen) {
		t.Errorf("pad length 200: %v", err)
	}
}

func TestIVs(t *testing.T) {
	p, _ := protectors(t, allSK[0])
	p.counter.Store(^uint64(0) - 1)
	if _, err := p.AppendSealed(nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		dst := []byte("kept")
		got, err := p.AppendSealed(dst, nil, []byte("x"))
		if !errors.Is(err, ErrIVExhausted) || string(got) != "kept" {
			t.Errorf("%q %v", got, err)
		}
	}
	// CBC: the IV comes from the random source, and without randomness nothing is sent.
	c := choose(t, ProtocolIKE, allSK[3])
	key := CopySecret(make([]byte, 32))
	iv := bytes.Repeat([]byte{7}, 16)
	p, err := NewProtector(c, key, key, bytes.NewReader(iv))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := p.AppendSealed(nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "IV", sealed[:16], iv)
	if _, err := p.AppendSealed(nil, nil, nil); !errors.Is(err, io.EOF) {
		t.Errorf("no randomness left: %v", err)
	}
	if _, err := NewProtector(c, key, key, nil); !errors.Is(err, ErrUnsupported) {
		t.Errorf("no source: %v", err)
	}
	for _, k := range []Secret{{}, CopySecret(make([]byte, 31)), CopySecret(make([]byte, 33))} {
		if _, err := NewProtector(c, k, key, testRand(1)); !errors.Is(err, ErrKeyLength) {
			t.Errorf("key: %v", err)
		}
		if _, err := NewProtector(c, key, k, testRand(1)); !errors.Is(err, ErrKeyLength) {
			t.Errorf("integrity key: %v", err)
		}
	}
}

func TestProtectorConcurrently(t *testing.T) {
	seal, open := protectors(t, allSK[0])
	var wg sync.WaitGroup
	var mu sync.Mutex
	ivs := map[string]bool{}
	for range 8 {
		wg.Go(func() {
			for range 100 {
				b, err := seal.AppendSealed(nil, nil, []byte("x"))
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := open.Open(nil, b); err != nil {
					t.Error(err)
				}
				mu.Lock()
				ivs[string(b[:8])] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(ivs) != 800 {
		t.Errorf("%d different IVs of 800", len(ivs))
	}
}

// TestNoImplicitIVInIKE: RFC 8750, section 7: these transforms cannot be used in IKEv2.
func TestNoImplicitIVInIKE(t *testing.T) {
	for encr, bits := range map[uint16]int{EncrAESGCM16IIV: 256, EncrChaCha20Poly1305IIV: 0} {
		c := Chosen{Protocol: ProtocolIKE, Encr: encr, KeyBits: bits, PRF: PRFHMACSHA256, KE: KEX25519}
		if _, err := NewProtector(c, NewSecret(make([]byte, 36)), Secret{}, testRand(1)); !errors.Is(err, ErrUnsupported) {
			t.Errorf("cipher %d: %v", encr, err)
		}
		offers := []Offer{{Number: 1, Protocol: ProtocolIKE, Transforms: []TransformSpec{
			{TypeENCR, encr, bits}, {TypePRF, PRFHMACSHA256, 0}, {TypeKE, KEX25519, 0},
		}}}
		if c, err := Select(DefaultIKE(), offers, SelectOptions{}); err == nil {
			t.Errorf("an offer with cipher %d was taken: %s", encr, c)
		}
	}
}
