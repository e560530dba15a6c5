package issue

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"io"
	"math/big"
	"strings"
	"time"

	"wardgate/internal/certs"
)

const (
	day  = 24 * time.Hour
	year = 365 * day

	// Lives of the CAs (docs/pki.md leaves them to the SP).
	rootLife    = 20 * year
	issuingLife = 5 * year

	// maxCross bounds the cross-certificates that go with one CA.
	maxCross = 8
	// maxBetween bounds an upstream issuer's CAs: leaf, issuing CA, these, and the root are what
	// internal/certs takes for a chain.
	maxBetween = certs.MaxChain - 3
)

// CA is one generation of a service's CA: a root and the issuing CA below it. It is immutable but
// for [CA.AddRootCRL], which belongs to the set-up.
type CA struct {
	Root *x509.Certificate
	Cert *x509.Certificate // the issuing CA
	// Key is the issuing CA's. It is called from many goroutines, and brings its own time limit
	// where it can hang (a token).
	Key crypto.Signer

	// RootKey is nil where the root is offline: then the root signs lists and successors elsewhere.
	RootKey crypto.Signer

	// Cross are certificates that lead from this CA to the one before it and back, while both
	// are in use: see [CrossSign].
	Cross []*x509.Certificate

	// Between are an upstream issuer's CAs between Cert and Root, in any order; empty where the root
	// signed Cert itself.
	Between []*x509.Certificate

	// From is when it begins to issue: what lies between its making and this time is for the
	// anchors to become known. Zero: at once.
	From time.Time

	// RootCRL is the list of an offline root; with RootKey, lists are made here.
	RootCRL *x509.RevocationList
}

// CAOptions says how a CA is made.
type CAOptions struct {
	Service      string // the service's name
	Organization string // the SP; empty: none in the subject
	// Domain is the DNS domain below which names may be certified; it becomes a name constraint
	// of the issuing CA. Empty: no constraint.
	Domain string

	RootKey, Key crypto.Signer // nil: made in software, ECDSA on P-256

	NotBefore   time.Time
	RootLife    time.Duration // zero: 20 years
	IssuingLife time.Duration // zero: 5 years, and never longer than the root's
	CRLURL      string        // where the root's list can be had; empty: nowhere
	Rand        io.Reader
}

// NewCA makes a root and an issuing CA below it.
func NewCA(o CAOptions) (*CA, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	for _, k := range []*crypto.Signer{&o.RootKey, &o.Key} {
		if *k != nil {
			continue
		}
		made, err := ecdsa.GenerateKey(elliptic.P256(), o.Rand)
		if err != nil {
			return nil, fmt.Errorf("making a CA's key: %w", err)
		}
		*k = made
	}
	for _, k := range []crypto.Signer{o.RootKey, o.Key} {
		if err := certs.CheckPublicKey(k.Public()); err != nil {
			return nil, err
		}
	}
	if o.RootLife == 0 {
		o.RootLife = rootLife
	}
	if o.IssuingLife == 0 {
		o.IssuingLife = min(issuingLife, o.RootLife)
	}
	root, err := caTemplate(o.Rand, subject(o.Organization, o.Service, "Root CA"), o.NotBefore, o.RootLife, 1)
	if err != nil {
		return nil, err
	}
	ca := &CA{Key: o.Key, RootKey: o.RootKey}
	if ca.Root, err = sign(o.Rand, root, root, o.RootKey.Public(), o.RootKey); err != nil {
		return nil, err
	}
	below, err := caTemplate(o.Rand, subject(o.Organization, o.Service, "Issuing CA"), o.NotBefore, o.IssuingLife, 0)
	if err != nil {
		return nil, err
	}
	constrain(below, o.Domain)
	if o.CRLURL != "" {
		below.CRLDistributionPoints = []string{o.CRLURL}
	}
	if ca.Cert, err = sign(o.Rand, below, ca.Root, o.Key.Public(), o.RootKey); err != nil {
		return nil, err
	}
	return ca, nil
}

func (o *CAOptions) check() error {
	switch {
	case !ValidName(o.Service):
		return fmt.Errorf("name of the service: expected 1 to 63 letters, digits, '-', '_' and '.', not beginning with '-' or '.', got %s", certs.Quote(o.Service))
	case o.NotBefore.IsZero():
		return fmt.Errorf("%w: expected a time to begin at, got the zero time", ErrCA)
	case o.Rand == nil:
		return fmt.Errorf("%w: expected a source of randomness, got none", ErrCA)
	case o.IssuingLife < 0 || o.RootLife < 0 || (o.RootLife > 0 && o.IssuingLife > o.RootLife):
		return fmt.Errorf("%w: expected an issuing CA that lives no longer than its root, got %v and %v", ErrCA, o.IssuingLife, o.RootLife)
	case o.Domain != "" && !validDNS(o.Domain):
		return fmt.Errorf("domain of the service: expected a DNS name, got %s", certs.Quote(o.Domain))
	}
	return nil
}

// ValidName reports whether s can name a service: it becomes part of addresses, subjects, file
// names and a token's labels (docs/policy.md has the same rule).
func ValidName(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[0] == '.' {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

// validDNS reports whether s is a DNS name of letters, digits, '-' and '_', without wildcards.
func validDNS(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			switch c := label[i]; {
			case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
			default:
				return false
			}
		}
	}
	return true
}

// subject is the same for every generation of a CA, so that the certificates between old and new
// root are self-issued as RFC 4210, section 4.4 has them; the key identifiers tell them apart.
func subject(org, service, what string) pkix.Name {
	n := pkix.Name{CommonName: "Service " + service + " " + what}
	if len(n.CommonName) > 64 { // ub-common-name, RFC 5280, appendix A.1
		n.CommonName = service
	}
	if org != "" {
		n.Organization = []string{org}
	}
	return n
}

func caTemplate(rand io.Reader, name pkix.Name, from time.Time, life time.Duration, pathLen int) (*x509.Certificate, error) {
	serial, err := newSerial(rand)
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: name, NotBefore: from, NotAfter: from.Add(life),
		BasicConstraintsValid: true, IsCA: true, MaxPathLen: pathLen, MaxPathLenZero: pathLen == 0,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil
}

// constrain narrows an issuing CA to its purposes and its domain.
func constrain(t *x509.Certificate, domain string) {
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	t.UnknownExtKeyUsage = []asn1.ObjectIdentifier{certs.EKUIPsecIKE}
	if domain != "" {
		t.PermittedDNSDomains = []string{domain}
		t.PermittedDNSDomainsCritical = true
	}
}

// newSerial returns a random positive serial number of 16 octets, 126 bits of them random (RFC
// 5280, section 4.1.2.2 allows up to 20 octets).
func newSerial(rand io.Reader) (*big.Int, error) {
	var b [16]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b[:]), nil
}

func sign(rand io.Reader, t, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand, t, parent, pub, key)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate for %s: %w", certs.Quote(t.Subject.String()), err)
	}
	return x509.ParseCertificate(der)
}

// CARequest makes the request for an issuing CA's certificate, to be signed by an upstream issuer
// whose root is elsewhere. DER.
func CARequest(rand io.Reader, org, service string, key crypto.Signer) ([]byte, error) {
	if !ValidName(service) {
		return nil, fmt.Errorf("name of the service: expected 1 to 63 letters, digits, '-', '_' and '.', got %s", certs.Quote(service))
	}
	return certs.CSR{Subject: subject(org, service, "Issuing CA")}.Create(rand, key)
}

// Check returns nil when the CA is fit to issue at now: key and certificate belong together, the
// issuing CA is signed by the root, both are valid, and both have the profile of docs/pki.md.
// Errors are ErrCA.
func (ca *CA) Check(now time.Time) error {
	bad := func(format string, a ...any) error { return fmt.Errorf("%w: "+format, append([]any{ErrCA}, a...)...) }
	if ca == nil || ca.Root == nil || ca.Cert == nil || ca.Key == nil {
		return bad("expected a root, an issuing CA and its key, got less")
	}
	if !certs.SamePublicKey(ca.Cert.PublicKey, ca.Key.Public()) {
		return bad("expected the key of %s, got another one; give the key that the request was made with", certs.SubjectOf(ca.Cert))
	}
	if ca.RootKey != nil && !certs.SamePublicKey(ca.Root.PublicKey, ca.RootKey.Public()) {
		return bad("expected the key of %s, got another one", certs.SubjectOf(ca.Root))
	}
	if len(ca.Cross) > maxCross {
		return bad("expected at most %d cross-certificates, got %d", maxCross, len(ca.Cross))
	}
	if len(ca.Between) > maxBetween {
		return bad("expected at most %d CAs between root and issuing CA, got %d", maxBetween, len(ca.Between))
	}
	for _, c := range append([]*x509.Certificate{ca.Root, ca.Cert}, ca.Between...) {
		const usage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
		switch {
		case !c.BasicConstraintsValid || !c.IsCA:
			return bad("expected a CA certificate (basicConstraints cA), got %s without; have it issued as a CA", certs.SubjectOf(c))
		case c.KeyUsage&usage != usage:
			return bad("expected keyUsage keyCertSign and cRLSign in %s; have it issued with both", certs.SubjectOf(c))
		case now.After(c.NotAfter):
			return bad("%w: expected a certificate valid at %s, %s was valid until %s", ErrCAEnded, stamp(now), certs.SubjectOf(c), stamp(c.NotAfter))
		case now.Before(c.NotBefore):
			return bad("expected a certificate valid at %s, %s is valid from %s to %s", stamp(now), certs.SubjectOf(c), stamp(c.NotBefore), stamp(c.NotAfter))
		case len(c.SubjectKeyId) == 0:
			return bad("expected a subject key identifier in %s; have it issued with one (RFC 5280, section 4.2.1.2)", certs.SubjectOf(c))
		}
		if err := certs.CheckPublicKey(c.PublicKey); err != nil {
			return bad("%s: %v", certs.SubjectOf(c), err)
		}
	}
	if err := ca.checkPath(); err != nil {
		return bad("%v", err)
	}
	if ca.Cert.MaxPathLen != 0 || !ca.Cert.MaxPathLenZero {
		return bad("expected pathLenConstraint 0 in %s; have it issued so", certs.SubjectOf(ca.Cert))
	}
	if !purposes(ca.Cert) {
		return bad("expected extendedKeyUsage ipsecIKE and clientAuth, or none, in %s", certs.SubjectOf(ca.Cert))
	}
	if ca.RootCRL != nil {
		if err := certs.CheckCRL(ca.RootCRL, ca.Root); err != nil {
			return bad("the root's revocation list: %v", err)
		}
	}
	return nil
}

// purposes reports whether a CA's extendedKeyUsage leaves room for what its leaves carry.
func purposes(c *x509.Certificate) bool {
	if len(c.ExtKeyUsage) == 0 && len(c.UnknownExtKeyUsage) == 0 {
		return true
	}
	client, ike := false, false
	for _, e := range c.ExtKeyUsage {
		client = client || e == x509.ExtKeyUsageClientAuth || e == x509.ExtKeyUsageAny
		ike = ike || e == x509.ExtKeyUsageAny
	}
	for _, e := range c.UnknownExtKeyUsage {
		ike = ike || e.Equal(certs.EKUIPsecIKE)
	}
	return client && ike
}

// AddRootCRL sets the list of an offline root.
func (ca *CA) AddRootCRL(l *x509.RevocationList) error {
	if err := certs.CheckCRL(l, ca.Root); err != nil {
		return err
	}
	ca.RootCRL = l
	return nil
}

// CrossSign makes the certificates that let old and new CA be used side by side, and returns the
// new CA with them: the new root by the old and the old root by the new (RFC 4210, section 4.4:
// NewWithOld, OldWithNew), and each issuing CA by the other's root, so that a peer that knows only
// one of the anchors finds a path within the roots' pathLenConstraint. They end with the certificate that
// ends first. Both roots' keys must be here: ErrRootOffline.
func CrossSign(rand io.Reader, old, next *CA, now time.Time) (*CA, error) {
	if old.RootKey == nil || next.RootKey == nil {
		return nil, fmt.Errorf("%w: have the certificates between old and new made where the roots are", ErrRootOffline)
	}
	one := func(subject, issuer *x509.Certificate, key crypto.Signer) (*x509.Certificate, error) {
		serial, err := newSerial(rand)
		if err != nil {
			return nil, err
		}
		until := subject.NotAfter
		if issuer.NotAfter.Before(until) {
			until = issuer.NotAfter
		}
		t := &x509.Certificate{
			SerialNumber: serial, RawSubject: subject.RawSubject, SubjectKeyId: subject.SubjectKeyId,
			// Self-issued certificates get no identifier from crypto/x509 by itself.
			AuthorityKeyId: issuer.SubjectKeyId,
			NotBefore:      now, NotAfter: until,
			BasicConstraintsValid: true, IsCA: true, MaxPathLen: subject.MaxPathLen, MaxPathLenZero: subject.MaxPathLenZero,
			KeyUsage: subject.KeyUsage, ExtKeyUsage: subject.ExtKeyUsage, UnknownExtKeyUsage: subject.UnknownExtKeyUsage,
			PermittedDNSDomains: subject.PermittedDNSDomains, PermittedDNSDomainsCritical: subject.PermittedDNSDomainsCritical,
			CRLDistributionPoints: subject.CRLDistributionPoints,
		}
		return sign(rand, t, issuer, subject.PublicKey, key)
	}
	out := *next
	out.Cross = nil
	for _, c := range []struct {
		subject, issuer *x509.Certificate
		key             crypto.Signer
	}{
		{next.Cert, old.Root, old.RootKey},
		{old.Cert, next.Root, next.RootKey},
		{next.Root, old.Root, old.RootKey},
		{old.Root, next.Root, next.RootKey},
	} {
		made, err := one(c.subject, c.issuer, c.key)
		if err != nil {
			return nil, err
		}
		out.Cross = append(out.Cross, made)
	}
	return &out, nil
}

// rootCRL returns the root's list: made here, brought along, or nil.
func (ca *CA) rootCRL(ctx context.Context, s *Service, now time.Time) (*x509.RevocationList, error) {
	if ca.RootKey == nil {
		return ca.RootCRL, nil
	}
	return s.makeCRL(ctx, ca.Root, ca.RootKey, nil, now)
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
