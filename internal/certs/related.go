package certs

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // SHA-256 for RelatedCertificate
	_ "crypto/sha512" // SHA-384 and SHA-512
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// RelatedCertificate is the content of the extension of RFC 9763, section 4: the hash of the whole
// DER encoding of another certificate of the same end entity. In a service certificate it is
// the device certificate.
type RelatedCertificate struct {
	Hash  crypto.Hash // SHA256, SHA384 or SHA512
	Value []byte      // Hash.Size() octets
}

func relatedHash(oid asn1.ObjectIdentifier) (crypto.Hash, bool) {
	switch {
	case oid.Equal(oidSHA256):
		return crypto.SHA256, true
	case oid.Equal(oidSHA384):
		return crypto.SHA384, true
	case oid.Equal(oidSHA512):
		return crypto.SHA512, true
	}
	return 0, false
}

func hashOID(h crypto.Hash) (asn1.ObjectIdentifier, bool) {
	switch h {
	case crypto.SHA256:
		return oidSHA256, true
	case crypto.SHA384:
		return oidSHA384, true
	case crypto.SHA512:
		return oidSHA512, true
	}
	return nil, false
}

// NewRelatedCertificate returns the extension (not critical) that binds a certificate to the one
// whose DER encoding is given. hash must be SHA256, SHA384 or SHA512.
func NewRelatedCertificate(hash crypto.Hash, der []byte) (pkix.Extension, error) {
	oid, ok := hashOID(hash)
	if !ok {
		return pkix.Extension{}, fmt.Errorf("RelatedCertificate: expected SHA-256, SHA-384 or SHA-512, got %v", hash)
	}
	h := hash.New()
	h.Write(der)
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			// RFC 5754, section 2: the parameters of the SHA-2 identifiers are absent.
			b.AddASN1ObjectIdentifier(oid)
		})
		b.AddASN1OctetString(h.Sum(nil))
	})
	value, err := b.Bytes()
	if err != nil {
		return pkix.Extension{}, err
	}
	return pkix.Extension{Id: OIDRelatedCertificate, Value: value}, nil
}

// ParseRelatedCertificate parses the extension's value (DER, strict: nothing may follow, the
// algorithm's parameters are absent or NULL, the hash has its algorithm's length). An error is
// an *Error of class NotBound.
func ParseRelatedCertificate(value []byte) (RelatedCertificate, error) {
	bad := func(got string) (RelatedCertificate, error) {
		return RelatedCertificate{}, &Error{
			Class: NotBound, Expected: "a RelatedCertificate extension with a SHA-256, SHA-384 or SHA-512 hash (RFC 9763)",
			Got: got, Do: "have the service certificate issued again",
		}
	}
	s := cryptobyte.String(value)
	var seq, alg, hash cryptobyte.String
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() {
		return bad("something that is not one SEQUENCE")
	}
	var oid asn1.ObjectIdentifier
	if !seq.ReadASN1(&alg, cbasn1.SEQUENCE) || !alg.ReadASN1ObjectIdentifier(&oid) {
		return bad("no hash algorithm")
	}
	if !alg.Empty() {
		// RFC 5754, section 2: NULL parameters must be accepted as well.
		var null cryptobyte.String
		if !alg.ReadASN1(&null, cbasn1.NULL) || !null.Empty() || !alg.Empty() {
			return bad("a hash algorithm with parameters")
		}
	}
	h, ok := relatedHash(oid)
	if !ok {
		return bad("hash algorithm " + oid.String())
	}
	if !seq.ReadASN1(&hash, cbasn1.OCTET_STRING) || !seq.Empty() {
		return bad("no single OCTET STRING after the algorithm")
	}
	if len(hash) != h.Size() {
		return bad(fmt.Sprintf("a hash of %d octets for %v, which has %d", len(hash), h, h.Size()))
	}
	return RelatedCertificate{Hash: h, Value: bytes.Clone(hash)}, nil
}

// Matches reports whether r is the hash of der.
func (r RelatedCertificate) Matches(der []byte) bool {
	if _, ok := hashOID(r.Hash); !ok {
		return false
	}
	h := r.Hash.New()
	h.Write(der)
	return bytes.Equal(h.Sum(nil), r.Value)
}

// RelatedOf returns the RelatedCertificate of cert. Without one, or with a malformed one, the
// error is an *Error of class NotBound.
func RelatedOf(cert *x509.Certificate) (RelatedCertificate, error) {
	for _, e := range cert.Extensions {
		if e.Id.Equal(OIDRelatedCertificate) {
			r, err := ParseRelatedCertificate(e.Value)
			return r, at(err, cert)
		}
	}
	return RelatedCertificate{}, &Error{
		Class: NotBound, Subject: SubjectOf(cert),
		Expected: "a RelatedCertificate extension that names the device certificate (RFC 9763)", Got: "none",
		Do: "have the service certificate issued again, with the device certificate named in the request",
	}
}

// CheckRelated returns nil when service carries a RelatedCertificate extension that is the hash
// of deviceDER, and otherwise an *Error of class NotBound.
func CheckRelated(service *x509.Certificate, deviceDER []byte) error {
	r, err := RelatedOf(service)
	if err != nil {
		return err
	}
	if r.Matches(deviceDER) {
		return nil
	}
	h := r.Hash.New()
	h.Write(deviceDER)
	return &Error{
		Class: NotBound, Subject: SubjectOf(service),
		Expected: fmt.Sprintf("a service certificate bound to the device certificate with %v %s…", r.Hash, hex.EncodeToString(h.Sum(nil)[:8])),
		Got:      fmt.Sprintf("one bound to %s…", hex.EncodeToString(r.Value[:8])),
		Do:       "the two certificates do not belong together: have a service certificate issued for this device certificate",
	}
}
