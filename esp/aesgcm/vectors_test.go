package aesgcm

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"wardgate/internal/testvectors"
)

type hexBytes []byte

func (h *hexBytes) UnmarshalJSON(b []byte) (err error) {
	*h, err = hex.DecodeString(strings.Trim(string(b), `"`))
	return err
}

type vector struct {
	key, nonce, aad, text, sealed []byte
	valid                         bool
}

// run puts one vector to every implementation; text may be missing where valid is false.
func (v vector) run(t *testing.T, name string, id int) {
	t.Helper()
	for _, impl := range usable {
		a, err := newAs(impl, v.key)
		if err != nil {
			t.Fatal(err)
		}
		got, err := a.Open(nil, v.nonce, v.sealed, v.aad)
		if (err == nil) != v.valid || (v.valid && !bytes.Equal(got, v.text)) {
			t.Errorf("%s %d, %s: valid %t, open: %v\n %x, want\n %x", name, id, a.Accelerated(), v.valid, err, got, v.text)
		}
		if !v.valid {
			continue
		}
		if got := a.Seal(nil, v.nonce, v.text, v.aad); !bytes.Equal(got, v.sealed) {
			t.Errorf("%s %d, %s: sealed\n %x, want\n %x", name, id, a.Accelerated(), got, v.sealed)
		}
	}
}

func TestVectorsWycheproof(t *testing.T) {
	// GMAC's cases are GCM's without a text.
	for _, name := range []string{"aes_gcm", "aes_gmac"} {
		var f struct {
			TestGroups []struct {
				IVSize, KeySize, TagSize int
				Tests                    []struct {
					TcID                       int
					Key, IV, AAD, Msg, CT, Tag hexBytes
					Result                     string
				}
			}
		}
		testvectors.JSON(t, "wycheproof/"+name+"_test.json.gz", &f)
		n := 0
		for _, g := range f.TestGroups {
			if g.IVSize != 8*NonceSize || g.TagSize != 8*TagSize {
				continue // IPsec has one nonce and one tag length
			}
			for _, c := range g.Tests {
				v := vector{c.Key, c.IV, c.AAD, c.Msg, append(bytes.Clone(c.CT), c.Tag...), c.Result != "invalid"}
				if name == "aes_gmac" {
					v.aad, v.text = c.Msg, nil
				}
				v.run(t, name, c.TcID)
				n++
			}
		}
		if n < 100 {
			t.Errorf("%s: only %d cases", name, n)
		}
	}
}

func TestVectorsACVP(t *testing.T) {
	var f struct {
		TestGroups []struct {
			Direction     string
			IVLen, TagLen int
			Tests         []struct {
				TcID                      int
				Key, IV, AAD, PT, CT, Tag hexBytes
				Expected                  struct {
					PT, CT, Tag hexBytes
					TestPassed  *bool
				}
			}
		}
	}
	testvectors.JSON(t, "acvp/ACVP-AES-GCM-1.0.merged.json", &f)
	n := 0
	for _, g := range f.TestGroups {
		if g.IVLen != 8*NonceSize || g.TagLen != 8*TagSize {
			continue
		}
		for _, c := range g.Tests {
			v := vector{key: c.Key, nonce: c.IV, aad: c.AAD, valid: true}
			if g.Direction == "encrypt" {
				v.text, v.sealed = c.PT, append(bytes.Clone(c.Expected.CT), c.Expected.Tag...)
			} else {
				v.text, v.sealed = c.Expected.PT, append(bytes.Clone(c.CT), c.Tag...)
				v.valid = c.Expected.TestPassed == nil || *c.Expected.TestPassed
			}
			v.run(t, "ACVP", c.TcID)
			n++
		}
	}
	if n != 30 {
		t.Errorf("%d cases, want 30", n)
	}
}

func TestVectorsDraftMcGrewGCM(t *testing.T) {
	var f struct {
		Cases []struct {
			Case               int
			Key, Salt, IV      hexBytes
			AAD, Plaintext, CT hexBytes
			ESP                hexBytes `json:"esp_packet"`
			ESN                bool
			Seq                hexBytes
		}
	}
	testvectors.JSON(t, "rfc/draft-mcgrew-gcm-test-01.json", &f)
	if len(f.Cases) != 14 {
		t.Fatalf("%d cases, want 14", len(f.Cases))
	}
	for _, c := range f.Cases {
		aad := bytes.Clone(c.ESP[:8])
		if c.ESN { // SPI, then all 64 bits of the sequence number
			aad = append(bytes.Clone(c.ESP[:4]), c.Seq...)
		}
		vector{c.Key, append(bytes.Clone(c.Salt), c.IV...), aad, c.Plaintext, c.ESP[16:], true}.run(t, "draft", c.Case)
	}
}
