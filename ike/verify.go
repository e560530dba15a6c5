package ike

import (
	"crypto/x509"
	"errors"

	"wardgate/internal/certs"
)

// DefaultVerify judges a certificate by the profile of this product: a path to an anchor of the
// round, validity, extended key usage id-kp-ipsecIKE, revocation, the claimed identity (RFC
// 4945), and, where the round is bound to an earlier one, RelatedCertificate (RFC 9763).
func DefaultVerify(q CertQuery) error {
	_, err := VerifiedChain(q)
	return err
}

// VerifiedChain is DefaultVerify, and returns the path that was found, leaf first and anchor last.
func VerifiedChain(q CertQuery) ([]*x509.Certificate, error) {
	opt := certs.Options{
		Leaf: q.Leaf, Parsed: q.parsed, Intermediates: q.Intermediates, Anchors: q.Auth.Anchors, CRLs: q.Auth.CRLs,
		RequireCRL: q.Auth.RequireCRL, OCSP: q.OCSP, EKU: certs.EKUIPsecIKE, At: q.At, Role: q.Auth.Role,
		ID: &certs.ID{Type: certs.IDType(q.ID.Type), Data: []byte(q.ID.Data)},
	}
	if r := q.Auth.RelatedToRound; r >= 0 {
		if r >= len(q.Earlier) || q.Earlier[r] == nil {
			return nil, refused(CodeNotBound, q.Round, nil, "there is no certificate of round %d that this one could be bound to", r+1)
		}
		opt.RelatedTo = q.Earlier[r].Raw
	}
	v, err := certs.VerifyChain(opt)
	if err != nil {
		return nil, err
	}
	return v.Chain, nil
}

// VerdictCode returns the class of an error of Config.Verify.
func VerdictCode(err error) Code {
	if e, ok := errors.AsType[*RefusedError](err); ok {
		return e.Code
	}
	switch certs.ClassOf(err) {
	case certs.UnknownCA, certs.AnchorsMissing:
		return CodeUnknownCA
	case certs.Expired:
		return CodeExpired
	case certs.NotYetValid:
		return CodeNotYetValid
	case certs.Revoked:
		return CodeRevoked
	case certs.CRLMissing, certs.CRLExpired:
		return CodeNoCRL
	case certs.WrongEKU:
		return CodeWrongEKU
	case certs.NotBound:
		return CodeNotBound
	case certs.IDMismatch:
		return CodeIDMismatch
	default:
		return CodeBadCert
	}
}
