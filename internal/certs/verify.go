package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Options is what [VerifyChain] judges and by what.
type Options struct {
	Leaf          []byte            // DER of the end entity's certificate
	Parsed        *x509.Certificate // what ParseCertificate made of Leaf, to spare doing it again; nil: not at hand
	Intermediates [][]byte          // DER, as the peer sent them, in any order; superfluous ones do no harm
	Anchors       []*x509.Certificate
	CRLs          []*x509.RevocationList

	// RequireCRL makes it an error when a certificate below the anchor has no current revocation
	// list. Without it, lists that are given still count (also stale ones: whoever they name
	// is refused), but a missing one is no obstacle.
	RequireCRL bool

	// OCSP are responses (DER, RFC 6960) about the leaf or CAs of the chain. A current one that says
	// "good" stands for a revocation list; one that says "revoked" refuses. Others do no harm.
	OCSP [][]byte

	// EKU is the purpose that the leaf must name in its extendedKeyUsage; anyExtendedKeyUsage
	// is not enough (RFC 5280, section 4.2.1.12 allows that). CA certificates on the path that
	// have the extension must name it, or "any". Nil: no purpose is asked for.
	EKU asn1.ObjectIdentifier

	At time.Time // the time of the verdict; must not be zero

	// RelatedTo is the DER of the device certificate that the leaf must be bound to by
	// RelatedCertificate (RFC 9763). Nil: no binding is asked for.
	RelatedTo []byte

	ID   *ID    // identity that the leaf must vouch for (RFC 4945); nil: not checked
	Role string // "device", "service", "policy signer": for the texts
}

// Verified is a chain that was accepted.
type Verified struct {
	Leaf  *x509.Certificate
	Chain []*x509.Certificate // leaf first, anchor last

	// ValidUntil is when the verdict ends by itself: the earliest notAfter on the path and, with
	// RequireCRL, the earliest nextUpdate of the lists used.
	ValidUntil time.Time
}

// VerifyChain judges a certificate chain: it looks for a path from the leaf to an anchor whose
// signatures hold, and then checks the whole path by RFC 5280, section 6 (validity,
// basicConstraints, path length, keyUsage, extendedKeyUsage along the chain, name constraints,
// unknown critical extensions), key strength, revocation, the binding to the device and the
// identity. Every error is an *Error; its class tells the reason.
//
// It never trusts a certificate merely because it was sent: with no anchors everything is refused.
// The work is bounded (MaxCertificateBytes, MaxIntermediates, MaxChain, MaxSignatureChecks).
func VerifyChain(opt Options) (*Verified, error) {
	v, err := verifyChain(&opt)
	if err != nil {
		if e, ok := errors.AsType[*Error](err); ok && e.Role == "" {
			e.Role = opt.Role
		}
		return nil, err
	}
	return v, nil
}

func verifyChain(opt *Options) (*Verified, error) {
	if opt.At.IsZero() {
		return nil, &Error{Class: Unknown, Expected: "a time to judge the certificate at", Got: "the zero time", Do: "this is a mistake in the caller"}
	}
	if len(opt.Anchors) == 0 {
		return nil, &Error{Class: AnchorsMissing, Expected: "at least one trust anchor", Got: "none", Do: "have a policy installed that names the CA"}
	}
	if len(opt.Intermediates) > MaxIntermediates {
		return nil, &Error{Class: TooLarge, Expected: fmt.Sprintf("at most %d certificates beside the end entity's", MaxIntermediates), Got: fmt.Sprint(len(opt.Intermediates)), Do: "the peer must send only the certificates between its own and the anchor"}
	}
	leaf := opt.Parsed
	if leaf == nil || !bytes.Equal(leaf.Raw, opt.Leaf) {
		var err error
		if leaf, err = ParseCertificate(opt.Leaf); err != nil {
			return nil, err
		}
	}
	if err := CheckPublicKey(leaf.PublicKey); err != nil {
		return nil, at(err, leaf)
	}
	s := search{anchors: opt.Anchors, budget: MaxSignatureChecks}
	for _, der := range opt.Intermediates {
		if c := KnownCA(der); c != nil {
			s.pool = append(s.pool, c)
			continue
		}
		c, err := ParseCertificate(der)
		if err != nil {
			s.note(err) // harmless unless the path needed it
			continue
		}
		s.pool = append(s.pool, c)
	}
	s.extend([]*x509.Certificate{leaf})
	if len(s.paths) == 0 {
		return nil, s.failure(leaf, opt.Anchors)
	}
	var first error
	for _, path := range s.paths {
		v, err := checkPath(path, opt)
		if err == nil {
			return v, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// maxPaths bounds how many paths are judged when cross-certificates offer several.
const maxPaths = 4

// search looks for paths whose names and signatures fit.
type search struct {
	pool, anchors []*x509.Certificate
	budget        int // signature verifications left
	paths         [][]*x509.Certificate
	obstacle      error // the most telling reason why a step was not taken
}

func (s *search) note(err error) {
	if s.obstacle == nil {
		s.obstacle = err
	}
}

func (s *search) extend(path []*x509.Certificate) {
	last := path[len(path)-1]
	// Where there is no choice, the signature is checked with the whole path, once; see checkPath.
	only := s.issuers(path) == 1
	for _, a := range s.anchors {
		if len(s.paths) < maxPaths && s.issued(a, last, only) {
			s.paths = append(s.paths, append(path[:len(path):len(path)], a))
		}
	}
	for _, c := range s.pool {
		if len(s.paths) >= maxPaths || onPath(path, c) {
			continue
		}
		if !mayIssue(c, last) {
			continue
		}
		if len(path)+2 > MaxChain {
			s.note(&Error{Class: TooLarge, Subject: SubjectOf(path[0]), Expected: fmt.Sprintf("a chain of at most %d certificates", MaxChain), Got: "a longer one", Do: "have the certificate issued closer to the anchor"})
			continue
		}
		if s.issued(c, last, only) {
			s.extend(append(path[:len(path):len(path)], c))
		}
	}
}

// issuers counts the certificates by whose names the last one of a path may have been issued.
func (s *search) issuers(path []*x509.Certificate) (n int) {
	last := path[len(path)-1]
	for _, a := range s.anchors {
		if mayIssue(a, last) && !a.Equal(last) {
			n++
		}
	}
	for _, c := range s.pool {
		if mayIssue(c, last) && !onPath(path, c) {
			n++
		}
	}
	return n
}

func onPath(path []*x509.Certificate, c *x509.Certificate) bool {
	for _, p := range path {
		if p.Equal(c) || (bytes.Equal(p.RawSubject, c.RawSubject) && bytes.Equal(p.RawSubjectPublicKeyInfo, c.RawSubjectPublicKeyInfo)) {
			return true
		}
	}
	return false
}

// mayIssue compares names and key identifiers (RFC 5280, sections 4.1.2.4 and 4.2.1.1).
func mayIssue(parent, child *x509.Certificate) bool {
	if !bytes.Equal(parent.RawSubject, child.RawIssuer) {
		return false
	}
	return len(child.AuthorityKeyId) == 0 || len(parent.SubjectKeyId) == 0 || bytes.Equal(child.AuthorityKeyId, parent.SubjectKeyId)
}

// issued tells whether parent issued child. With later, everything but the signature is looked at.
func (s *search) issued(parent, child *x509.Certificate, later bool) bool {
	if !mayIssue(parent, child) || parent.Equal(child) {
		return false
	}
	if !strongSignature(child.SignatureAlgorithm) {
		s.note(&Error{Class: WeakKey, Subject: SubjectOf(child), Expected: "a signature with SHA-256, SHA-384, SHA-512 or Ed25519", Got: Quote(child.SignatureAlgorithm.String()), Do: "have the certificate issued again"})
		return false
	}
	// The issuer's key is bounded before it is used: it may have come from the peer.
	if err := CheckPublicKey(parent.PublicKey); err != nil {
		s.note(at(err, parent))
		return false
	}
	if s.budget == 0 {
		s.note(&Error{Class: TooLarge, Subject: SubjectOf(child), Expected: fmt.Sprintf("a path that is found with %d signature checks", MaxSignatureChecks), Got: "one that needs more", Do: "the peer must send only the certificates between its own and the anchor"})
		return false
	}
	s.budget--
	if later {
		return true
	}
	if err := checkIssued(parent, child); err != nil {
		s.note(err)
		return false
	}
	return true
}

// checkIssued checks the signature of child.
func checkIssued(parent, child *x509.Certificate) error {
	err := parent.CheckSignature(child.SignatureAlgorithm, child.RawTBSCertificate, child.Signature)
	if err == nil {
		return nil
	}
	return &Error{Class: UnknownCA, Subject: SubjectOf(child), Expected: "a signature by " + SubjectOf(parent), Got: "one that does not verify with that CA's key", Do: "the certificate was altered, or another CA has the same name: have it issued again by the right CA", Err: err}
}

// failure says why no path was found.
func (s *search) failure(leaf *x509.Certificate, anchors []*x509.Certificate) error {
	if s.obstacle != nil {
		return s.obstacle
	}
	var names []string
	for i, a := range anchors {
		if i == 3 {
			names = append(names, fmt.Sprintf("%d more", len(anchors)-i))
			break
		}
		names = append(names, SubjectOf(a))
	}
	issuer, ok := dnString(leaf.RawIssuer)
	if !ok {
		issuer = "?"
	}
	got := "one issued by " + Quote(issuer)
	if len(s.pool) > 0 {
		got += fmt.Sprintf(" with %d other certificates that do not lead there", len(s.pool))
	}
	return &Error{
		Class: UnknownCA, Subject: SubjectOf(leaf),
		Expected: "a certificate that chains to " + strings.Join(names, ", "), Got: got,
		Do: "have it issued by that CA, send the missing intermediate, or have the CA added to the policy",
	}
}

// checkPath judges a path, leaf first, anchor last. Only what crypto/x509 accepts, which checks every
// signature on it, ever gets to the end; where it does not, the signatures are looked at first, since
// nothing else means anything without them.
func checkPath(path []*x509.Certificate, opt *Options) (*Verified, error) {
	library := checkByLibrary(path, opt.At)
	if library != nil {
		for i, c := range path[:len(path)-1] {
			if err := checkIssued(path[i+1], c); err != nil {
				return nil, err
			}
		}
	}
	leaf := path[0]
	until := leaf.NotAfter
	for i, c := range path {
		if err := checkOne(c, path, i, opt); err != nil {
			return nil, at(err, c)
		}
		if c.NotAfter.Before(until) {
			until = c.NotAfter
		}
	}
	if library != nil {
		return nil, at(library, leaf)
	}
	for i, c := range path[:len(path)-1] {
		good, next, err := revokedByOCSP(c, path[i+1], opt.OCSP, opt.At)
		if err != nil {
			return nil, at(err, c)
		}
		// The lists count also then: whoever one of the two names is refused.
		listed, err := checkRevocation(c, path[i+1], opt.CRLs, opt.RequireCRL && !good, opt.At)
		if err != nil {
			return nil, at(err, c)
		}
		if !good {
			next = listed
		}
		if opt.RequireCRL && next.Before(until) {
			until = next
		}
	}
	if opt.RelatedTo != nil {
		if err := CheckRelated(leaf, opt.RelatedTo); err != nil {
			return nil, err
		}
	}
	if opt.ID != nil {
		if err := MatchID(leaf, *opt.ID); err != nil {
			return nil, err
		}
	}
	for _, c := range path[1 : len(path)-1] {
		knownCAs.add(c)
	}
	return &Verified{Leaf: leaf, Chain: path, ValidUntil: until}, nil
}

// checkOne judges the certificate at place i of the path.
func checkOne(c *x509.Certificate, path []*x509.Certificate, i int, opt *Options) error {
	isLeaf, isAnchor := i == 0, i == len(path)-1
	switch {
	case opt.At.Before(c.NotBefore):
		return &Error{Class: NotYetValid, Expected: "a certificate valid at " + stamp(opt.At), Got: "one valid from " + stamp(c.NotBefore), Do: "check this machine's clock; if it is right, wait or have the certificate issued again"}
	case opt.At.After(c.NotAfter):
		return &Error{Class: Expired, Expected: "a certificate valid at " + stamp(opt.At), Got: "one valid until " + stamp(c.NotAfter), Do: "check this machine's clock; if it is right, have the certificate renewed"}
	}
	if err := checkConstraintForms(c); err != nil {
		return err
	}
	if !isAnchor {
		if err := checkCritical(c); err != nil {
			return err
		}
	}
	if isLeaf {
		// RFC 4945, section 5.1.3.9: an end entity's certificate is no CA certificate.
		if c.IsCA {
			return &Error{Class: KeyUsage, Expected: "an end entity's certificate", Got: "a CA certificate", Do: "have a certificate for the device issued; a CA's own is not for use in connections"}
		}
		// RFC 4945, section 5.1.3.2: if present, digitalSignature or nonRepudiation is asserted.
		if hasExtension(c, oidExtKeyUsage) && c.KeyUsage&(x509.KeyUsageDigitalSignature|x509.KeyUsageContentCommitment) == 0 {
			return &Error{Class: KeyUsage, Expected: "keyUsage digitalSignature", Got: keyUsageText(c.KeyUsage), Do: "have the certificate issued with it"}
		}
	} else if err := checkCA(c, path, i, isAnchor); err != nil {
		return err
	}
	return checkEKU(c, opt.EKU, isLeaf)
}

// checkCA judges an issuer. RFC 5280, sections 4.2.1.9, 4.2.1.3 and 6.1.4 (k) to (n).
func checkCA(c *x509.Certificate, path []*x509.Certificate, i int, isAnchor bool) error {
	// An anchor may be a version 1 certificate as far as RFC 5280 goes; the profile asks for more.
	if c.Version != 3 || !c.BasicConstraintsValid || !c.IsCA {
		return &Error{Class: NotCA, Expected: "a CA certificate (basicConstraints cA TRUE) as issuer", Got: "one that may not issue", Do: "have the certificate issued by a CA"}
	}
	has := hasExtension(c, oidExtKeyUsage)
	if (has || !isAnchor) && c.KeyUsage&x509.KeyUsageCertSign == 0 {
		return &Error{Class: KeyUsage, Expected: "keyUsage keyCertSign in a CA certificate", Got: keyUsageText(c.KeyUsage), Do: "have the CA certificate issued with it"}
	}
	if c.MaxPathLen > 0 || (c.MaxPathLen == 0 && c.MaxPathLenZero) {
		below := 0
		for _, p := range path[1:i] {
			if !bytes.Equal(p.RawSubject, p.RawIssuer) { // self-issued ones do not count
				below++
			}
		}
		if below > c.MaxPathLen {
			return &Error{Class: PathLength, Expected: fmt.Sprintf("at most %d CA certificates below it (pathLenConstraint)", c.MaxPathLen), Got: fmt.Sprint(below), Do: "a CA issued a CA certificate that it may not issue: tell the operator of the CA"}
		}
	}
	return nil
}

// checkEKU looks for the purpose. crypto/x509 knows only some purposes, so ours are looked for by
// OID in the extension itself. RFC 5280, section 4.2.1.12; that a CA's purposes bound those of
// the certificates below it is common practice, which section 6 neither asks for nor forbids.
func checkEKU(c *x509.Certificate, want asn1.ObjectIdentifier, isLeaf bool) error {
	if want == nil {
		return nil
	}
	purposes, present, err := ekus(c)
	if err != nil {
		return err
	}
	if !present && !isLeaf {
		return nil
	}
	var got []string
	for _, p := range purposes {
		if p.Equal(want) || (!isLeaf && p.Equal(oidEKUAny)) {
			return nil
		}
		if len(got) < 6 {
			got = append(got, EKUName(p))
		}
	}
	g := "none"
	if len(got) > 0 {
		g = strings.Join(got, ", ")
	}
	return &Error{Class: WrongEKU, Expected: "extendedKeyUsage " + EKUName(want), Got: g, Do: "have the certificate issued for this purpose"}
}

// ekus returns the purposes in the extendedKeyUsage of c.
func ekus(c *x509.Certificate) (purposes []asn1.ObjectIdentifier, present bool, err error) {
	for _, e := range c.Extensions {
		if !e.Id.Equal(oidExtEKU) {
			continue
		}
		rest, err := asn1.Unmarshal(e.Value, &purposes)
		if err != nil || len(rest) != 0 {
			return nil, true, &Error{Class: Malformed, Expected: "a list of purposes in extendedKeyUsage", Got: "something else", Do: "have the certificate issued again", Err: err}
		}
		return purposes, true, nil
	}
	return nil, false, nil
}

// EKUName names a purpose for people.
func EKUName(oid asn1.ObjectIdentifier) string {
	switch {
	case oid.Equal(EKUIPsecIKE):
		return "ipsecIKE (" + oid.String() + ")"
	case oid.Equal(EKUPolicySigning):
		return "policy signing (" + oid.String() + ")"
	case oid.Equal(EKUClientAuth):
		return "clientAuth"
	case oid.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}):
		return "serverAuth"
	case oid.Equal(oidEKUAny):
		return "any"
	}
	return oid.String()
}

// checkCritical refuses critical extensions that neither crypto/x509 nor this package handles
// (RFC 5280, section 4.2). RelatedCertificate should not be critical, but is understood if it is.
func checkCritical(c *x509.Certificate) error {
	for _, oid := range c.UnhandledCriticalExtensions {
		if !oid.Equal(OIDRelatedCertificate) {
			return &Error{Class: Malformed, Expected: "only critical extensions that are known", Got: oid.String(), Do: "have the certificate issued without it"}
		}
	}
	return nil
}

// checkByLibrary has crypto/x509 judge the path: it checks the signatures, adds the name constraints,
// and is a second opinion on the rest.
//
// What it accepted is remembered. Its verdict follows from the certificates and from the time alone,
// and checkPath compares the time with each of them itself. Of a new leaf under a CA that is known,
// only the leaf is new: when no certificate above the CA has name constraints, which would have to be
// set against the leaf, the leaf is judged with the CA as its root, and the CA's own path is remembered.
func checkByLibrary(path []*x509.Certificate, when time.Time) error {
	if slices.ContainsFunc(path, func(c *x509.Certificate) bool { return len(c.Raw) == 0 }) {
		return libraryError(askLibrary(path, when)) // not parsed: nothing names it
	}
	key := pathKey(path)
	if acceptedPaths.has(key) {
		return nil
	}
	var err error
	if len(path) > 2 && !slices.ContainsFunc(path[2:], constrainsNames) && askLibraryOnce(path[1:], when) {
		err = askLibrary(path[:2], when)
	} else {
		err = askLibrary(path, when)
	}
	if err == nil {
		acceptedPaths.add(key)
		return nil
	}
	return libraryError(err)
}

// askLibraryOnce tells whether crypto/x509 accepts a path, now or before.
func askLibraryOnce(path []*x509.Certificate, when time.Time) bool {
	key := pathKey(path)
	if acceptedPaths.has(key) {
		return true
	}
	if askLibrary(path, when) != nil {
		return false
	}
	acceptedPaths.add(key)
	return true
}

// errOtherPath is a path that crypto/x509 does not take although it finds another one.
var errOtherPath = errors.New("crypto/x509 finds another path through these certificates")

func askLibrary(path []*x509.Certificate, when time.Time) error {
	leaf, anchor := path[0], path[len(path)-1]
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(anchor)
	for _, c := range path[1 : len(path)-1] {
		between.AddCert(c)
	}
	l := *leaf
	l.UnhandledCriticalExtensions = nil // judged by checkCritical
	chains, err := l.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: when,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return err
	}
	// It is this very path whose signatures must have been checked.
	if !slices.ContainsFunc(chains, func(c []*x509.Certificate) bool { return slices.EqualFunc(c, path, (*x509.Certificate).Equal) }) {
		return errOtherPath
	}
	return nil
}

// libraryError says in our words what crypto/x509 said; nil for nil.
func libraryError(err error) error {
	if err == nil {
		return nil
	}
	e := &Error{Class: Malformed, Expected: "a path that crypto/x509 accepts", Got: parseText(err), Do: "have the certificate issued again", Err: err}
	if inv, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		switch inv.Reason {
		case x509.CANotAuthorizedForThisName, x509.UnconstrainedName:
			e.Class, e.Expected = NameConstraint, "names within what its CA may certify"
		case x509.TooManyConstraints:
			e.Class = TooLarge
		case x509.TooManyIntermediates:
			e.Class = PathLength
		}
	}
	// An unknown critical extension in the anchor or an intermediate surfaces as an unknown
	// authority; our own checks have passed by then, so what remains are the CA's constraints.
	return e
}

func hasExtension(c *x509.Certificate, oid asn1.ObjectIdentifier) bool {
	for _, e := range c.Extensions {
		if e.Id.Equal(oid) {
			return true
		}
	}
	return false
}

func keyUsageText(u x509.KeyUsage) string {
	names := []string{
		"digitalSignature", "nonRepudiation", "keyEncipherment", "dataEncipherment", "keyAgreement",
		"keyCertSign", "cRLSign", "encipherOnly", "decipherOnly",
	}
	var got []string
	for i, n := range names {
		if u&(1<<i) != 0 {
			got = append(got, n)
		}
	}
	if len(got) == 0 {
		return "no keyUsage"
	}
	return "keyUsage " + strings.Join(got, ", ")
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
