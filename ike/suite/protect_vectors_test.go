package suite

import (
	"bytes"
	"errors"
	"testing"

	"wardgate/internal/testvectors"
)

// TestRFC7634 rebuilds the IKEv2 message of RFC 7634, appendix B octet for octet.
func TestRFC7634(t *testing.T) {
	var file struct {
		Cases []struct {
			Name             string
			Key, Salt, IV    hexBytes
			Aad, Plaintext   hexBytes
			EncryptedPayload hexBytes `json:"encrypted_payload"`
			IKEMessage       hexBytes `json:"ike_message"`
		}
	}
	testvectors.JSON(t, "rfc/rfc7634_chacha20poly1305_esp_ikev2.json", &file)
	n := 0
	for _, c := range file.Cases {
		if c.Name != "B-IKEv2" {
			continue
		}
		n++
		p, err := NewProtector(choose(t, ProtocolIKE, "chacha20poly1305-prfsha256-x25519"), CopySecret(concat(c.Key, c.Salt)), Secret{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		p.counter.Store(be64(c.IV) - 1)
		inner := c.Plaintext[:len(c.Plaintext)-1] // without the pad length, 0
		if got := p.SealedLen(len(inner)); got != len(c.IKEMessage)-len(c.Aad) {
			t.Errorf("SealedLen %d, expected %d", got, len(c.IKEMessage)-len(c.Aad))
		}
		msg, err := p.AppendSealed(bytes.Clone(c.Aad), c.Aad, inner)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "message", msg, c.IKEMessage)
		plain, err := p.Open(c.IKEMessage[:32], c.IKEMessage[32:])
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "plaintext", plain, inner)
	}
	if n != 1 {
		t.Error("appendix B not found")
	}
}

func be64(b []byte) (n uint64) {
	for _, x := range b {
		n = n<<8 | uint64(x)
	}
	return n
}

// aeadCase runs one case of a foreign set in the layout of IKE: salt | IV is the nonce.
func aeadCase(t *testing.T, what, suite string, key, nonce, aad, msg, ct, tag []byte, valid bool) {
	t.Helper()
	p, err := NewProtector(choose(t, ProtocolIKE, suite+"-prfsha256-x25519"), CopySecret(concat(key, nonce[:4])), Secret{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	// Below Open, which takes off padding that these cases do not have.
	plain, err := p.openAEAD(aad, concat(nonce[4:], ct, tag))
	if (err == nil) != valid {
		t.Errorf("%s: %v, expected valid %v", what, err, valid)
	}
	if err != nil {
		if !errors.Is(err, ErrOpen) {
			t.Errorf("%s: %v is not ErrOpen", what, err)
		}
		return
	}
	equal(t, what, plain, msg)
}

func TestAEADVectors(t *testing.T) {
	count := 0
	t.Run("wycheproof", func(t *testing.T) {
		for file, suites := range map[string]map[int]string{
			"aes_gcm":           {128: "aes128gcm16", 256: "aes256gcm16"},
			"chacha20_poly1305": {256: "chacha20poly1305"},
		} {
			var f struct {
				TestGroups []struct {
					IvSize, KeySize, TagSize int
					Tests                    []struct {
						TcID                       int
						Key, Iv, Aad, Msg, Ct, Tag hexBytes
						Result                     string
					}
				}
			}
			testvectors.JSON(t, "wycheproof/"+file+"_test.json.gz", &f)
			for _, g := range f.TestGroups {
				s, ok := suites[g.KeySize]
				if !ok || g.IvSize != 96 || g.TagSize != 128 {
					continue
				}
				for _, c := range g.Tests {
					aeadCase(t, name(file, " ", c.TcID), s, c.Key, c.Iv, c.Aad, c.Msg, c.Ct, c.Tag, c.Result == "valid")
					count++
				}
			}
		}
	})
	t.Run("acvp", func(t *testing.T) {
		var f struct {
			TestGroups []struct {
				Direction             string
				KeyLen, IvLen, TagLen int
				Tests                 []struct {
					TcID                      int
					Key, Iv, Aad, Pt, Ct, Tag hexBytes
					Expected                  struct {
						Pt, Ct, Tag hexBytes
						TestPassed  *bool
					}
				}
			}
		}
		testvectors.JSON(t, "acvp/ACVP-AES-GCM-1.0.merged.json", &f)
		for _, g := range f.TestGroups {
			s, ok := map[int]string{128: "aes128gcm16", 256: "aes256gcm16"}[g.KeyLen]
			if !ok || g.IvLen != 96 || g.TagLen != 128 {
				continue
			}
			for _, c := range g.Tests {
				pt, ct, tag, valid := c.Pt, c.Expected.Ct, c.Expected.Tag, true
				if g.Direction == "decrypt" {
					pt, ct, tag = c.Expected.Pt, c.Ct, c.Tag
					valid = c.Expected.TestPassed == nil || *c.Expected.TestPassed
				}
				if len(c.Iv) != 12 {
					continue // generated inside of the module
				}
				aeadCase(t, name("ACVP ", c.TcID), s, c.Key, c.Iv, c.Aad, pt, ct, tag, valid)
				count++
			}
		}
	})
	t.Run("rfc8439", func(t *testing.T) {
		var f struct {
			Cases []struct {
				Name                         string
				Key, Nonce, Aad, Pt, Ct, Tag hexBytes
			}
		}
		testvectors.JSON(t, "rfc/rfc8439_aead.json", &f)
		for _, c := range f.Cases {
			aeadCase(t, c.Name, "chacha20poly1305", c.Key, c.Nonce, c.Aad, c.Pt, c.Ct, c.Tag, true)
			count++
		}
	})
	t.Run("draft-mcgrew", func(t *testing.T) {
		var f struct {
			Cases []struct {
				Case               int
				Key, Salt, IV, Aad hexBytes
				Plaintext          hexBytes
				CtAndICV           hexBytes `json:"ct_and_icv"`
			}
		}
		testvectors.JSON(t, "rfc/draft-mcgrew-gcm-test-01.json", &f)
		for _, c := range f.Cases {
			s, ok := map[int]string{16: "aes128gcm16", 32: "aes256gcm16"}[len(c.Key)]
			n := len(c.CtAndICV) - 16
			if !ok || n != len(c.Plaintext) {
				continue // 192-bit keys, shorter ICVs, GMAC
			}
			aeadCase(t, name("mcgrew ", c.Case), s, c.Key, concat(c.Salt, c.IV), c.Aad, c.Plaintext, c.CtAndICV[:n], c.CtAndICV[n:], true)
			count++
		}
	})
	t.Logf("%d cases", count)
	if count < 400 {
		t.Errorf("only %d cases", count)
	}
}
