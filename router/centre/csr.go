package centre

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"wardgate/internal/certs"
)

var (
	oidChallengePassword = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
	oidExtensionRequest  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	oidSubjectAltName    = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidECPublicKey       = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidSignedData        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidData              = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}

	oidECDSAWithSHA256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	oidECDSAWithSHA384 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}
	oidECDSAWithSHA512 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}
	oidRSAWithSHA256   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
	oidEd25519         = asn1.ObjectIdentifier{1, 3, 101, 112}

	curves = []struct {
		oid   asn1.ObjectIdentifier
		curve elliptic.Curve
	}{
		{asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}, elliptic.P256()},
		{asn1.ObjectIdentifier{1, 3, 132, 0, 34}, elliptic.P384()},
		{asn1.ObjectIdentifier{1, 3, 132, 0, 35}, elliptic.P521()},
	}
)

// request is a certification request (RFC 2986). certs.CSR knows no challengePassword, in which the
// channel binding travels.
type request struct {
	subject   []byte   // DER Name; nil: empty, the registry knows it
	names     []string // dNSNames; nil: the registry's
	challenge string   // the channel binding: base64, which fits a PrintableString
	related   []byte   // relatedCertRequest, DER
}

// create returns the request in DER, signed by key.
func (r request) create(rand io.Reader, key crypto.Signer) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("public key of the request: %w", err)
	}
	attributes := r.attributes()
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		if r.subject != nil {
			b.AddBytes(r.subject)
		} else {
			b.AddASN1(cbasn1.SEQUENCE, func(*cryptobyte.Builder) {})
		}
		b.AddBytes(spki)
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			for _, a := range attributes {
				b.AddBytes(a)
			}
		})
	})
	info, err := b.Bytes()
	if err != nil {
		return nil, err
	}
	oid, sig, err := sign(rand, key, info)
	if err != nil {
		return nil, fmt.Errorf("signing the request: %w", err)
	}
	var out cryptobyte.Builder
	out.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(info)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			if oid.Equal(oidRSAWithSHA256) { // RFC 4055, section 5: NULL must be there
				b.AddASN1NULL()
			}
		})
		b.AddASN1BitString(sig)
	})
	return out.Bytes()
}

func (r request) attributes() [][]byte {
	attribute := func(oid asn1.ObjectIdentifier, value func(*cryptobyte.Builder)) []byte {
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			b.AddASN1(cbasn1.SET, value)
		})
		return b.BytesOrPanic() // constant OIDs and lengths that a builder holds: nothing can fail
	}
	list := [][]byte{
		attribute(oidChallengePassword, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.PrintableString, func(b *cryptobyte.Builder) { b.AddBytes([]byte(r.challenge)) })
		}),
		attribute(certs.OIDRelatedCertRequest, func(b *cryptobyte.Builder) { b.AddBytes(r.related) }),
	}
	if len(r.names) > 0 {
		list = append(list, attribute(oidExtensionRequest, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidSubjectAltName)
					b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) {
						b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
							for _, n := range r.names {
								b.AddASN1(cbasn1.Tag(2).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(n)) })
							}
						})
					})
				})
			})
		}))
	}
	slices.SortFunc(list, bytes.Compare) // DER: the members of a SET OF are in order
	return list
}

// sign signs with the algorithm that goes with the key (docs/pki.md).
func sign(rand io.Reader, key crypto.Signer, msg []byte) (asn1.ObjectIdentifier, []byte, error) {
	oid, hash := oidRSAWithSHA256, crypto.SHA256
	switch pub := key.Public().(type) {
	case *ecdsa.PublicKey:
		switch pub.Curve {
		case elliptic.P256():
			oid = oidECDSAWithSHA256
		case elliptic.P384():
			oid, hash = oidECDSAWithSHA384, crypto.SHA384
		case elliptic.P521():
			oid, hash = oidECDSAWithSHA512, crypto.SHA512
		default:
			return nil, nil, errors.New("expected a key on P-256, P-384 or P-521, got another curve")
		}
	case *rsa.PublicKey:
	case ed25519.PublicKey:
		sig, err := key.Sign(rand, msg, crypto.Hash(0))
		return oidEd25519, sig, err
	default:
		return nil, nil, fmt.Errorf("expected an ECDSA, RSA or Ed25519 key, got %T", pub)
	}
	h := hash.New()
	h.Write(msg)
	sig, err := key.Sign(rand, h.Sum(nil), hash)
	return oid, sig, err
}

// maxCertsOnly bounds the certificates in an answer: eight generations of a service's CA with their
// cross-certificates.
const maxCertsOnly = 64

// parseCertsOnly takes a certs-only answer apart (RFC 7030, section 4.1.3; RFC 5272, section 4.1):
// a SignedData of RFC 5652 without content and signatures, strict DER.
func parseCertsOnly(der []byte) ([]*x509.Certificate, error) {
	bad := func(got string) ([]*x509.Certificate, error) {
		return nil, fail(Malformed, "a certs-only answer (RFC 7030, section 4.1.3) in DER", got, "the centre is not one that this device can talk to, or something between changes its answers", nil)
	}
	s := cryptobyte.String(der)
	var info, wrap, signed, encap, list, signers cryptobyte.String
	var oid, kind asn1.ObjectIdentifier
	if !s.ReadASN1(&info, cbasn1.SEQUENCE) || !s.Empty() || !info.ReadASN1ObjectIdentifier(&oid) || !oid.Equal(oidSignedData) ||
		!info.ReadASN1(&wrap, cbasn1.Tag(0).ContextSpecific().Constructed()) || !info.Empty() ||
		!wrap.ReadASN1(&signed, cbasn1.SEQUENCE) || !wrap.Empty() {
		return bad("something else than one SignedData")
	}
	if !signed.SkipASN1(cbasn1.INTEGER) || !signed.SkipASN1(cbasn1.SET) || !signed.ReadASN1(&encap, cbasn1.SEQUENCE) ||
		!encap.ReadASN1ObjectIdentifier(&kind) || !kind.Equal(oidData) || !encap.Empty() {
		return bad("a SignedData with content")
	}
	if !signed.ReadASN1(&list, cbasn1.Tag(0).ContextSpecific().Constructed()) ||
		!signed.SkipOptionalASN1(cbasn1.Tag(1).ContextSpecific().Constructed()) ||
		!signed.ReadASN1(&signers, cbasn1.SET) || !signers.Empty() || !signed.Empty() {
		return bad("a SignedData without certificates, or with signatures")
	}
	var out []*x509.Certificate
	for !list.Empty() {
		var one cryptobyte.String
		if !list.ReadASN1Element(&one, cbasn1.SEQUENCE) {
			return bad("something among the certificates that is none")
		}
		if len(out) == maxCertsOnly {
			return bad(fmt.Sprintf("more than %d certificates", maxCertsOnly))
		}
		c, err := certs.ParseCertificate(one)
		if err != nil {
			return bad(err.Error())
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return bad("no certificate")
	}
	return out, nil
}

// parseAttrs returns the curve that csrattrs asks for (RFC 7030, section 4.5.2; RFC 8951, section
// 4), or nil. What it does not know is left aside: the rest of our requests is fixed.
func parseAttrs(der []byte) (elliptic.Curve, error) {
	bad := fail(Malformed, "CsrAttrs (RFC 7030, section 4.5.2) in DER", "something else", "the centre is not one that this device can talk to", nil)
	s := cryptobyte.String(der)
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) || !s.Empty() {
		return nil, bad
	}
	for !list.Empty() {
		var one, set cryptobyte.String
		var tag cbasn1.Tag
		var oid, value asn1.ObjectIdentifier
		if !list.ReadAnyASN1(&one, &tag) {
			return nil, bad
		}
		if tag != cbasn1.SEQUENCE {
			continue
		}
		if !one.ReadASN1ObjectIdentifier(&oid) || !one.ReadASN1(&set, cbasn1.SET) || !one.Empty() {
			return nil, bad
		}
		if !oid.Equal(oidECPublicKey) {
			continue
		}
		if !set.ReadASN1ObjectIdentifier(&value) {
			return nil, bad
		}
		for _, c := range curves {
			if c.oid.Equal(value) {
				return c.curve, nil
			}
		}
		return nil, fail(Refused, "a service whose keys are on P-256, P-384 or P-521", value.String(), "ask the SP", nil)
	}
	return nil, nil
}
