package suite

import (
	"fmt"
	"testing"

	"wardgate/internal/testvectors"
)

// kdfCase is the common part of NIST's CAVS and ACVP cases for the IKEv2 KDF.
type kdfCase struct {
	prf                             PRF
	ni, nr, gir, girNew, spii, spir []byte
	skeyseed, rekeyed               []byte
	dkm, child, childDH             []byte
}

func (c kdfCase) run(t *testing.T) {
	shared, sharedNew := CopySecret(c.gir), CopySecret(c.girNew)
	seed := SKEYSEED(c.prf, shared, c.ni, c.nr)
	equal(t, "SKEYSEED", seed.Bytes(), c.skeyseed)
	dkm, err := c.prf.Plus(seed, len(c.dkm), c.ni, c.nr, c.spii, c.spir)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "prf+(SKEYSEED, Ni | Nr | SPIi | SPIr)", dkm.Bytes(), c.dkm)

	keys, err := deriveIKEKeys(c.prf, 16, 0, seed, c.ni, c.nr, [8]byte(c.spii), [8]byte(c.spir))
	if err != nil {
		t.Fatal(err)
	}
	n := c.prf.Size()
	equal(t, "SK_d", keys.SKd.Bytes(), c.dkm[:n])
	if len(c.dkm) >= 3*n+32 {
		equal(t, "SK_ei", keys.SKei.Bytes(), c.dkm[n:n+16])
		equal(t, "SK_er", keys.SKer.Bytes(), c.dkm[n+16:n+32])
		equal(t, "SK_pi", keys.SKpi.Bytes(), c.dkm[n+32:2*n+32])
		equal(t, "SK_pr", keys.SKpr.Bytes(), c.dkm[2*n+32:3*n+32])
	}

	for _, k := range []struct {
		what   string
		shared Secret
		want   []byte
	}{{"KEYMAT", Secret{}, c.child}, {"KEYMAT with PFS", sharedNew, c.childDH}} {
		all, err := c.prf.Plus(keys.SKd, len(k.want), k.shared.Bytes(), c.ni, c.nr)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, k.what, all.Bytes(), k.want)
		ck, err := DeriveChildKeys(c.prf, keys.SKd, choose(t, ProtocolESP, "aes128-sha256"), k.shared, c.ni, c.nr)
		if err != nil {
			t.Fatal(err)
		}
		cut := concat(ck.EncrI.Bytes(), ck.IntegI.Bytes(), ck.EncrR.Bytes(), ck.IntegR.Bytes())
		n := min(len(cut), len(k.want))
		equal(t, k.what+" cut", cut[:n], k.want[:n])
	}
	equal(t, "SKEYSEED of the rekeyed IKE SA", RekeySKEYSEED(c.prf, keys.SKd, sharedNew, c.ni, c.nr).Bytes(), c.rekeyed)
}

// TestCAVS: NIST CAVS 17.3, IKEv2 KDF.
func TestCAVS(t *testing.T) {
	var file struct {
		Groups []struct {
			Hash  string
			Tests []struct {
				Count                               int
				Ni, Nr, Gir, GirNew, Spii, Spir     hexBytes
				Skeyseed, Dkm, DkmChild, DkmChildDH hexBytes
				SkeyseedRekey                       hexBytes
			}
		}
	}
	testvectors.JSON(t, "cavs/ikev2_cavs17.3.subset.json", &file)
	n := 0
	for i, g := range file.Groups {
		for _, c := range g.Tests {
			t.Run(fmt.Sprintf("%s/%d/%d", g.Hash, i, c.Count), func(t *testing.T) {
				kdfCase{testPRF(t, g.Hash), c.Ni, c.Nr, c.Gir, c.GirNew, c.Spii, c.Spir, c.Skeyseed, c.SkeyseedRekey, c.Dkm, c.DkmChild, c.DkmChildDH}.run(t)
			})
			n++
		}
	}
	if n < 36 {
		t.Errorf("%d cases, expected 36", n)
	}
}

// TestACVPKDF: NIST ACVP, kdf-components IKEv2.
func TestACVPKDF(t *testing.T) {
	var file struct {
		Tests []struct {
			HashAlg                                     string
			TcID                                        int
			NInit, NResp, Gir, GirNew, SpiInit, SpiResp hexBytes
			SKeySeed, SKeySeedReKey                     hexBytes
			DerivedKeyingMaterial                       hexBytes
			DerivedKeyingMaterialChild                  hexBytes
			DerivedKeyingMaterialDh                     hexBytes
		}
	}
	testvectors.JSON(t, "acvp/kdf-components-ikev2-1.0.subset.json", &file)
	if len(file.Tests) == 0 {
		t.Fatal("no cases")
	}
	for _, c := range file.Tests {
		t.Run(fmt.Sprintf("%s/%d", c.HashAlg, c.TcID), func(t *testing.T) {
			kdfCase{testPRF(t, c.HashAlg), c.NInit, c.NResp, c.Gir, c.GirNew, c.SpiInit, c.SpiResp, c.SKeySeed, c.SKeySeedReKey, c.DerivedKeyingMaterial, c.DerivedKeyingMaterialChild, c.DerivedKeyingMaterialDh}.run(t)
		})
	}
}

// TestHMACVectors: RFC 4231, RFC 4868 (PRF and truncated integrity), Wycheproof.
func TestHMACVectors(t *testing.T) {
	prfs := []PRF{mustPRF(t, PRFHMACSHA256), mustPRF(t, PRFHMACSHA384), mustPRF(t, PRFHMACSHA512)}
	var rfc4231 struct {
		Cases []struct {
			Name      string
			Key, Data hexBytes
			H256      hexBytes `json:"hmac_sha256"`
			H384      hexBytes `json:"hmac_sha384"`
			H512      hexBytes `json:"hmac_sha512"`
		}
	}
	testvectors.JSON(t, "rfc/rfc4231_hmac_sha2.json", &rfc4231)
	for _, c := range rfc4231.Cases {
		for i, want := range [][]byte{c.H256, c.H384, c.H512} {
			equal(t, "RFC 4231 "+c.Name, prfs[i].Sum(CopySecret(c.Key), c.Data)[:len(want)], want)
		}
	}
	var rfc4868 struct{ Cases []map[string]any }
	testvectors.JSON(t, "rfc/rfc4868_hmac_sha2_ipsec.json", &rfc4868)
	n := 0
	for _, c := range rfc4868.Cases {
		str := func(k string) []byte {
			s, _ := c[k].(string)
			return unhexT(t, s)
		}
		for k := range c {
			for i, suffix := range []string{"256", "384", "512"} {
				if k != "prf_hmac_sha_"+suffix && k != map[string]string{"256": "hmac_sha_256_128", "384": "hmac_sha_384_192", "512": "hmac_sha_512_256"}[suffix] {
					continue
				}
				want := str(k)
				equal(t, "RFC 4868 "+c["name"].(string)+" "+k, prfs[i].Sum(CopySecret(str("key")), str("data"))[:len(want)], want)
				n++
			}
		}
	}
	if n < 18 {
		t.Errorf("RFC 4868: %d values compared, expected 18 or more", n)
	}
	for i, bits := range []string{"256", "384", "512"} {
		var file struct {
			TestGroups []struct {
				TagSize int
				Tests   []struct {
					TcID          int
					Key, Msg, Tag hexBytes
					Result        string
				}
			}
		}
		testvectors.JSON(t, "wycheproof/hmac_sha"+bits+"_test.json.gz", &file)
		for _, g := range file.TestGroups {
			for _, c := range g.Tests {
				got := string(prfs[i].Sum(CopySecret(c.Key), c.Msg)[:g.TagSize/8]) == string(c.Tag)
				if got != (c.Result == "valid") {
					t.Errorf("wycheproof HMAC-SHA-%s tcId %d: equal %v, expected %s", bits, c.TcID, got, c.Result)
				}
			}
		}
	}
}
