package suite

import (
	"bytes"
	"errors"
	"testing"
)

func TestKeyLengths(t *testing.T) {
	for _, c := range []struct {
		protocol    uint8
		s           string
		encr, integ int
	}{
		{ProtocolIKE, "aes256gcm16-prfsha384-x25519", 36, 0},
		{ProtocolIKE, "aes128gcm16-prfsha256-ecp256", 20, 0},
		{ProtocolIKE, "chacha20poly1305-prfsha256-x25519", 36, 0},
		{ProtocolIKE, "aes256-sha256-x25519", 32, 32},
		{ProtocolIKE, "aes128-sha384-x25519", 16, 48},
		{ProtocolESP, "aes256-sha512", 32, 64},
		{ProtocolESP, "chacha20poly1305", 36, 0},
	} {
		ch := choose(t, c.protocol, c.s)
		encr, integ, err := keyLengths(ch)
		if err != nil || encr != c.encr || integ != c.integ {
			t.Errorf("%s: %d %d %v", c.s, encr, integ, err)
		}
		ck, err := DeriveChildKeys(mustPRF(t, PRFHMACSHA256), CopySecret(make([]byte, 32)), ch, Secret{}, []byte("Ni"), []byte("Nr"))
		if err != nil {
			t.Fatal(err)
		}
		eo, io, ei, ii := ck.Directions(true)
		ro, rio, ri, rii := ck.Directions(false)
		if eo.Len() != encr || ei.Len() != encr || io.Len() != integ || ii.Len() != integ || !eo.Equal(ri) || !ei.Equal(ro) || !io.Equal(rii) || !ii.Equal(rio) || eo.Equal(ei) {
			t.Errorf("%s: directions", c.s)
		}
		ck.Wipe()
		if eo.Len() != 0 || ii.Len() != 0 {
			t.Error("Wipe")
		}
	}
	for _, bad := range []Chosen{
		{},
		{Encr: EncrAESGCM16, KeyBits: 192},
		{Encr: EncrAESGCM16},
		{Encr: EncrChaCha20Poly1305, KeyBits: 256},
		{Encr: EncrAESCBC, KeyBits: 256},
		{Encr: EncrAESCBC, KeyBits: 256, Integ: 2},
		{Encr: EncrAESGCM16, KeyBits: 256, Integ: IntegHMACSHA256128},
		{Encr: 3},
	} {
		bad.PRF = PRFHMACSHA256
		if _, err := DeriveIKEKeys(bad, Secret{}, nil, nil, [8]byte{}, [8]byte{}); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%+v: %v", bad, err)
		}
		if _, err := DeriveChildKeys(mustPRF(t, PRFHMACSHA256), Secret{}, bad, Secret{}, nil, nil); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%+v child: %v", bad, err)
		}
		if _, err := NewProtector(bad, Secret{}, Secret{}, nil); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%+v protector: %v", bad, err)
		}
	}
}

func TestPRF(t *testing.T) {
	for _, id := range []uint16{0, 1, 2, 4, 8, 9999} {
		if _, err := NewPRF(id); !errors.Is(err, ErrUnsupported) {
			t.Errorf("PRF %d: %v", id, err)
		}
	}
	p := mustPRF(t, PRFHMACSHA512)
	for _, n := range []int{0, 15, 31, 257} {
		if err := p.CheckNonce(make([]byte, n)); !errors.Is(err, ErrNonce) {
			t.Errorf("nonce of %d: %v", n, err)
		}
	}
	for _, n := range []int{32, NonceLen, 256} {
		if err := p.CheckNonce(make([]byte, n)); err != nil {
			t.Error(err)
		}
	}
	if err := mustPRF(t, PRFHMACSHA256).CheckNonce(make([]byte, 16)); err != nil {
		t.Error(err)
	}
	key := CopySecret([]byte("key"))
	if _, err := p.Plus(key, 255*64+1); !errors.Is(err, ErrKeyLength) {
		t.Errorf("too long: %v", err)
	}
	long, err := p.Plus(key, 255*64, []byte("seed"))
	if err != nil {
		t.Fatal(err)
	}
	// prf+ is T1 | T2 | …, T1 = prf(K, S | 1), T2 = prf(K, T1 | S | 2), and prefixes agree.
	t1 := p.Sum(key, []byte("seed"), []byte{1})
	t2 := p.Sum(key, t1, []byte("seed"), []byte{2})
	equal(t, "T1 | T2", long.Bytes()[:128], concat(t1, t2))
	for _, n := range []int{0, 1, 63, 64, 65, 1000} {
		short, err := p.Plus(key, n, []byte("se"), []byte("ed"))
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "prefix", short.Bytes(), long.Bytes()[:n])
	}
}

func TestMixPPK(t *testing.T) {
	prf := mustPRF(t, PRFHMACSHA256)
	c := choose(t, ProtocolIKE, "aes256gcm16-prfsha256-x25519")
	keys, err := DeriveIKEKeys(c, CopySecret([]byte("seed")), []byte("Ni"), []byte("Nr"), [8]byte{1}, [8]byte{2})
	if err != nil {
		t.Fatal(err)
	}
	d, e := keys.SKd.Clone(), keys.SKei.Clone()
	if err := keys.MixPPK(prf, CopySecret([]byte("ppk"))); err != nil {
		t.Fatal(err)
	}
	// RFC 8784, section 3: prf+(PPK, SK_d'), whose first block is prf(PPK, SK_d' | 1).
	equal(t, "SK_d", keys.SKd.Bytes(), prf.Sum(CopySecret([]byte("ppk")), d.Bytes(), []byte{1}))
	if !keys.SKei.Equal(e) || keys.SKpi.Len() != 32 || keys.SKpr.Len() != 32 {
		t.Error("the other keys")
	}
	keys.Wipe()
	if keys.SKd.Len()+keys.SKei.Len()+keys.SKpr.Len() != 0 {
		t.Error("Wipe")
	}
}

func TestPSKAuthEmpty(t *testing.T) {
	p := mustPRF(t, PRFHMACSHA256)
	if _, err := PSKAuth(p, Secret{}, nil); !errors.Is(err, ErrKeyLength) {
		t.Error(err)
	}
	if err := VerifyPSK(p, NewSecret(nil), nil, nil); !errors.Is(err, ErrKeyLength) {
		t.Error(err)
	}
	auth, err := PSKAuth(p, CopySecret([]byte("k")), []byte("octets"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range auth {
		bad := bytes.Clone(auth)
		bad[i] ^= 1
		for _, b := range [][]byte{bad, auth[:i]} {
			if err := VerifyPSK(p, CopySecret([]byte("k")), []byte("octets"), b); !errors.Is(err, ErrSignature) {
				t.Fatal(err)
			}
		}
	}
}
