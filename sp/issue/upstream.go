package issue

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"io"
	"slices"
	"time"

	"wardgate/internal/certs"
)

// checkPath walks from the issuing CA over Between to the root. Path lengths are RFC 5280's, section
// 4.2.1.9: how many CAs may lie below, the leaf not counted.
func (ca *CA) checkPath() error {
	left := slices.Clone(ca.Between)
	at, below := ca.Cert, 1
	for !signedBy(at, ca.Root) {
		i := slices.IndexFunc(left, func(c *x509.Certificate) bool { return signedBy(at, c) })
		if i < 0 {
			return fmt.Errorf("expected %s signed by %s, got one that is not; give the root that signed it, and every CA between them", certs.SubjectOf(at), certs.SubjectOf(ca.Root))
		}
		at = left[i]
		if err := roomBelow(at, below); err != nil {
			return err
		}
		left = slices.Delete(left, i, i+1)
		below++
	}
	if len(left) > 0 {
		return fmt.Errorf("expected only CAs between %s and %s, got %s, which is none", certs.SubjectOf(ca.Cert), certs.SubjectOf(ca.Root), certs.SubjectOf(left[0]))
	}
	return roomBelow(ca.Root, below)
}

func signedBy(c, issuer *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, issuer.RawSubject) && c.CheckSignatureFrom(issuer) == nil
}

// roomBelow: crypto/x509 has -1 for a pathLenConstraint that is absent, and 0 with MaxPathLenZero unset
// where it was never parsed.
func roomBelow(c *x509.Certificate, below int) error {
	if limited := c.MaxPathLen > 0 || c.MaxPathLen == 0 && c.MaxPathLenZero; limited && c.MaxPathLen < below {
		return fmt.Errorf("expected a pathLenConstraint of at least %d in %s, got %d; have it issued so", below, certs.SubjectOf(c), c.MaxPathLen)
	}
	return nil
}

// FromUpstream makes a CA of what an upstream issuer gave: the issuing CA's certificate, found by its
// key, and those between it and one of the anchors. What is not needed for the path is left out.
func FromUpstream(given, anchors []*x509.Certificate, key crypto.Signer, now time.Time) (*CA, error) {
	i := slices.IndexFunc(given, func(c *x509.Certificate) bool { return certs.SamePublicKey(c.PublicKey, key.Public()) })
	if i < 0 {
		return nil, fmt.Errorf("%w: expected a certificate for the key that the request was made with, got none among %d; give what was issued for this very request", ErrCA, len(given))
	}
	ca := &CA{Cert: given[i], Key: key}
	at := ca.Cert
	for len(ca.Between) <= maxBetween {
		if j := slices.IndexFunc(anchors, func(c *x509.Certificate) bool { return signedBy(at, c) }); j >= 0 {
			ca.Root = anchors[j]
			return ca, ca.Check(now)
		}
		j := slices.IndexFunc(given, func(c *x509.Certificate) bool {
			return !c.Equal(at) && !slices.ContainsFunc(ca.Between, c.Equal) && signedBy(at, c)
		})
		if j < 0 {
			break
		}
		at = given[j]
		ca.Between = append(ca.Between, at)
	}
	return nil, fmt.Errorf("%w: expected a path from %s to one of the %d anchors, got one that ends at %s, issued by %s; give the CAs in between, and as anchor the root that was agreed upon",
		ErrCA, certs.SubjectOf(ca.Cert), len(anchors), certs.SubjectOf(at), certs.Quote(at.Issuer.String()))
}

// TryOut signs a certificate as devices of the domain will have it, judges it as their peers will, and
// throws it away: purposes, name constraints and path are then known to be right before the CA is put to
// use, and so is the key.
func (ca *CA) TryOut(rand io.Reader, domain string, now time.Time) error {
	device, err := ecdsa.GenerateKey(elliptic.P256(), rand)
	if err != nil {
		return err
	}
	serial, err := newSerial(rand)
	if err != nil {
		return err
	}
	der := []byte("no device: this certificate leaves nobody's hands")
	related, err := certs.NewRelatedCertificate(crypto.SHA256, der)
	if err != nil {
		return err
	}
	name := "try-out"
	if domain != "" {
		name += "." + domain
	}
	leaf, err := sign(rand, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: commonName(name)}, DNSNames: []string{name},
		NotBefore: now, NotAfter: now.Add(time.Minute), BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, UnknownExtKeyUsage: []asn1.ObjectIdentifier{certs.EKUIPsecIKE},
		ExtraExtensions: []pkix.Extension{related},
	}, ca.Cert, device.Public(), ca.Key)
	if err != nil {
		return err
	}
	opt := certs.Options{Leaf: leaf.Raw, Anchors: []*x509.Certificate{ca.Root}, At: now, Role: "service", RelatedTo: der}
	for _, c := range append([]*x509.Certificate{ca.Cert}, ca.Between...) {
		opt.Intermediates = append(opt.Intermediates, c.Raw)
	}
	for _, opt.EKU = range []asn1.ObjectIdentifier{certs.EKUIPsecIKE, certs.EKUClientAuth} {
		if _, err := certs.VerifyChain(opt); err != nil {
			return fmt.Errorf("%w: expected peers to accept a certificate for %s by it, got: %w", ErrCA, name, err)
		}
	}
	return nil
}

// Above picks from a pool what leads upwards from a certificate, by key identifiers: the nearest first,
// at most what internal/certs looks at.
func Above(leaf *x509.Certificate, pool []*x509.Certificate) []*x509.Certificate {
	var out []*x509.Certificate
	for at, n := leaf, 0; ; n++ {
		for _, c := range pool {
			if len(out) < certs.MaxIntermediates && len(at.AuthorityKeyId) > 0 && bytes.Equal(c.SubjectKeyId, at.AuthorityKeyId) && !slices.ContainsFunc(out, c.Equal) {
				out = append(out, c)
			}
		}
		if n == len(out) {
			return out
		}
		at = out[n]
	}
}
