package certs

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/crypto/ocsp"
)

// Bounds on OCSP responses (RFC 6960).
const (
	MaxOCSPBytes     = 16 << 10 // DER of one response, octets
	MaxOCSPResponses = 8        // looked at for one chain
	maxOCSPAge       = time.Hour
	maxOCSPAhead     = 5 * time.Minute // what a responder's clock may be ahead
)

// ocspData is ResponseData (RFC 6960, section 4.2.1), as far as package ocsp does not show it.
type ocspData struct {
	Version     int `asn1:"optional,default:0,explicit,tag:0"`
	ResponderID asn1.RawValue
	ProducedAt  time.Time `asn1:"generalized"`
	Responses   []ocspSingle
	Extensions  []pkix.Extension `asn1:"optional,explicit,tag:1"`
}

type ocspSingle struct {
	CertID     ocspCertID
	Good       asn1.Flag        `asn1:"tag:0,optional"`
	Revoked    ocspRevokedInfo  `asn1:"tag:1,optional"`
	Unknown    asn1.Flag        `asn1:"tag:2,optional"`
	ThisUpdate time.Time        `asn1:"generalized"`
	NextUpdate time.Time        `asn1:"generalized,explicit,tag:0,optional"`
	Extensions []pkix.Extension `asn1:"explicit,tag:1,optional"`
}

type ocspRevokedInfo struct {
	RevocationTime time.Time       `asn1:"generalized"`
	Reason         asn1.Enumerated `asn1:"explicit,tag:0,optional"`
}

type ocspCertID struct {
	Hash     pkix.AlgorithmIdentifier
	NameHash []byte
	KeyHash  []byte
	Serial   *big.Int
}

// OCSP is a response about one certificate whose signature and responder were judged.
type OCSP struct {
	Good       bool
	Revoked    bool // neither: the responder does not know the certificate
	Reason     int  // of Revoked, CRLReason
	RevokedAt  time.Time
	ThisUpdate time.Time
	NextUpdate time.Time // zero: the responder always has news
}

// CheckOCSP judges an OCSP response (DER) about cert, which issuer has issued: the certificate that it is
// about by name and key of the issuer (RFC 6960, section 3.2), the signature, the responder, which is
// the issuer itself or one that the issuer names by id-kp-OCSPSigning (section 4.2.2.2), and that it is
// current at when. Errors are of class CRLMissing, CRLExpired or WeakKey; none of them says that the
// certificate is bad.
func CheckOCSP(der []byte, cert, issuer *x509.Certificate, when time.Time) (*OCSP, error) {
	bad := func(class Class, expected, got string, err error) error {
		return &Error{Class: class, Subject: SubjectOf(cert), Expected: expected, Got: got, Do: "ask the CA to look at its OCSP responder", Err: err}
	}
	if len(der) > MaxOCSPBytes {
		return nil, bad(CRLMissing, fmt.Sprintf("an OCSP response of at most %d octets", MaxOCSPBytes), fmt.Sprint(len(der)), nil)
	}
	// The library checks the signature by issuer, or by a certificate inside that issuer has signed; by that
	// first, so that its key, which anybody may have put there, is bounded before.
	if err := boundResponder(der); err != nil {
		return nil, err
	}
	r, err := ocsp.ParseResponseForCert(der, cert, issuer)
	if err != nil {
		return nil, bad(CRLMissing, "an OCSP response about this certificate, signed by its issuer or whom that names", Quote(err.Error()), err)
	}
	if !strongSignature(r.SignatureAlgorithm) {
		return nil, bad(WeakKey, "an OCSP response signed with SHA-2 or Ed25519", Quote(r.SignatureAlgorithm.String()), nil)
	}
	if err := aboutThis(r, cert, issuer); err != nil {
		return nil, bad(CRLMissing, "an OCSP response about this certificate", err.Error(), nil)
	}
	if c := r.Certificate; c != nil && !bytes.Equal(c.Raw, issuer.Raw) {
		if err := ocspResponder(c, issuer, when); err != nil {
			return nil, bad(CRLMissing, "an OCSP responder that the issuer names", err.Error(), err)
		}
	}
	stale := func(got string) error {
		return bad(CRLExpired, "an OCSP response that is current at "+stamp(when), got, nil)
	}
	switch {
	case when.Add(maxOCSPAhead).Before(r.ThisUpdate):
		return nil, stale("one that begins on " + stamp(r.ThisUpdate))
	case !r.NextUpdate.IsZero() && when.After(r.NextUpdate):
		return nil, stale("one that ended on " + stamp(r.NextUpdate))
	case r.NextUpdate.IsZero() && when.Sub(r.ThisUpdate) > maxOCSPAge:
		return nil, stale("one of " + stamp(r.ThisUpdate) + " that does not say how long it holds")
	}
	return &OCSP{
		Good: r.Status == ocsp.Good, Revoked: r.Status == ocsp.Revoked, Reason: r.RevocationReason, RevokedAt: r.RevokedAt,
		ThisUpdate: r.ThisUpdate, NextUpdate: r.NextUpdate,
	}, nil
}

// boundResponder judges the key of the certificate by which the library verifies a response, where one is
// inside. What it cannot read is left to the library, which refuses it.
func boundResponder(der []byte) error {
	var response struct {
		Status asn1.Enumerated
		Bytes  struct {
			Type  asn1.ObjectIdentifier
			Basic []byte
		} `asn1:"explicit,tag:0,optional"`
	}
	if _, err := asn1.Unmarshal(der, &response); err != nil {
		return nil //nolint:nilerr // see above
	}
	var basic struct {
		Data         asn1.RawValue
		Algorithm    pkix.AlgorithmIdentifier
		Signature    asn1.BitString
		Certificates []asn1.RawValue `asn1:"explicit,tag:0,optional"`
	}
	if _, err := asn1.Unmarshal(response.Bytes.Basic, &basic); err != nil || len(basic.Certificates) == 0 {
		return nil //nolint:nilerr // see above
	}
	c, err := x509.ParseCertificate(basic.Certificates[0].FullBytes)
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	return at(CheckPublicKey(c.PublicKey), c)
}

// aboutThis compares the CertID that names cert's serial number with cert's issuer. The library looks at
// the serial number alone.
func aboutThis(r *ocsp.Response, cert, issuer *x509.Certificate) error {
	var data ocspData
	if rest, err := asn1.Unmarshal(r.TBSResponseData, &data); err != nil || len(rest) > 0 {
		return fmt.Errorf("one whose data cannot be read: %w", err)
	}
	var key struct {
		Algorithm pkix.AlgorithmIdentifier
		Public    asn1.BitString
	}
	if _, err := asn1.Unmarshal(issuer.RawSubjectPublicKeyInfo, &key); err != nil {
		return fmt.Errorf("the issuer's key: %w", err)
	}
	for i := range data.Responses {
		id := &data.Responses[i].CertID
		if id.Serial == nil || id.Serial.Cmp(cert.SerialNumber) != 0 {
			continue
		}
		// The library takes the first one with the serial number, so that one must be it.
		h := r.IssuerHash
		if h == 0 {
			h = crypto.SHA1 // no matter of security here: the signature is the issuer's
		}
		if !h.Available() {
			return fmt.Errorf("one with the hash %v", h)
		}
		sum := func(b []byte) []byte {
			x := h.New()
			x.Write(b)
			return x.Sum(nil)
		}
		if !bytes.Equal(id.NameHash, sum(issuer.RawSubject)) || !bytes.Equal(id.KeyHash, sum(key.Public.RightAlign())) {
			return fmt.Errorf("one about a certificate of another CA with the same serial number")
		}
		return nil
	}
	return fmt.Errorf("one about others")
}

// ocspResponder judges the certificate of a responder that is not the issuer itself. Its signature by
// the issuer holds.
func ocspResponder(c, issuer *x509.Certificate, when time.Time) error {
	named := false
	for _, u := range c.ExtKeyUsage {
		named = named || u == x509.ExtKeyUsageOCSPSigning
	}
	switch {
	case !named:
		return fmt.Errorf("the certificate of %s without id-kp-OCSPSigning", SubjectOf(c))
	case !bytes.Equal(c.RawIssuer, issuer.RawSubject):
		return fmt.Errorf("a certificate of %s by another issuer", SubjectOf(c))
	case when.Before(c.NotBefore) || when.After(c.NotAfter):
		return fmt.Errorf("the certificate of %s, which is not valid at %s", SubjectOf(c), stamp(when))
	case hasExtension(c, oidExtKeyUsage) && c.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return fmt.Errorf("the certificate of %s, whose key may not sign", SubjectOf(c))
	case !strongSignature(c.SignatureAlgorithm):
		return fmt.Errorf("the certificate of %s with a weak signature (%v)", SubjectOf(c), c.SignatureAlgorithm)
	}
	return CheckPublicKey(c.PublicKey)
}

// revokedByOCSP judges c by the responses at hand. known tells that one of them says that it is good, until
// next. A response that cannot be used is none: whoever gave it may be an attacker.
func revokedByOCSP(c, issuer *x509.Certificate, responses [][]byte, when time.Time) (known bool, next time.Time, err error) {
	for i, der := range responses {
		if i == MaxOCSPResponses {
			break
		}
		o, bad := CheckOCSP(der, c, issuer, when)
		if bad != nil {
			continue
		}
		if o.Revoked {
			return false, time.Time{}, &Error{
				Class: Revoked, Subject: SubjectOf(c), Expected: "a certificate that its CA stands by",
				Got: "revoked on " + stamp(o.RevokedAt) + " (" + reasonName(o.Reason) + "), says its OCSP responder", Do: "the holder needs another certificate",
			}
		}
		if o.Good {
			until := o.NextUpdate
			if until.IsZero() {
				until = o.ThisUpdate.Add(maxOCSPAge)
			}
			if !known || until.After(next) {
				known, next = true, until
			}
		}
	}
	return known, next, nil
}
