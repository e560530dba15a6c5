package centre

import (
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"wardgate/internal/certs"
)

var (
	oidECPublicKey = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidSignedData  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidData        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}

	curves = []struct {
		oid   asn1.ObjectIdentifier
		curve elliptic.Curve
	}{
		{asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}, elliptic.P256()},
		{asn1.ObjectIdentifier{1, 3, 132, 0, 34}, elliptic.P384()},
		{asn1.ObjectIdentifier{1, 3, 132, 0, 35}, elliptic.P521()},
	}
)

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
