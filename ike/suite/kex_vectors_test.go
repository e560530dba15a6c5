package suite

import (
	"bytes"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"testing"

	"wardgate/internal/testvectors"
)

// kexCase runs one exchange with a known private value against a known public one.
func kexCase(t *testing.T, id uint16, private, wantPublic, peer, wantShared []byte) {
	t.Helper()
	k, err := NewInitiatorFromPrivate(id, private)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "public value", k.Public(), wantPublic)
	s, err := k.Finish(peer)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "shared secret", s.Bytes(), wantShared)
}

func TestRFC5903(t *testing.T) {
	var file struct {
		Cases []struct {
			Group          uint16
			I, Gix, Giy, R hexBytes
			Grx, Gry, Girx hexBytes
			Kei            hexBytes `json:"kei_payload"`
			Ker            hexBytes `json:"ker_payload"`
		}
	}
	testvectors.JSON(t, "rfc/rfc5903_ecp_groups.json", &file)
	for _, c := range file.Cases {
		t.Run(KEName(c.Group), func(t *testing.T) {
			kei, ker := c.Kei[8:], c.Ker[8:]
			equal(t, "KEi", kei, concat(c.Gix, c.Giy))
			kexCase(t, c.Group, c.I, kei, ker, c.Girx)
			kexCase(t, c.Group, c.R, ker, kei, c.Girx)
		})
	}
}

func TestRFC7748And8031(t *testing.T) {
	var x struct {
		Cases []struct {
			Function       string
			Scalar, U, Out hexBytes
		}
	}
	testvectors.JSON(t, "rfc/rfc7748_x25519_x448.json", &x)
	n := 0
	for _, c := range x.Cases {
		if c.Function != "X25519" || len(c.Scalar) != 32 || len(c.U) != 32 || len(c.Out) != 32 {
			continue
		}
		k, err := NewInitiatorFromPrivate(KEX25519, c.Scalar)
		if err != nil {
			t.Fatal(err)
		}
		s, err := k.Finish(c.U)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "RFC 7748", s.Bytes(), c.Out)
		n++
	}
	if n == 0 {
		t.Error("no X25519 case in RFC 7748")
	}
	var ike struct {
		Cases []struct {
			PubI    hexBytes `json:"pub_i"`
			PubR    hexBytes `json:"pub_r"`
			RandomI hexBytes `json:"random_i"`
			FixedR  hexBytes `json:"fixed_r"`
			Shared  hexBytes `json:"shared_secret"`
		}
	}
	testvectors.JSON(t, "rfc/rfc8031_curve25519.json", &ike)
	for _, c := range ike.Cases {
		kexCase(t, KEX25519, c.RandomI, c.PubI, c.PubR, c.Shared)
		kexCase(t, KEX25519, c.FixedR, c.PubR, c.PubI, c.Shared)
	}
}

// TestMODP compares the primes with RFC 3526 and the arithmetic with math/big.
func TestMODP(t *testing.T) {
	var file struct {
		Cases []struct {
			Group, Bits int
			Prime       hexBytes
		}
	}
	testvectors.JSON(t, "rfc/rfc3526_modp_primes.json", &file)
	for _, c := range file.Cases {
		id := uint16(c.Group)
		if id != KEMODP2048 && id != KEMODP3072 {
			continue
		}
		t.Run(KEName(id), func(t *testing.T) {
			g := modpGroups(id)
			equal(t, "prime", g.prime, c.Prime)
			p := new(big.Int).SetBytes(c.Prime)
			if !p.ProbablyPrime(2) || !new(big.Int).Rsh(p, 1).ProbablyPrime(2) {
				t.Error("not a safe prime")
			}
			minus := func(n int64) []byte { return new(big.Int).Sub(p, big.NewInt(n)).FillBytes(make([]byte, g.len)) }
			small := func(n int64) []byte { return big.NewInt(n).FillBytes(make([]byte, g.len)) }
			r := testRand(7)
			bases := [][]byte{small(2), small(3), minus(2), minus(3)}
			for range 2 {
				b, _ := randomBytes(r, g.len)
				bases = append(bases, new(big.Int).Mod(new(big.Int).SetBytes(b), p).FillBytes(make([]byte, g.len)))
			}
			exponents := [][]byte{{1}, {2}, {0x0f}, {0xf0}, {0, 0, 1}, bytes.Repeat([]byte{0xff}, 64)}
			for _, n := range []int{1, 17, 64, g.len} {
				e, _ := randomBytes(r, n)
				exponents = append(exponents, e)
			}
			for _, b := range bases {
				for _, e := range exponents {
					want := new(big.Int).Exp(new(big.Int).SetBytes(b), new(big.Int).SetBytes(e), p).FillBytes(make([]byte, g.len))
					equal(t, fmt.Sprintf("%x…^%x", b[:4], e), g.exp(b, e), want)
				}
			}
			// RFC 6989, section 2.1.
			k, err := NewInitiator(id, testRand(1))
			if err != nil {
				t.Fatal(err)
			}
			for what, bad := range map[string][]byte{
				"0": small(0), "1": small(1), "p-1": minus(1), "p": c.Prime, "p+1": minus(-1),
				"all ones": bytes.Repeat([]byte{0xff}, g.len), "short": minus(2)[1:], "long": append([]byte{0}, minus(2)...), "empty": nil,
			} {
				if _, err := k.Finish(bad); !errors.Is(err, ErrPublicValue) {
					t.Errorf("public value %s: %v, expected ErrPublicValue", what, err)
				}
			}
			for _, good := range [][]byte{small(2), minus(2)} {
				if _, err := k.Finish(good); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestWycheproofECDH(t *testing.T) {
	for id, file := range map[uint16]string{KEECP256: "ecdh_secp256r1_ecpoint", KEECP384: "ecdh_secp384r1_ecpoint", KEECP521: "ecdh_secp521r1_ecpoint", KEX25519: "x25519"} {
		t.Run(file, func(t *testing.T) {
			var f struct {
				TestGroups []struct {
					Tests []struct {
						TcID                    int
						Comment                 string
						Flags                   []string
						Public, Private, Shared hexBytes
						Result                  string
					}
				}
			}
			testvectors.JSON(t, "wycheproof/"+file+"_test.json.gz", &f)
			good, bad := 0, 0
			for _, g := range f.TestGroups {
				for _, c := range g.Tests {
					private, public := []byte(c.Private), []byte(c.Public)
					if id != KEX25519 {
						private = new(big.Int).SetBytes(private).FillBytes(make([]byte, ecpLen(id)))
						if len(public) > 0 && public[0] == 4 {
							public = public[1:] // the encoding of RFC 5903
						}
					}
					k, err := NewInitiatorFromPrivate(id, private)
					if err != nil {
						t.Fatalf("tcId %d: %v", c.TcID, err)
					}
					s, err := k.Finish(public)
					// A low-order point is "acceptable" there and refused by RFC 8031; a
					// compressed point does not exist in IKE.
					want := c.Result == "valid" || c.Result == "acceptable" && !slices.Contains(c.Flags, "ZeroSharedSecret") && !slices.Contains(c.Flags, "CompressedPoint")
					if (err == nil) != want {
						t.Errorf("tcId %d (%s %v): %v, expected %s", c.TcID, c.Comment, c.Flags, err, c.Result)
					}
					if err == nil {
						good++
						equal(t, name("tcId ", c.TcID), s.Bytes(), c.Shared)
					} else {
						bad++
						if !errors.Is(err, ErrPublicValue) {
							t.Errorf("tcId %d: %v is not ErrPublicValue", c.TcID, err)
						}
					}
				}
			}
			t.Logf("%d accepted, %d refused", good, bad)
		})
	}
}

func TestACVPX25519(t *testing.T) {
	var gen struct {
		TestGroups []struct {
			Curve string
			Tests []struct {
				Expected struct{ PrivateKey, PublicKey hexBytes }
			}
		}
	}
	testvectors.JSON(t, "acvp/XECDH-keyGen-RFC7748.merged.json", &gen)
	n := 0
	for _, g := range gen.TestGroups {
		for _, c := range g.Tests {
			if g.Curve != "Curve25519" && g.Curve != "Curve-25519" {
				continue
			}
			k, err := NewInitiatorFromPrivate(KEX25519, c.Expected.PrivateKey)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "public key", k.Public(), c.Expected.PublicKey)
			n++
		}
	}
	if n == 0 {
		t.Error("no cases")
	}
	// keyVer: for X25519 only the length can be wrong.
	var ver struct {
		TestGroups []struct {
			Curve string
			Tests []struct {
				TcID      int
				PublicKey hexBytes
				Expected  struct{ TestPassed bool }
			}
		}
	}
	testvectors.JSON(t, "acvp/XECDH-keyVer-RFC7748.merged.json", &ver)
	k, err := NewInitiator(KEX25519, testRand(3))
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range ver.TestGroups {
		for _, c := range g.Tests {
			if g.Curve != "Curve25519" && g.Curve != "Curve-25519" {
				continue
			}
			if _, err := k.Finish(c.PublicKey); (err == nil) != c.Expected.TestPassed {
				t.Errorf("keyVer tcId %d: %v, expected %v", c.TcID, err, c.Expected.TestPassed)
			}
		}
	}
}

func TestMLKEMVectors(t *testing.T) {
	ids := map[string]uint16{"ML-KEM-768": KEMLKEM768, "ML-KEM-1024": KEMLKEM1024}
	t.Run("wycheproof", func(t *testing.T) {
		for _, file := range []string{"mlkem_768", "mlkem_1024", "mlkem_768_keygen_seed", "mlkem_768_encaps"} {
			var f struct {
				TestGroups []struct {
					Type, ParameterSet string
					Tests              []struct {
						TcID              int
						Seed, Ek, C, K, M hexBytes
						Result            string
					}
				}
			}
			testvectors.JSON(t, "wycheproof/"+file+"_test.json.gz", &f)
			for _, g := range f.TestGroups {
				id, ok := ids[g.ParameterSet]
				if !ok {
					t.Fatalf("parameter set %q", g.ParameterSet)
				}
				for _, c := range g.Tests {
					var err error
					switch g.Type {
					case "MLKEMTest", "MLKEMKeyGen":
						var k *KeyExchange
						if k, err = NewInitiatorFromPrivate(id, c.Seed); err == nil {
							if len(c.Ek) > 0 {
								equal(t, name(file, " ek ", c.TcID), k.Public(), c.Ek)
							}
							if g.Type == "MLKEMTest" {
								var s Secret
								if s, err = k.Finish(c.C); err == nil && c.Result == "valid" {
									equal(t, name(file, " K ", c.TcID), s.Bytes(), c.K)
								}
							}
						}
					case "MLKEMEncapsTest":
						_, _, err = Respond(id, nil, c.Ek)
						if err == nil {
							checkEncapsulate(t, id, c.Ek, c.M, c.C, c.K)
						}
					default:
						t.Fatalf("group type %q", g.Type)
					}
					if (err == nil) != (c.Result == "valid") {
						t.Errorf("%s tcId %d: %v, expected %s", file, c.TcID, err, c.Result)
					}
				}
			}
		}
	})
	t.Run("acvp", func(t *testing.T) {
		var gen struct {
			TestGroups []struct {
				ParameterSet string
				Tests        []struct {
					Z, D     hexBytes
					Expected struct{ Ek hexBytes }
				}
			}
		}
		testvectors.JSON(t, "acvp/ML-KEM-keyGen-FIPS203.merged.json", &gen)
		for _, g := range gen.TestGroups {
			for _, c := range g.Tests {
				if id, ok := ids[g.ParameterSet]; ok {
					k, err := NewInitiatorFromPrivate(id, concat(c.D, c.Z))
					if err != nil {
						t.Fatal(err)
					}
					equal(t, g.ParameterSet, k.Public(), c.Expected.Ek)
				}
			}
		}
		var enc struct {
			TestGroups []struct {
				ParameterSet, Function string
				Tests                  []struct {
					TcID     int
					Ek, M    hexBytes
					Expected struct {
						C, K       hexBytes
						TestPassed bool
					}
				}
			}
		}
		testvectors.JSON(t, "acvp/ML-KEM-encapDecap-FIPS203.merged.json.gz", &enc)
		for _, g := range enc.TestGroups {
			id, ok := ids[g.ParameterSet]
			if !ok {
				continue
			}
			for _, c := range g.Tests {
				switch g.Function {
				case "encapsulation":
					checkEncapsulate(t, id, c.Ek, c.M, c.Expected.C, c.Expected.K)
				case "encapsulationKeyCheck":
					if _, _, err := Respond(id, nil, c.Ek); (err == nil) != c.Expected.TestPassed {
						t.Errorf("key check tcId %d: %v, expected %v", c.TcID, err, c.Expected.TestPassed)
					}
				}
			}
		}
	})
}

// checkEncapsulate: the primitive below Respond, which takes its randomness from the system.
func checkEncapsulate(t *testing.T, id uint16, ek, m, c, k []byte) {
	t.Helper()
	var shared, ct []byte
	if id == KEMLKEM1024 {
		key, err := mlkem.NewEncapsulationKey1024(ek)
		if err != nil {
			t.Fatal(err)
		}
		shared, ct, err = mlkemtest.Encapsulate1024(key, m)
		if err != nil {
			t.Fatal(err)
		}
	} else {
		key, err := mlkem.NewEncapsulationKey768(ek)
		if err != nil {
			t.Fatal(err)
		}
		shared, ct, err = mlkemtest.Encapsulate768(key, m)
		if err != nil {
			t.Fatal(err)
		}
	}
	equal(t, "ciphertext", ct, c)
	equal(t, "shared key", shared, k)
}
