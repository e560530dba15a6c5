package centre

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"
)

func testCert(t testing.TB) *x509.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<31, 0)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return c
}

// degenerate is a certs-only answer by code that is not ours.
func degenerate(t testing.TB, list ...*x509.Certificate) []byte {
	t.Helper()
	var all []byte
	for _, c := range list {
		all = append(all, c.Raw...)
	}
	der, err := pkcs7.DegenerateCertificate(all)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestParseCertsOnly(t *testing.T) {
	t.Parallel()
	a, b := testCert(t), testCert(t)
	der := degenerate(t, a, b)
	list, err := parseCertsOnly(der)
	if err != nil || len(list) != 2 || !list[0].Equal(a) || !list[1].Equal(b) {
		t.Fatalf("%d certificates, %v", len(list), err)
	}
	for n := range der {
		if _, err := parseCertsOnly(der[:n]); !errors.Is(err, Malformed) {
			t.Fatalf("%d of %d octets: %v", n, len(der), err)
		}
	}
	if _, err := parseCertsOnly(append(bytes.Clone(der), 0)); !errors.Is(err, Malformed) {
		t.Errorf("something behind: %v", err)
	}
	many := make([]*x509.Certificate, maxCertsOnly+1)
	for i := range many {
		many[i] = a
	}
	if _, err := parseCertsOnly(degenerate(t, many...)); !errors.Is(err, Malformed) {
		t.Errorf("%d certificates: %v", len(many), err)
	}
	if _, err := parseCertsOnly(degenerate(t, many[1:]...)); err != nil {
		t.Errorf("%d certificates: %v", maxCertsOnly, err)
	}
	if _, err := parseCertsOnly(degenerate(t)); !errors.Is(err, Malformed) {
		t.Errorf("none: %v", err)
	}
	// With content or a signature it is something else.
	s, err := pkcs7.NewSignedData([]byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	s.AddCertificate(a)
	if der, err = s.Finish(); err != nil {
		t.Fatal(err)
	}
	if _, err := parseCertsOnly(der); !errors.Is(err, Malformed) {
		t.Errorf("with content: %v", err)
	}
}

func TestParseAttrs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		der  string
		want elliptic.Curve
		code Code
	}{
		{"3000", nil, ""},
		{"300b06092a864886f70d010907", nil, ""}, // challengePassword alone
		{"301730150607" + "2a8648ce3d0201" + "310a0608" + "2a8648ce3d030107", elliptic.P256(), ""},                 // RFC 7030's form, P-256
		{"301430120607" + "2a8648ce3d0201" + "31070605" + "2b81040022", elliptic.P384(), ""},                       // P-384
		{"301f06092a864886f70d01090730120607" + "2a8648ce3d0201" + "31070605" + "2b81040022", elliptic.P384(), ""}, // after another
		{"301430120607" + "2a8648ce3d0201" + "31070605" + "2b8104000a", nil, Refused},                              // secp256k1
		{"", nil, Malformed},
		{"300000", nil, Malformed},
		{"3002300a", nil, Malformed},
		{"30023000", nil, Malformed},
	} {
		der, err := hex.DecodeString(c.der)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseAttrs(der)
		if got != c.want || (c.code == "") != (err == nil) || c.code != "" && !errors.Is(err, c.code) {
			t.Errorf("%s: %v, %v", c.der, got, err)
		}
	}
}

func TestValidETag(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]bool{
		`"1"`: true, `"1-abc"`: true, `W/"1"`: true, `""`: true,
		``: false, `1`: false, `"`: false, `"1`: false, `"a"b"`: false, `"a b"`: false, "\"a\r\nX: y\"": false, `"` + string(bytes.Repeat([]byte("a"), 200)) + `"`: false,
	} {
		if got := validETag(s); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func TestReason(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"enrolment refused (not-a-member): expected …": "not-a-member", "(pending)": "pending",
		"": "", "(": "", "()": "", "refused (NO)": "", "refused (a b)": "", "x (" + string(bytes.Repeat([]byte("a"), 33)) + ")": "",
	} {
		if got := reason(s); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}

func FuzzCertsOnly(f *testing.F) {
	f.Add(degenerate(f, testCert(f)))
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, der []byte) {
		list, err := parseCertsOnly(der)
		if (err == nil) == (len(list) == 0) {
			t.Errorf("%d certificates, %v", len(list), err)
		}
		if err != nil {
			return
		}
		// What we take, another parser takes, and finds the same in it.
		p, err := pkcs7.Parse(der)
		if err != nil || len(p.Certificates) != len(list) {
			t.Errorf("the other parser: %v", err)
		}
	})
}

func FuzzAttrs(f *testing.F) {
	f.Add([]byte{0x30, 0})
	f.Add([]byte{0x30, 0x0b, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x07})
	f.Fuzz(func(t *testing.T, der []byte) {
		if c, err := parseAttrs(der); c != nil && err != nil {
			t.Error("a curve and an error")
		}
	})
}

func FuzzJournal(f *testing.F) {
	for _, s := range []string{"", "{}", `{"format":1,"services":{"a":null}}`, `{"format":1,"services":{"a":{"certificate":"AA=="}}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		j, _, err := readJournal(octets(b))
		if err != nil || j == nil || j.Services == nil || j.Format != journalFormat {
			t.Fatalf("%v, %v", j, err)
		}
		for name, p := range j.Services {
			if p == nil {
				t.Errorf("service %q is nil", name)
			}
		}
	})
}

type octets []byte

func (o octets) Load() ([]byte, error) { return o, nil }
func (o octets) Save([]byte) error     { return nil }
