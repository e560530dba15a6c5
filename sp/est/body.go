package est

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"

	"github.com/smallstep/pkcs7"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"wardgate/internal/certs"
)

// MaxBody bounds a request's body in octets: the largest CSR in base64, with white space.
const MaxBody = certs.MaxCSRBytes * 3 / 2

var (
	oidExtensionRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	oidSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidECPublicKey      = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
)

// decodeBody takes the base64 off. White space is tolerated, and the header
// Content-Transfer-Encoding is not looked at (RFC 8951, sections 3 and 3.1). It decodes in place.
func decodeBody(b []byte) ([]byte, *Refusal) {
	n := 0
	for _, c := range b {
		switch c {
		case ' ', '\t', '\r', '\n':
		default:
			b[n] = c
			n++
		}
	}
	b = b[:n]
	bad := func(got string) ([]byte, *Refusal) {
		return nil, refuse(Malformed, "a PKCS #10 request, DER in base64 (RFC 8951, section 3)", got, "send what `openssl req -outform DER | base64 -w0` prints")
	}
	if n == 0 {
		return bad("nothing")
	}
	out := make([]byte, base64.StdEncoding.DecodedLen(n))
	m, err := base64.StdEncoding.Strict().Decode(out, b)
	if err != nil {
		return bad("something that is not base64")
	}
	return out[:m], nil
}

// encodeBody is base64 in one line: RFC 8951, section 3.1 asks no line breaks of senders, and
// strongSwan up to 5.9.8 tolerates none.
func encodeBody(der []byte) []byte {
	out := make([]byte, base64.StdEncoding.EncodedLen(len(der)))
	base64.StdEncoding.Encode(out, der)
	return out
}

// parseRequest parses a request within its bounds and checks its own signature.
func parseRequest(der []byte) (*x509.CertificateRequest, *Refusal) {
	if len(der) == 0 || der[0] != 0x30 { // certs.ParseCSR would take PEM as well
		return nil, refuse(Malformed, "a PKCS #10 request in DER", "something else", "send DER in base64, not PEM")
	}
	csr, err := certs.ParseCSR(der)
	if err == nil {
		return csr, nil
	}
	class := BadCSR
	switch certs.ClassOf(err) {
	case certs.Malformed:
		class = Malformed
	case certs.TooLarge:
		class = TooLarge
	default:
	}
	return nil, fromCert(class, "a certification request", err)
}

// fromCert makes a refusal of a verdict of internal/certs, whose texts are fit to be shown.
func fromCert(class Class, expected string, err error) *Refusal {
	return &Refusal{Class: class, Expected: expected + " that passes", Got: err.Error(), Err: err}
}

// requestedNames returns the DNS names that a request asks for: its subjectAltName, or where there
// is none, its common name. Names of other kinds are refused.
func requestedNames(csr *x509.CertificateRequest) ([]string, *Refusal) {
	if len(csr.EmailAddresses)+len(csr.IPAddresses)+len(csr.URIs) > 0 {
		return nil, refuse(WrongName, "DNS names only in the request's subjectAltName", "addresses or URIs", "make the request with DNS names, or with none: the registry's are used then")
	}
	if len(csr.DNSNames) > 0 {
		return csr.DNSNames, nil
	}
	if csr.Subject.CommonName != "" {
		return []string{csr.Subject.CommonName}, nil
	}
	return nil, nil
}

// certsOnly is a certs-only Simple PKI Response (RFC 7030, sections 4.1.3 and 4.2.3).
func certsOnly(list ...*x509.Certificate) ([]byte, error) {
	var b bytes.Buffer
	for _, c := range list {
		b.Write(c.Raw)
	}
	return pkcs7.DegenerateCertificate(b.Bytes())
}

// attrOrOID is a member of CsrAttrs: an OID alone, or an attribute with OIDs as values.
type attrOrOID struct {
	oid    asn1.ObjectIdentifier
	values []asn1.ObjectIdentifier
}

// csrAttrs is what a request should contain (RFC 7030, section 4.5.2; RFC 8951, section 4).
func csrAttrs(s *Service) []attrOrOID {
	var list []attrOrOID
	if !s.Plain {
		// Section 3.5: whoever must link request and connection is told so by this.
		list = append(list, attrOrOID{oid: certs.OIDChallengePassword}, attrOrOID{oid: certs.OIDRelatedCertRequest})
	}
	list = append(list, attrOrOID{oidExtensionRequest, []asn1.ObjectIdentifier{oidSubjectAltName}})
	if oid, ok := curveOID(s.Curve); ok {
		list = append(list, attrOrOID{oidECPublicKey, []asn1.ObjectIdentifier{oid}})
	}
	return list
}

// encodeAttrs returns CsrAttrs in DER.
func encodeAttrs(list []attrOrOID) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, a := range list {
			if a.values == nil {
				b.AddASN1ObjectIdentifier(a.oid)
				continue
			}
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(a.oid)
				b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
					for _, v := range a.values {
						b.AddASN1ObjectIdentifier(v)
					}
				})
			})
		}
	})
	return b.Bytes()
}
