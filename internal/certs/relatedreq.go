package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"io"
	"math/big"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// RelatedCertRequest is the value of the CSR attribute relatedCertRequest (RFC 9763, section 3.1):
// the proof that whoever asks for a service certificate has the key of the device certificate.
type RelatedCertRequest struct {
	Issuer    []byte    // DER Name of the related certificate's issuer
	Serial    *big.Int  // its serial number
	Time      time.Time // when the proof was made, whole seconds
	Locations []string  // URIs where the related certificate can be had
	Signature []byte    // by the related certificate's key over certID and requestTime

	signed []byte // the DER of certID followed by that of requestTime
}

const (
	maxLocations     = 4
	maxLocationBytes = MaxCertificateBytes*4/3 + 128

	// dataURI carries the certificate itself, so that a request is complete in one file.
	dataURI = "data:application/pkix-cert;base64,"

	// MaxProofAge is how old a relatedCertRequest may be when the CA looks at it. RFC 9763,
	// section 3.2 leaves the limit to the CA; requests here may travel as files.
	MaxProofAge = 24 * time.Hour
	// MaxProofAhead is how far the device's clock may be ahead of the CA's.
	MaxProofAhead = 5 * time.Minute
)

// NewRelatedCertRequest makes the attribute's value (DER) with the device's key. The device
// certificate itself travels in locationInfo as a data URI. now is rounded down to a second.
func NewRelatedCertRequest(rand io.Reader, device *x509.Certificate, key crypto.Signer, now time.Time) ([]byte, error) {
	if !SamePublicKey(device.PublicKey, key.Public()) {
		return nil, &Error{Class: ProofOfDevice, Subject: SubjectOf(device), Expected: "the device certificate's own key", Got: "another key", Do: "use the device certificate and key of the same token"}
	}
	signed, err := proofInput(device.RawIssuer, device.SerialNumber, now.Unix())
	if err != nil {
		return nil, err
	}
	alg, err := signatureFor(key.Public())
	if err != nil {
		return nil, at(err, device)
	}
	sig, err := alg.sign(rand, key, signed)
	if err != nil {
		return nil, fmt.Errorf("signing relatedCertRequest with the device key: %w", err)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(signed)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.IA5String, func(b *cryptobyte.Builder) {
				b.AddBytes([]byte(dataURI + base64.StdEncoding.EncodeToString(device.Raw)))
			})
		})
		b.AddASN1BitString(sig)
	})
	return b.Bytes()
}

// proofInput is what is signed: the DER of certID followed by the DER of requestTime (RFC 9763,
// section 3.1; BinaryTime is an INTEGER of seconds since 1970, RFC 6019).
func proofInput(issuer []byte, serial *big.Int, unix int64) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(issuer)
		b.AddASN1BigInt(serial)
	})
	b.AddASN1Int64(unix)
	return b.Bytes()
}

// ParseRelatedCertRequest parses the attribute's value (DER, strict). An error is an *Error of
// class ProofOfDevice. The signature is not checked here: see [RelatedCertRequest.Check].
func ParseRelatedCertRequest(der []byte) (*RelatedCertRequest, error) {
	bad := func(got string) (*RelatedCertRequest, error) {
		return nil, &Error{Class: ProofOfDevice, Expected: "a relatedCertRequest attribute (RFC 9763)", Got: got, Do: "make the request again with `wardgate token csr`"}
	}
	s := cryptobyte.String(der)
	var seq, id, name, rest cryptobyte.String
	if len(der) > MaxCSRBytes*2 || !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() {
		return bad("something that is not one SEQUENCE")
	}
	r := &RelatedCertRequest{Serial: new(big.Int)}
	whole := seq
	if !seq.ReadASN1(&id, cbasn1.SEQUENCE) || !id.ReadASN1Element(&name, cbasn1.SEQUENCE) || !id.ReadASN1Integer(r.Serial) || !id.Empty() {
		return bad("no issuer and serial number")
	}
	if _, ok := parseDN(name); !ok {
		return bad("an issuer that is no name")
	}
	r.Issuer = name
	var unix int64
	if !seq.ReadASN1Integer(&unix) || unix < 0 || unix > 1<<40 {
		return bad("no request time, or one out of range")
	}
	r.Time = time.Unix(unix, 0).UTC()
	r.signed = whole[:len(whole)-len(seq)]
	if !seq.ReadASN1(&rest, cbasn1.SEQUENCE) {
		return bad("no locations")
	}
	for !rest.Empty() {
		var uri cryptobyte.String
		if !rest.ReadASN1(&uri, cbasn1.IA5String) || len(uri) > maxLocationBytes || len(r.Locations) == maxLocations {
			return bad("locations that are too many, too long or no IA5String")
		}
		for _, c := range uri {
			if c <= ' ' || c > '~' {
				return bad("a location that is no URI")
			}
		}
		r.Locations = append(r.Locations, string(uri))
	}
	if len(r.Locations) == 0 {
		return bad("no location")
	}
	if !seq.ReadASN1BitStringAsBytes(&r.Signature) || !seq.Empty() || len(r.Signature) == 0 {
		return bad("no signature, or something behind it")
	}
	return r, nil
}

// Certificate returns the related certificate where a location carries it (a data URI). Nothing
// is fetched. It proves nothing by itself: judge it with VerifyChain, then call Check.
func (r *RelatedCertRequest) Certificate() (*x509.Certificate, error) {
	for _, l := range r.Locations {
		if b64, ok := strings.CutPrefix(l, dataURI); ok {
			der, err := base64.StdEncoding.DecodeString(b64)
			if err != nil {
				return nil, &Error{Class: ProofOfDevice, Expected: "a certificate in base64", Got: parseText(err), Do: "make the request again", Err: err}
			}
			return ParseCertificate(der)
		}
	}
	return nil, &Error{Class: ProofOfDevice, Expected: "the device certificate in the request", Got: "only addresses, which are not fetched", Do: "give the device certificate beside the request"}
}

// Check returns nil when r names device, is fresh at now (MaxProofAge, MaxProofAhead) and is
// signed by device's key; otherwise an *Error of class ProofOfDevice. The caller judges the
// device certificate itself (RFC 9763, section 3.2).
func (r *RelatedCertRequest) Check(device *x509.Certificate, now time.Time) error {
	fail := func(expected, got, do string, err error) error {
		return &Error{Class: ProofOfDevice, Subject: SubjectOf(device), Expected: expected, Got: got, Do: do, Err: err}
	}
	const again = "make the request again on the device"
	if !sameDN(r.Issuer, device.RawIssuer) || r.Serial.Cmp(device.SerialNumber) != 0 {
		name, _ := dnString(r.Issuer)
		return fail(fmt.Sprintf("a request that names this device certificate (serial number %x)", device.SerialNumber),
			fmt.Sprintf("serial number %x by %s", r.Serial, Quote(name)), "give the device certificate that the request was made with", nil)
	}
	switch age := now.Sub(r.Time); {
	case age > MaxProofAge:
		return fail("a request made within "+MaxProofAge.String(), "one made on "+stamp(r.Time), again, nil)
	case age < -MaxProofAhead:
		return fail("a request made before "+stamp(now), "one made on "+stamp(r.Time), "set the device's clock, then "+again, nil)
	}
	alg, err := signatureFor(device.PublicKey)
	if err != nil {
		return at(err, device)
	}
	if err := device.CheckSignature(alg.x509, r.signed, r.Signature); err != nil {
		return fail("a signature by the device key", "one that does not verify", again, err)
	}
	return nil
}

// signature is how a key signs requests: RFC 9763 takes the algorithm that belongs to the key.
type signature struct {
	oid  asn1.ObjectIdentifier
	null bool // the identifier has NULL parameters
	hash crypto.Hash
	x509 x509.SignatureAlgorithm
}

func signatureFor(pub crypto.PublicKey) (signature, error) {
	if err := CheckPublicKey(pub); err != nil {
		return signature{}, err
	}
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return signature{oidRSAWithSHA256, true, crypto.SHA256, x509.SHA256WithRSA}, nil
	case ed25519.PublicKey:
		return signature{oidEd25519, false, 0, x509.PureEd25519}, nil
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P384():
			return signature{oidECDSAWithSHA384, false, crypto.SHA384, x509.ECDSAWithSHA384}, nil
		case elliptic.P521():
			return signature{oidECDSAWithSHA512, false, crypto.SHA512, x509.ECDSAWithSHA512}, nil
		}
		return signature{oidECDSAWithSHA256, false, crypto.SHA256, x509.ECDSAWithSHA256}, nil
	}
	return signature{}, &Error{Class: WeakKey, Expected: "an RSA, ECDSA or Ed25519 key", Got: fmt.Sprintf("%T", pub), Do: "use a key of an allowed kind"}
}

func (s signature) sign(rand io.Reader, key crypto.Signer, msg []byte) ([]byte, error) {
	if s.hash != 0 {
		h := s.hash.New()
		h.Write(msg)
		msg = h.Sum(nil)
	}
	return key.Sign(rand, msg, s.hash)
}
