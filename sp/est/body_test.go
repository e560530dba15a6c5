package est

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"wardgate/internal/certs"
	"wardgate/internal/testvectors"
)

// appendix reads one of the DER objects of RFC 7030, appendix A.
func appendix(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(testvectors.Path(t, "est/rfc7030_appendix_a"), name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Appendix A.1 and A.3: what the RFC's CA answers, and what we make of the same certificates.
func TestAppendixCertsOnly(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]int{"A.1-1.der": 4, "A.3-2.der": 1, "A.4-3.der": 1} {
		theirs, err := pkcs7.Parse(appendix(t, name))
		if err != nil {
			t.Fatal(err)
		}
		if len(theirs.Certificates) != want {
			t.Errorf("%s: %d certificates, want %d", name, len(theirs.Certificates), want)
		}
		der, err := certsOnly(theirs.Certificates...)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(der, appendix(t, name)) {
			t.Errorf("%s: encoded differently\ngot  %x\nwant %x", name, der, appendix(t, name))
		}
	}
}

// Appendix A.3 and A.4: requests with a channel binding as OpenSSL wrote it in 2013. They are
// read, and refused, because they are signed with SHA-1.
func TestAppendixRequests(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"A.3-1.der": "+rrCir/7+EYu50T4", "A.4-1.der": ""} {
		der := appendix(t, name)
		body := []byte(base64.StdEncoding.EncodeToString(der))
		for i := 64; i < len(body); i += 66 { // in lines, as in the transcript
			body = append(body[:i:i], append([]byte("\r\n"), body[i:]...)...)
		}
		got, refusal := decodeBody(body)
		if refusal != nil || !bytes.Equal(got, der) {
			t.Fatalf("%s: body: %v", name, refusal)
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		text, there, err := certs.ChallengeOf(csr)
		if err != nil || text != want && want != "" || there != (text != "") {
			t.Errorf("%s: challengePassword %q %v %v, want %q", name, text, there, err, want)
		}
		if _, refusal := parseRequest(der); !errors.Is(refusal, BadCSR) || certs.ClassOf(refusal) != certs.WeakKey {
			t.Errorf("%s: %v, want it refused for SHA-1", name, refusal)
		}
	}
}

// RFC 8951, section 4, has an example with its encoding.
func TestAttributesExample(t *testing.T) {
	t.Parallel()
	der, err := encodeAttrs([]attrOrOID{
		{oid: certs.OIDChallengePassword},
		{oidECPublicKey, []asn1.ObjectIdentifier{{1, 3, 132, 0, 34}}},
		{oidExtensionRequest, []asn1.ObjectIdentifier{{1, 3, 6, 1, 1, 1, 1, 22}}},
		{oid: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}},
	})
	const want = "MEEGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiMBYGCSqGSIb3DQEJDjEJBgcrBgEBAQEWBggqhkjOPQQDAw=="
	if got := string(encodeBody(der)); err != nil || got != want {
		t.Errorf("%v\ngot  %s\nwant %s", err, got, want)
	}
}

// libest's sample requests: one in base64 lines, read; PEM, refused.
func TestLibestRequests(t *testing.T) {
	t.Parallel()
	dir := testvectors.Path(t, "est/libest")
	for _, name := range []string{"test_UT_US894_req.p10", "test_UT_US901_req.p10"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		der, refusal := decodeBody(b)
		if refusal != nil {
			t.Fatalf("%s: %v", name, refusal)
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if names, refusal := requestedNames(csr); refusal != nil || len(names) != 1 || names[0] != csr.Subject.CommonName {
			t.Errorf("%s: names %v %v", name, names, refusal)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "test_UT_US5052_midsize.csr"))
	if err != nil {
		t.Fatal(err)
	}
	if _, refusal := decodeBody(b); !errors.Is(refusal, Malformed) {
		t.Errorf("PEM: %v", refusal)
	}
}

func TestEveryClassHasANameAndAStatus(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for c := range Class(numberOfClasses) {
		if c.String() == "" || seen[c.String()] || c.Code() != "est-"+c.String() {
			t.Errorf("class %d is called %q", c, c.String())
		}
		if s := c.Status(); s < 400 && (c != Pending || s != 202) {
			t.Errorf("%v has status %d", c, s)
		}
		seen[c.String()] = true
	}
	if c := Class(200); c.String() != "class-200" || c.Status() != 500 {
		t.Errorf("%v %d", c, c.Status())
	}
}

func TestAddressKey(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"192.0.2.1:4711": "192.0.2.1", "[::ffff:192.0.2.1]:4711": "192.0.2.1",
		"[2001:db8:1:2:3::4]:4711": "2001:db8:1:2::/64", "[fe80::1%eth0]:1": "fe80::/64", "@": "@",
	} {
		if got := AddressKey(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

// A limiter's memory is bounded, whoever asks.
func TestLimiterForgets(t *testing.T) {
	t.Parallel()
	l := NewLimiter(Limit{PerSecond: 1, Burst: 2})
	now := time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	for i := range maxBuckets + 10 {
		l.Take(strings.Repeat("x", i%7)+string(rune(i)), now)
	}
	if len(l.buckets) > maxBuckets {
		t.Errorf("%d buckets", len(l.buckets))
	}
}

// FuzzRequest: any body. What is accepted is a request whose signature holds, and the parts that
// are read from it are within bounds.
func FuzzRequest(f *testing.F) {
	for _, name := range []string{"A.3-1.der", "A.4-1.der"} {
		f.Add(encodeBody(appendix(f, name)))
	}
	f.Add([]byte("MII\r\n AA=="))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > MaxBody {
			return
		}
		der, refusal := decodeBody(bytes.Clone(b))
		if refusal != nil {
			return
		}
		if again, _ := decodeBody(encodeBody(der)); !bytes.Equal(again, der) {
			t.Fatal("base64 does not come back")
		}
		if csr, err := x509.ParseCertificateRequest(der); err == nil {
			text, there, err := certs.ChallengeOf(csr)
			if err == nil && (len(text) > certs.MaxChallenge || there != (text != "")) {
				t.Fatalf("challenge %q %v", text, there)
			}
		}
		csr, refusal := parseRequest(der)
		if refusal != nil {
			if refusal.Error() == "" || strings.ContainsAny(refusal.Error(), "\r\n\x00") {
				t.Fatalf("reason %q", refusal.Error())
			}
			return
		}
		if csr.CheckSignature() != nil {
			t.Fatal("accepted with a wrong signature")
		}
		if names, refusal := requestedNames(csr); refusal == nil && len(names) == 0 && len(csr.DNSNames) > 0 {
			t.Fatal("names got lost")
		}
	})
}

// FuzzCertsOnly: any certificate goes through PKCS #7 and comes back as it was.
func FuzzCertsOnly(f *testing.F) {
	for _, name := range []string{"A.1-1.der", "A.3-2.der"} {
		p, err := pkcs7.Parse(appendix(f, name))
		if err != nil {
			f.Fatal(err)
		}
		for _, c := range p.Certificates {
			f.Add(c.Raw)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := x509.ParseCertificate(b)
		if err != nil {
			return
		}
		der, err := certsOnly(c, c)
		if err != nil {
			t.Fatal(err)
		}
		// Read by hand: pkcs7.Parse takes BER and re-encodes what it takes for it, which not every
		// certificate survives that crypto/x509 reads.
		s := cryptobyte.String(der)
		var info, content, signed, list, one, two cryptobyte.String
		if !s.ReadASN1(&info, cbasn1.SEQUENCE) || !s.Empty() || !info.SkipASN1(cbasn1.OBJECT_IDENTIFIER) ||
			!info.ReadASN1(&content, cbasn1.Tag(0).ContextSpecific().Constructed()) || !info.Empty() ||
			!content.ReadASN1(&signed, cbasn1.SEQUENCE) || !signed.SkipASN1(cbasn1.INTEGER) || !signed.SkipASN1(cbasn1.SET) || !signed.SkipASN1(cbasn1.SEQUENCE) ||
			!signed.ReadASN1(&list, cbasn1.Tag(0).ContextSpecific().Constructed()) ||
			!signed.SkipOptionalASN1(cbasn1.Tag(1).ContextSpecific().Constructed()) || !signed.SkipASN1(cbasn1.SET) || !signed.Empty() {
			t.Fatalf("%x: not a SignedData", der)
		}
		if !list.ReadASN1Element(&one, cbasn1.SEQUENCE) || !list.ReadASN1Element(&two, cbasn1.SEQUENCE) || !list.Empty() || !bytes.Equal(one, b) || !bytes.Equal(two, b) {
			t.Fatalf("%x: the certificates changed", der)
		}
	})
}
