package suite

//lint:file-ignore SA1019 keys are made from the coordinates of vectors, and bad ones on purpose

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/big"
	"testing"
)

// encoded returns EMSA-PKCS1-v1_5 (RFC 8017, section 9.2) around a DigestInfo, with what a forger
// chooses in its places.
func encoded(size int, start, info, tail []byte) []byte {
	em := make([]byte, size)
	for i := range em {
		em[i] = 0xff
	}
	copy(em, start)
	copy(em[size-len(info)-len(tail)-1:], []byte{0})
	copy(em[size-len(info)-len(tail):], info)
	copy(em[size-len(tail):], tail)
	return em
}

// rawRSA is the private key's bare power, which signs anything.
func rawRSA(k *rsa.PrivateKey, em []byte) []byte {
	return new(big.Int).Exp(new(big.Int).SetBytes(em), k.D, k.N).FillBytes(make([]byte, k.Size()))
}

// TestPKCS1Strictness: an RSASSA-PKCS1-v1_5 signature is good when the whole encoded message is the
// one that RFC 8017 has, octet by octet; what can be hidden in its structure is no part of it. Each
// case is signed with the private key itself, so nothing but the encoding is wrong.
func TestPKCS1Strictness(t *testing.T) {
	key, octets := testRSA(), []byte("message | nonce | prf")
	d := sha256.Sum256(octets)
	h := func(s string) []byte { return unhexT(t, s) }
	info := func(alg string) []byte {
		a := append(h(alg), append([]byte{4, 32}, d[:]...)...)
		return append([]byte{0x30, byte(len(a))}, a...)
	}
	const sha = "0609608648016503040201"
	good := info("300d" + sha + "0500")
	size, start := key.Size(), []byte{0, 1}
	garbage := func(n int) []byte { return bytes.Repeat([]byte{0xab}, n) }
	// A DigestInfo that is followed by rubbish to the end, with eight octets of padding: the attack on
	// exponent 3 needs no more than that.
	short := append(append(append(bytes.Repeat([]byte{0xff}, 8), 0), good...), garbage(size-2-8-1-len(good))...)
	for name, c := range map[string]struct {
		em []byte
		ok bool
	}{
		"as it should be":                   {encoded(size, start, good, nil), true},
		"rubbish behind the digest":         {encoded(size, start, good, garbage(9)), false},
		"rubbish behind, short padding":     {append([]byte{0, 1}, short...), false},
		"no padding but rubbish in front":   {append(append([]byte{0, 1, 0}, garbage(size-3-len(good))...), good...), false},
		"padding with a hole":               {func() []byte { em := encoded(size, start, good, nil); em[20] = 0xfe; return em }(), false},
		"padding of zeroes":                 {append(append([]byte{0, 1}, make([]byte, size-2-len(good))...), good...), false},
		"block type 0":                      {encoded(size, []byte{0, 0}, good, nil), false},
		"block type 2":                      {encoded(size, []byte{0, 2}, good, nil), false},
		"first octet 1":                     {encoded(size, []byte{1, 1}, good, nil), false},
		"no zero before the digest":         {func() []byte { em := encoded(size, start, good, nil); em[size-len(good)-1] = 0xff; return em }(), false},
		"parameters absent":                 {encoded(size, start, info("300b"+sha), nil), false},
		"parameters with rubbish":           {encoded(size, start, info("3013"+sha+"0506"+"abababababab"), nil), false},
		"rubbish behind the parameters":     {encoded(size, start, info("3011"+sha+"0500"+"04020102"), nil), false},
		"rubbish inside the object":         {encoded(size, start, info("3011"+"060d608648016503040201"+"abababab"+"0500"), nil), false},
		"another hash's object":             {encoded(size, start, info("300d"+"0609608648016503040202"+"0500"), nil), false},
		"SHA-1's object":                    {encoded(size, start, info("3009"+"06052b0e03021a"+"0500"), nil), false},
		"length of the digest in long form": {encoded(size, start, append(append([]byte{0x30, 0x32}, h("300d"+sha+"0500")...), append([]byte{4, 0x81, 32}, d[:]...)...), nil), false},
		"length of the whole in long form":  {encoded(size, start, append([]byte{0x30, 0x81}, good[1:]...), nil), false},
		"indefinite length":                 {encoded(size, start, append([]byte{0x30, 0x80}, append(good[2:len(good):len(good)], 0, 0)...), nil), false},
		"digest cut":                        {encoded(size, start, good[:len(good)-1], nil), false},
		"digest alone":                      {encoded(size, start, d[:], nil), false},
		"digest of something else":          {encoded(size, start, append(bytes.Clone(good[:len(good)-32]), make([]byte, 32)...), nil), false},
		"all zeroes":                        {make([]byte, size), false},
	} {
		if len(c.em) != size {
			t.Fatalf("%s: %d octets of %d", name, len(c.em), size)
		}
		if c.em[0] > 0 {
			c.em[1] = 0 // below the modulus
		}
		data := authData14(t, sigPKCS1, HashSHA256, rawRSA(key, c.em))
		err := VerifySignature(key.Public(), AuthDigitalSignature, data, octets, SignatureHashes())
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSignatureNotBelowModulus: the same number modulo n is another signature, and none: it has to lie
// below the modulus, and to be as long as it.
func TestSignatureNotBelowModulus(t *testing.T) {
	key, octets := testRSA(), []byte("octets")
	for _, kind := range []sigKind{sigPKCS1, sigPSS} {
		s := SignatureScheme{method: AuthDigitalSignature, alg: sigAlg{kind, HashSHA256}}
		size, larger := key.Size(), 0
		for range 50 {
			// PSS is different each time; a small number plus n still has the modulus' length.
			in, opts := s.SignRequest(append(octets, byte(larger)))
			sig, err := key.Sign(rand.Reader, in, opts)
			if err != nil {
				t.Fatal(err)
			}
			n := new(big.Int).SetBytes(sig)
			check := func(what string, raw []byte, ok bool) {
				t.Helper()
				err := VerifySignature(key.Public(), AuthDigitalSignature, authData14(t, kind, HashSHA256, raw), append(octets, byte(larger)), SignatureHashes())
				if (err == nil) != ok || err != nil && !errors.Is(err, ErrSignature) {
					t.Errorf("%v, %s: %v", kind, what, err)
				}
			}
			check("as it is", sig, true)
			check("a zero in front", append([]byte{0}, sig...), false)
			check("n itself", key.N.FillBytes(make([]byte, size)), false)
			check("n-1", new(big.Int).Sub(key.N, big.NewInt(1)).FillBytes(make([]byte, size)), false)
			check("zero", make([]byte, size), false)
			check("one", big.NewInt(1).FillBytes(make([]byte, size)), false)
			check("nothing", nil, false)
			check("2^2048-1", bytes.Repeat([]byte{0xff}, size), false)
			n.Add(n, key.N)
			check("n added, longer", n.FillBytes(make([]byte, size+1)), false)
			if n.BitLen() <= 8*size {
				check("n added", n.FillBytes(make([]byte, size)), false)
				break
			}
			larger++
		}
		if larger == 50 {
			t.Errorf("%v: no signature plus n had the modulus' length", kind)
		}
	}
}

// TestECDSAZero: signatures that are empty, or whose r or s is 0, n, negative or beyond, in the coats
// of RFC 4754 and RFC 7427.
func TestECDSAZero(t *testing.T) {
	for method, curve := range map[uint8]elliptic.Curve{AuthECDSA256: elliptic.P256(), AuthECDSA384: elliptic.P384(), AuthECDSA521: elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		scheme := classicByMethod(method)
		octets := []byte("octets")
		raw := sign(t, scheme, key, octets)
		r, s := new(big.Int).SetBytes(raw[:scheme.size]), new(big.Int).SetBytes(raw[scheme.size:])
		n, zero, one := curve.Params().N, new(big.Int), big.NewInt(1)
		type pair struct{ r, s *big.Int }
		for name, p := range map[string]pair{
			"r 0": {zero, s}, "s 0": {r, zero}, "both 0": {zero, zero}, "both 1": {one, one},
			"r n": {n, s}, "s n": {r, n}, "both n": {n, n}, "r 0, s n": {zero, n},
			"r+n": {new(big.Int).Add(r, n), s}, "s+n": {r, new(big.Int).Add(s, n)},
			"r swapped with s": {s, r},
		} {
			verify := func(m uint8, data []byte) {
				t.Helper()
				if err := VerifySignature(key.Public(), m, data, octets, SignatureHashes()); !errors.Is(err, ErrSignature) {
					t.Errorf("%s, %s, method %d: %v", curve.Params().Name, name, m, err)
				}
			}
			if p.r.BitLen() <= 8*scheme.size && p.s.BitLen() <= 8*scheme.size {
				verify(method, append(p.r.FillBytes(make([]byte, scheme.size)), p.s.FillBytes(make([]byte, scheme.size))...))
			}
			der := append(derInt(p.r), derInt(p.s)...)
			verify(AuthDigitalSignature, authData14(t, sigECDSA, curveHash(curve), append(derLen(0x30, len(der)), der...)))
		}
		for name, h := range map[string]string{
			"nothing": "", "empty sequence": "3000", "a zero alone": "3003020100", "integers without octets": "300402000200",
			"negative": "30060201ff0201ff", "NULLs": "300405000500", "another tag": "3106020101020101",
		} {
			data := authData14(t, sigECDSA, curveHash(curve), unhexT(t, h))
			if err := VerifySignature(key.Public(), AuthDigitalSignature, data, octets, SignatureHashes()); !errors.Is(err, ErrSignature) {
				t.Errorf("%s, %s: %v", curve.Params().Name, name, err)
			}
		}
		for _, empty := range [][]byte{nil, {}, {0}, make([]byte, 2*scheme.size-1), make([]byte, 2*scheme.size), make([]byte, 2*scheme.size+1)} {
			if err := VerifySignature(key.Public(), method, empty, octets, SignatureHashes()); !errors.Is(err, ErrSignature) {
				t.Errorf("%s, %d zeroes, method %d: %v", curve.Params().Name, len(empty), method, err)
			}
		}
	}
}

func derInt(v *big.Int) []byte {
	b := v.Bytes()
	if len(b) == 0 || b[0] >= 0x80 {
		b = append([]byte{0}, b...)
	}
	return append(derLen(2, len(b)), b...)
}

func derLen(tag byte, n int) []byte {
	if n > 127 {
		return []byte{tag, 0x81, byte(n)}
	}
	return []byte{tag, byte(n)}
}

// TestLowOrderPoints: values of X25519 that give a shared secret of zeroes whatever our key is (RFC
// 8031, section 2.2), those of small order in a MODP group (RFC 6989, section 2.1), and points at
// infinity are refused by either end.
func TestLowOrderPoints(t *testing.T) {
	bad := map[uint16]map[string][]byte{KEX25519: {}, KEMODP2048: {}, KEMODP3072: {}, KEECP256: {}, KEECP384: {}, KEECP521: {}}
	for name, h := range map[string]string{
		"0":              "0000000000000000000000000000000000000000000000000000000000000000",
		"1":              "0100000000000000000000000000000000000000000000000000000000000000",
		"of order 8":     "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
		"of order 8 too": "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
		"p-1":            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"p":              "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"p+1":            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"0, top bit set": "0000000000000000000000000000000000000000000000000000000000000080",
		"p, top bit set": "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
	} {
		b, err := hex.DecodeString(h)
		if err != nil {
			t.Fatal(err)
		}
		bad[KEX25519][name] = b
	}
	for _, id := range []uint16{KEMODP2048, KEMODP3072} {
		p := new(big.Int).SetBytes(modpGroups(id).prime)
		size, _ := PublicLen(id)
		for name, v := range map[string]*big.Int{
			"0": new(big.Int), "1": big.NewInt(1), "p-1": new(big.Int).Sub(p, big.NewInt(1)), "p": p, "p+1": new(big.Int).Add(p, big.NewInt(1)),
		} {
			bad[id][name] = v.FillBytes(make([]byte, size))
		}
		bad[id]["all ones"] = bytes.Repeat([]byte{0xff}, size)
	}
	for _, id := range []uint16{KEECP256, KEECP384, KEECP521} {
		size, _ := PublicLen(id)
		bad[id]["infinity"] = make([]byte, size)
		bad[id]["all ones"] = bytes.Repeat([]byte{0xff}, size)
	}
	for id, values := range bad {
		k, err := NewInitiator(id, testRand(1))
		if err != nil {
			t.Fatal(err)
		}
		for name, v := range values {
			if s, err := k.Finish(v); !errors.Is(err, ErrPublicValue) {
				t.Errorf("initiator, %s, %s: %d octets of secret, %v", KEName(id), name, s.Len(), err)
			}
			if _, s, err := Respond(id, testRand(2), v); !errors.Is(err, ErrPublicValue) {
				t.Errorf("responder, %s, %s: %d octets of secret, %v", KEName(id), name, s.Len(), err)
			}
		}
	}
}

// TestPSSAbsurd: RSASSA-PSS with parameters that are absent, of another hash in one place, with a salt
// longer than the key, negative or huge, or another trailer: none of them is looked at, whatever the
// signature is.
func TestPSSAbsurd(t *testing.T) {
	key, octets := testRSA(), []byte("octets")
	d := sha256.Sum256(octets)
	sig, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, d[:], &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	const (
		pss  = "06092a864886f70d01010a"
		hash = "a00f300d06096086480165030402010500"
		mgf  = "a11c301a06092a864886f70d010108300d06096086480165030402010500"
		salt = "a203020120"
	)
	for name, c := range map[string]struct {
		params string // hexadecimal; "-": none at all
		ok     bool
	}{
		"as they should be":        {hash + mgf + salt, true},
		"absent":                   {"-", false},
		"NULL":                     {"0500", false},
		"empty":                    {"", false},
		"salt left out":            {hash + mgf, false},
		"hash left out":            {mgf + salt, false},
		"mask left out":            {hash + salt, false},
		"another hash in the mask": {hash + "a11c301a06092a864886f70d010108300d06096086480165030402020500" + salt, false},
		"another mask":             {hash + "a11c301a06092a864886f70d010109300d06096086480165030402010500" + salt, false},
		"salt of 0":                {hash + mgf + "a203020100", false},
		"salt of -1":               {hash + mgf + "a2030201ff", false},
		"salt of 2^31-1":           {hash + mgf + "a20602047fffffff", false},
		"salt of 2^64":             {hash + mgf + "a20b0209010000000000000000", false},
		"salt of no octets":        {hash + mgf + "a2020200", false},
		"salt as text":             {hash + mgf + "a2030401" + "20", false},
		"trailer 2":                {hash + mgf + salt + "a303020102", false},
		"rubbish behind":           {hash + mgf + salt + "0500", false},
		"twice":                    {hash + mgf + salt + salt, false},
	} {
		alg := pss
		switch c.params {
		case "-":
		case "0500":
			alg += "0500"
		default:
			alg += hex.EncodeToString(tlv(0x30, unhexT(t, c.params)))
		}
		id := tlv(0x30, unhexT(t, alg))
		data := append(append([]byte{byte(len(id))}, id...), sig...)
		err := VerifySignature(key.Public(), AuthDigitalSignature, data, octets, SignatureHashes())
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrAuthMethod) {
			t.Errorf("%s: %v", name, err)
		}
		_ = DescribeAuth(AuthDigitalSignature, data)
	}
}
