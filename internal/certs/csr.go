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
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// CSR is what a certification request asks for. crypto/x509 cannot write attributes of arbitrary
// syntax, so the request is put together here (RFC 2986).
type CSR struct {
	Subject pkix.Name
	// RawSubject, when not nil, is the DER of the subject, and Subject is not looked at: a renewal
	// repeats the certificate's, octet by octet (RFC 7030, section 4.2.2).
	RawSubject []byte
	DNSNames   []string // dNSNames in the requested subjectAltName
	// Challenge is challengePassword (RFC 2985, section 5.4.1), in which the channel binding travels
	// (RFC 7030, section 3.5), or empty. Base64 fits its PrintableString.
	Challenge string
	// Related is the value of relatedCertRequest from NewRelatedCertRequest, or nil.
	Related []byte
}

const (
	// MaxChallenge bounds challengePassword in octets (RFC 7030, section 3.5).
	MaxChallenge = 255

	base64Alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
)

// Create returns the request in DER, signed by key.
func (c CSR) Create(rand io.Reader, key crypto.Signer) ([]byte, error) {
	alg, err := signatureFor(key.Public())
	if err != nil {
		return nil, err
	}
	subject := c.RawSubject
	if subject == nil {
		if subject, err = asn1.Marshal(c.Subject.ToRDNSequence()); err != nil {
			return nil, fmt.Errorf("subject of the request: %w", err)
		}
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
	if c.Challenge != "" {
		if len(c.Challenge) > MaxChallenge || strings.Trim(c.Challenge, base64Alphabet) != "" {
			return nil, fmt.Errorf("challengePassword of the request: expected at most %d characters of base64, got %s", MaxChallenge, Quote(c.Challenge))
		}
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.PrintableString, func(b *cryptobyte.Builder) { b.AddBytes([]byte(c.Challenge)) })
		value, err := b.Bytes()
		if err != nil {
			return nil, err
		}
		if err := add(OIDChallengePassword, value); err != nil {
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
	value, fault := attributeOf(csr, OIDRelatedCertRequest)
	if fault != "" {
		return bad(fault)
	}
	if value == nil {
		return nil, nil
	}
	if !value.PeekASN1Tag(cbasn1.SEQUENCE) {
		return bad("one without a single value")
	}
	return ParseRelatedCertRequest(value)
}

// ChallengeOf returns the challengePassword of a request, and whether there is one. Two of them, or
// one that is no text of 1 to MaxChallenge octets, are an *Error of class Malformed.
func ChallengeOf(csr *x509.CertificateRequest) (string, bool, error) {
	bad := func(got string) (string, bool, error) {
		return "", false, &Error{Class: Malformed, Expected: fmt.Sprintf("at most one challengePassword with one text of 1 to %d octets", MaxChallenge), Got: got, Do: "make the request again"}
	}
	value, fault := attributeOf(csr, OIDChallengePassword)
	if fault != "" {
		return bad(fault)
	}
	if value == nil {
		return "", false, nil
	}
	var text cryptobyte.String
	var tag cbasn1.Tag
	if !value.ReadAnyASN1(&text, &tag) {
		return bad("one without a single value")
	}
	// DirectoryString, of which base64 fits the first two; IA5String is what some tools write.
	if tag != cbasn1.PrintableString && tag != cbasn1.UTF8String && tag != cbasn1.IA5String {
		return bad("one of another type than PrintableString or UTF8String")
	}
	if len(text) == 0 || len(text) > MaxChallenge || !utf8.Valid(text) {
		return bad("one that is empty, too long or no text")
	}
	return string(text), true, nil
}

// attributeOf returns the one value of an attribute of a request, with its tag; nil: there is no such
// attribute. fault says what is wrong with the request: crypto/x509 looks at few of its attributes.
func attributeOf(csr *x509.CertificateRequest, want asn1.ObjectIdentifier) (value cryptobyte.String, fault string) {
	s := cryptobyte.String(csr.RawTBSCertificateRequest)
	var info, attrs cryptobyte.String
	var found bool
	if !s.ReadASN1(&info, cbasn1.SEQUENCE) || !info.SkipASN1(cbasn1.INTEGER) || !info.SkipASN1(cbasn1.SEQUENCE) || !info.SkipASN1(cbasn1.SEQUENCE) ||
		!info.ReadOptionalASN1(&attrs, &found, cbasn1.Tag(0).ContextSpecific().Constructed()) {
		return nil, "a request that is not as RFC 2986 says"
	}
	for !attrs.Empty() {
		var attr, set cryptobyte.String
		var oid asn1.ObjectIdentifier
		var tag cbasn1.Tag
		if !attrs.ReadASN1(&attr, cbasn1.SEQUENCE) || !attr.ReadASN1ObjectIdentifier(&oid) || !attr.ReadASN1(&set, cbasn1.SET) || !attr.Empty() {
			return nil, "a malformed attribute"
		}
		if !oid.Equal(want) {
			continue
		}
		if value != nil {
			return nil, "two"
		}
		if !set.ReadAnyASN1Element(&value, &tag) || !set.Empty() {
			return nil, "one without a single value"
		}
	}
	return value, ""
}
