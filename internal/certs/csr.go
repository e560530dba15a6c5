package certs

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"io"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// CSR is what a certification request asks for. crypto/x509 cannot write attributes of arbitrary
// syntax, so the request is put together here (RFC 2986).
type CSR struct {
	Subject  pkix.Name
	DNSNames []string // dNSNames in the requested subjectAltName
	// Related is the value of relatedCertRequest from NewRelatedCertRequest, or nil.
	Related []byte
}

// Create returns the request in DER, signed by key.
func (c CSR) Create(rand io.Reader, key crypto.Signer) ([]byte, error) {
	alg, err := signatureFor(key.Public())
	if err != nil {
		return nil, err
	}
	subject, err := asn1.Marshal(c.Subject.ToRDNSequence())
	if err != nil {
		return nil, fmt.Errorf("subject of the request: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("public key of the request: %w", err)
	}
	attributes, err := c.attributes()
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddBytes(subject)
		b.AddBytes(spki)
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			for _, a := range attributes {
				b.AddBytes(a)
			}
		})
	})
	info, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("certification request: %w", err)
	}
	sig, err := alg.sign(rand, key, info)
	if err != nil {
		return nil, fmt.Errorf("signing the request: %w", err)
	}
	var out cryptobyte.Builder
	out.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(info)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(alg.oid)
			if alg.null {
				b.AddASN1NULL()
			}
		})
		b.AddASN1BitString(sig)
	})
	return out.Bytes()
}

func (c CSR) attributes() ([][]byte, error) {
	var list [][]byte
	add := func(oid asn1.ObjectIdentifier, value []byte) error {
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(value) })
		})
		a, err := b.Bytes()
		list = append(list, a)
		return err
	}
	if len(c.DNSNames) > 0 {
		for _, n := range c.DNSNames {
			if !validName(n) {
				return nil, fmt.Errorf("name in the request: expected a DNS name in ASCII without blanks or wildcards, got %s", Quote(n))
			}
		}
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // Extensions
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidExtSAN)
				b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						for _, n := range c.DNSNames {
							b.AddASN1(cbasn1.Tag(2).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(n)) })
						}
					})
				})
			})
		})
		ext, err := b.Bytes()
		if err != nil {
			return nil, err
		}
		if err := add(oidExtensionRequest, ext); err != nil {
			return nil, err
		}
	}
	if c.Related != nil {
		if err := add(OIDRelatedCertRequest, c.Related); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(list, bytes.Compare) // DER: the members of a SET OF are in order
	return list, nil
}

// ParseCSR parses a request in DER or PEM and checks that it is signed by the key it is for
// (RFC 2986, section 3: proof of possession) and that the key is within the profile. Errors are
// *Error of class Malformed, TooLarge, WeakKey or CSRSignature.
func ParseCSR(data []byte) (*x509.CertificateRequest, error) {
	der := data
	if len(data) == 0 || data[0] != 0x30 {
		block, _ := pem.Decode(data)
		if block == nil || (block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST") {
			return nil, &Error{Class: Malformed, Expected: "a certification request in DER or PEM", Got: "something else", Do: "check that this is the right file"}
		}
		der = block.Bytes
	}
	if len(der) > MaxCSRBytes {
		return nil, &Error{Class: TooLarge, Expected: fmt.Sprintf("a request of at most %d octets", MaxCSRBytes), Got: fmt.Sprint(len(der)), Do: "make the request again"}
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, &Error{Class: Malformed, Expected: "a certification request (PKCS #10)", Got: parseText(err), Do: "make the request again", Err: err}
	}
	if err := CheckPublicKey(csr.PublicKey); err != nil {
		return nil, err
	}
	if !strongSignature(csr.SignatureAlgorithm) {
		return nil, &Error{Class: WeakKey, Expected: "a request signed with SHA-2 or Ed25519", Got: Quote(csr.SignatureAlgorithm.String()), Do: "make the request again"}
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, &Error{Class: CSRSignature, Expected: "a request signed by the key that it is for", Got: "a signature that does not verify", Do: "make the request again", Err: err}
	}
	return csr, nil
}

// RelatedRequestOf returns the relatedCertRequest attribute of a request, or nil when it has none.
// Two of them, or one that is malformed, are an *Error of class ProofOfDevice.
func RelatedRequestOf(csr *x509.CertificateRequest) (*RelatedCertRequest, error) {
	bad := func(got string) (*RelatedCertRequest, error) {
		return nil, &Error{Class: ProofOfDevice, Expected: "at most one relatedCertRequest attribute with one value", Got: got, Do: "make the request again"}
	}
	s := cryptobyte.String(csr.RawTBSCertificateRequest)
	var info, attrs cryptobyte.String
	var found bool
	if !s.ReadASN1(&info, cbasn1.SEQUENCE) || !info.SkipASN1(cbasn1.INTEGER) || !info.SkipASN1(cbasn1.SEQUENCE) || !info.SkipASN1(cbasn1.SEQUENCE) ||
		!info.ReadOptionalASN1(&attrs, &found, cbasn1.Tag(0).ContextSpecific().Constructed()) {
		return bad("a request that is not as RFC 2986 says")
	}
	var value cryptobyte.String
	for !attrs.Empty() {
		var attr, set cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !attrs.ReadASN1(&attr, cbasn1.SEQUENCE) || !attr.ReadASN1ObjectIdentifier(&oid) || !attr.ReadASN1(&set, cbasn1.SET) || !attr.Empty() {
			return bad("a malformed attribute")
		}
		if !oid.Equal(OIDRelatedCertRequest) {
			continue
		}
		if value != nil {
			return bad("two")
		}
		if !set.ReadASN1Element(&value, cbasn1.SEQUENCE) || !set.Empty() {
			return bad("one without a single value")
		}
	}
	if value == nil {
		return nil, nil
	}
	return ParseRelatedCertRequest(value)
}
