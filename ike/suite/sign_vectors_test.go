package suite

//lint:file-ignore SA1019 keys are made from the coordinates of vectors, and bad ones on purpose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"math/big"
	"slices"
	"testing"

	"wardgate/internal/testvectors"
)

// authData14 builds the data of an AUTH payload of method 14 around a given signature.
func authData14(tb testing.TB, kind sigKind, hash uint16, signature []byte) []byte {
	tb.Helper()
	id, ok := canonicalIDs[sigAlg{kind, hash}]
	if !ok {
		tb.Fatalf("no AlgorithmIdentifier for %v", sigAlg{kind, hash})
	}
	return concat([]byte{byte(len(id))}, []byte(id), signature)
}

// TestRFC4754 verifies the three signatures of RFC 4754, section 8 as classic AUTH payloads.
func TestRFC4754(t *testing.T) {
	var file struct {
		Cases []struct {
			AuthMethod uint8  `json:"auth_method"`
			Message    string `json:"message_ascii"`
			Gwx, Gwy   hexBytes
			R, S       hexBytes
		}
	}
	testvectors.JSON(t, "rfc/rfc4754_ecdsa_auth.json", &file)
	for _, c := range file.Cases {
		s := classicByMethod(c.AuthMethod)
		t.Run(s.String(), func(t *testing.T) {
			curve := map[uint8]elliptic.Curve{AuthECDSA256: elliptic.P256(), AuthECDSA384: elliptic.P384(), AuthECDSA521: elliptic.P521()}[c.AuthMethod]
			pub := &ecdsa.PublicKey{Curve: curve, X: new(big.Int).SetBytes(c.Gwx), Y: new(big.Int).SetBytes(c.Gwy)} //nolint:staticcheck // see the top
			raw := make([]byte, 2*s.size)
			new(big.Int).SetBytes(c.R).FillBytes(raw[:s.size])
			new(big.Int).SetBytes(c.S).FillBytes(raw[s.size:])
			if err := VerifySignature(pub, c.AuthMethod, raw, []byte(c.Message), SignatureHashes()); err != nil {
				t.Error(err)
			}
			// The same signature in the coat of RFC 7427, and back through Wrap.
			der, ok := derECDSA(raw, s.size)
			if !ok {
				t.Fatal("derECDSA")
			}
			if err := VerifySignature(pub, AuthDigitalSignature, authData14(t, sigECDSA, curveHash(curve), der), []byte(c.Message), SignatureHashes()); err != nil {
				t.Error(err)
			}
			back, err := s.Wrap(der)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "r | s", back, raw)
			// Every changed octet, every truncation and a longer one are refused.
			for i := range raw {
				bad := slices.Clone(raw)
				bad[i] ^= 0x40
				if err := VerifySignature(pub, c.AuthMethod, bad, []byte(c.Message), SignatureHashes()); !errors.Is(err, ErrSignature) {
					t.Fatalf("octet %d changed: %v", i, err)
				}
				if err := VerifySignature(pub, c.AuthMethod, raw[:i], []byte(c.Message), SignatureHashes()); !errors.Is(err, ErrSignature) {
					t.Fatalf("%d octets: %v", i, err)
				}
			}
			if err := VerifySignature(pub, c.AuthMethod, append(slices.Clone(raw), 0), []byte(c.Message), SignatureHashes()); !errors.Is(err, ErrSignature) {
				t.Errorf("one octet more: %v", err)
			}
			// A curve of another method is refused as such.
			if err := VerifySignature(pub, AuthECDSA256+AuthECDSA521-c.AuthMethod, raw, []byte(c.Message), SignatureHashes()); c.AuthMethod != AuthECDSA384 && !errors.Is(err, ErrAuthMethod) {
				t.Errorf("other method: %v", err)
			}
		})
	}
}

// TestRFC7427Identifiers: which of the objects of RFC 7427, appendix A and RFC 8420, appendix A
// are accepted, and as what.
func TestRFC7427Identifiers(t *testing.T) {
	var file struct {
		Cases []struct {
			Name string
			Der  hexBytes
		}
	}
	testvectors.JSON(t, "rfc/rfc7427_algorithm_identifiers.json", &file)
	want := map[string]sigAlg{
		"sha256WithRSAEncryption": {sigPKCS1, HashSHA256},
		"sha384WithRSAEncryption": {sigPKCS1, HashSHA384},
		"sha512WithRSAEncryption": {sigPKCS1, HashSHA512},
		"ecdsa-with-sha256":       {sigECDSA, HashSHA256},
		"ecdsa-with-sha384":       {sigECDSA, HashSHA384},
		"ecdsa-with-sha512":       {sigECDSA, HashSHA512},
		"RSASSA-PSS with SHA-256": {sigPSS, HashSHA256},
		"RFC 8420 id-Ed25519":     {sigEd25519, HashIdentity},
	}
	seen := 0
	for _, c := range file.Cases {
		if len(c.Der) == 0 {
			continue
		}
		data := concat([]byte{byte(len(c.Der))}, c.Der, []byte("signature"))
		a, sig, err := splitAuthData(data)
		w, ok := want[c.Name]
		if (err == nil) != ok || a != w {
			t.Errorf("%s: %v %v, expected %v %v", c.Name, a, err, w, ok)
			continue
		}
		if !ok {
			if !errors.Is(err, ErrAuthMethod) {
				t.Errorf("%s: %v", c.Name, err)
			}
			continue
		}
		seen++
		equal(t, c.Name, sig, []byte("signature"))
		for i := range c.Der {
			if _, _, err := splitAuthData(concat([]byte{byte(i)}, c.Der[:i], []byte("signature"))); err == nil {
				t.Errorf("%s: accepted after %d octets", c.Name, i)
			}
			if _, _, err := splitAuthData(data[:1+i]); err == nil {
				t.Errorf("%s: accepted truncated to %d octets", c.Name, 1+i)
			}
		}
	}
	if seen != len(want) {
		t.Errorf("%d of %d expected objects found", seen, len(want))
	}
}

type wycheproofSigs struct {
	TestGroups []struct {
		Sha          string
		PublicKeyDer hexBytes
		Tests        []struct {
			TcID     int
			Comment  string
			Flags    []string
			Msg, Sig hexBytes
			Result   string
		}
	}
}

func TestWycheproofSignatures(t *testing.T) {
	for _, f := range []struct {
		file string
		kind sigKind
		hash uint16
	}{
		{"ecdsa_secp256r1_sha256", sigECDSA, HashSHA256},
		{"ecdsa_secp384r1_sha384", sigECDSA, HashSHA384},
		{"rsa_pss_2048_sha256_mgf1_32", sigPSS, HashSHA256},
		{"rsa_signature_2048_sha256", sigPKCS1, HashSHA256},
		{"ed25519", sigEd25519, HashIdentity},
	} {
		t.Run(f.file, func(t *testing.T) {
			var file wycheproofSigs
			testvectors.JSON(t, "wycheproof/"+f.file+"_test.json.gz", &file)
			good, bad := 0, 0
			for _, g := range file.TestGroups {
				pub, err := x509.ParsePKIXPublicKey(g.PublicKeyDer)
				if err != nil {
					t.Fatal(err)
				}
				for _, c := range g.Tests {
					err := VerifySignature(pub, AuthDigitalSignature, authData14(t, f.kind, f.hash, c.Sig), c.Msg, SignatureHashes())
					// "acceptable" is PKCS #1 without NULL: refused here.
					if (err == nil) != (c.Result == "valid") {
						t.Errorf("tcId %d (%s %v): %v, expected %s", c.TcID, c.Comment, c.Flags, err, c.Result)
					}
					if err == nil {
						good++
					} else {
						bad++
						if !errors.Is(err, ErrSignature) {
							t.Errorf("tcId %d: %v is not ErrSignature", c.TcID, err)
						}
					}
				}
			}
			if good == 0 || bad == 0 {
				t.Errorf("%d accepted, %d refused: the file was not read", good, bad)
			}
		})
	}
}

func TestACVPSignatures(t *testing.T) {
	var ec struct {
		TestGroups []struct {
			Curve, HashAlg string
			Tests          []struct {
				TcID                  int
				Message, Qx, Qy, R, S hexBytes
				Expected              struct{ TestPassed bool }
			}
		}
	}
	testvectors.JSON(t, "acvp/ECDSA-SigVer-FIPS186-5.merged.json", &ec)
	n := 0
	for _, g := range ec.TestGroups {
		curve, ok := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}[g.Curve]
		hash, ok2 := map[string]uint16{"SHA2-256": HashSHA256, "SHA2-384": HashSHA384, "SHA2-512": HashSHA512}[g.HashAlg]
		if !ok || !ok2 {
			t.Fatalf("unexpected group %s %s", g.Curve, g.HashAlg)
		}
		for _, c := range g.Tests {
			pub := &ecdsa.PublicKey{Curve: curve, X: new(big.Int).SetBytes(c.Qx), Y: new(big.Int).SetBytes(c.Qy)} //nolint:staticcheck // see the top
			size := (curve.Params().BitSize + 7) / 8
			raw := make([]byte, 2*size)
			new(big.Int).SetBytes(c.R).FillBytes(raw[:size])
			new(big.Int).SetBytes(c.S).FillBytes(raw[size:])
			der, _ := derECDSA(raw, size)
			err := VerifySignature(pub, AuthDigitalSignature, authData14(t, sigECDSA, hash, der), c.Message, SignatureHashes())
			if (err == nil) != c.Expected.TestPassed {
				t.Errorf("ECDSA tcId %d: %v, expected %v", c.TcID, err, c.Expected.TestPassed)
			}
			n++
		}
	}
	var ed struct {
		TestGroups []struct {
			Curve   string
			PreHash bool
			Tests   []struct {
				TcID                  int
				Message, Q, Signature hexBytes
				Expected              struct{ TestPassed bool }
			}
		}
	}
	testvectors.JSON(t, "acvp/EDDSA-SigVer-1.0.merged.json", &ed)
	for _, g := range ed.TestGroups {
		if g.Curve != "ED-25519" || g.PreHash {
			continue
		}
		for _, c := range g.Tests {
			err := VerifySignature(crypto.PublicKey(ed25519.PublicKey(c.Q)), AuthDigitalSignature, authData14(t, sigEd25519, HashIdentity, c.Signature), c.Message, SignatureHashes())
			if (err == nil) != c.Expected.TestPassed {
				t.Errorf("EdDSA tcId %d: %v, expected %v", c.TcID, err, c.Expected.TestPassed)
			}
			n++
		}
	}
	if n < 15 {
		t.Errorf("only %d cases", n)
	}
}
