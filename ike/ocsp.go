package ike

import (
	"slices"

	"wardgate/ike/message"
	"wardgate/internal/certs"
)

// Stapled OCSP responses (RFC 4806): who asks for them with a CERTREQ of the encoding OCSP Content gets,
// beside a certificate, what the CA's responder said about it last. We ask always. What comes counts
// like what was fetched (certs.Options.OCSP), and never more: whether something has to come is
// RemoteAuth.RequireCRL's matter.

// ocspReq asks for OCSP responses. Section 3.1: no hashes, for the responders that we believe are the CA
// itself and those that it names.
func ocspReq() *message.CertReq { return &message.CertReq{Encoding: message.CertOCSP} }

// addCertReqs asks for certificates of the authorities, and for OCSP responses about them (section 4.1:
// in a payload of their own).
func addCertReqs(out *outgoing, anchors [][20]byte) {
	if req := certReq(anchors); req != nil {
		out.add(req, ocspReq())
	}
}

// staple returns the OCSP response that goes beside a certificate of ours, or nil.
func (a *LocalAuth) staple() []byte {
	if a.OCSP == nil || len(a.PSK) > 0 {
		return nil
	}
	if der := a.OCSP(); len(der) > 0 && len(der) <= certs.MaxOCSPBytes {
		return der
	}
	return nil
}

// ocspResponses returns the OCSP responses of a message, at most as many as are looked at.
func ocspResponses(list []*message.Cert) [][]byte {
	var out [][]byte
	for _, c := range list {
		if c.Encoding == message.CertOCSP && len(out) < certs.MaxOCSPResponses && len(c.Data) <= certs.MaxOCSPBytes {
			out = append(out, slices.Clone(c.Data))
		}
	}
	return out
}
