package suite

//lint:file-ignore SA1019 keys are made from the coordinates of vectors, and bad ones on purpose

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
)

var testRSA = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func testKeys(tb testing.TB) map[string]crypto.Signer {
	tb.Helper()
	keys := map[string]crypto.Signer{"RSA": testRSA()}
	for name, c := range map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()} {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			tb.Fatal(err)
		}
		keys[name] = k
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	keys["Ed25519"] = ed
	return keys
}

// sign runs the whole way of a signature.
func sign(tb testing.TB, s SignatureScheme, key crypto.Signer, octets []byte) []byte {
	tb.Helper()
	d, opts := s.SignRequest(octets)
	sig, err := key.Sign(rand.Reader, d, opts)
	if err != nil {
		tb.Fatal(err)
	}
	data, err := s.Wrap(sig)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

func TestChooseSignature(t *testing.T) {
	keys := testKeys(t)
	all := SignatureHashes()
	for _, c := range []struct {
		key    string
		hashes []uint16
		want   string // empty: error
	}{
		{"P-256", all, "ECDSA with SHA2-256 (method 14)"},
		{"P-384", all, "ECDSA with SHA2-384 (method 14)"},
		{"P-521", all, "ECDSA with SHA2-512 (method 14)"},
		{"P-256", []uint16{HashSHA384, HashSHA512}, "ECDSA with SHA2-384 (method 14)"},
		{"P-384", []uint16{HashSHA256}, "ECDSA with SHA2-256 (method 14)"},
		{"P-384", []uint16{HashSHA256, HashSHA512}, "ECDSA with SHA2-512 (method 14)"},
		{"P-256", nil, "ECDSA with SHA2-256 (method 9)"},
		{"P-384", nil, "ECDSA with SHA2-384 (method 10)"},
		{"P-521", nil, "ECDSA with SHA2-512 (method 11)"},
		{"P-256", []uint16{HashSHA1}, ""},
		{"P-256", []uint16{HashIdentity, 999}, ""},
		{"RSA", all, "RSASSA-PSS with SHA2-256 (method 14)"},
		{"RSA", []uint16{HashSHA512}, "RSASSA-PSS with SHA2-512 (method 14)"},
		{"RSA", nil, ""},
		{"RSA", []uint16{HashSHA1}, ""},
		{"Ed25519", all, "Ed25519 with Identity (method 14)"},
		{"Ed25519", []uint16{HashSHA256}, ""},
		{"Ed25519", nil, ""},
	} {
		key := keys[c.key]
		s, err := ChooseSignature(key.Public(), c.hashes)
		if c.want == "" {
			if !errors.Is(err, ErrAuthMethod) {
				t.Errorf("%s %v: %v %v", c.key, c.hashes, s, err)
			}
			continue
		}
		if err != nil || s.String() != c.want {
			t.Errorf("%s %v: %v %v, expected %s", c.key, c.hashes, s, err, c.want)
			continue
		}
		octets := []byte("message | nonce | prf")
		data := sign(t, s, key, octets)
		if got := DescribeAuth(s.Method(), data); got != c.want {
			t.Errorf("DescribeAuth: %s", got)
		}
		if err := VerifySignature(key.Public(), s.Method(), data, octets, all); err != nil {
			t.Errorf("%s: %v", s, err)
		}
		if err := VerifySignature(key.Public(), s.Method(), data, octets[1:], all); !errors.Is(err, ErrSignature) {
			t.Errorf("%s, other octets: %v", s, err)
		}
		// Only the hashes that we announced.
		others := slices.DeleteFunc(slices.Clone(all), func(h uint16) bool { return h == s.Hash() })
		for _, hashes := range [][]uint16{others, nil} {
			if err := VerifySignature(key.Public(), s.Method(), data, octets, hashes); !errors.Is(err, ErrAuthMethod) {
				t.Errorf("%s, hash not announced: %v", s, err)
			}
		}
		// Another key of any kind.
		for name, k := range keys {
			if name == c.key {
				continue
			}
			if err := VerifySignature(k.Public(), s.Method(), data, octets, all); !errors.Is(err, ErrAuthMethod) && !errors.Is(err, ErrSignature) {
				t.Errorf("%s verified with %s: %v", s, name, err)
			}
		}
		// Truncated, lengthened, changed.
		for i := range data {
			if err := VerifySignature(key.Public(), s.Method(), data[:i], octets, all); err == nil {
				t.Fatalf("%s: %d of %d octets verify", s, i, len(data))
			}
			if i%7 != 0 && i != len(data)-1 {
				continue // a whole verification each
			}
			bad := bytes.Clone(data)
			bad[i] ^= 1
			if err := VerifySignature(key.Public(), s.Method(), bad, octets, all); err == nil {
				t.Fatalf("%s: octet %d changed verifies", s, i)
			}
		}
		if err := VerifySignature(key.Public(), s.Method(), append(bytes.Clone(data), 0), octets, all); err == nil {
			t.Errorf("%s: one octet more verifies", s)
		}
		for _, m := range []uint8{0, AuthRSA, AuthPSK, 3, AuthNull, 15, 255} {
			if err := VerifySignature(key.Public(), m, data, octets, all); !errors.Is(err, ErrAuthMethod) {
				t.Errorf("method %d: %v", m, err)
			}
		}
	}
}

func TestSignatureSchemesOfRSA(t *testing.T) {
	key := testRSA()
	list, err := SignatureSchemes(key.Public(), []uint16{HashSHA1, HashSHA256, HashSHA384})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range list {
		names = append(names, s.String())
		if err := VerifySignature(key.Public(), s.Method(), sign(t, s, key, []byte("octets")), []byte("octets"), SignatureHashes()); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	want := "RSASSA-PSS with SHA2-256 (method 14) RSASSA-PSS with SHA2-384 (method 14) RSASSA-PKCS1-v1_5 with SHA2-256 (method 14) RSASSA-PKCS1-v1_5 with SHA2-384 (method 14)"
	if strings.Join(names, " ") != want {
		t.Errorf("%v", names)
	}
}

// TestPSSRules: the salt is as long as the hash, whatever the signer did.
func TestPSSRules(t *testing.T) {
	key, octets := testRSA(), []byte("octets")
	d := sha256.Sum256(octets)
	for salt, want := range map[int]bool{32: true, 0: false, 20: false, 33: false, 64: false} {
		opts := &rsa.PSSOptions{SaltLength: salt, Hash: crypto.SHA256}
		if salt == 0 {
			opts.SaltLength = rsa.PSSSaltLengthAuto // the longest that fits
		}
		sig, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, d[:], opts)
		if err != nil {
			t.Fatal(err)
		}
		err = VerifySignature(key.Public(), AuthDigitalSignature, authData14(t, sigPSS, HashSHA256, sig), octets, SignatureHashes())
		if (err == nil) != want {
			t.Errorf("salt of %d: %v", salt, err)
		}
	}
}

// TestAlgorithmIDs: every accepted encoding keeps its meaning through its canonical one, and
// nothing near it is accepted.
func TestAlgorithmIDs(t *testing.T) {
	if len(canonicalIDs) != 1+3*3 {
		t.Errorf("%d algorithms", len(canonicalIDs))
	}
	for id, a := range algorithmIDs {
		if algorithmIDs[canonicalIDs[a]] != a {
			t.Errorf("%x", id)
		}
		if int(id[1]) != len(id)-2 || len(id) > 127 {
			t.Errorf("%x: wrong DER length", id)
		}
		for i := range len(id) {
			for bit := range 8 {
				bad := []byte(id)
				bad[i] ^= 1 << bit
				b, ok := algorithmIDs[string(bad)]
				// One bit apart lie only algorithms of another hash, and those are strict too.
				if ok && (b == a || b.kind != a.kind) {
					t.Errorf("%x means %v, %x means %v", id, a, bad, b)
				}
				_ = describeID(bad)
			}
			_ = describeID([]byte(id[:i]))
		}
	}
	for _, h := range []string{
		"303e06092a864886f70d01010a3031a00b300906052b0e03021a0500a118301606092a864886f70d010108300906052b0e03021a0500a203020114a303020101", // PSS with SHA-1
		"300d06092a864886f70d01010a3000", // PSS with defaults, SHA-1
		"300906072a8648ce3d0401",         // ECDSA with SHA-1
		"300c06082a8648ce3d0403020500",   // ECDSA with NULL
		"300706032b65700500",             // Ed25519 with NULL
		"30810a06082a8648ce3d040302",     // length in the long form
		"300506032b6571",                 // Ed448
		"308006082a8648ce3d0403020000",   // indefinite length
		"300d06092a864886f70d0101040500", // MD5
		"",
	} {
		der := unhexT(t, h)
		_, _, err := splitAuthData(concat([]byte{byte(len(der))}, der, []byte("sig")))
		if !errors.Is(err, ErrAuthMethod) {
			t.Errorf("%s: %v", h, err)
		}
	}
}

// TestLongAlgorithmID: the length octet is 255 (found by FuzzAlgorithmIdentifier as a panic).
func TestLongAlgorithmID(t *testing.T) {
	for n := range 600 {
		data := bytes.Repeat([]byte{0xff}, n)
		if err := VerifySignature(testRSA().Public(), AuthDigitalSignature, data, nil, SignatureHashes()); !errors.Is(err, ErrAuthMethod) {
			t.Fatalf("%d octets: %v", n, err)
		}
		_ = DescribeAuth(AuthDigitalSignature, data)
	}
}

func TestCheckPublicKey(t *testing.T) {
	good := testRSA().PublicKey
	mod := func(bits int) *big.Int {
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
		return n.SetBit(n, 0, 1)
	}
	p256 := elliptic.P256().Params()
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for what, k := range map[string]crypto.PublicKey{
		"nil":               nil,
		"string":            "key",
		"RSA by value":      good,
		"RSA nil":           (*rsa.PublicKey)(nil),
		"RSA empty":         &rsa.PublicKey{},
		"RSA 2047":          &rsa.PublicKey{N: mod(2047), E: 65537},
		"RSA 8193":          &rsa.PublicKey{N: mod(8193), E: 65537},
		"RSA even modulus":  &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2047), E: 65537},
		"RSA negative":      &rsa.PublicKey{N: new(big.Int).Neg(good.N), E: 65537},
		"RSA e 1":           &rsa.PublicKey{N: good.N, E: 1},
		"RSA e 2":           &rsa.PublicKey{N: good.N, E: 2},
		"RSA e -3":          &rsa.PublicKey{N: good.N, E: -3},
		"RSA e 2^33+1":      &rsa.PublicKey{N: good.N, E: 1<<33 + 1},
		"ECDSA nil":         (*ecdsa.PublicKey)(nil),
		"ECDSA empty":       &ecdsa.PublicKey{},
		"P-224":             &p224.PublicKey,
		"P-256 no point":    &ecdsa.PublicKey{Curve: elliptic.P256()},
		"P-256 infinity":    &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int), Y: new(big.Int)},                 //nolint:staticcheck // see the top
		"P-256 off curve":   &ecdsa.PublicKey{Curve: elliptic.P256(), X: p256.Gx, Y: p256.Gx},                           //nolint:staticcheck // see the top
		"P-256 negative":    &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int).Neg(p256.Gx), Y: p256.Gy},         //nolint:staticcheck // see the top
		"P-256 beyond p":    &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int).Add(p256.Gx, p256.P), Y: p256.Gy}, //nolint:staticcheck // see the top
		"Ed25519 31 octets": ed25519.PublicKey(make([]byte, 31)),
	} {
		if err := CheckPublicKey(k); !errors.Is(err, ErrPublicKey) {
			t.Errorf("%s: %v", what, err)
		}
		if err := VerifySignature(k, AuthDigitalSignature, authData14(t, sigECDSA, HashSHA256, []byte("sig")), nil, SignatureHashes()); !errors.Is(err, ErrPublicKey) {
			t.Errorf("%s verified: %v", what, err)
		}
		if _, err := ChooseSignature(k, SignatureHashes()); !errors.Is(err, ErrPublicKey) {
			t.Errorf("%s chosen: %v", what, err)
		}
	}
	if err := CheckPublicKey(&good); err != nil {
		t.Error(err)
	}
}

func TestWrapErrors(t *testing.T) {
	if _, err := (SignatureScheme{}).Wrap([]byte("sig")); !errors.Is(err, ErrAuthMethod) {
		t.Errorf("zero scheme: %v", err)
	}
	if _, err := (SignatureScheme{method: AuthDigitalSignature, alg: sigAlg{sigECDSA, HashSHA256}}).Wrap(nil); !errors.Is(err, ErrSignature) {
		t.Errorf("empty signature: %v", err)
	}
	s := classicByMethod(AuthECDSA256)
	for _, h := range []string{"", "30", "3000", "3006020100020101", "3006020101020100", "300602010102017f00", "30060201ff020101", "300702020001020101"} {
		if _, err := s.Wrap(unhexT(t, h)); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", h, err)
		}
	}
	if raw, err := s.Wrap(unhexT(t, "300602010102017f")); err != nil || len(raw) != 64 || raw[31] != 1 || raw[63] != 0x7f {
		t.Errorf("%x %v", raw, err)
	}
}
